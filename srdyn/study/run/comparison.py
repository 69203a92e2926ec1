"""How far a fresh table is from the one that stands, by the tolerances of a rerun on another machine."""

import math
import re

import numpy as np
import pandas as pd

_RTOL, _ATOL = 1e-4, 1e-9
"""Reals of two machines agree to _RTOL; _ATOL is for those that are zero but for rounding."""
_RANK_SHARE = 0.01
"""Share of the ranks that another machine may count one off, each with a singular value next to the threshold."""
BITS = 1e-6 * 32 / math.log(2)
"""What rounding leaves where bits cancel: a float32 pass is 1e-6 off (`spectra`), of logits up to 32."""
_COSINES = {"cosine", "bound"}
"""Differences of what a float32 pass gives to 1e-6 from 1."""
_ASKED = {"probe", "arm", "distance", "damage", "logits_differ"}
"""A table with one of these holds what models answered, in `_ANSWERS`: bits, or shares, whose steps are larger."""
_ANSWERS = {"bits", "damage", "logits_differ", "intact", "value", "estimate", "difference", "interaction"}
_ANSWERS |= {"low", "high"}
_DOUBTFUL = {"rank", "text_rank", "exact", "mechanism", "residual", "residual_low", "residual_high"}
_DOUBTFUL |= {"estimate", "spearman", "variance", "reproducible", "dip", "p", "sarle"}
_DOUBTFUL |= {name + end for name in ("low", "middle", "high", "kappa") for end in ("", "_lo", "_hi")}
"""What is made of ranks, or of rounded states, and may be as far off as `uncertain` says."""
_STRATA = {"stratum": "rank", "mechanism_stratum": "mechanism", "moved": "rank"}
"""What ranks beside it decide, by column."""
_OF_A_HEAD = ["model", "layer", "head", "D"]


def compared(fresh: pd.DataFrame, standing: pd.DataFrame) -> tuple[float, list[str]]:
    """How far the farthest cell is off the table that stands, in units of its tolerance; faults, column by column.

    Without faults either may stand for the other.
    Reals agree to 1e-4 relative; what models answer also where it is less than `BITS` off, and cosines 1e-6. Where
    `uncertain` is true in either table, a rank (an integer column named `rank`, `rank_…` or `…_rank`) may be one off,
    in at most 1 % of the entries; where it is a number, `_DOUBTFUL` columns may be that far off, and heads be in the
    next stratum where that is as near. In `uncertain` itself, which is cut from reals, as many entries may differ, or
    one; or more of its numbers, where together they agree to a factor of two. All else is exact.
    """
    if list(fresh.columns) != list(standing.columns):
        return np.inf, [f"columns {list(fresh.columns)} for {list(standing.columns)}"]
    if len(fresh) != len(standing):
        return np.inf, [f"{len(fresh)} rows for {len(standing)}"]
    off = units(fresh, standing)
    found = {name: _fault(fresh[name], standing[name], off[name].to_numpy()) for name in fresh.columns}
    told = [f"{name}: {fault}" for name, fault in found.items() if fault]
    return float(off.to_numpy().max(initial=0.0)), told


def units(fresh: pd.DataFrame, standing: pd.DataFrame) -> pd.DataFrame:
    """How far off every cell of one table is from that of the other, of as many rows, in units of its tolerance.

    At most 1 is within. What must be equal is 0 or infinitely far off; a rank that is uncertain may be one off, 1.
    """
    band, answers = _band(fresh, standing), _ANSWERS if _ASKED & set(fresh) else set()
    rounding = {name: BITS * (name in answers) + 1e-6 * (name in _COSINES) for name in fresh}
    flags = pd.api.types.is_bool_dtype(standing.get("uncertain"))  # of ranks, of nothing that is made of them
    least = {name: _ATOL + rounding[name] + (band if name in _DOUBTFUL and not flags else 0.0) for name in fresh}
    off = pd.DataFrame({name: _units(fresh[name], standing[name], band, least[name]) for name in fresh})
    for name, ranks in _STRATA.items():
        if {name, ranks, *_OF_A_HEAD, "uncertain"} <= set(fresh) and off[name].any():
            off.loc[_near_a_limit(standing, ranks, band) & (off[name] > 0), name] = 1.0
    return off


def _near_a_limit(table: pd.DataFrame, ranks: str, band: np.ndarray) -> pd.Series:
    """Rows of heads that have a rank as near to the limit of a stratum as it is uncertain."""
    from srdyn import strata  # brings torch, which is heavy, and nothing else here needs it

    near = [abs(table[ranks] - limit * table["D"]) <= band for limit in (strata.LOW, strata.HIGH)]
    by = [table[name] for name in ("source", *_OF_A_HEAD) if name in table]
    return (near[0] | near[1]).groupby(by).transform("any")


def _units(fresh: pd.Series, standing: pd.Series, band: np.ndarray, least: float | np.ndarray) -> np.ndarray:
    kind = _kind(fresh, standing)
    if kind == "uncertain":
        return (~(fresh.eq(standing) | (fresh.isna() & standing.isna()))).to_numpy(dtype=float)
    if kind == "exact":
        differs = ~(fresh.eq(standing).fillna(False) | (fresh.isna() & standing.isna())).to_numpy(dtype=bool)
        return np.where(differs, np.inf, 0.0)
    a, b = _reals(fresh, standing)
    alike = (a == b) | (np.isnan(a) & np.isnan(b))
    if kind == "ranks":
        return np.select([alike, np.abs(a - b) <= band], [0.0, 1.0], np.inf)
    with np.errstate(invalid="ignore"):
        return np.where(alike, 0.0, np.nan_to_num(np.abs(a - b) / (least + _RTOL * np.abs(b)), nan=np.inf))


def _band(fresh: pd.DataFrame, standing: pd.DataFrame) -> np.ndarray:
    """How far off another machine may count the ranks of each row."""
    told = [frame.get("uncertain", pd.Series(0.0, index=frame.index)) for frame in (fresh, standing)]
    return np.maximum(*(series.astype(float).fillna(0.0).to_numpy() for series in told))


def _kind(*columns: pd.Series) -> str:
    """By what a column is compared: `uncertain`, `exact`, `ranks`, `reals`."""
    if columns[0].name == "uncertain":
        return "uncertain"
    if any(pd.api.types.is_bool_dtype(x) or not pd.api.types.is_numeric_dtype(x) for x in columns):
        return "exact"
    whole = all(np.all(np.isnan(x) | (x == np.round(x))) for x in _reals(*columns))
    if whole and re.search(r"(^|_)rank(_|$)", str(columns[0].name)):
        return "ranks"
    return "exact" if all(pd.api.types.is_integer_dtype(x) for x in columns) else "reals"


def _as_large(*bands: pd.Series) -> bool:
    """Whether numbers that are bands are told of the same rows, and agree, together, to a factor of two."""
    if any(pd.api.types.is_bool_dtype(x) for x in bands) or not bands[0].isna().equals(bands[1].isna()):
        return False
    a, b = (x.sum() for x in bands)
    return bool(max(a, b) <= 2 * min(a, b))


def _reals(*columns: pd.Series) -> list[np.ndarray]:
    return [column.to_numpy(dtype=np.float64, na_value=np.nan) for column in columns]


def _fault(fresh: pd.Series, standing: pd.Series, off: np.ndarray) -> str:
    n, kind = len(fresh), _kind(fresh, standing)
    differ, outside = int((off > 0).sum()), int(np.isinf(off).sum())
    if kind == "exact":
        return f"{outside} of {n} entries differ" if outside else ""
    if kind == "uncertain":
        within = differ <= max(1, _RANK_SHARE * n) or _as_large(fresh, standing)
        return "" if within else f"{differ} of {n} entries differ"
    if kind == "ranks":
        within = not outside and differ <= _RANK_SHARE * n
        return "" if within else f"{differ} of {n} ranks differ, {outside} by more than their band allows"
    (a, b), far = _reals(fresh, standing), off > 1
    known = far & np.isfinite(a) & np.isfinite(b)
    most = np.max(np.abs(a[known] - b[known]) / np.maximum(np.abs(a[known]), np.abs(b[known])), initial=0.0)
    return f"{far.sum()} of {n} reals differ, by {most:.2g} relative at most" if far.any() else ""
