"""Work split over as many threads as torch may use, for compiled code that lets go of Python's lock."""

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

from srdyn.kernels import denormals

Result = TypeVar("Result")


def split(run: Callable[[int, int], Result], n: int, *, most: int | None = None) -> list[Result]:
    """`run(first, stop)` over contiguous parts of 0 … n, one a thread, at most `most`; the results in their order.

    The first part is the caller's. `run` must not call `split`: the threads would wait for themselves.
    """
    threads = max(1, min(torch.get_num_threads(), n, n if most is None else most))
    cuts = [n * part // threads for part in range(threads + 1)]
    if threads == 1:
        return [run(0, n)]
    pool = _pool(os.getpid(), denormals.are_flushed())
    others = [pool.submit(run, *part) for part in zip(cuts[1:-1], cuts[2:], strict=True)]
    try:
        own = run(0, cuts[1])
    finally:
        wait(others)  # they write where the caller may read or free
    return [own, *(other.result() for other in others)]


@functools.cache
def _pool(process: int, flushing: bool) -> ThreadPoolExecutor:
    """Threads of this process (those of its parent are not there after a fork) that treat denormals as the caller does.

    A thread keeps the mode of the one that starts it, the first caller that finds none idle.
    """
    return ThreadPoolExecutor(os.cpu_count() or 1)
