"""Heads by the rank they settle at.

References
----------
Hartigan & Hartigan, The dip test of unimodality, Ann. Statist. 13, 1985.
SAS Institute, SAS/STAT User's Guide, 1990 (Sarle's bimodality coefficient).
Cohen, A coefficient of agreement for nominal scales, Educ. Psychol. Meas. 20, 1960.
"""

from collections.abc import Sequence

import diptest
import numpy as np
import pandas as pd
from jaxtyping import Float64, Real, Shaped
from scipy import stats
from torch import Tensor

from srdyn import spectra
from srdyn.kernels import recurrence

STRATA = ("low", "middle", "high")
HEAD = ("model", "seed", "context", "layer", "head", "position")
"""Columns that name one head at one time in one context, whatever the sample."""


def head_table(
    sigma: Float64[Tensor, "L B C H D"],
    *,
    positions: recurrence.Positions,
    layers: Sequence[int],
    context: str,
    model: str,
    seed: int,
    eps: float = spectra.EPS,
) -> pd.DataFrame:
    """One row for every layer, sample, position, head: rank (Eq. 6), nuclear norm, stable rank, entropy rank.

    `layers` are the layers' indices in the model. `uncertain` is True where the rank may differ between machines. Heads
    that were pruned away have NaN ranks. Raises ValueError when positions or layers do not match sigma.
    """
    L, B, C, H, D = sigma.shape
    if len(positions) != C or len(layers) != L:
        raise ValueError(f"sigma holds {L} layers at {C} positions, but {len(layers)} and {len(positions)} are named")
    axes = np.meshgrid(np.asarray(layers), np.arange(B), np.asarray(positions), np.arange(H), indexing="ij")
    columns = dict(zip(("layer", "sample", "position", "head"), (axis.ravel() for axis in axes), strict=True))
    measures = {
        "rank": spectra.effective_rank(sigma, eps),
        "nuclear_norm": spectra.nuclear_norm(sigma),
        "stable_rank": spectra.stable_rank(sigma),
        "entropy_rank": spectra.entropy_rank(sigma),
        "uncertain": spectra.uncertain(sigma, eps).any(-1),
    }
    names = {"model": model, "seed": seed, "context": context}
    order = ("sample", "layer", "head", "position")
    numbers = {name: value.cpu().numpy().ravel() for name, value in measures.items()}
    return pd.DataFrame({**names, **{name: columns[name] for name in order}, "D": D, **numbers})


def stratify(table: pd.DataFrame, low: float = 0.25, high: float = 0.9, *, by: Sequence[str] = HEAD) -> pd.DataFrame:
    """The table with a column `stratum`: low, middle or high by the head's mean rank over samples, as a share of D.

    Low is ≤ `low`·D, high is ≥ `high`·D. Every row of a head (the columns `by`) gets the same stratum; heads without a
    rank get none. Raises ValueError unless 0 ≤ low < high ≤ 1.
    """
    mean_rank = table.groupby(list(by), observed=True)["rank"].transform("mean")
    return table.assign(stratum=_strata((mean_rank / table["D"]).to_numpy(), low, high))


def wide(
    table: pd.DataFrame, value: str = "rank", *, position: int | None = None, columns: str | Sequence[str] = "context"
) -> pd.DataFrame:
    """Heads (layer, head) as rows, contexts (or other `columns`) side by side, the mean over samples as the entry.

    Raises ValueError when rows of several models, seeds, contexts or positions would be averaged together, or when the
    position is not in the table.
    """
    columns = [columns] if isinstance(columns, str) else list(columns)
    if position is not None:
        table = table[table["position"] == position]
        if table.empty:
            raise ValueError(f"the table has no rows at position {position}")
    mixed = [name for name in HEAD if name not in ("layer", "head", *columns) and table[name].nunique() > 1]
    if mixed:
        raise ValueError(f"the table holds several values of {', '.join(mixed)}; select one, or add it to columns")
    return table.groupby(["layer", "head", *columns], observed=True)[value].mean().unstack(columns)


def agreement(
    a: Real[np.ndarray, " heads"] | pd.Series,
    b: Real[np.ndarray, " heads"] | pd.Series,
    *,
    d: int | None = None,
    low: float = 0.25,
    high: float = 0.9,
) -> pd.Series:
    """How far two measurements of the same heads agree: `spearman` (tie-averaged), `kappa`, `cosine`, `n`.

    Heads that are NaN in either are left out; `n` counts the rest. Spearman and cosine are NaN for a constant and a
    zero vector. Cohen's κ compares the strata of ranks out of `d`; it is NaN without `d` and when chance agreement is
    certain.
    Raises ValueError when the two differ in length.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"agreement compares the same heads twice, got {len(a)} and {len(b)}")
    both = ~(np.isnan(a) | np.isnan(b))
    a, b = a[both], b[both]
    kappa = np.nan if d is None else _cohen_kappa(_strata(a / d, low, high), _strata(b / d, low, high))
    return pd.Series({"spearman": _spearman(a, b), "kappa": kappa, "cosine": _cosine(a, b), "n": len(a)})


def bimodality(values: Real[np.ndarray, " heads"] | pd.Series) -> pd.Series:
    """Whether values form two groups: Hartigan's `dip` with its `p`, `sarle` (uniform: 5/9, bimodal: more), `n`.

    NaN values are left out. All are NaN for fewer than four values or for a constant. Integers on a coarse grid lift
    the dip by up to half the height of a bar; a mean over samples lies on a finer grid.
    """
    values = np.asarray(values, dtype=np.float64)
    values = values[~np.isnan(values)]
    n = len(values)
    if n < 4 or np.ptp(values) == 0:
        return pd.Series({"dip": np.nan, "p": np.nan, "sarle": np.nan, "n": n})
    dip, p = diptest.diptest(values)
    skewness, excess = stats.skew(values, bias=False), stats.kurtosis(values, bias=False)
    sarle = (skewness**2 + 1) / (excess + 3 * (n - 1) ** 2 / ((n - 2) * (n - 3)))
    return pd.Series({"dip": dip, "p": p, "sarle": sarle, "n": n})


def _strata(fraction: Float64[np.ndarray, " rows"], low: float, high: float) -> pd.Categorical:
    if not 0 <= low < high <= 1:
        raise ValueError(f"strata need 0 ≤ low < high ≤ 1, got low {low} and high {high}")
    codes = np.select([np.isnan(fraction), fraction <= low, fraction < high], [-1, 0, 1], default=2)
    return pd.Categorical.from_codes(codes, categories=STRATA, ordered=True)


def _spearman(a: Float64[np.ndarray, " heads"], b: Float64[np.ndarray, " heads"]) -> float:
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return np.nan
    return float(stats.spearmanr(a, b).statistic)


def _cosine(a: Float64[np.ndarray, " heads"], b: Float64[np.ndarray, " heads"]) -> float:
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / lengths if lengths else np.nan


def _cohen_kappa(a: pd.Categorical, b: pd.Categorical) -> float:
    if not len(a):
        return np.nan
    observed = float((a.codes == b.codes).mean())
    shares: list[Shaped[np.ndarray, " strata"]] = [np.bincount(x.codes, minlength=len(STRATA)) / len(x) for x in (a, b)]
    expected = float(shares[0] @ shares[1])
    return (observed - expected) / (1 - expected) if expected < 1 else np.nan
