"""What tracing, pruned decoding and training cost, measured: `make bench`, `python -m srdyn.bench`."""

import logging

import pandas as pd

from srdyn.study.run import store

STEM = "07_cost"
PARTS = ("spectra", "tracing", "growth", "pruned", "memory", "training", "families", "variation", "watch")

log = logging.getLogger(__name__)


def tables(*, run: str = store.REFERENCE) -> dict[str, pd.DataFrame]:
    """By part the tables that a run's benchmark wrote; what it has not measured is left out, and said.

    Raises FileNotFoundError before `make bench` has run.
    """
    found = {}
    for part in PARTS:
        try:
            found[part] = store.load_table(f"{STEM}_{part}", run=run)
        except FileNotFoundError as error:
            if not found:
                raise FileNotFoundError(
                    f"{STEM}_{part} is not in {store.table_dir(run)}: `make bench` measures it, in about ten minutes, "
                    "with nothing else running"
                ) from error
            log.warning("%s is not measured yet: python -m srdyn.bench %s", part, part)
    return found
