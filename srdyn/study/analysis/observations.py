"""One number with its interval for each measure of claims.yaml that head tables decide, of both registrations.

A statistic takes mean values [contexts, layers, heads, positions], the mean being over samples. Its interval comes from
drawing the documents of each context again with replacement, whole, since windows of one document are not independent;
it is centred on the estimate and stays within the statistic's range. Strata hardly change from document to document, so
that a share of the heads is as good as certain of these heads: where heads are drawn again too, it speaks of others.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Shaped

from srdyn import strata
from srdyn.study.analysis import intervals

OF_A_MODEL = ["model", "kind", "seed"]
OF_A_SOURCE = [*OF_A_MODEL, "source"]
OF_A_HEAD = [*OF_A_MODEL, "layer", "head"]
PAIRS = "pairs of contexts"
HOLDS = 0.9
"""Share of min(t, D) that a high-rank head holds."""
SHARE, CORRELATION, MAGNITUDE = (0.0, 1.0), (-1.0, 1.0), (0.0, np.inf)
"""Ranges of statistics."""

Key = TypeVar("Key")
Means = Float[np.ndarray, "contexts L H C"]


class Pooled(NamedTuple):
    """A statistic with its range; `why` says which of its parts are undefined: left out, or what makes it NaN."""

    value: float
    limits: tuple[float, float]
    why: str


class Cube(NamedTuple):
    """One value of one model (and source) as an array, with the names along its axes."""

    values: Float[np.ndarray, "samples contexts L H C"]
    contexts: tuple[str, ...]
    layers: tuple[int, ...]
    positions: tuple[int, ...]
    D: int
    documents: Shaped[np.ndarray, "samples contexts"]

    def at(self, position: int) -> int:
        """Index of a position along the last axis. Raises ValueError where it was not captured."""
        if position not in self.positions:
            raise ValueError(f"position {position} was not captured; there are {self.positions}")
        return self.positions.index(position)

    @property
    def drawn(self) -> str:
        """What `resamples` draws again, in words."""
        counts = [len(np.unique(column)) for column in self.documents.T]
        span = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)}–{max(counts)}"
        return f"{span} documents of each context"


def cube(table: pd.DataFrame, *values: str) -> Cube:
    """A column of the head table of one model and source, by default `rank`; of several, side by side like positions.

    Without a column `document`, every sample counts as a document of its own.
    Raises ValueError unless every context, sample, layer, head and position occurs exactly once.
    """
    axes = ["sample", "context", "layer", "head", "position"]
    values = values or ("rank",)
    table = table if "document" in table else table.assign(document=table["sample"])
    indexed = table[[*axes, *values, "document"]].set_index(axes).sort_index()
    levels = [tuple(sorted(table[a].unique().tolist()) if a != "context" else dict.fromkeys(table[a])) for a in axes]
    full = pd.MultiIndex.from_product(levels, names=axes)
    if len(indexed) != len(full) or not indexed.index.is_unique:
        told = f"{len(indexed)} rows where {len(full)} make a full grid of {', '.join(axes)}"
        raise ValueError(f"the table holds {told}; select one model and one source")
    shape, indexed = [len(level) for level in levels], indexed.reindex(full)
    arrays = [indexed[name].to_numpy(np.float64).reshape(shape) for name in values]
    documents = indexed["document"].to_numpy().reshape(shape)[:, :, 0, 0, 0]
    _, contexts, layers, _, positions = levels
    return Cube(np.concatenate(arrays, -1), contexts, layers, positions, int(table["D"].iloc[0]), documents)


def groups(table: pd.DataFrame, by: list[str]) -> Iterator[tuple[dict[str, object], pd.DataFrame]]:
    """The rows for each value of these columns, as they first occur, with the values by column."""
    for names, part in table.groupby(by, sort=False):
        yield dict(zip(by, names, strict=True)), part


def measure(heads: pd.DataFrame, name: str, statistic: Callable[..., Pooled], **options) -> pd.DataFrame:
    """`statistic(means, cube, **options)` for every model and source in `heads`, with its interval over documents.

    The means are those of the column `value`, by default `rank`. With `over_heads` the heads of the model are drawn
    again as well, whatever their layer: of statistics of all heads. Columns: measure, model, kind, seed, source,
    estimate, low, high, n (samples of each context), over (what was drawn again), why (how much of it is undefined).
    """
    return measure_each(heads, lambda means, **given: {name: statistic(means, **given)}, **options)


def measure_each(
    heads: pd.DataFrame,
    statistics: Callable[..., dict[Key, Pooled]],
    *,
    value: str = "rank",
    over_heads: bool = False,
    **options,
) -> pd.DataFrame:
    """As `measure`, of several statistics that are computed together: a row for each of their names, `measure`."""
    rows, times = [], {options[name] for name in ("at", "first", "second") if name in options}
    if times and times <= set(heads["position"]):
        heads = heads[heads["position"].isin(times)]  # what is not asked for need not be drawn again
    for about, table in groups(heads, OF_A_SOURCE):
        data = cube(table, value)
        of_means = functools.partial(statistics, cube=data, **options)
        found, ends = of_means(data.values.mean(0)), observe_each(data, of_means, over_heads=over_heads)
        drawn = {"n": len(data.values), "over": data.drawn + " and heads" * over_heads}
        for name, pooled in found.items():
            rows.append({"measure": name, **about, **ends[name]._asdict(), **drawn, "why": pooled.why})
    return pd.DataFrame(rows)


def observe_each(
    data: Cube, statistics: Callable[[Means], dict[Key, Pooled]], *, over_heads: bool = False
) -> dict[Key, intervals.Interval]:
    """Bootstrap intervals, over the documents of each context, of statistics of the means over samples."""
    found = statistics(data.values.mean(0))
    resampled = [statistics(means) for means in resamples(data, over_heads=over_heads)]
    return {
        key: intervals.of_resamples(
            pooled.value, np.array([each[key].value for each in resampled]), centred=True, limits=pooled.limits
        )
        for key, pooled in found.items()
    }


def columns(found: dict[str, intervals.Interval]) -> dict[str, float]:
    """Intervals side by side in one row: `name`, `name_lo`, `name_hi` of each."""
    ends = ("", "_lo", "_hi")
    return {name + end: x for name, interval in found.items() for end, x in zip(ends, interval, strict=True)}


def resamples(data: Cube, *, over_heads: bool = False) -> Iterator[Means]:
    """The means over samples, the documents of each context drawn again: always the same draws.

    `over_heads`: then as many heads out of all layers, as if of one.
    """
    rng = np.random.default_rng(0)
    times = intervals.times_drawn(data.documents, generator=torch.Generator().manual_seed(0))
    flat = np.moveaxis(data.values, 0, 1).reshape(len(data.contexts), len(data.values), -1)
    for drawn in times:
        # Divided last, since sums of integers are exact: equal ranks have equal means, on the same side of a threshold.
        means = (drawn[:, None] @ flat)[:, 0] / drawn.sum(1, keepdims=True)
        means = means.reshape(data.values.shape[1:])
        if over_heads:
            means = means.reshape(len(means), 1, -1, means.shape[-1])
            means = means[:, :, rng.integers(0, means.shape[2], means.shape[2])]
        yield means


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

    A p is its own interval; NaN where all ranks are equal.
    """
    rows = []
    for names, table in groups(heads, OF_A_SOURCE):
        data = cube(table)
        found = strata.bimodality(data.values.mean((0, 1))[..., data.at(at)].ravel() / data.D)
        p = float(found["p"])
        why = "all ranks are equal" if np.isnan(p) else f"dip {found['dip']:.3f} of {found['n']:.0f} heads"
        about = names | {"measure": name, "n": len(data.values)}
        rows.append(about | {"estimate": p, "low": p, "high": p, "over": "heads, by the test", "why": why})
    return pd.DataFrame(rows)


def follow(means: Means, cube: Cube) -> Pooled:
    """Share of (high-rank head, position) with a mean rank within 1 of min(t, D); NaN without such heads (C2)."""
    near = np.abs(_ending(means, cube, "high") - np.minimum(cube.positions, cube.D)) <= 1
    return pooled(near.mean(-1), np.mean, "high-rank heads", SHARE)


def hold(means: Means, cube: Cube) -> Pooled:
    """Share of (high-rank head, position from D/8 on) with a mean rank of at least 0.9 min(t, D) (C2, second)."""
    late = np.asarray(cube.positions) >= cube.D / 8
    held = _ending(means, cube, "high") >= HOLDS * np.minimum(cube.positions, cube.D)
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


def pooled(
    values: Float[np.ndarray, "..."], pool: Callable[..., float], named: str, limits: tuple[float, float]
) -> Pooled:
    """The parts `values` made one by `pool`; NaN where there is none."""
    undefined = int(np.isnan(values).sum())
    value = np.nan if undefined == values.size else float(pool(values))
    why = f"{undefined} of {values.size} {named} undefined" if undefined else ""
    return Pooled(value, limits, why if values.size else f"there are no {named}")


def single(value: float, limits: tuple[float, float], named: str = "values") -> Pooled:
    """A statistic of one part."""
    return pooled(np.array([value]), np.max, named, limits)


def _smaller(ranks: Float[np.ndarray, "... H"], d: int) -> Float[np.ndarray, "..."]:
    low, _, high = np.moveaxis(strata.shares(ranks, d), -1, 0)
    return np.minimum(low, high)


def _all_heads(means: Means, cube: Cube, at: int) -> Float[np.ndarray, "contexts heads"]:
    return means[..., cube.at(at)].reshape(len(means), -1)


def _pairs(values: Float[np.ndarray, "n ..."]) -> tuple[Float[np.ndarray, "p ..."], Float[np.ndarray, "p ..."]]:
    """The first and the second of every pair out of n."""
    first, second = np.triu_indices(len(values), 1)
    return values[first], values[second]
