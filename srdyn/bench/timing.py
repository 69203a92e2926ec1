"""How long calls take beside each other: interleaved in one process, told as medians with their spread.

A machine that is busy, or grows hot, slows all cases of a round alike, which ratios taken round by round do not see.
"""

import multiprocessing
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from srdyn.study.analysis import intervals
from srdyn.study.run import store, workers

Case = Callable[[], object]
SHORTEST = 0.02
"""Seconds that one reading takes at least: calls that are shorter are repeated within it."""
_FORGET = "/proc/self/clear_refs"


def compared(
    cases: Mapping[str, Case], *, rounds: int, base: str, tokens: int, faster: bool = False, **named: object
) -> pd.DataFrame:
    """The `medians` of `interleaved` cases that read `tokens` tokens a call; columns that name them, per_second."""
    found = medians(interleaved(cases, rounds=rounds), base=base, faster=faster)
    return found.assign(**named, tokens=tokens, per_second=tokens / found["median"])


def interleaved(cases: Mapping[str, Case], *, rounds: int, warm_up: bool = True) -> pd.DataFrame:
    """Seconds per call: a row for each round, a column for each case.

    A round calls each case once, every second round in reverse order; a case too short for the clock is called several
    times. One call of each goes before, which compiles and fills caches; it counts as the first round where `warm_up`
    is false.
    """
    first = {name: _read(case, 1) for name, case in cases.items()}
    calls = {name: max(1, int(np.ceil(SHORTEST / taken))) if warm_up else 1 for name, taken in first.items()}
    found = [] if warm_up else [first]
    while len(found) < rounds:
        order = list(cases)[:: -1 if len(found) % 2 else 1]
        found.append({name: _read(cases[name], calls[name]) for name in order})
    return pd.DataFrame(found, columns=list(cases))


def medians(rounds: pd.DataFrame, *, base: str, faster: bool = False) -> pd.DataFrame:
    """A row for each case of `interleaved`: what it took, and how that compares with the case `base`.

    Columns: case, n (rounds), median, spread (interquartile range), unit (s), base, and ratio, low, high: how many
    times the median of `base` the case takes, or with `faster`, goes into it.
    """
    rows = []
    for case, taken in rounds.items():
        low, median, high = np.quantile(taken, [0.25, 0.5, 0.75])
        ratio = quotient(rounds, *(base, case) if faster else (case, base))
        rows.append((case, len(taken), median, high - low, "s", base, *ratio))
    return pd.DataFrame(rows, columns=["case", "n", "median", "spread", "unit", "base", "ratio", "low", "high"])


def quotient(rounds: pd.DataFrame, above: str, below: str) -> intervals.Interval:
    """Median of column `above` over that of `below`; 95 % percentile interval over rounds (rows), NaN for one alone."""
    return _over_rounds(rounds[[above, below]], lambda pair: float(np.divide(*np.median(pair, axis=0))))


def exponent(rounds: pd.DataFrame) -> intervals.Interval:
    """The power of size (the columns' names) by which time grows: the slope of log median time over log size."""
    logs = np.log(rounds.columns.astype(float))
    return _over_rounds(rounds, lambda x: float(np.polyfit(logs, np.log(np.median(x, axis=0)), 1)[0]))


def _over_rounds(rounds: pd.DataFrame, statistic: Callable[[np.ndarray], float]) -> intervals.Interval:
    taken = rounds.to_numpy()
    if len(taken) < 2:
        return intervals.Interval(statistic(taken), np.nan, np.nan)
    return intervals.bootstrap(taken, statistic)


def machine() -> dict[str, object]:
    """What ran the clock: processor, its cores, torch's threads, how memory is kept, GPU if any, versions."""
    return {
        "processor": store.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "malloc": {name: value for name, value in sorted(os.environ.items()) if name.startswith("MALLOC_")},
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def peak_bytes(prepare: Callable[..., Case], *arguments: object) -> int:
    """How far memory rises while the case runs that `prepare(*arguments)` returns, in a process of its own.

    That is its highest resident memory less what is resident when it starts (or the highest before it).
    """
    return elsewhere(_rise, prepare, arguments)


def elsewhere(function: Callable, *given: object) -> Any:
    """What the function returns in a fresh process that imports it."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=workers.watch_parent) as pool:
        return pool.submit(function, *given).result()


def _rise(prepare: Callable[..., Case], arguments: tuple) -> int:
    case = prepare(*arguments)
    if Path(_FORGET).exists():
        Path(_FORGET).write_text("5")  # Linux: the highest so far becomes the present
    before = _highest()
    case()
    return _highest() - before


def _highest() -> int:
    """The largest resident memory of this process so far, in bytes."""
    # Linux's getrusage would count what the process was before it became a Python of its own: a copy of its parent.
    told = [line.split() for line in _lines("/proc/self/status") if line.startswith("VmHWM:")]
    if told:
        return int(told[0][1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _read(case: Case, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        case()
    return (time.perf_counter() - start) / calls


def _lines(path: str) -> list[str]:
    """A file of Linux's /proc; empty elsewhere."""
    return Path(path).read_text().splitlines() if Path(path).exists() else []
