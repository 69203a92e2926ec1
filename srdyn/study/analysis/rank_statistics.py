"""The measures of claims.yaml that head tables decide, of both registrations: each a statistic of mean ranks.

`observations.measure` gives them for every model, with their intervals.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from srdyn import strata
from srdyn.study.analysis import observations
from srdyn.study.analysis.observations import CORRELATION, MAGNITUDE, SHARE, Cube, Means, Pooled, pooled

PAIRS = "pairs of contexts"


def bounded(heads: pd.DataFrame) -> pd.DataFrame:
    """The table with `within`: 1 where a state's rank is at most min(t, D), else 0 (Thm 3.1)."""
    within = heads["rank"] <= heads[["position", "D"]].min(axis=1)
    return heads.assign(within=within.astype(float).where(heads["rank"].notna()))


def share_within(means: Means, cube: Cube, *, before_d: bool = False) -> Pooled:
    """Share of states within the bound, from the means of `within`; `before_d` takes t < D alone (Thm 3.1)."""
    chosen = np.asarray(cube.positions) < cube.D if before_d else slice(None)
    return pooled(means[..., chosen], np.nanmean, "states", SHARE)


def smaller_group(means: Means, cube: Cube, *, at: int) -> Pooled:
    """Share of a layer's heads in the smaller of the low-rank and high-rank groups, median over layers (C1)."""
    return pooled(_smaller(means[..., cube.at(at)].mean(0), cube.D), np.median, "layers", SHARE)


def least_group(means: Means, cube: Cube, *, at: int) -> Pooled:
    """As `smaller_group`, in the context where it is least (C7)."""
    return pooled(np.median(_smaller(means[..., cube.at(at)], cube.D), -1), np.min, "contexts", SHARE)


def stratum_share(means: Means, cube: Cube, *, at: int, stratum: str) -> Pooled:
    """Share of a layer's heads in one stratum, median over layers."""
    found = strata.shares(means[..., cube.at(at)].mean(0), cube.D)[:, strata.STRATA.index(stratum)]
    return pooled(found, np.median, "layers", SHARE)


def share_of_all(means: Means, cube: Cube, *, at: int, stratum: str) -> Pooled:
    """Share of all heads, whatever their layer, in one stratum (C1, second)."""
    found = strata.shares(_all_heads(means, cube, at).mean(0)[None], cube.D)
    return pooled(found[:, strata.STRATA.index(stratum)], np.mean, "models", SHARE)


def dip(heads: pd.DataFrame, name: str, *, at: int) -> pd.DataFrame:
    """p of Hartigan's dip test that rank/D of all heads has one mode, in rows as `measure` returns them (C1, second).

    A p is its own interval, with what another machine may find (`uncertain`); NaN where all ranks are equal.
    """
    rows = []
    for names, table in observations.groups(heads, observations.OF_A_SOURCE):
        data = observations.cube(table[table["position"] == at])
        p = observations.without_interval(data, functools.partial(modes, cube=data))["p"]
        why = "all ranks are equal" if np.isnan(p.estimate) else f"of {data.values[0, 0].size} heads"
        about = names | {"measure": name, "n": len(data.values), "over": "heads, by the test", "why": why}
        rows.append(about | p._asdict())
    return pd.DataFrame(rows)


def modes(means: Means, cube: Cube) -> dict[str, Pooled]:
    """`strata.bimodality` of rank/D of all heads at the first position."""
    found = strata.bimodality(means[..., 0].mean(0).ravel() / cube.D).drop("n")
    return {name: observations.single(value, SHARE) for name, value in found.items()}


def follow(means: Means, cube: Cube) -> Pooled:
    """Share of (high-rank head, position) with a mean rank within 1 of min(t, D); NaN without such heads (C2)."""
    near = np.abs(_ending(means, cube, "high") - np.minimum(cube.positions, cube.D)) <= 1
    return pooled(near.mean(-1), np.mean, "high-rank heads", SHARE)


def hold(means: Means, cube: Cube) -> Pooled:
    """Share of (high-rank head, position from D/8 on) with a mean rank of at least 0.9 min(t, D) (C2, second)."""
    late = np.asarray(cube.positions) >= cube.D / 8
    held = _ending(means, cube, "high") >= 0.9 * np.minimum(cube.positions, cube.D)
    return pooled(held[:, late].mean(-1) if late.any() else np.empty(0), np.mean, "high-rank heads", SHARE)


def drift(means: Means, cube: Cube) -> Pooled:
    """|Change of rank/D per doubling of t| from t = D on, mean over low-rank heads; NaN without such heads (C2)."""
    return _slopes(means, cube, "low", cube.D, "two positions from d on")


def settle(means: Means, cube: Cube) -> Pooled:
    """|Change of rank/D per doubling of t| from t = 2 D on, mean over high-rank heads (C2, second)."""
    return _slopes(means, cube, "high", 2 * cube.D, "two positions from 2 d on")


def _slopes(means: Means, cube: Cube, stratum: str, since: int, needed: str) -> Pooled:
    late = np.asarray(cube.positions) >= since
    if late.sum() < 2:
        return pooled(np.empty(0), np.mean, needed, MAGNITUDE)
    heads = _ending(means, cube, stratum)[:, late] / cube.D
    slopes = np.polyfit(np.log2(cube.positions)[late], heads.T, 1)[0] if len(heads) else np.empty(0)
    return pooled(np.abs(slopes), np.mean, f"{stratum}-rank heads", MAGNITUDE)


def _ending(means: Means, cube: Cube, stratum: str) -> Float[np.ndarray, "heads C"]:
    """The mean ranks of the heads that are in this stratum at the last position."""
    ranks = means.mean(0).reshape(-1, len(cube.positions))
    return ranks[strata.members(ranks[:, -1], cube.D)[strata.STRATA.index(stratum)]]


def order_in_time(means: Means, cube: Cube, *, first: int, second: int) -> Pooled:
    """Spearman ρ of a layer's mean ranks at two positions, median over layers where it is defined (C3).

    NaN where one of them was not captured: 16 D may lie beyond what was read.
    """
    return _in_time(strata.spearman, means, cube, first, second)


def order_from_d(means: Means, cube: Cube) -> Pooled:
    """`order_in_time` from t = D to t = 16 D, the model's own D (C3)."""
    return order_in_time(means, cube, first=cube.D, second=16 * cube.D)


def cosine_in_time(means: Means, cube: Cube, *, first: int, second: int) -> Pooled:
    """Cosine of a layer's vectors, their mean over contexts, where `order_in_time` has Spearman ρ (C4, second)."""
    return _in_time(strata.cosine, means, cube, first, second)


def _in_time(agree: Callable[..., np.ndarray], means: Means, cube: Cube, first: int, second: int) -> Pooled:
    if not {first, second} <= set(cube.positions):
        return pooled(np.empty(0), np.nanmedian, f"positions {first} and {second} among those captured", CORRELATION)
    found = agree(*(means.mean(0)[..., cube.at(position)] for position in (first, second)))
    return pooled(found, np.nanmedian, "layers", CORRELATION)


def cosine_between(means: Means, cube: Cube, *, at: int) -> Pooled:
    """Cosine of a layer's vectors in two contexts, median over layers, mean over pairs of contexts (C4)."""
    cosines = strata.cosine(*_pairs(means[..., cube.at(at)]))
    return pooled(np.median(cosines, axis=1), np.nanmean, PAIRS, CORRELATION)


def spearman_between(means: Means, cube: Cube, *, at: int) -> Pooled:
    """Spearman ρ of the mean ranks of all heads in two contexts, mean over defined pairs of contexts (C5)."""
    return pooled(strata.spearman(*_pairs(_all_heads(means, cube, at))), np.nanmean, PAIRS, CORRELATION)


def kappa_between(means: Means, cube: Cube, *, at: int) -> Pooled:
    """Cohen's κ of the strata of all heads in two contexts, mean over defined pairs of contexts (C5)."""
    return pooled(strata.kappa(*_pairs(_all_heads(means, cube, at)), cube.D), np.nanmean, PAIRS, CORRELATION)


def spearman_to_text(means: Means, cube: Cube, *, at: int, attacks: Sequence[str], text: Sequence[str]) -> Pooled:
    """Spearman ρ of the mean ranks of all heads under attack and in text, least over attacks (C7).

    NaN where it is undefined under one of them: the claim is about each.
    """
    vectors = _all_heads(means, cube, at)
    attacked = vectors[[cube.contexts.index(name) for name in attacks]]
    reading = vectors[[cube.contexts.index(name) for name in text]].mean(0)
    return pooled(strata.spearman(attacked, np.broadcast_to(reading, attacked.shape)), np.min, "attacks", CORRELATION)


def _smaller(ranks: Float[np.ndarray, "... H"], d: int) -> Float[np.ndarray, "..."]:
    low, _, high = np.moveaxis(strata.shares(ranks, d), -1, 0)
    return np.minimum(low, high)


def _all_heads(means: Means, cube: Cube, at: int) -> Float[np.ndarray, "contexts heads"]:
    return means[..., cube.at(at)].reshape(len(means), -1)


def _pairs(values: Float[np.ndarray, "n ..."]) -> tuple[Float[np.ndarray, "p ..."], Float[np.ndarray, "p ..."]]:
    """The first and the second of every pair out of n."""
    first, second = np.triu_indices(len(values), 1)
    return values[first], values[second]
