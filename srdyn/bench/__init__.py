"""What tracing, pruned decoding and training cost, measured: `make bench`, `python -m srdyn.bench`."""

import pandas as pd

from srdyn.study.run import store

STEM = "07_cost"
PARTS = ("spectra", "tracing", "growth", "pruned", "memory", "training", "families", "variation", "watch")


def tables(*, run: str = store.REFERENCE) -> dict[str, pd.DataFrame]:
    """By part the tables that a run's benchmark wrote. Raises FileNotFoundError before `make bench` has run."""
    try:
        return {part: store.load_table(f"{STEM}_{part}", run=run) for part in PARTS}
    except FileNotFoundError as error:
        advice = "`make bench` measures it, in about ten minutes, with nothing else running"
        raise FileNotFoundError(f"a part of {STEM} is not in {store.table_dir(run)}: {advice}") from error
