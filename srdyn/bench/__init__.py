"""What tracing, pruned decoding and training cost, measured: `make bench`, `python -m srdyn.bench`."""

import pandas as pd

from srdyn.study.run import store

STEM = "07_cost"
PARTS = ("spectra", "tracing", "growth", "pruned", "memory", "training", "families", "variation")


def load(part: str, *, run: str = store.REFERENCE) -> pd.DataFrame:
    """The table of one of `PARTS` as a run's benchmark wrote it; FileNotFoundError before `make bench` has run."""
    try:
        return store.load_table(f"{STEM}_{part}", run=run)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{STEM}_{part} is not in {store.table_dir(run)}: `make bench` measures it, in about ten minutes, with "
            "nothing else running"
        ) from error
