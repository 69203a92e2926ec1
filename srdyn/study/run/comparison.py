"""How far a fresh table is from the one that stands, by the tolerances of a rerun on another machine."""

import re
from dataclasses import dataclass

import numpy as np
import pandas as pd

RTOL, ATOL = 1e-4, 1e-9
"""Reals of two machines agree to RTOL; ATOL is for those that are zero but for rounding."""
RANK_SHARE = 0.01
"""Share of the ranks that another machine may count one off, each with a singular value next to the threshold."""


@dataclass(frozen=True)
class Difference:
    """The outcome of a comparison.

    `faults` says what is out of tolerance, `relative` is the largest relative difference of a real number, and
    `ranks` the largest share of differing entries in a column of ranks.
    """

    faults: tuple[str, ...] = ()
    relative: float = 0.0
    ranks: float = 0.0

    @property
    def within(self) -> bool:
        """Whether nothing is out of tolerance."""
        return not self.faults

    def __str__(self) -> str:
        faults = "; ".join(self.faults) or "within tolerance"
        return f"{faults} (reals off by {self.relative:.2g} relative at most, {self.ranks:.2%} of ranks differ)"


def compare_tables(fresh: pd.DataFrame, standing: pd.DataFrame) -> Difference:
    """Compare two tables column by column, row by row.

    Reals agree to `RTOL` relative. Where `uncertain` is true in either table, a rank (an integer column named `rank`,
    `rank_…` or `…_rank`) may be one off, in at most `RANK_SHARE` of the entries; as many flags may differ in
    `uncertain` itself, which is cut from reals. All else is exact.
    """
    if list(fresh.columns) != list(standing.columns):
        return Difference((f"columns {list(fresh.columns)} for {list(standing.columns)}",))
    if len(fresh) != len(standing):
        return Difference((f"{len(fresh)} rows for {len(standing)}",))
    band = np.zeros(len(fresh), dtype=bool)
    if "uncertain" in fresh.columns:
        band = (fresh["uncertain"].eq(True) | standing["uncertain"].eq(True)).to_numpy(dtype=bool)
    columns = [_compare_column(fresh[name], standing[name], band) for name in fresh.columns]
    return Difference(
        faults=tuple(fault for column in columns for fault in column.faults),
        relative=max((column.relative for column in columns), default=0.0),
        ranks=max((column.ranks for column in columns), default=0.0),
    )


def _compare_column(fresh: pd.Series, standing: pd.Series, band: np.ndarray) -> Difference:
    if not (_is_number(fresh) and _is_number(standing)):
        return _compare_exactly(fresh, standing)
    a, b = (series.to_numpy(dtype=np.float64, na_value=np.nan) for series in (fresh, standing))
    if re.search(r"(^|_)rank(_|$)", str(fresh.name)) and _is_whole(a) and _is_whole(b):
        return _compare_ranks(a, b, str(fresh.name), band)
    if pd.api.types.is_integer_dtype(fresh) and pd.api.types.is_integer_dtype(standing):
        return _compare_exactly(fresh, standing)
    near = np.isclose(a, b, rtol=RTOL, atol=ATOL, equal_nan=True)
    finite = np.isfinite(a) & np.isfinite(b)
    gap, scale = np.abs(a[finite] - b[finite]), np.maximum(np.abs(a[finite]), np.abs(b[finite]))
    relative = float(np.max(gap[gap > ATOL] / scale[gap > ATOL], initial=0.0))
    fault = f"{fresh.name}: {(~near).sum()} of {len(near)} reals differ"
    return Difference(() if near.all() else (fault,), relative)


def _compare_exactly(fresh: pd.Series, standing: pd.Series) -> Difference:
    equal = fresh.eq(standing).fillna(False) | (fresh.isna() & standing.isna())
    differ = len(equal) - int(equal.sum())
    allowed = RANK_SHARE * len(equal) if fresh.name == "uncertain" else 0
    return Difference((f"{fresh.name}: {differ} of {len(equal)} entries differ",) if differ > allowed else ())


def _compare_ranks(a: np.ndarray, b: np.ndarray, name: str, band: np.ndarray) -> Difference:
    differ = ~((a == b) | (np.isnan(a) & np.isnan(b)))
    outside = differ & ~(band & (np.abs(a - b) <= 1))
    share = float(differ.mean()) if len(differ) else 0.0
    fault = f"{name}: {differ.sum()} of {len(differ)} ranks differ, {outside.sum()} by more than their band allows"
    return Difference((fault,) if outside.any() or share > RANK_SHARE else (), ranks=share)


def _is_number(series: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(series) and not pd.api.types.is_bool_dtype(series)


def _is_whole(values: np.ndarray) -> bool:
    present = values[~np.isnan(values)]
    return bool(np.all(np.isfinite(present)) and np.all(present == np.round(present)))
