"""States in fewer bytes: a number format and a scale for each head.

Engines store int8 or float8 (e4m3), some with what rounding lost in four bits more, which is given back before the next
tokens are read (error feedback).
"""

import torch
from jaxtyping import Float
from torch import Tensor

_State = Float[Tensor, "*batch K V"]
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
