"""One number with its interval for each measure of claims.yaml that head tables decide.

A statistic takes mean values [contexts, layers, heads, positions], the mean being over samples; its interval comes from
drawing samples again with replacement, the same draw in every context, centred on the estimate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy import stats

from srdyn import intervals, strata

LOW, HIGH = 0.25, 0.9
"""Shares of D that bound the low-rank and the high-rank stratum (claims.yaml, thresholds)."""
FEWEST_HEADS = 3
"""Below this many heads an order says nothing."""
RESAMPLES = 1000

Means = Float[np.ndarray, "contexts L H C"]


class Cube(NamedTuple):
    """One value of one model (and source) as an array, with the names along its axes."""

    values: Float[np.ndarray, "samples contexts L H C"]
    contexts: tuple[str, ...]
    layers: tuple[int, ...]
    positions: tuple[int, ...]
    D: int

    def at(self, position: int) -> int:
        """Index of a position along the last axis. Raises ValueError where it was not captured."""
        if position not in self.positions:
            raise ValueError(f"position {position} was not captured; there are {self.positions}")
        return self.positions.index(position)

    def only(self, contexts: Sequence[str]) -> Cube:
        """The cube with these contexts alone. Raises ValueError for one that it does not hold."""
        missing = set(contexts) - set(self.contexts)
        if missing:
            raise ValueError(f"the table holds no context called {', '.join(sorted(missing))}")
        chosen = [self.contexts.index(name) for name in contexts]
        return self._replace(values=self.values[:, chosen], contexts=tuple(contexts))


def cube(table: pd.DataFrame, value: str = "rank") -> Cube:
    """The column `value` of the head table of one model and source.

    Raises ValueError unless every context, sample, layer, head and position occurs exactly once.
    """
    axes = ["sample", "context", "layer", "head", "position"]
    series = table.set_index(axes)[value].sort_index()
    levels = [list(dict.fromkeys(table["context"])) if a == "context" else sorted(table[a].unique()) for a in axes]
    full = pd.MultiIndex.from_product(levels, names=axes)
    if len(series) != len(full) or not series.index.is_unique:
        raise ValueError(
            f"the table holds {len(series)} rows where {len(full)} make a full grid of {', '.join(axes)}; "
            "select one model and one source"
        )
    values = series.reindex(full).to_numpy(np.float64).reshape([len(level) for level in levels])
    _, names, layers, _, positions = levels
    return Cube(values, tuple(names), tuple(map(int, layers)), tuple(map(int, positions)), int(table["D"].iloc[0]))


def measure(
    heads: pd.DataFrame, name: str, statistic: Callable[..., float], *, value: str = "rank", **options
) -> pd.DataFrame:
    """`statistic(means, cube, **options)` for every model and source in `heads`, with its interval over samples.

    Columns: measure, model, kind, seed, source, estimate, low, high, n (samples drawn again), over.
    """
    rows = []
    for (model, kind, seed, source), table in heads.groupby(["model", "kind", "seed", "source"], sort=False):
        data = cube(table, value)
        interval = observe(data, lambda means, data=data: statistic(means, data, **options))
        names = {"measure": name, "model": model, "kind": kind, "seed": seed, "source": source}
        rows.append({**names, **interval._asdict(), "n": len(data.values), "over": "samples of each context"})
    return pd.DataFrame(rows)


def observe(
    data: Cube, statistic: Callable[[Means], float], *, seed: int = 0, n: int = RESAMPLES
) -> intervals.Interval:
    """A statistic of the means over samples, with its bootstrap interval."""
    generator = torch.Generator().manual_seed(seed)
    return intervals.bootstrap(
        data.values, lambda chosen: statistic(chosen.mean(0)), generator=generator, n=n, centred=True
    )


def within_bound(means: Means, cube: Cube) -> float:
    """Share of states whose rank is at most min(t, D), samples one by one (Thm 3.1)."""
    return float((cube.values <= np.minimum(cube.positions, cube.D)).mean())


def shares(means: Float[np.ndarray, "... H"], d: int) -> Float[np.ndarray, "... 3"]:
    """Shares of heads that are low-rank, in the middle, high-rank."""
    low, high = means <= LOW * d, means >= HIGH * d
    return np.stack([low.mean(-1), (~low & ~high).mean(-1), high.mean(-1)], -1)


def smaller_group(means: Means, cube: Cube, *, at: int) -> float:
    """Share of a layer's heads in the smaller of the low-rank and high-rank groups, median over layers (C1)."""
    low, _, high = np.moveaxis(shares(means[..., cube.at(at)].mean(0), cube.D), -1, 0)
    return float(np.median(np.minimum(low, high)))


def stratum_share(means: Means, cube: Cube, *, at: int, stratum: str) -> float:
    """Share of a layer's heads in one stratum, median over layers."""
    return float(np.median(shares(means[..., cube.at(at)].mean(0), cube.D)[:, strata.STRATA.index(stratum)]))


def follow(means: Means, cube: Cube) -> float:
    """Share of (high-rank head, position) with a mean rank within 1 of min(t, D); NaN without such heads (C2)."""
    ranks = means.mean(0).reshape(-1, len(cube.positions))
    high = ranks[ranks[:, -1] >= HIGH * cube.D]
    return float((np.abs(high - np.minimum(cube.positions, cube.D)) <= 1).mean()) if len(high) else np.nan


def drift(means: Means, cube: Cube) -> float:
    """|Change of rank/D per doubling of t| from t = D on, mean over low-rank heads; NaN without such heads (C2)."""
    ranks, positions = means.mean(0).reshape(-1, len(cube.positions)), np.asarray(cube.positions)
    late = positions >= cube.D
    low = ranks[ranks[:, -1] <= LOW * cube.D][:, late] / cube.D
    if not len(low) or late.sum() < 2:
        return np.nan
    return float(np.abs(np.polyfit(np.log2(positions[late]), low.T, 1)[0]).mean())


def order_in_time(means: Means, cube: Cube, *, first: int, second: int) -> float:
    """Spearman ρ of a layer's mean ranks at two positions, median over layers where it is defined (C3)."""
    ranks = means.mean(0)
    return nan_median(spearman(ranks[..., cube.at(first)], ranks[..., cube.at(second)]))


def cosine_between(means: Means, cube: Cube, *, at: int) -> float:
    """Cosine of a layer's vectors in two contexts, median over layers, mean over pairs of contexts (C4)."""
    vectors = means[..., cube.at(at)]
    lengths = np.linalg.norm(vectors, axis=-1)
    first, second = _pairs(len(vectors))
    cosines = (vectors[first] * vectors[second]).sum(-1) / (lengths[first] * lengths[second])
    return float(np.mean(np.median(cosines, axis=1)))


def spearman_between(means: Means, cube: Cube, *, at: int) -> float:
    """Spearman ρ of the mean ranks of all heads in two contexts, mean over defined pairs of contexts (C5)."""
    vectors = means[..., cube.at(at)].reshape(len(means), -1)
    first, second = _pairs(len(vectors))
    return nan_mean(spearman(vectors[first], vectors[second]))


def kappa_between(means: Means, cube: Cube, *, at: int) -> float:
    """Cohen's κ of the strata of all heads in two contexts, mean over defined pairs of contexts (C5)."""
    vectors = means[..., cube.at(at)].reshape(len(means), -1)
    first, second = _pairs(len(vectors))
    return nan_mean(kappa(vectors[first], vectors[second], cube.D))


def spearman_to_text(means: Means, cube: Cube, *, at: int, attacks: Sequence[str], text: Sequence[str]) -> float:
    """Spearman ρ of the mean ranks of all heads under attack and in text, mean over attacks (C7)."""
    vectors = means[..., cube.at(at)].reshape(len(means), -1)
    attacked = vectors[[cube.contexts.index(name) for name in attacks]]
    reading = vectors[[cube.contexts.index(name) for name in text]].mean(0)
    return nan_mean(spearman(attacked, np.broadcast_to(reading, attacked.shape)))


def spearman(a: Float[np.ndarray, "rows H"], b: Float[np.ndarray, "rows H"]) -> Float[np.ndarray, " rows"]:
    """Tie-averaged Spearman ρ row by row; NaN where either row is constant or has fewer than three heads."""
    if a.shape[-1] < FEWEST_HEADS:
        return np.full(len(a), np.nan)
    x, y = (stats.rankdata(v, axis=-1) for v in (a, b))
    x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    scale = np.sqrt((x**2).sum(-1) * (y**2).sum(-1))
    return np.divide((x * y).sum(-1), scale, out=np.full(len(a), np.nan), where=scale > 0)


def kappa(a: Float[np.ndarray, "rows H"], b: Float[np.ndarray, "rows H"], d: int) -> Float[np.ndarray, " rows"]:
    """Cohen's κ of the strata of mean ranks, row by row; NaN where chance agreement is certain."""
    x, y = (np.stack([v <= LOW * d, (v > LOW * d) & (v < HIGH * d), v >= HIGH * d]) for v in (a, b))
    observed = (x & y).any(0).mean(-1)
    expected = (x.mean(-1) * y.mean(-1)).sum(0)
    return np.divide(observed - expected, 1 - expected, out=np.full(len(a), np.nan), where=expected < 1)


def nan_median(values: Float[np.ndarray, " n"]) -> float:
    """Median of what is defined; NaN where nothing is."""
    defined = values[~np.isnan(values)]
    return float(np.median(defined)) if len(defined) else np.nan


def nan_mean(values: Float[np.ndarray, " n"]) -> float:
    """Mean of what is defined; NaN where nothing is."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else np.nan


def _pairs(n: int) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of both members of every pair out of n."""
    first, second = np.triu_indices(n, 1)
    return first, second
