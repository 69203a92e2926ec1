"""Measures everything and writes data/tables/07_cost_*: `make bench`, on a machine that does nothing else."""

import argparse
import logging
import time

import torch
import transformers

from srdyn import bench
from srdyn.bench import families, pruned, throughput, timing, tracing, training, variation
from srdyn.study.run import store

log = logging.getLogger(__name__)

_SHARE = 0.389
"""Of the heads removed, the paper's."""
PLANS = {
    "spectra": (throughput.table, {
        "sizes": (32, 64, 128, 256), "batches": (1, 10, 100, 1000, 10_000, 100_000), "rounds": 9,
    }),
    "tracing": (tracing.table, {"B": 8, "T": 2048, "counts": (4, 16, 32), "every_token": 256, "rounds": 7}),
    "growth": (tracing.growth, {
        "lengths": (512, 1024, 2048, 4096, 8192, 16384), "layers": (2, 4, 8), "heads": (4, 8, 16, 32), "T": 1024,
        "rounds": 7,
    }),
    "pruned": (pruned.table, {"layers": 3, "removed": _SHARE, "batches": (16, 32), "T": 512, "rounds": 31}),
    "memory": (pruned.memory, {"lengths": (256, 1024), "layers": 3, "removed": _SHARE, "B": 32, "T": 64}),
    "training": (training.table, {"B": 4, "T": 512, "rounds": 7}),
    "families": (families.table, {"T": 512, "rounds": 3}),
    "variation": (variation.table, {
        "names": ("hybrid", "pure"), "domains": ("code", "math", "prose", "technical"), "T": 512,
        "positions": (1, 4, 16, 64, 256, 512),
    }),
    "watch": (tracing.watched, {"names": ("hybrid", "pure"), "every": (1, 8), "T": 64, "new": 64, "rounds": 7}),
}  # fmt: skip
"""What measures each part, with what it is given."""


def main() -> None:
    """Measure the parts named on the command line, by default all, and write their tables."""
    parser = argparse.ArgumentParser(prog="python -m srdyn.bench", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=bench.PARTS, metavar="part", help=", ".join(bench.PARTS))
    parts = parser.parse_args().parts or bench.PARTS
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    transformers.logging.disable_progress_bar()
    torch.set_flush_denormal(True)  # as in training: what is timed is arithmetic
    machine = timing.machine()
    for part in parts:
        start, (measure, given) = time.perf_counter(), PLANS[part]
        meta = {"parameters": given, "machine": machine}
        path = store.save_table(measure(**given), f"{bench.STEM}_{part}", meta=meta)
        log.info("%s: %.0f s", path, time.perf_counter() - start)
    store.save_record(bench.STEM, store.run_record(machine=machine))


if __name__ == "__main__":
    main()
