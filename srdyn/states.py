"""What the heads hold while the model reads.

Two exact routes to the states at given positions: *segments* reads the tokens piece by piece through the model's own
cache; *forward* reads them in one pass in which each layer's recurrence is fed piece by piece and hands out the state
between. The second reads the weights once. Sequences of a batch are equally long, without padding.
"""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator
from typing import Literal, TypeVar

import torch
from jaxtyping import Float, Float32, Float64, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from srdyn import architectures, models, spectra
from srdyn.architectures import feeding, recipe
from srdyn.kernels import recurrence
from srdyn.loading import processes

log = logging.getLogger(__name__)

Measure = Callable[[Float32[Tensor, "B H K V"]], Float[Tensor, "B H *measured"]]
_Visit = Callable[[int, int, Tensor], None]
_Gates = tuple[Float32[Tensor, "L B T H"], Float32[Tensor, "L B T H"]]
_Taken = TypeVar("Taken")
_MARKS = " ▁▂▃▄▅▆▇█"


def trace(
    model: models.Model,
    tokens: Int[Tensor, "B T"],
    positions: recurrence.Positions,
    *,
    measure: Measure = spectra.singular_values,
    route: Literal["forward", "segments"] = "forward",
) -> Float64[Tensor, "L B C H *measured"]:
    """`measure` of every head's state after each of the positions; heads that were pruned away hold NaN.

    Position p means the state after p tokens. Raises ValueError for positions that are not strictly increasing within 1
    … T, for tokens that are not a filled integer `[B, T]` within the vocabulary, for a state below float32 or with NaN.
    """
    tokens, listed = checked_tokens(model, tokens), recurrence.checked_positions(positions, tokens.shape[-1])
    if route not in ("forward", "segments"):
        raise ValueError(f'route must be "forward" or "segments", got {route!r}')
    values, column = None, {position: c for c, position in enumerate(listed)}
    steps, silent = len(_holding(model)) * len(listed), not processes.is_first()
    with tqdm(total=steps, desc="states", delay=10, leave=False, disable=silent) as bar:

        def visit(layer: int, position: int, state: Tensor) -> None:
            nonlocal values
            measured = measure(state).to("cpu", torch.float64)
            values = _unread(model, len(listed), measured) if values is None else values
            values[layer, :, column[position]][:, list(model.layers[layer].heads)] = measured
            bar.update()

        if route == "segments":
            for snapshot in snapshots(model, tokens, listed):
                visit(*snapshot)
        else:
            with tapped(model, listed, visit):
                _read(model, tokens)
    if values is None:  # no layer holds a head, so that a zero state tells the shape
        values = _unread(model, len(listed), measure(torch.zeros(len(tokens), 1, model.grid.K, model.grid.V)))
    return values


def snapshots(
    model: models.Model, tokens: Int[Tensor, "B T"], positions: recurrence.Positions
) -> Iterator[tuple[int, int, Float32[Tensor, "B H K V"]]]:
    """(layer along L, position, copy of the state) by the segments route, where there are heads. Raises as `trace`."""
    tokens = checked_tokens(model, tokens)
    family = architectures.sites(model.hf)[0].recipe
    cache, start = family.empty_cache(model.hf), 0
    for position in recurrence.checked_positions(positions, tokens.shape[-1]):
        places = torch.arange(start, position, device=tokens.device).expand(len(tokens), -1)
        options = {family.cache_argument: cache, "use_cache": True, "position_ids": places}
        _read(model, tokens[:, start:position], **options)
        for layer, site in _holding(model):
            state = site.recipe.oriented(site.recipe.stored(cache, site.index)).clone()
            yield layer, position, _checked_state(model, layer, position, state)
        start = position


def gates(model: models.Model, tokens: Int[Tensor, "B T"]) -> _Gates:
    """Log-decay g ≤ 0 (mean over channels that decay apart) and write strength of every head and token, or NaN."""
    tokens = checked_tokens(model, tokens)
    with gates_of(model, *tokens.shape) as (g, beta):
        _read(model, tokens)
    return g, beta


@contextlib.contextmanager
def gates_of(model: models.Model, B: int, T: int) -> Iterator[_Gates]:
    """While this is open, a pass over B sequences of T tokens, be it that of `trace`, fills in what `gates` returns."""
    g, beta = torch.full((2, model.grid.L, B, T, model.grid.H), torch.nan)

    def keep(layer: int, read: recipe.Inputs) -> None:
        heads = list(model.layers[layer].heads)
        for kept, gate in zip((g, beta), read.gates, strict=True):
            kept[layer][..., heads] = gate.cpu()

    with _watched(model, keep):
        yield g, beta


def inputs(model: models.Model, tokens: Int[Tensor, "B T"], layer: int) -> tuple[Tensor, ...]:
    """What the recurrence of one layer (counted along axis L) reads, by place for the recipe's `rule`.

    It has q, k, v, g and beta by name. Raises ValueError for a layer without heads and as `checked_tokens` does.
    """
    if not model.layers[layer].heads:
        raise ValueError(f"linear layer {layer} of {model.name} holds no heads, so its recurrence reads nothing")
    found: list[recipe.Inputs] = []
    with _watched(model, lambda at, read: found.append(read) if at == layer else None):
        _read(model, checked_tokens(model, tokens))
    return found[0]


def from_inputs(
    model: models.Model, tokens: Int[Tensor, "B T"], take: Callable[[recipe.Inputs], _Taken]
) -> list[_Taken | None]:
    """`take` of what each layer reads (see `inputs`), in one pass; None for a layer without heads."""
    tokens, taken = checked_tokens(model, tokens), [None] * model.grid.L

    def keep(layer: int, read: recipe.Inputs) -> None:
        taken[layer] = take(read)

    with _watched(model, keep):
        _read(model, tokens)
    return taken


@dataclasses.dataclass
class Watched:
    """Ranks of the last sequences that `watch` saw grow: at `positions[c]` tokens `ranks[c]` is [L, B, H]."""

    positions: list[int] = dataclasses.field(default_factory=list)
    ranks: list[Float64[Tensor, "L B H"]] = dataclasses.field(default_factory=list)

    def stacked(self) -> Float64[Tensor, "L B C H"]:
        """All of them, as `trace` with `spectra.effective_rank` would give them."""
        return torch.stack(self.ranks, 2)


@contextlib.contextmanager
def watch(model: models.Model, *, every: int = 1) -> Iterator[Watched]:
    """While this is open, whatever reads over a cache, such as `model.generate`, tells the ranks of its states.

    They are taken from the cache, in which nothing changes, after the prompt and then every so many tokens, and kept in
    what this yields. In a notebook they are drawn meanwhile, a mark a head, ▁ (rank 0) to █ (D), a line a layer; else
    logged. A new cache begins anew. Raises as `trace` does for a state below float32 or with NaN.
    """
    family, decoder = architectures.sites(model.hf)[0].recipe, model.hf.get_decoder()
    seen, read, last, shown, D = Watched(), 0, None, _display(), model.grid.D

    def look(_decoder: nn.Module, _arguments: tuple, options: dict, output: object) -> None:
        nonlocal read, last
        # Some make the cache themselves, from the first token on.
        caches = (options.get(family.cache_argument), getattr(output, family.cache_argument, None))
        cache = next((x for x in caches if x is not None), None)
        if cache is None:
            return
        if cache is not last:
            read, last, seen.positions[:], seen.ranks[:] = 0, cache, [], []
        B, T = output[0].shape[:2]
        read += T
        if not seen.positions or read >= seen.positions[-1] + every:
            seen.positions.append(read)
            seen.ranks.append(_ranks(model, cache, B, read))
            shown(f"after {read} tokens, ranks of 0 to {D}", _marks(seen.ranks[-1], D))

    hook = decoder.register_forward_hook(look, with_kwargs=True)
    try:
        with feeding.unpadded(model.hf):
            yield seen
    finally:
        hook.remove()


def _ranks(model: models.Model, cache: object, B: int, position: int) -> Float64[Tensor, "L B H"]:
    ranks, alike = torch.full((model.grid.L, B, model.grid.H), torch.nan, dtype=torch.float64), {}
    for layer, site in _holding(model):
        state = _checked_state(model, layer, position, site.recipe.oriented(site.recipe.stored(cache, site.index)))
        alike.setdefault((state.device, state.shape), {})[layer] = state
    for held in alike.values():  # together, since the threads of a CPU share what is measured at once
        sigma = spectra.singular_values(torch.stack(list(held.values()))).to("cpu", torch.float64)
        for layer, found in zip(held, spectra.effective_rank(sigma), strict=True):
            ranks[layer][:, list(model.layers[layer].heads)] = found
    return ranks


def _display() -> Callable[[str, list[str]], None]:
    """What shows a headline and a line a layer: a place in the notebook that changes, or the log."""
    if not processes.in_notebook():
        return lambda headline, lines: log.info("%s: %s", headline, " ".join(lines))
    from IPython import display

    place = display.display(display.Pretty(""), display_id=True)
    return lambda headline, lines: place.update(display.Pretty("\n".join([headline, *lines])))


def _marks(ranks: Float64[Tensor, "L B H"], D: int) -> list[str]:
    """A mark a head, from rank 0 to D, a line a layer."""
    levels = (ranks.mean(1) / D * (len(_MARKS) - 2)).ceil().nan_to_num(nan=-1).int() + 1
    return ["".join(_MARKS[level] for level in row) for row in levels.tolist()]


@contextlib.contextmanager
def _watched(model: models.Model, see: Callable[[int, recipe.Inputs], None]) -> Iterator[None]:
    """While this is open, `see(layer, read)` is told what the recurrence of each layer reads, as a whole."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(feeding.unpadded(model.hf))
        for layer, site in _holding(model):
            stack.enter_context(feeding.watched(site, functools.partial(see, layer)))
        yield


@contextlib.contextmanager
def tapped(model: models.Model, positions: recurrence.Positions, visit: _Visit) -> Iterator[None]:
    """While this is open, every pass over a whole sequence calls `visit(layer, position, state)` (the forward route).

    The recurrence is cut at multiples of its chunk only, which leaves the outputs of the pass bit for bit as they were.
    """

    def told(layer: int, position: int, state: Tensor) -> Tensor:
        visit(layer, position, _checked_state(model, layer, position, state))
        return state

    with contextlib.ExitStack() as stack:
        stack.enter_context(feeding.unpadded(model.hf))
        for layer, site in _holding(model):
            fed = functools.partial(feeding.fed, site.recipe, positions, functools.partial(told, layer))
            stack.enter_context(feeding.taken_over(site, fed, site.recipe.readers))
        yield


def checked_tokens(model: models.Model, tokens: Tensor) -> Tensor:
    """The tokens on the model's device. Raises ValueError unless they are a filled integer [B, T] in the vocabulary."""
    if not isinstance(tokens, Tensor):
        raise ValueError(f"tokens must be a tensor [B, T], got a {type(tokens).__name__}")
    integer = not (tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool)
    if tokens.ndim != 2 or not integer or tokens.numel() == 0:
        wanted = "integers [B, T] with at least one sequence of at least one token"
        raise ValueError(f"tokens must be {wanted}, got {tokens.dtype} {list(tokens.shape)}")
    vocabulary, low, high = model.hf.get_input_embeddings().num_embeddings, int(tokens.min()), int(tokens.max())
    if low < 0 or high >= vocabulary:
        known = f"0 … {vocabulary - 1}, the vocabulary of {model.name}"
        raise ValueError(f"tokens must lie in {known}; got {low} … {high}: were they made by another tokenizer?")
    return tokens.to(model.device, torch.int64)


def _unread(model: models.Model, C: int, measured: Tensor) -> Float64[Tensor, "L B C H *measured"]:
    """Room for what is measured at C positions, NaN throughout; one measurement tells its shape."""
    shape = (model.grid.L, len(measured), C, model.grid.H, *measured.shape[2:])
    return torch.full(shape, torch.nan, dtype=torch.float64)


def _holding(model: models.Model) -> list[tuple[int, architectures.Site]]:
    """The linear layers that hold heads, with their places along axis L."""
    sites = enumerate(architectures.sites(model.hf))
    return [(layer, site) for layer, site in sites if model.layers[layer].heads]


def _checked_state(model: models.Model, layer: int, position: int, state: Tensor) -> Tensor:
    where = f"{model.name}, linear layer {layer} (decoder layer {model.layers[layer].index})"
    if state.dtype != torch.float32:
        why = "rounding adds singular values far above ε·σ₁: use a kernel that keeps its state in float32"
        raise ValueError(f"the state of {where} is {state.dtype}, and only a float32 state is traced; {why}")
    broken = ~state.abs().amax((0, -2, -1)).isfinite()  # the largest number passes NaN on
    if broken.any():
        head = model.layers[layer].heads[int(broken.nonzero()[0])]
        raise ValueError(f"NaN or infinity in the state of {where}, head {head}, position {position}")
    return state


def _read(model: models.Model, tokens: Tensor, **options) -> None:
    """One pass of the decoder without its head: no gradients, evaluation mode, no autocast; undone afterwards."""
    options = {"use_cache": False} | options
    with torch.no_grad(), torch.autocast(tokens.device.type, enabled=False), models.evaluating(model.hf):
        model.hf.get_decoder()(input_ids=tokens, **options)
