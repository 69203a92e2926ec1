"""States held in fewer bytes from one stretch of tokens to the next: rounded, or not at all.

A recurrence computes in float32; what lies in memory in between may be less. Engines store int8 or float8 (e4m3) with a
scale for each head or row, some with what rounding lost in four bits more, which is given back before the next tokens
are read (error feedback); or they leave heads out of the checkpoint of a prefix.
"""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from srdyn import ablation, architectures, models, states
from srdyn.architectures import recipe
from srdyn.kernels import recurrence

_State = Float[Tensor, "*batch K V"]
Change = Callable[[_State], _State]
FORMATS = {"int8": 127.0, "fp8": 448.0, "int4": 7.0}
"""The largest number of each format: fp8 is e4m3, whose significand has four bits."""
_BITS = {"int8": 8, "fp8": 8, "int4": 4}
_LOST, _SCALE = "int4", 4
"""What keeps the errors of rounding; bytes of a scale."""


def rounded(state: _State, form: str, *, feedback: bool = False) -> _State:
    """Each head's state at the nearest numbers of a format, scaled so that its largest entry is the format's largest.

    With `feedback`, plus what that lost, itself rounded to int4 at a scale of its own. Raises ValueError for a format
    that is not among `FORMATS`.
    """
    if form not in FORMATS:
        raise ValueError(f"no format is called {form!r}; there are {', '.join(FORMATS)}")
    top = FORMATS[form]
    largest = state.abs().amax((-2, -1), keepdim=True).clamp(min=torch.finfo(state.dtype).tiny)
    scaled = state / largest * top
    near = scaled.to(torch.float8_e4m3fn).to(state.dtype) if form == "fp8" else scaled.round()
    held = near * largest / top
    return held + rounded(state - held, _LOST) if feedback else held


def head_bytes(K: int, V: int, form: str | None = None, *, feedback: bool = False) -> float | int:
    """Bytes of one head's state in a format, scales included; float32 without one."""
    if form is None:
        return K * V * 4
    return K * V * (_BITS[form] + _BITS[_LOST] * feedback) / 8 + _SCALE * (1 + feedback)


@contextlib.contextmanager
def change_states(
    model: models.Model, change: Change, heads: Bool[Tensor, "L H"], positions: recurrence.Positions
) -> Iterator[None]:
    """While this is open, a pass over a whole sequence reads on from what `change` makes of states at the positions.

    `functools.partial(rounded, form="int8")`, say, or `torch.zeros_like`. Raises ValueError as
    `ablation.checked_heads` does, and when a pass goes on from a cache, is shorter than a position, or is traced.
    """
    ablation.checked_heads(model, heads)
    with contextlib.ExitStack() as stack:
        for row, held, site in zip(heads, model.layers, architectures.sites(model.hf), strict=True):
            if row.any():
                read = functools.partial(_read, site, positions, change, row[list(held.heads)])
                stack.enter_context(states.taken_over(site, (site.recipe.chunk_tap, site.recipe.step_tap), read))
        yield


def _read(
    site: architectures.Site,
    positions: recurrence.Positions,
    change: Change,
    chosen: Bool[Tensor, " held"],
    function: Callable,
    call: recipe.Call,
) -> tuple[Tensor, Tensor]:
    """The recurrence, fed from position to position, the chosen heads' state changed in between."""
    if call.state is not None:
        raise ValueError("states are changed in whole sequences: call the model without past_key_values, trace none")
    state, outputs = None, []
    listed = recurrence.checked_positions(positions, call.tokens)
    for start, end in itertools.pairwise(sorted({0, *listed, call.tokens})):
        output, state = site.recipe.run(function, call.between(start, end, state))
        outputs.append(output)
        if end in listed:
            where, state = chosen.to(state.device), state.clone()
            state[:, where] = change(state[:, where])
    return torch.cat(outputs, dim=1), state
