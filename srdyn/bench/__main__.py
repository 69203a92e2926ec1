"""Measures everything and writes data/tables/07_cost_*: `make bench`, on a machine that does nothing else."""

import argparse
import logging
import time
from collections.abc import Callable, Mapping

import pandas as pd
import torch
import transformers

from srdyn import bench
from srdyn.bench import families, footprint, pruned, subjects, throughput, timing, tracing, training
from srdyn.study.run import store

log = logging.getLogger(__name__)

_SHARE = 0.389
"""Of the heads removed, the paper's."""
FULL = {
    "spectra": {"sizes": (32, 64, 128, 256), "batches": (1, 10, 100, 1000, 10_000, 100_000), "rounds": 9},
    "tracing": {"B": 8, "T": 2048, "counts": (4, 16, 32), "every_token": 256, "rounds": 7},
    "growth": {
        "lengths": (512, 1024, 2048, 4096, 8192, 16384), "layers": (2, 4, 8), "heads": (4, 8, 16, 32), "T": 1024,
        "rounds": 7,
    },
    "pruned": {"layers": 3, "removed": _SHARE, "batches": (16, 32), "T": 512, "rounds": 31},
    "memory": {"lengths": (256, 1024), "layers": 3, "removed": _SHARE, "B": 32, "T": 64},
    "training": {"B": 4, "T": 512, "rounds": 7},
    "families": {"T": 512, "rounds": 3, "kinds": ()},
}  # fmt: skip
QUICK = {
    "spectra": {"sizes": (8, 12), "batches": (1, 9), "rounds": 3},
    "tracing": {"B": 2, "T": 24, "counts": (2, 3), "every_token": 4, "rounds": 3},
    "growth": {"lengths": (32, 64), "layers": (1, 2), "heads": (2, 4), "T": 16, "rounds": 2},
    "pruned": {"layers": 1, "removed": _SHARE, "batches": (1,), "T": 16, "rounds": 3},
    "memory": {"lengths": (4, 8), "layers": 1, "removed": _SHARE, "B": 1, "T": 4},
    "training": {"B": 1, "T": 32, "rounds": 2},
    "families": {"T": 4, "rounds": 2, "kinds": ("olmo_hybrid", "hgrn2")},
}
"""Does everything run? What it measures means nothing."""


def measured(part: str, plan: Mapping[str, object]) -> pd.DataFrame:
    """The table of one part under its plan, an entry of `FULL` or `QUICK`."""
    parts: dict[str, Callable[..., pd.DataFrame]] = {
        "spectra": throughput.table,
        "tracing": lambda **options: tracing.table(subjects.shipped("hybrid"), **options),
        "growth": lambda **options: tracing.growth(subjects.shipped("pure"), **options),
        "pruned": lambda **options: pruned.table({x: subjects.shipped(x) for x in ("hybrid", "pure")}, **options),
        "memory": footprint.table,
        "training": training.table,
        "families": families.table,
    }
    return parts[part](**plan)


def main() -> None:
    """Measure the parts named on the command line, by default all, and write their tables."""
    parser = argparse.ArgumentParser(prog="python -m srdyn.bench", description=__doc__)
    parser.add_argument("parts", nargs="*", default=bench.PARTS, metavar="part", help=", ".join(bench.PARTS))
    parser.add_argument("--quick", action="store_true", help="toy sizes, to see that everything runs")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if unknown := set(arguments.parts) - set(bench.PARTS):
        parser.error(f"no part is called {', '.join(sorted(unknown))}; there are {', '.join(bench.PARTS)}")
    if arguments.quick and store.run_name() == store.REFERENCE:
        parser.error("a quick run measures nothing: it may not write to data/tables, unset SRDYN_RUN")
    transformers.logging.disable_progress_bar()
    torch.set_flush_denormal(True)  # as in training: what is timed is arithmetic
    machine = timing.machine()
    for part in arguments.parts:
        plan, start = (QUICK if arguments.quick else FULL)[part], time.perf_counter()
        meta = {"parameters": plan, "machine": machine}
        path = store.save_table(measured(part, plan), f"{bench.STEM}_{part}", meta=meta)
        log.info("%s: %.0f s", path, time.perf_counter() - start)
    store.save_record(bench.STEM, store.run_record(machine=machine))


if __name__ == "__main__":
    main()
