"""One number with its interval, of any statistic of head tables (`rank_statistics`).

A statistic takes mean values [contexts, layers, heads, positions], the mean being over samples. Its interval comes from
drawing the documents of each context again with replacement, whole, since windows of one document are not independent;
it is centred on the estimate and stays within the statistic's range. Strata hardly change from document to document, so
that a share of the heads is as good as certain of these heads: where heads are drawn again too, it speaks of others.
"""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import numpy as np
import pandas as pd
from jaxtyping import Float, Shaped

from srdyn.study.analysis import intervals

OF_A_MODEL = ["model", "kind", "seed"]
OF_A_SOURCE = [*OF_A_MODEL, "source"]
OF_A_HEAD = [*OF_A_MODEL, "layer", "head"]
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
    times = intervals.times_drawn(data.documents)
    flat = np.moveaxis(data.values, 0, 1).reshape(len(data.contexts), len(data.values), -1)
    for drawn in times:
        # Divided last, since sums of integers are exact: equal ranks have equal means, on the same side of a threshold.
        means = (drawn[:, None] @ flat)[:, 0] / drawn.sum(1, keepdims=True)
        means = means.reshape(data.values.shape[1:])
        if over_heads:
            means = means.reshape(len(means), 1, -1, means.shape[-1])
            means = means[:, :, rng.integers(0, means.shape[2], means.shape[2])]
        yield means


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
