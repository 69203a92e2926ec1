"""Denormal numbers as zeros: decays underflow into them, and most CPUs are slow with them."""

import contextlib
from collections.abc import Iterator

import numpy as np
import torch

_DENORMAL = np.uint32(1).view(np.float32)


def are_flushed() -> bool:
    """Whether this thread takes denormal numbers for zeros."""
    return bool(_DENORMAL * np.float32(1) == 0)


@contextlib.contextmanager
def flushed() -> Iterator[None]:
    """While this is open, this thread takes denormal numbers for zeros, and so do threads that it starts."""
    before = are_flushed()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
