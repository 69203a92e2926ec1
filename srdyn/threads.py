"""Work split over as many threads as torch may use, for compiled code that lets go of Python's lock."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Result = TypeVar("Result")


def split(run: Callable[[int, int], Result], n: int, *, most: int | None = None) -> list[Result]:
    """`run(first, stop)` over contiguous parts of 0 … n, one a thread, at most `most`; the results in their order."""
    threads = max(1, min(torch.get_num_threads(), n, n if most is None else most))
    cuts = [n * part // threads for part in range(threads + 1)]
    if threads == 1:
        return [run(0, n)]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(run, cuts[:-1], cuts[1:]))
