"""One number with its interval for each measure of claims.yaml that head tables decide.

A statistic takes mean values [contexts, layers, heads, positions], the mean being over samples. Its interval comes from
drawing the documents of each context again with replacement, whole, since windows of one document are not independent;
it is centred on the estimate and stays within the statistic's range. Strata hardly change from document to document, so
that a share of the heads is as good as certain of these heads: where heads are drawn again too, it speaks of others.
"""

from __future__ import annotations

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
PAIRS = "pairs of contexts"
SHARE, CORRELATION, MAGNITUDE = (0.0, 1.0), (-1.0, 1.0), (0.0, np.inf)
"""Ranges of statistics."""

Key = TypeVar("Key")
Means = Float[np.ndarray, "contexts L H C"]


class Pooled(NamedTuple):
    """A statistic that many parts make up, `undefined` of which are left out, or make it NaN."""

    value: float
    undefined: int
    parts: int
    named: str
    limits: tuple[float, float]

    @property
    def remark(self) -> str:
        """What a reader must know to take the value for what it is; mostly nothing."""
        if not self.parts:
            return f"there are no {self.named}"
        return f"{self.undefined} of {self.parts} {self.named} undefined" if self.undefined else ""


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
    indexed = with_documents(table)[[*axes, *values, "document"]].set_index(axes).sort_index()
    levels = [list(dict.fromkeys(table["context"])) if a == "context" else sorted(table[a].unique()) for a in axes]
    full = pd.MultiIndex.from_product(levels, names=axes)
    if len(indexed) != len(full) or not indexed.index.is_unique:
        raise ValueError(
            f"the table holds {len(indexed)} rows where {len(full)} make a full grid of {', '.join(axes)}; "
            "select one model and one source"
        )
    shape, indexed = [len(level) for level in levels], indexed.reindex(full)
    arrays = [indexed[name].to_numpy(np.float64).reshape(shape) for name in values]
    _, names, layers, _, positions = levels
    return Cube(
        np.concatenate(arrays, -1),
        tuple(names),
        tuple(map(int, layers)),
        tuple(map(int, positions)),
        int(table["D"].iloc[0]),
        indexed["document"].to_numpy().reshape(shape)[:, :, 0, 0, 0],
    )


def with_documents(table: pd.DataFrame) -> pd.DataFrame:
    """The table with a column `document`: where it says nothing of documents, every sample counts as one."""
    return table if "document" in table else table.assign(document=table["sample"])


def groups(table: pd.DataFrame, by: list[str]) -> Iterator[tuple[dict[str, object], pd.DataFrame]]:
    """The rows for each value of these columns, as they first occur, with the values by column."""
    for names, part in table.groupby(by, sort=False):
        yield dict(zip(by, names, strict=True)), part


def measure(
    heads: pd.DataFrame,
    name: str,
    statistic: Callable[..., Pooled],
    *,
    value: str = "rank",
    over_heads: bool = False,
    **options,
) -> pd.DataFrame:
    """`statistic(means, cube, **options)` for every model and source in `heads`, with its interval over documents.

    With `over_heads` the heads of the model are drawn again as well, whatever their layer: of statistics of all heads.

    Columns: measure, model, kind, seed, source, estimate, low, high, n (samples of each context), over (what was drawn
    again), why (how much of it is undefined).
    """
    each = lambda means, **given: {name: statistic(means, **given)}  # noqa: E731
    return measure_each(heads, each, value=value, over_heads=over_heads, **options)


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
    for about, table in groups(heads, [*OF_A_MODEL, "source"]):
        data = cube(table, value)
        of_means = functools.partial(statistics, cube=data, **options)
        found, ends = of_means(data.values.mean(0)), observe_each(data, of_means, over_heads=over_heads)
        drawn = {"n": len(data.values), "over": data.drawn + " and heads" * over_heads}
        for name, pooled in found.items():
            rows.append({"measure": name, **about, **ends[name]._asdict(), **drawn, "why": pooled.remark})
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


def follow(means: Means, cube: Cube) -> Pooled:
    """Share of (high-rank head, position) with a mean rank within 1 of min(t, D); NaN without such heads (C2)."""
    ranks = means.mean(0).reshape(-1, len(cube.positions))
    high = ranks[ranks[:, -1] >= strata.HIGH * cube.D]
    near = np.abs(high - np.minimum(cube.positions, cube.D)) <= 1
    return pooled(near.mean(-1), np.mean, "high-rank heads", SHARE)


def drift(means: Means, cube: Cube) -> Pooled:
    """|Change of rank/D per doubling of t| from t = D on, mean over low-rank heads; NaN without such heads (C2)."""
    ranks, positions = means.mean(0).reshape(-1, len(cube.positions)), np.asarray(cube.positions)
    late = positions >= cube.D
    low = ranks[ranks[:, -1] <= strata.LOW * cube.D][:, late] / cube.D
    if late.sum() < 2:
        return pooled(np.empty(0), np.mean, "two positions from d on", MAGNITUDE)
    slopes = np.polyfit(np.log2(positions[late]), low.T, 1)[0] if len(low) else np.empty(0)
    return pooled(np.abs(slopes), np.mean, "low-rank heads", MAGNITUDE)


def order_in_time(means: Means, cube: Cube, *, first: int, second: int) -> Pooled:
    """Spearman ρ of a layer's mean ranks at two positions, median over layers where it is defined (C3).

    NaN where one of them was not captured: 16 D may lie beyond what was read.
    """
    if not {first, second} <= set(cube.positions):
        return pooled(np.empty(0), np.median, f"positions {first} and {second} among those captured", CORRELATION)
    return _orders(means, [cube.at(first)], cube.at(second))[0]


def orders_to_last(means: Means, cube: Cube) -> dict[int, Pooled]:
    """`order_in_time` from every position but the last to the last, by position."""
    *earlier, last = range(len(cube.positions))
    return dict(zip(cube.positions, _orders(means, earlier, last), strict=False))


def _orders(means: Means, first: Sequence[int], second: int) -> list[Pooled]:
    ranks = np.moveaxis(means.mean(0), -1, 0)  # [C, L, H]
    found = strata.spearman(ranks[first], np.broadcast_to(ranks[second], (len(first), *ranks.shape[1:])))
    return [pooled(each, np.nanmedian, "layers", CORRELATION) for each in found]


def order_from_d(means: Means, cube: Cube) -> Pooled:
    """`order_in_time` from t = D to t = 16 D, the model's own D (C3)."""
    return order_in_time(means, cube, first=cube.D, second=16 * cube.D)


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
    return Pooled(value, undefined, values.size, named, limits)


def single(value: float, limits: tuple[float, float], named: str = "values") -> Pooled:
    """A statistic of one part."""
    return Pooled(value, int(np.isnan(value)), 1, named, limits)


def _smaller(ranks: Float[np.ndarray, "... H"], d: int) -> Float[np.ndarray, "..."]:
    low, _, high = np.moveaxis(strata.shares(ranks, d), -1, 0)
    return np.minimum(low, high)


def _all_heads(means: Means, cube: Cube, at: int) -> Float[np.ndarray, "contexts heads"]:
    return means[..., cube.at(at)].reshape(len(means), -1)


def _pairs(values: Float[np.ndarray, "n ..."]) -> tuple[Float[np.ndarray, "p ..."], Float[np.ndarray, "p ..."]]:
    """The first and the second of every pair out of n."""
    first, second = np.triu_indices(len(values), 1)
    return values[first], values[second]
