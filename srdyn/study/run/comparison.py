"""How far a fresh table is from the one that stands, by the tolerances of a rerun on another machine."""

import re

import numpy as np
import pandas as pd

_RTOL, _ATOL = 1e-4, 1e-9
"""Reals of two machines agree to _RTOL; _ATOL is for those that are zero but for rounding."""
_RANK_SHARE = 0.01
"""Share of the ranks that another machine may count one off, each with a singular value next to the threshold."""


def faults(fresh: pd.DataFrame, standing: pd.DataFrame) -> list[str]:
    """What is out of tolerance, column by column; nothing where one table may stand for the other.

    Reals agree to 1e-4 relative. Where `uncertain` is true in either table, a rank (an integer column named `rank`,
    `rank_…` or `…_rank`) may be one off, in at most 1 % of the entries; as many flags may differ in `uncertain` itself,
    which is cut from reals. All else is exact.
    """
    if list(fresh.columns) != list(standing.columns):
        return [f"columns {list(fresh.columns)} for {list(standing.columns)}"]
    if len(fresh) != len(standing):
        return [f"{len(fresh)} rows for {len(standing)}"]
    flags = [frame.get("uncertain", pd.Series(False, index=frame.index)).eq(True) for frame in (fresh, standing)]
    band = np.logical_or(*(series.to_numpy(dtype=bool) for series in flags))
    found = {name: _fault(fresh[name], standing[name], band) for name in fresh.columns}
    return [f"{name}: {fault}" for name, fault in found.items() if fault]


def _fault(fresh: pd.Series, standing: pd.Series, band: np.ndarray) -> str:
    both = fresh, standing
    if not all(pd.api.types.is_numeric_dtype(x) and not pd.api.types.is_bool_dtype(x) for x in both):
        return _inexact(fresh, standing)
    a, b = (series.to_numpy(dtype=np.float64, na_value=np.nan) for series in both)
    if re.search(r"(^|_)rank(_|$)", str(fresh.name)) and all(np.all(np.isnan(x) | (x == np.round(x))) for x in (a, b)):
        return _misranked(a, b, band)
    if all(pd.api.types.is_integer_dtype(x) for x in both):
        return _inexact(fresh, standing)
    far = ~np.isclose(a, b, rtol=_RTOL, atol=_ATOL, equal_nan=True)
    known = far & np.isfinite(a) & np.isfinite(b)
    off = np.max(np.abs(a[known] - b[known]) / np.maximum(np.abs(a[known]), np.abs(b[known])), initial=0.0)
    return f"{far.sum()} of {len(far)} reals differ, by {off:.2g} relative at most" if far.any() else ""


def _inexact(fresh: pd.Series, standing: pd.Series) -> str:
    equal = fresh.eq(standing).fillna(False) | (fresh.isna() & standing.isna())
    differ = len(equal) - int(equal.sum())
    allowed = _RANK_SHARE * len(equal) if fresh.name == "uncertain" else 0
    return f"{differ} of {len(equal)} entries differ" if differ > allowed else ""


def _misranked(a: np.ndarray, b: np.ndarray, band: np.ndarray) -> str:
    differ = ~((a == b) | (np.isnan(a) & np.isnan(b)))
    outside = differ & ~(band & (np.abs(a - b) <= 1))
    within = not outside.any() and differ.sum() <= _RANK_SHARE * len(differ)
    return "" if within else f"{differ.sum()} of {len(a)} ranks differ, {outside.sum()} by more than their band allows"
