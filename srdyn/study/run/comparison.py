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
    band = _band(fresh, standing)
    found = {name: _fault(fresh[name], standing[name], band) for name in fresh.columns}
    return [f"{name}: {fault}" for name, fault in found.items() if fault]


def units(fresh: pd.DataFrame, standing: pd.DataFrame) -> pd.DataFrame:
    """How far off every cell of one table is from that of the other, of as many rows, in units of its tolerance.

    At most 1 is within. What must be equal is 0 or infinitely far off; a rank that is uncertain may be one off, 1.
    """
    band = _band(fresh, standing)
    return pd.DataFrame({name: _units(fresh[name], standing[name], band) for name in fresh.columns})


def _units(fresh: pd.Series, standing: pd.Series, band: np.ndarray) -> np.ndarray:
    if not _are_numbers(fresh, standing):
        differs = ~(fresh.eq(standing).fillna(False) | (fresh.isna() & standing.isna())).to_numpy(dtype=bool)
        return np.where(differs, 1.0 if fresh.name == "uncertain" else np.inf, 0.0)
    a, b = (series.to_numpy(dtype=np.float64, na_value=np.nan) for series in (fresh, standing))
    alike = (a == b) | (np.isnan(a) & np.isnan(b))
    if _are_ranks(fresh.name, a, b):
        return np.select([alike, band & (np.abs(a - b) <= 1)], [0.0, 1.0], np.inf)
    if all(pd.api.types.is_integer_dtype(x) for x in (fresh, standing)):
        return np.where(alike, 0.0, np.inf)
    with np.errstate(invalid="ignore"):
        return np.where(alike, 0.0, np.nan_to_num(np.abs(a - b) / (_ATOL + _RTOL * np.abs(b)), nan=np.inf))


def _band(fresh: pd.DataFrame, standing: pd.DataFrame) -> np.ndarray:
    flags = [frame.get("uncertain", pd.Series(False, index=frame.index)).eq(True) for frame in (fresh, standing)]
    return np.logical_or(*(series.to_numpy(dtype=bool) for series in flags))


def _are_numbers(*columns: pd.Series) -> bool:
    return all(pd.api.types.is_numeric_dtype(x) and not pd.api.types.is_bool_dtype(x) for x in columns)


def _are_ranks(name: object, *columns: np.ndarray) -> bool:
    return bool(re.search(r"(^|_)rank(_|$)", str(name))) and all(
        np.all(np.isnan(x) | (x == np.round(x))) for x in columns
    )


def _fault(fresh: pd.Series, standing: pd.Series, band: np.ndarray) -> str:
    off, n = _units(fresh, standing, band), len(fresh)
    differ, outside = int((off > 0).sum()), int(np.isinf(off).sum())
    if not _are_numbers(fresh, standing):
        spared = _RANK_SHARE * n if fresh.name == "uncertain" else 0
        return f"{differ} of {n} entries differ" if differ > spared else ""
    a, b = (series.to_numpy(dtype=np.float64, na_value=np.nan) for series in (fresh, standing))
    if _are_ranks(fresh.name, a, b):
        within = not outside and differ <= _RANK_SHARE * n
        return "" if within else f"{differ} of {n} ranks differ, {outside} by more than their band allows"
    if all(pd.api.types.is_integer_dtype(x) for x in (fresh, standing)):
        return f"{differ} of {n} entries differ" if differ else ""
    far = off > 1
    known = far & np.isfinite(a) & np.isfinite(b)
    most = np.max(np.abs(a[known] - b[known]) / np.maximum(np.abs(a[known]), np.abs(b[known])), initial=0.0)
    return f"{far.sum()} of {n} reals differ, by {most:.2g} relative at most" if far.any() else ""
