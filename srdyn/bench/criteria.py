"""What the measured costs were wanted to be, and whether they are."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from srdyn.bench import pruned, throughput, tracing, training

_COLUMNS = ["what", "measured", "low", "high", "at_least", "at_most"]
_Row = dict[str, object]


def verdicts(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """A row for each criterion: what, measured with its interval, the bounds wanted, verdict; `tables` by part.

    `met` and `missed` are said where the whole interval lies on one side, `undecided` where a bound falls into it.
    """
    found = pd.DataFrame(_rows(tables), columns=_COLUMNS)
    found["verdict"] = [_verdict(*row) for row in found[_COLUMNS[1:]].itertuples(index=False)]
    return found


def _verdict(measured: float, low: float, high: float, at_least: float, at_most: float) -> str:
    if np.isnan(at_least) and np.isnan(at_most):
        return ""
    low, high = (measured if np.isnan(end) else end for end in (low, high))
    above, below = (-np.inf if np.isnan(at_least) else at_least), (np.inf if np.isnan(at_most) else at_most)
    if above <= low and high <= below:
        return "met"
    return "missed" if high < above or low > below else "undecided"


def _rows(tables: dict[str, pd.DataFrame]) -> Iterator[_Row]:
    ours = tables["spectra"].query("method == 'srdyn' and d in [64, 128]")
    many = ours[(ours["batch"] >= 1000) & ours["ratio"].notna()]
    yield from _ratios(many, f"spectra, d = {{d}}, batch {{batch}}: times the speed of {throughput.BASE}", at_least=1.7)
    yield {"what": "spectra: error in units of σ₁", "measured": ours["error"].max(), "at_most": 1e-12}
    traced = tables["tracing"].groupby(["what", "case"])
    for case, at_most in ((tracing.TRACED, 1.1), (tracing.SPECTRA, 1.5)):
        what = "{case} at {positions} positions: times the forward pass"
        yield from _ratios(traced.get_group(("overhead", case)), what, at_most=at_most)
    for case, functions in ((tracing.PUBLISHED, ""), (tracing.AGAIN, ", same functions")):
        anew = traced.get_group(("prefixes", case)).query("positions == 16")
        yield from _ratios(anew, f"{{case}}{functions}, at 16 positions: times {{base}}", at_least=8.0)
    axis = tables["growth"].query("axis == 'T'").rename(columns={"exponent": "ratio"}).head(1)
    yield from _ratios(axis, "exponent of T", at_least=0.9, at_most=1.1)
    smaller = tables["pruned"][tables["pruned"]["case"] == pruned.PRUNED]
    steps, what = smaller["what"] == "layer step", "{model}, {what}, {B} sequences: pruned over original"
    yield from _ratios(smaller[steps & (smaller["B"] >= 16)], what, at_most=0.7)
    yield from _ratios(smaller[~steps], what)
    yield from _memory(tables["memory"])
    ours = tables["training"][tables["training"]["case"] != training.STOCK]
    yield from _ratios(ours, "training {what}, {case}: times the speed of transformers")


def _ratios(table: pd.DataFrame, what: str, **bound: float) -> Iterator[_Row]:
    """A row for each of the table, whose columns fill in `what`."""
    for row in table.to_dict("records"):
        yield {"what": what.format(**row), "measured": row["ratio"], "low": row["low"], "high": row["high"], **bound}


def _memory(table: pd.DataFrame) -> Iterator[_Row]:
    held = table[(table["what"] == "states") & (table["case"] == pruned.PRUNED)]
    share = held["bytes"] / held["predicted"]
    exact = held.assign(ratio=share, low=share, high=share)
    yield from _ratios(exact, "{model}: states over what k of N heads predict", at_least=1.0, at_most=1.0)
    for case, part in table[table["what"] == "trace"].sort_values("tokens").groupby("case", sort=False):
        rise = part[["bytes", "predicted"]].iloc[-1] - part[["bytes", "predicted"]].iloc[0]
        bound = {"at_most": 0.01} if case == tracing.THROUGH_CACHE else {}
        what = f"{case}: memory for one more token over its states"
        yield {"what": what, "measured": rise["bytes"] / rise["predicted"], **bound}
