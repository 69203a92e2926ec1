"""What the measured costs were wanted to be, and whether they are."""

import numpy as np
import pandas as pd

from srdyn.bench import pruned, throughput, tracing, training

COLUMNS = ["what", "measured", "low", "high", "at_least", "at_most", "verdict"]


def verdicts(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """A row for each criterion: what, measured with its interval, the bounds wanted, verdict.

    `tables` are the parts of the benchmark by name. `met` and `missed` are said where the whole interval lies on one
    side, `undecided` where a bound falls into it; a quantity that nothing is wanted of has no verdict.
    """
    rows = [*_spectra(tables["spectra"]), *_tracing(tables["tracing"]), *_growth(tables["growth"])]
    rows += [*_pruned(tables["pruned"]), *_memory(tables["memory"]), *_training(tables["training"])]
    found = pd.DataFrame(rows, columns=COLUMNS[:-1])
    found["verdict"] = [_verdict(*row) for row in found[COLUMNS[1:-1]].itertuples(index=False)]
    return found


def _verdict(measured: float, low: float, high: float, at_least: float, at_most: float) -> str:
    if np.isnan(at_least) and np.isnan(at_most):
        return ""
    low, high = (measured if np.isnan(end) else end for end in (low, high))
    above, below = (-np.inf if np.isnan(at_least) else at_least), (np.inf if np.isnan(at_most) else at_most)
    if above <= low and high <= below:
        return "met"
    return "missed" if high < above or low > below else "undecided"


def _row(what: str, found: tuple, *, at_least: float = np.nan, at_most: float = np.nan) -> tuple:
    measured, low, high = found
    return what, measured, low, high, at_least, at_most


def _rows(table: pd.DataFrame, what: str, **bound: float) -> list[tuple]:
    """A row for each of the table, whose columns fill in `what`."""
    return [_row(what.format(**row), (row["ratio"], row["low"], row["high"]), **bound) for row in _dicts(table)]


def _dicts(table: pd.DataFrame) -> list[dict]:
    return table.to_dict("records")


def _spectra(table: pd.DataFrame) -> list[tuple]:
    ours = table[(table["method"] == "srdyn") & table["d"].isin([64, 128])]
    many = ours[(ours["batch"] >= 1000) & ours["ratio"].notna()]
    what = f"spectra, d = {{d}}, batch {{batch}}: times the speed of {throughput.BASE}"
    exact = _row("spectra: error in units of σ₁", (ours["error"].max(), np.nan, np.nan), at_most=1e-12)
    return [*_rows(many, what, at_least=1.7), exact]


def _tracing(table: pd.DataFrame) -> list[tuple]:
    overhead, anew = (
        table[table["what"] == "overhead"],
        table[(table["what"] == "prefixes") & (table["positions"] == 16)],
    )
    what = "{case} at {positions} positions: times the forward pass"
    return [
        *_rows(overhead[overhead["case"] == tracing.TRACED], what, at_most=1.1),
        *_rows(overhead[overhead["case"] == tracing.SPECTRA], what, at_most=1.5),
        *_rows(anew[anew["case"] == tracing.PUBLISHED], "{case}, at 16 positions: times {base}", at_least=8.0),
        *_rows(
            anew[anew["case"] == tracing.AGAIN], "{case}, same functions, at 16 positions: times {base}", at_least=8.0
        ),
    ]


def _growth(table: pd.DataFrame) -> list[tuple]:
    axis = table[table["axis"] == "T"].rename(columns={"exponent": "ratio"}).head(1)
    return _rows(axis, "exponent of T", at_least=0.9, at_most=1.1)


def _pruned(table: pd.DataFrame) -> list[tuple]:
    smaller = table[table["case"] == pruned.PRUNED]
    steps = smaller[(smaller["what"] == "layer step") & (smaller["B"] >= 16)]
    others = smaller[smaller["what"] != "layer step"]
    what = "{model}, {what}, {B} sequences: pruned over original"
    return [*_rows(steps, what, at_most=0.7), *_rows(others, what)]


def _memory(table: pd.DataFrame) -> list[tuple]:
    held = table[(table["what"] == "states") & (table["case"] == pruned.PRUNED)]
    what = "{model}: states over what k of N heads predict"
    rows = [
        _row(what.format(**row), (row["bytes"] / row["predicted"],) * 3, at_least=1.0, at_most=1.0)
        for row in _dicts(held)
    ]
    for case, part in table[table["what"] == "trace"].sort_values("tokens").groupby("case", sort=False):
        first, last = part.iloc[0], part.iloc[-1]
        share = (last["bytes"] - first["bytes"]) / (last["predicted"] - first["predicted"])
        bound = {"at_most": 0.01} if case == tracing.THROUGH_CACHE else {}
        rows.append(_row(f"{case}: memory for one more token over its states", (share, np.nan, np.nan), **bound))
    return rows


def _training(table: pd.DataFrame) -> list[tuple]:
    faster = table[table["case"] != training.STOCK]
    return _rows(faster, "training {what}, {case}: times the speed of transformers")
