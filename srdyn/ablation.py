"""Interventions that undo themselves.

Which heads they act on is a mask over the model's head grid, True where they act: `~pruning.select(score, share)`, say,
as `select` is True for what stays.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from srdyn import architectures, models
from srdyn.architectures import feeding, recipe
from srdyn.kernels import recurrence

_Heads = Bool[Tensor, "L H"]
_State = Float[Tensor, "B n K V"]


@contextlib.contextmanager
def ablate_heads(model: models.Model, heads: _Heads) -> Iterator[None]:
    """While this is open, the heads are out of the recurrence: they write nothing, their state is zero at all t.

    It holds for whole passes, over a cache and in `generate`. Blocks nest, also with `states.trace` and `states.gates`,
    which still tells what the heads would write. Raises as `checked_heads` does.
    """
    with contextlib.ExitStack() as stack:
        for site, chosen in _touched(model, heads):
            stack.enter_context(_changed(site, functools.partial(site.recipe.silenced, chosen=chosen)))
            stack.enter_context(site.recipe.silencing(site.mixer, chosen))
        yield


def truncate_states(
    model: models.Model, rank: int, heads: _Heads, positions: recurrence.Positions
) -> contextlib.AbstractContextManager[None]:
    """`change_states` to the best approximation of a rank, 0 to forget all. Raises ValueError for a negative one."""
    if rank < 0:
        raise ValueError(f"rank must be 0 or more, got {rank}")
    return change_states(model, functools.partial(_of_rank, rank), heads, positions)


@contextlib.contextmanager
def change_states(
    model: models.Model, change: Callable[[_State], _State], heads: _Heads, positions: recurrence.Positions
) -> Iterator[None]:
    """While this is open, a pass over a whole sequence reads on from what `change` makes of states at the positions.

    `functools.partial(kernels.rounding.rounded, form="int8")`, say, or `torch.zeros_like`: a checkpoint without them.
    Raises ValueError as `checked_heads` does, and when a pass goes on from a cache, is too short, or is traced.
    """
    with contextlib.ExitStack() as stack:
        for site, chosen in _touched(model, heads):
            changed = functools.partial(_with_changed, change, chosen)
            # A step always brings a state along, which `fed` refuses.
            fed = functools.partial(feeding.fed, site.recipe, positions, changed, chunk=1)
            stack.enter_context(feeding.taken_over(site, fed))
        yield


@contextlib.contextmanager
def set_half_life(
    model: models.Model, heads: _Heads, *, tokens: float | int | None = None, factor: float | int | None = None
) -> Iterator[None]:
    """While this is open, half of what the heads hold is gone after `tokens`, or after `factor` times as many as else.

    `tokens` gives every token, and every key channel that decays apart, the log-decay g = −ln 2 / tokens; `factor`
    makes it g / factor, so that the text still gates. Infinity: nothing is forgotten. The decay alone is set: what a
    token writes, and what erases beside the decay (the delta rules, RWKV-7), is as before.

    It holds where `ablate_heads` does; inside, `states.gates` and `states.inputs` tell what is set. Of two blocks for
    one head the inner one changes what the outer one made of it. Raises ValueError unless one of tokens and factor is
    given, above 0, for heads that do not decay, and as `checked_heads` does.
    """
    if (tokens is None) == (factor is None) or not (tokens or factor or 0) > 0:
        raise ValueError(f"give tokens or factor, one of them, above 0; got tokens={tokens}, factor={factor}")
    scale, added = (0.0, -math.log(2) / tokens) if factor is None else (1 / factor, 0.0)
    touched = list(_touched(model, heads))
    if not all(site.recipe.has_decay for site, _ in touched):
        raise ValueError(f"heads of {model.name} do not decay: what they hold has no half-life that could be set")
    with contextlib.ExitStack() as stack:
        for site, chosen in touched:
            decay = recipe.Decay(torch.where(chosen, scale, 1.0), torch.where(chosen, added, 0.0))
            stack.enter_context(_forgetting(site, decay))
        yield


@contextlib.contextmanager
def attention_window(model: models.Model, window: int) -> Iterator[None]:
    """While this is open, every softmax layer sees the last `window` tokens only, the present one included.

    Raises ValueError without softmax layers in sdpa or eager, for a window below 1, when a pass goes on from a cache.
    """
    kinds = getattr(model.hf.config.get_text_config(decoder=True), "layer_types", None) or []
    layers = zip(model.hf.get_decoder().layers, kinds, strict=True) if kinds else ()
    attentions = [getattr(layer, "self_attn", None) for layer, kind in layers if kind == "full_attention"]
    if not attentions or None in attentions:
        told = f"but layers {', '.join(sorted(set(kinds))) or 'of no kinds that its configuration tells'}"
        raise ValueError(f"{model.name} has no softmax layers whose window could be cut (full_attention), {told}")
    if window < 1:
        raise ValueError(f"window must be 1 token or more, got {window}")
    kind = attentions[0].config._attn_implementation
    if kind not in ("sdpa", "eager"):
        raise ValueError(f'{model.name} attends with {kind}; call model.hf.set_attn_implementation("sdpa") first')
    with contextlib.ExitStack() as hooks:
        for attention in attentions:
            hook = functools.partial(_narrow, window)
            hooks.enter_context(attention.register_forward_pre_hook(hook, with_kwargs=True))
        yield


def checked_heads(model: models.Model, heads: Tensor) -> _Heads:
    """The heads; ValueError unless they are a Bool [L, H] over the model's grid without any that was pruned away."""
    models.checked_mask(model, heads, "heads")
    for layer, held in enumerate(model.layers):
        gone = sorted(set(heads[layer].nonzero()[:, 0].tolist()) - set(held.heads))
        if gone:
            held = f"holds heads {list(held.heads)}, not {gone}, which were pruned away"
            raise ValueError(f"linear layer {layer} of {model.name} {held}; choose among those it holds")
    return heads


def matched_random(heads: _Heads, *, generator: torch.Generator) -> _Heads:
    """As many heads of every layer as `heads` has, at random among all of the layer's, those in `heads` included."""
    matched = torch.zeros_like(heads)
    for layer, row in enumerate(heads):
        matched[layer, torch.randperm(len(row), generator=generator)[: int(row.sum())]] = True
    return matched


def _touched(model: models.Model, heads: Tensor) -> Iterator[tuple[architectures.Site, Bool[Tensor, " held"]]]:
    """The layers with a chosen head, each with the choice among the heads that it holds, in their order."""
    checked_heads(model, heads)
    for row, held, site in zip(heads, model.layers, architectures.sites(model.hf), strict=True):
        if row.any():
            yield site, row[list(held.heads)]


def _changed(site: architectures.Site, change: Callable) -> contextlib.AbstractContextManager[None]:
    """While this is open, the recurrence is called with what `change` makes of each call."""
    return feeding.taken_over(site, lambda function, call: site.recipe.run(function, change(call)))


@contextlib.contextmanager
def _forgetting(site: architectures.Site, decay: recipe.Decay) -> Iterator[None]:
    """While this is open, the layer has these decays, upon those that are set already: one tap reads what stands."""
    before = getattr(site.mixer, "srdyn_decay", None)
    with contextlib.ExitStack() as undone:
        undone.callback(setattr, site.mixer, "srdyn_decay", before)
        if before is None:
            undone.enter_context(_changed(site, lambda call: site.recipe.forgetting(call, site.mixer.srdyn_decay)))
        site.mixer.srdyn_decay = decay if before is None else before.then(decay)
        yield


def _with_changed(change: Callable[[_State], _State], chosen: Bool[Tensor, " held"], _: int, state: Tensor) -> Tensor:
    """The state with what `change` makes of the chosen heads'."""
    where, state = chosen.to(state.device), state.clone()
    state[:, where] = change(state[:, where])
    return state


def _of_rank(rank: int, state: _State) -> _State:
    """The best approximation of this rank (Eckart & Young)."""
    left, sigma, right = torch.linalg.svd(state.double(), full_matrices=False)
    return ((left[..., :rank] * sigma[..., None, :rank]) @ right[..., :rank, :]).to(state.dtype)


def _narrow(window: int, attention: nn.Module, arguments: tuple, options: dict) -> tuple[tuple, dict]:
    """The arguments of one softmax layer with a mask that lets each token see itself and window − 1 before it."""
    cache, mask, hidden = options.get("past_key_values"), options["attention_mask"], options["hidden_states"]
    if cache is not None and cache.get_seq_length(attention.layer_idx):
        raise ValueError("the window is cut in whole sequences: call the model without past_key_values")
    place = torch.arange(hidden.shape[1], device=hidden.device)
    age = place[:, None] - place
    seen = ((age >= 0) & (age < window))[None, None]
    if mask is not None:
        seen = mask & seen if mask.dtype == torch.bool else mask.masked_fill(~seen, torch.finfo(mask.dtype).min)
    return arguments, options | {"attention_mask": seen}
