"""What the heads hold while the model reads.

Two exact routes to the states at given positions: *segments* reads the tokens piece by piece through the model's own
cache; *forward* reads them in one pass in which each layer's recurrence is fed piece by piece and hands out the state
between. The second reads the weights once. Sequences of a batch are equally long, without padding.
"""

import bisect
import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Literal, TypeVar

import torch
from jaxtyping import Float, Float32, Float64, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from srdyn import architectures, models, spectra
from srdyn.architectures import rebinding, recipe
from srdyn.kernels import recurrence
from srdyn.loading import processes

Measure = Callable[[Float32[Tensor, "B H K V"]], Float[Tensor, "B H *measured"]]
Visit = Callable[[int, int, Tensor], None]
Taken = TypeVar("Taken")
HELD = 2**25
"""Bytes of states that one call may hand out together: memory does not grow with the number of positions."""


def trace(
    model: models.Model,
    tokens: Int[Tensor, "B T"],
    positions: recurrence.Positions,
    *,
    measure: Measure = spectra.singular_values,
    route: Literal["forward", "segments"] = "forward",
) -> Float64[Tensor, "L B C H *measured"]:
    """`measure` of every head's state after each of the positions; heads that were pruned away hold NaN.

    Positions count tokens: p means the state after p of them. Any will do; they need not fall on a kernel's chunk, and
    with the forward route a state does not depend on which others are asked for. A state is dropped once measured.

    Raises ValueError for positions that are not strictly increasing within 1 … T, for tokens that are not a filled
    integer `[B, T]` within the vocabulary, for a state below float32, for a state with NaN (layer, head, position).
    """
    tokens, listed = checked_tokens(model, tokens), recurrence.checked_positions(positions, tokens.shape[-1])
    if route not in ("forward", "segments"):
        raise ValueError(f'route must be "forward" or "segments", got {route!r}')
    readings = _Readings(model, listed, measure)
    steps, silent = len(_holding(model)) * len(listed), not processes.is_first()
    with tqdm(total=steps, desc="states", delay=10, leave=False, disable=silent) as bar:

        def visit(layer: int, position: int, state: Tensor) -> None:
            readings.add(layer, position, state)
            bar.update()

        if route == "segments":
            for layer, position, state in snapshots(model, tokens, listed):
                visit(layer, position, state)
        else:
            with tapped(model, listed, visit):
                _read(model, tokens)
    return readings.of(len(tokens))


def snapshots(
    model: models.Model, tokens: Int[Tensor, "B T"], positions: recurrence.Positions
) -> Iterator[tuple[int, int, Float32[Tensor, "B H K V"]]]:
    """(layer, position, state) by the segments route: position by position, and for each every linear layer in order.

    `layer` counts along axis L. A state is a copy, with the heads that its layer still holds; layers that hold none are
    left out. Raises as `trace` does.
    """
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


def gates(
    model: models.Model, tokens: Int[Tensor, "B T"]
) -> tuple[Float32[Tensor, "L B T H"], Float32[Tensor, "L B T H"]]:
    """Log-decay g ≤ 0 and write strength beta of every head at every token; NaN for heads that were pruned away.

    Where key channels decay apart, g is the mean over those of a head.
    """
    tokens = checked_tokens(model, tokens)
    with gates_of(model, *tokens.shape) as (g, beta):
        _read(model, tokens)
    return g, beta


@contextlib.contextmanager
def gates_of(
    model: models.Model, B: int, T: int
) -> Iterator[tuple[Float32[Tensor, "L B T H"], Float32[Tensor, "L B T H"]]]:
    """While this is open, a pass over B whole sequences of T tokens fills in g and beta, as `gates` returns them.

    So that one pass serves `trace` as well.
    """
    g, beta = torch.full((2, model.grid.L, B, T, model.grid.H), torch.nan)

    def keep(layer: int, site: architectures.Site, _mixer: nn.Module, arguments: tuple, options: dict) -> None:
        hidden = arguments[0] if arguments else options["hidden_states"]
        heads = list(model.layers[layer].heads)
        for kept, gate in zip((g, beta), site.recipe.gates(site.mixer, hidden), strict=True):
            kept[layer][..., heads] = gate.cpu()

    with contextlib.ExitStack() as hooks:
        for layer, site in _holding(model):
            hook = functools.partial(keep, layer, site)
            hooks.enter_context(site.mixer.register_forward_pre_hook(hook, with_kwargs=True))
        yield g, beta


def decays(model: models.Model, tokens: Int[Tensor, "B T"]) -> Float32[Tensor, "L B T H"]:
    """Log-decay g ≤ 0 of every head at every token; NaN for heads that were pruned away."""
    return gates(model, tokens)[0]


def inputs(model: models.Model, tokens: Int[Tensor, "B T"], layer: int) -> tuple[Tensor, ...]:
    """What the recurrence of one layer (counted along axis L) reads, by place for the recipe's `rule`.

    Of most families that is `recipe.Inputs`; of all it has q, k, v, g and beta by name.

    Raises ValueError for a layer without heads and as `checked_tokens` does.
    """
    if not model.layers[layer].heads:
        raise ValueError(f"linear layer {layer} of {model.name} holds no heads, so its recurrence reads nothing")
    tokens, captured = checked_tokens(model, tokens), []
    with _captured(architectures.sites(model.hf)[layer], captured.append):
        _read(model, tokens)
    return captured[0]


def from_inputs(
    model: models.Model, tokens: Int[Tensor, "B T"], take: Callable[[recipe.Inputs], Taken]
) -> list[Taken | None]:
    """`take` of what each layer's recurrence reads (see `inputs`), all in one pass; None for layers without heads."""
    tokens, taken = checked_tokens(model, tokens), [None] * model.grid.L

    def keep(layer: int, read: recipe.Inputs) -> None:
        taken[layer] = take(read)

    with contextlib.ExitStack() as stack:
        for layer, site in _holding(model):
            stack.enter_context(_captured(site, functools.partial(keep, layer)))
        _read(model, tokens)
    return taken


@contextlib.contextmanager
def tapped(model: models.Model, positions: recurrence.Positions, visit: Visit) -> Iterator[None]:
    """While this is open, every pass over a whole sequence calls `visit(layer, position, state)` (the forward route).

    The recurrence is cut at multiples of its chunk only, which leaves the outputs of the pass bit for bit as they were;
    a position inside a chunk gets its state from a side branch that starts at the chunk.
    """
    with contextlib.ExitStack() as stack:
        for layer, site in _holding(model):
            hand_out = _checked_visit(model, layer, site.recipe, visit)
            feeds = {
                name: _Feed(rebinding.meaning(site.mixer, name), site, positions, hand_out)
                for name in site.recipe.readers
            }
            stack.enter_context(rebinding.bound(site.mixer, feeds))
        yield


def checked_tokens(model: models.Model, tokens: Tensor) -> Tensor:
    """The tokens on the model's device. Raises ValueError unless they are a filled integer [B, T] in the vocabulary."""
    integer = not (tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool)
    if tokens.ndim != 2 or not integer or tokens.numel() == 0:
        raise ValueError(
            "tokens must be integers [B, T] with at least one sequence of at least one token, got "
            f"{tokens.dtype} {list(tokens.shape)}"
        )
    vocabulary, low, high = model.hf.get_input_embeddings().num_embeddings, int(tokens.min()), int(tokens.max())
    if low < 0 or high >= vocabulary:
        raise ValueError(
            f"tokens must lie in 0 … {vocabulary - 1}, the vocabulary of {model.name}; got {low} … {high}: "
            "were they made by another tokenizer?"
        )
    return tokens.to(model.device)


def _captured(site: architectures.Site, keep: Callable[[recipe.Inputs], None]) -> contextlib.AbstractContextManager:
    """While this is open, `keep` is called with what the layer's recurrence reads of every whole sequence."""

    def capturing(function: Callable) -> Callable:
        def call(*arguments, **options):
            keep(site.recipe.inputs(site.recipe.taken_apart(arguments, options)))
            return function(*arguments, **options)

        return call

    taps = {name: capturing(rebinding.meaning(site.mixer, name)) for name in site.recipe.readers}
    return rebinding.bound(site.mixer, taps)


class _Feed:
    """A recurrence that is fed in segments and hands out the state at the given positions."""

    def __init__(
        self, function: Callable, site: architectures.Site, positions: recurrence.Positions, hand_out: Callable
    ):
        self.function, self.adapter, self.hand_out = function, site.recipe, hand_out
        heads = site.recipe.heads(site.mixer)
        self.state_bytes = 4 * heads.H * heads.K * heads.V
        self.positions = [int(position) for position in positions]

    def __call__(self, *arguments, **options) -> object:
        call = self.adapter.taken_apart(arguments, options)
        if call.state is not None:
            raise ValueError("a tapped model reads whole sequences: call it without past_key_values")
        recurrence.checked_positions(self.positions, call.tokens)
        outputs, state = [], None
        for output, state in self._parts(call):  # noqa: B007  the last state is returned
            outputs.append(output)
        whole = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
        return self.adapter.returned(whole, state, options)

    def _parts(self, call: recipe.Call) -> Iterator[tuple[Tensor, Tensor]]:
        with_states, tensors = getattr(self.function, "with_states", None), call.timed.values()
        elsewhere = any(x.device.type != "cpu" for x in tensors)
        differentiated = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
        if with_states is None or elsewhere or differentiated:
            return self._segments(call)
        return self._captured(with_states, call)

    def _captured(self, with_states: Callable, call: recipe.Call) -> Iterator[tuple[Tensor, Tensor]]:
        """Outputs and last state of parts of the call, from a function that hands out many states at a time."""
        start, state = 0, None
        together = max(1, HELD // (call.sequences * self.state_bytes))
        for first in range(0, len(self.positions), together):
            listed = self.positions[first : first + together]
            end = listed[-1] if listed[-1] != self.positions[-1] else call.tokens
            held: list[Tensor] = []
            function = functools.partial(_keeping, with_states, [position - start for position in listed], held)
            output, state = self.adapter.run(function, call.between(start, end, state))
            for position, now in zip(listed, held[0].unbind(1), strict=True):
                self.hand_out(position, now)
            yield output, state
            start = end

    def _segments(self, call: recipe.Call) -> Iterator[tuple[Tensor, Tensor]]:
        """The same from any function, in calls that end at multiples of its chunk."""
        start, state, asked = 0, None, frozenset(self.positions)
        for end in self._cuts(call):
            inside = slice(bisect.bisect_right(self.positions, start), bisect.bisect_left(self.positions, end))
            for position in self.positions[inside]:
                self.hand_out(position, self._read(call, start, position, state)[1])
            output, state = self._read(call, start, end, state)
            if end in asked:
                self.hand_out(end, state)
            yield output, state
            start = end

    def _cuts(self, call: recipe.Call) -> list[int]:
        chunk = self.adapter.chunk_of(call)
        return sorted({position // chunk * chunk for position in self.positions} - {0} | {call.tokens})

    def _read(self, call: recipe.Call, start: int, end: int, state: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.adapter.run(self.function, call.between(start, end, state))


def _keeping(with_states: Callable, positions: list[int], held: list[Tensor], *arguments, **options) -> tuple:
    output, state, states = with_states(*arguments, positions=positions, **options)
    held.append(states)
    return output, state


class _Readings:
    """The measured values, of a shape that only the first measurement tells."""

    def __init__(self, model: models.Model, positions: list[int], measure: Measure):
        self.model, self.measure = model, measure
        self.column = {position: c for c, position in enumerate(positions)}
        self.values: Tensor | None = None

    def add(self, layer: int, position: int, state: Tensor) -> None:
        measured = self.measure(state).to("cpu", torch.float64)
        if self.values is None:
            self.values = self._unread(measured)
        self.values[layer, :, self.column[position]][:, list(self.model.layers[layer].heads)] = measured

    def of(self, B: int) -> Float64[Tensor, "L B C H *measured"]:
        """The values of B sequences; a model without any head has none, so that a zero state tells their shape."""
        if self.values is not None:
            return self.values
        return self._unread(self.measure(torch.zeros(B, 1, self.model.grid.K, self.model.grid.V)))

    def _unread(self, measured: Tensor) -> Float64[Tensor, "L B C H *measured"]:
        shape = (self.model.grid.L, len(measured), len(self.column), self.model.grid.H, *measured.shape[2:])
        return torch.full(shape, torch.nan, dtype=torch.float64)


def _holding(model: models.Model) -> list[tuple[int, architectures.Site]]:
    """The linear layers that hold heads, with their places along axis L."""
    sites = enumerate(architectures.sites(model.hf))
    return [(layer, site) for layer, site in sites if model.layers[layer].heads]


def _checked_visit(
    model: models.Model, layer: int, adapter: recipe.Recipe, visit: Visit
) -> Callable[[int, Tensor], None]:
    def hand_out(position: int, state: Tensor) -> None:
        visit(layer, position, _checked_state(model, layer, position, adapter.oriented(state)))

    return hand_out


def _checked_state(model: models.Model, layer: int, position: int, state: Tensor) -> Tensor:
    where = f"{model.name}, linear layer {layer} (decoder layer {model.layers[layer].index})"
    if state.dtype != torch.float32:
        raise ValueError(
            f"the state of {where} is {state.dtype}: rounding adds singular values far above ε·σ₁, so only a float32 "
            "state is traced. Use a kernel that keeps its state in float32"
        )
    broken = ~state.abs().amax((0, -2, -1)).isfinite()  # the largest number passes NaN on
    if broken.any():
        head = model.layers[layer].heads[int(broken.nonzero()[0])]
        raise ValueError(f"NaN or infinity in the state of {where}, head {head}, position {position}")
    return state


def _read(model: models.Model, tokens: Tensor, **options) -> None:
    """One pass of the decoder without its head: no gradients, evaluation mode, no autocast; undone afterwards."""
    options = {"use_cache": False} | options
    with torch.no_grad(), torch.autocast(tokens.device.type, enabled=False), _evaluating(model.hf):
        model.hf.get_decoder()(input_ids=tokens, **options)


@contextlib.contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
