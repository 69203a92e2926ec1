"""What tracing, pruned decoding and training cost, measured: `make bench`, `python -m srdyn.bench`."""

import logging

import pandas as pd

from srdyn.study.run import store

STEM = "07_cost"
PARTS = ("spectra", "tracing", "growth", "pruned", "memory", "training", "families", "variation", "watch")

log = logging.getLogger(__name__)


def tables(*, run: str = store.REFERENCE) -> dict[str, pd.DataFrame]:
    """By part what a run's benchmark wrote, as `load` gives it; what it has not measured is left out, and said."""
    found = {}
    for part in PARTS:
        try:
            found[part] = load(part, run=run)
        except FileNotFoundError:
            if not found:
                raise
            log.warning("%s is not measured yet: python -m srdyn.bench %s", part, part)
    return found


def load(part: str, *, run: str = store.REFERENCE) -> pd.DataFrame:
    """The table of one of `PARTS` as a run's benchmark wrote it; FileNotFoundError before `make bench` has run."""
    try:
        return store.load_table(f"{STEM}_{part}", run=run)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{STEM}_{part} is not in {store.table_dir(run)}: `make bench` measures it, in about ten minutes, with "
            "nothing else running"
        ) from error
