"""A model in two states compared in pairs: the same rows, read with one set of heads and with another.

Frames hold the answers of one probe (`battery.answers`), with a column `draw` where heads were drawn more than once:
each draw on rows of its own (a fold of the battery), or all draws on every row. An estimate is Σ value / Σ weight.
What is resampled, with replacement, the same rows for all frames of a contrast:

- rows, where heads were not drawn: intervals speak of new rows;
- draws with the rows that each answered, where they answered rows of their own: of new heads and new rows at once;
- rows and, separately in every frame, draws, where all draws answered every row: of new heads and new rows.

Rows within a draw are not resampled once more: the spread between draws holds that between their rows already.
Percentiles over ten draws are too narrow: where they say 95 %, they cover about 90 %. So an interval is the estimate
± t · the bootstrap's standard error, with m − 1 degrees of freedom and the factor √(m / (m − 1)) by which the spread of
m resampled things falls short, m being the fewer of rows and draws. It has no width where nothing varies, and the ends
of that of a share may pass 0 or 1.

References
----------
Davison & Hinkley, Bootstrap Methods and their Application, 1997, §3.8 (resampling hierarchical data).
Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6, 1979.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float, Float64, Int
from scipy import stats

from srdyn.study.analysis import intervals


def estimate(frame: pd.DataFrame) -> intervals.Interval:
    """Σ value / Σ weight of a model in one state, with its 95 % interval.

    This and the other functions raise ValueError for answers of several probes, for answers given twice, for frames
    that do not answer the same items or share their rows among draws in different ways, and for fewer than two things
    to resample.
    """
    return _interval([frame], [1])


def difference(arm: pd.DataFrame, reference: pd.DataFrame) -> intervals.Interval:
    """`estimate` of the arm minus that of the reference, paired by row."""
    return _interval([arm, reference], [1, -1])


def interaction(a1: pd.DataFrame, a0: pd.DataFrame, b1: pd.DataFrame, b0: pd.DataFrame) -> intervals.Interval:
    """(a1 − a0) − (b1 − b0), all four paired by row: how much more an arm does under a than under b."""
    return _interval([a1, a0, b1, b0], [1, -1, -1, 1])


def p_value(arm: pd.DataFrame, reference: pd.DataFrame) -> float:
    """Two-sided p of no difference, below 0.05 just where `difference` leaves 0 out.

    From the t distribution, since a share of 1000 resamples is never small enough to survive Holm's correction of
    hundreds. Where m rows or draws all differ by as much, 2^(1 − m): that m signs agree.
    """
    estimate, error, m = _contrast([arm, reference], [1, -1])
    if error <= 1e-12 * abs(estimate):  # nothing varies but for rounding
        return 2.0 ** (1 - m) if estimate else 1.0
    return float(2 * stats.t.sf(abs(estimate) / error, m - 1))


def holm(p: Sequence[float] | pd.Series | Float[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """Holm's step-down adjustment: below 0.05 where the contrast holds with all n of them in view.

    The i-th smallest p (from 0) is multiplied by n − i; no adjusted p is below one of a smaller p, or above 1. Raises
    ValueError for a p outside 0 … 1, NaN included: leave out what was not tested.
    """
    p = np.asarray(p, dtype=np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p values lie between 0 and 1, got {p[~((p >= 0) & (p <= 1))].tolist()}")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return adjusted


def _interval(frames: Sequence[pd.DataFrame], signs: Sequence[int]) -> intervals.Interval:
    estimate, error, m = _contrast(frames, signs)
    half = stats.t.ppf((1 + intervals.LEVEL) / 2, m - 1) * error
    return intervals.Interval(estimate, float(estimate - half), float(estimate + half))


def _contrast(frames: Sequence[pd.DataFrame], signs: Sequence[int]) -> tuple[float, float, int]:
    """A signed sum of ratios, its standard error, and the number of things resampled, the fewer of rows and draws."""
    cells, generator = _cells(frames), intervals.generator()
    rows = cells[0].shape[1]
    m = min([rows, *(len(cell) for cell in cells if len(cell) > 1)])
    if m < 2:
        raise ValueError("resampling needs at least two rows, or two draws that answered rows of their own; got one")
    chosen = intervals.counts(rows, generator)
    estimate, resampled = 0.0, np.zeros(len(chosen))
    for sign, cell in zip(signs, cells, strict=True):
        value, weight = cell.sum((0, 1))
        estimate += sign * value / weight
        draws = intervals.counts(len(cell), generator)
        value, weight = np.einsum("nd,nr,drc->cn", draws, chosen, cell, optimize=True)
        resampled += sign * value / weight
    return float(estimate), float(resampled.std(ddof=1) * np.sqrt(m / (m - 1))), m


def _cells(frames: Sequence[pd.DataFrame]) -> list[Float64[np.ndarray, "draws rows 2"]]:
    """Σ value and Σ weight of each frame by draw and row; rows of one fold are one row, and its draws are one draw."""
    tables = [_answers(frame) for frame in frames]
    asked = [table[["row", "item"]].drop_duplicates().to_numpy() for table in tables]
    if any(not np.array_equal(items, asked[0]) for items in asked):
        raise ValueError("only answers to the same items are compared in pairs; answer one battery, all of it, in each")
    folds = [_folds(table, len(asked[0])) for table in tables]
    shared = [fold for fold in folds if fold is not None]
    if any(not np.array_equal(fold, shared[0]) for fold in shared):
        raise ValueError("draws answered different rows in the frames compared; share rows among as many draws in each")
    cells = []
    for table, fold in zip(tables, folds, strict=True):
        row = pd.factorize(table["row"])[0]
        row = shared[0][row] if shared else row
        draw = table["draw"].to_numpy() if fold is None else np.zeros_like(row)
        cell = np.zeros((draw.max() + 1, row.max() + 1, 2))
        np.add.at(cell, (draw, row), table[["value", "weight"]].to_numpy(np.float64))
        cells.append(cell)
    return cells


def _answers(frame: pd.DataFrame) -> pd.DataFrame:
    """The answers in the order of rows, items and draws, the draws numbered."""
    if (probes := frame["probe"].unique()).size != 1:
        raise ValueError(f"an estimate is of one probe, the frame has answers of {list(probes)}; select one")
    draw = pd.factorize(frame["draw"])[0] if "draw" in frame else 0
    table = frame[["row", "item", "value", "weight"]].assign(draw=draw)
    if table.duplicated(["row", "item", "draw"]).any():
        raise ValueError("some items are answered twice; select one model and one arm, and name its draws in `draw`")
    return table.sort_values(["row", "item", "draw"])


def _folds(table: pd.DataFrame, asked: int) -> Int[np.ndarray, " rows"] | None:
    """The draw that answered each row, numbered as they first occur; None where all draws answered every row."""
    if len(table) == table["draw"].nunique() * asked:
        return None
    draws = table.groupby("row")["draw"]
    if (draws.nunique() > 1).any():
        raise ValueError("each draw answers either every row or rows that no other draw answers; some rows have others")
    return pd.factorize(draws.first())[0]
