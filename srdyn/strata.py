"""Heads by the rank they settle at.

Hartigan & Hartigan, The dip test of unimodality, Ann. Statist. 13, 1985.
SAS Institute, SAS/STAT User's Guide, 1990 (Sarle's bimodality coefficient).
Cohen, A coefficient of agreement for nominal scales, Educ. Psychol. Meas. 20, 1960.
"""

from collections.abc import Sequence

import diptest
import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Float64, Real
from scipy import stats
from torch import Tensor

from srdyn import spectra
from srdyn.kernels import recurrence

STRATA = ("low", "middle", "high")
LOW, HIGH = 0.25, 0.9
"""Shares of D that bound the low-rank and the high-rank stratum (claims.yaml, thresholds)."""
_FEWEST_HEADS = 3  # below which an order says nothing


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

    `layers` are the layers' indices in the model. `uncertain` is True where the rank may differ between machines.
    Raises ValueError when positions or layers do not match sigma.
    """
    L, B, C, H, D = sigma.shape
    if len(positions) != C or len(layers) != L:
        raise ValueError(f"sigma holds {L} layers at {C} positions, but {len(layers)} and {len(positions)} are named")
    axes = np.meshgrid(np.asarray(layers), np.arange(B), np.asarray(positions), np.arange(H), indexing="ij")
    layer, sample, position, head = (axis.ravel() for axis in axes)
    measures = {
        "rank": spectra.effective_rank(sigma, eps),
        "nuclear_norm": spectra.nuclear_norm(sigma),
        "stable_rank": spectra.stable_rank(sigma),
        "entropy_rank": spectra.entropy_rank(sigma),
        "uncertain": spectra.uncertain(sigma, eps).any(-1),
    }
    names = {"model": model, "seed": seed, "context": context}
    places = {"sample": sample, "layer": layer, "head": head, "position": position, "D": D}
    return pd.DataFrame(names | places | {name: value.cpu().numpy().ravel() for name, value in measures.items()})


def stratify(table: pd.DataFrame, *, by: Sequence[str]) -> pd.DataFrame:
    """The table with the `stratum` of the rows alike in the columns `by`, such as a head's of several samples.

    By their mean rank: low (≤ `LOW`·D), middle or high (≥ `HIGH`·D), or none where that is NaN.
    """
    share = (table.groupby(list(by), observed=True)["rank"].transform("mean") / table["D"]).to_numpy()
    among = members(share, 1)
    codes = np.where(among.any(0), among.argmax(0), -1)
    return table.assign(stratum=pd.Categorical.from_codes(codes, categories=STRATA, ordered=True))


def agreement(
    a: Real[np.ndarray, " heads"] | pd.Series, b: Real[np.ndarray, " heads"] | pd.Series, *, d: int | None = None
) -> pd.Series:
    """How far two measurements of the same heads agree: `spearman`, `kappa`, `cosine`, `n`.

    Heads that are NaN in either are left out; `kappa` compares the strata of ranks out of `d` and is NaN without it.
    Raises ValueError for unequal numbers of heads.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"agreement compares the same heads twice, got {len(a)} and {len(b)}")
    both = ~(np.isnan(a) | np.isnan(b))
    a, b = a[None, both], b[None, both]
    found = {"spearman": spearman(a, b), "kappa": [np.nan] if d is None else kappa(a, b, d), "cosine": cosine(a, b)}
    return pd.Series({name: value[0] for name, value in found.items()} | {"n": a.shape[1]})


def spearman(a: Float[np.ndarray, "*rows H"], b: Float[np.ndarray, "*rows H"]) -> Float[np.ndarray, "*rows"]:
    """Tie-averaged Spearman ρ row by row; NaN where either row is constant or has fewer than `_FEWEST_HEADS` heads."""
    if a.shape[-1] < _FEWEST_HEADS:
        return np.full(a.shape[:-1], np.nan)
    x, y = (stats.rankdata(v, axis=-1) for v in (a, b))
    x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    return ratio((x * y).sum(-1), np.sqrt((x**2).sum(-1) * (y**2).sum(-1)))


def kappa(a: Float[np.ndarray, "*rows H"], b: Float[np.ndarray, "*rows H"], d: int) -> Float[np.ndarray, "*rows"]:
    """Cohen's κ of the strata of ranks out of `d`, row by row; NaN where chance agreement is certain."""
    x, y = (members(v, d) for v in (a, b))
    observed = (x & y).any(0).mean(-1) if a.size else np.full(a.shape[:-1], np.nan)
    expected = (x.mean(-1) * y.mean(-1)).sum(0) if a.size else observed
    return ratio(observed - expected, 1 - expected)


def cosine(a: Float[np.ndarray, "*rows H"], b: Float[np.ndarray, "*rows H"]) -> Float[np.ndarray, "*rows"]:
    """Cosine of two vectors, row by row; NaN for a zero vector."""
    return ratio((a * b).sum(-1), np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))


def shares(ranks: Float[np.ndarray, "*rows H"], d: int) -> Float[np.ndarray, "*rows 3"]:
    """Shares of heads that are low-rank, in the middle, high-rank, among those with a rank; NaN where none has one."""
    counts = np.moveaxis(members(ranks, d).sum(-1), 0, -1)
    return ratio(counts, counts.sum(-1, keepdims=True))


def members(ranks: Float[np.ndarray, "*rows"], d: float | int) -> Bool[np.ndarray, "3 *rows"]:
    """Which ranks out of `d` are low, in the middle, high; NaN is none of these."""
    return np.stack([ranks <= LOW * d, (ranks > LOW * d) & (ranks < HIGH * d), ranks >= HIGH * d])


def bimodality(values: Real[np.ndarray, " heads"] | pd.Series) -> pd.Series:
    """Whether values form two groups: Hartigan's `dip` with its `p`, `sarle` (uniform: 5/9, bimodal: more), `n`.

    NaN values are left out; all are NaN for fewer than four values or a constant. A coarse grid lifts the dip.
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


def ratio(a: Real[np.ndarray, "*rows"], b: Real[np.ndarray, "*#rows"]) -> Float64[np.ndarray, "*rows"]:
    """a / b; NaN where b is not positive."""
    return np.divide(a, b, out=np.full(np.shape(a), np.nan), where=b > 0)
