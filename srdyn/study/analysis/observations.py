"""One number with its interval, of any statistic of head tables (`rank_statistics`).

A statistic takes mean values [contexts, layers, heads, positions], the mean being over samples. Its interval comes from
drawing the documents of each context again with replacement, whole, since windows of one document are not independent;
it is centred on the estimate and stays within the statistic's range. Strata hardly change from document to document, so
that a share of the heads is as good as certain of these heads: where heads are drawn again too, it speaks of others.

Some ranks another machine may count one off (`spectra.uncertain`), so that it finds another number. How far off, is the
larger of two: to first order, the sum of what each mean of such ranks moves alone, in the estimate and in some of its
resamples; and, as shares of strata jump, what they all move at once, each up or down at random.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
_ADDED_UP, _WAYS, _AT_ONCE = 8, 4, 128
"""For `uncertain`: resamples in which single moves are added up; ways to move all ranks, and resamples moved so."""

Key = TypeVar("Key")
Means = Float[np.ndarray, "contexts L H C"]
Statistics = Callable[[Means], dict[Key, "Pooled"]]


class Pooled(NamedTuple):
    """A statistic with its range; `why` says which of its parts are undefined: left out, or what makes it NaN."""

    value: float
    limits: tuple[float, float]
    why: str


class Observed(NamedTuple):
    """A statistic with the ends of its interval; `uncertain` is how far off another machine may find any of them."""

    estimate: float
    low: float
    high: float
    uncertain: float


class Cube(NamedTuple):
    """One value of one model (and source) as an array, with the names along its axes.

    `uncertain` is how far off another machine may find each value.
    """

    values: Float[np.ndarray, "samples contexts L H C"]
    uncertain: Float[np.ndarray, "samples contexts L H C"]
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

    Without a column `document`, every sample counts as a document of its own. How far off a rank may be, the column
    `uncertain` says, of `rank 1e-03` that of the same threshold; without it, as other values, it is exact.
    Raises ValueError unless every context, sample, layer, head and position occurs exactly once.
    """
    axes = ["sample", "context", "layer", "head", "position"]
    values = values or ("rank",)
    table = table if "document" in table else table.assign(document=table["sample"])
    doubts = {f"± {name}": _doubt(table, name) for name in values}
    indexed = table.assign(**doubts)[[*axes, *values, *doubts, "document"]].set_index(axes).sort_index()
    levels = [tuple(sorted(table[a].unique().tolist()) if a != "context" else dict.fromkeys(table[a])) for a in axes]
    full = pd.MultiIndex.from_product(levels, names=axes)
    if len(indexed) != len(full) or not indexed.index.is_unique:
        told = f"{len(indexed)} rows where {len(full)} make a full grid of {', '.join(axes)}"
        raise ValueError(f"the table holds {told}; select one model and one source")
    shape, indexed = [len(level) for level in levels], indexed.reindex(full)
    both = ([indexed[name].to_numpy(np.float64).reshape(shape) for name in names] for names in (values, doubts))
    documents = indexed["document"].to_numpy().reshape(shape)[:, :, 0, 0, 0]
    _, contexts, layers, _, positions = levels
    arrays = (np.concatenate(each, -1) for each in both)
    return Cube(*arrays, contexts, layers, positions, int(table["D"].iloc[0]), documents)


def beside(cubes: Sequence[Cube]) -> Cube:
    """The values of several cubes of one grid where the first has its positions."""
    values, uncertain = (np.concatenate([getattr(x, name) for x in cubes], -1) for name in ("values", "uncertain"))
    return cubes[0]._replace(values=values, uncertain=uncertain)


def _doubt(table: pd.DataFrame, value: str) -> pd.Series | float:
    return table.get(value.replace("rank", "uncertain"), 0.0) if value.startswith("rank") else 0.0


def groups(table: pd.DataFrame, by: list[str]) -> Iterator[tuple[dict[str, object], pd.DataFrame]]:
    """The rows for each value of these columns, as they first occur, with the values by column."""
    for names, part in table.groupby(by, sort=False):
        yield dict(zip(by, names, strict=True)), part


def measure(heads: pd.DataFrame, name: str, statistic: Callable[..., Pooled], **options) -> pd.DataFrame:
    """`statistic(means, cube, **options)` for every model and source in `heads`, with its interval over documents.

    The means are those of the column `value`, by default `rank`. With `over_heads` the heads of the model are drawn
    again as well, whatever their layer: of statistics of all heads. Columns: measure, model, kind, seed, source,
    estimate, low, high, uncertain (how far off another machine may find them), n (samples of each context), over (what
    was drawn again), why (how much of it is undefined).
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


def observe_each(data: Cube, statistics: Statistics, *, over_heads: bool = False) -> dict[Key, Observed]:
    """Bootstrap intervals, over the documents of each context, of statistics of the means over samples."""
    found = _intervals(statistics, data.values.mean(0), resamples(data, over_heads=over_heads))
    uncertain = _uncertain(data, statistics, over_heads) if data.uncertain.any() else dict.fromkeys(found, 0.0)
    return {key: Observed(*interval, uncertain[key]) for key, interval in found.items()}


def without_interval(data: Cube, statistics: Statistics) -> dict[Key, Observed]:
    """Statistics of the means over samples that are their own interval, such as the p of a test."""
    means = data.values.mean(0)
    off = _added_up(statistics, means, data.uncertain.mean(0))
    return {key: Observed(x.value, x.value, x.value, off[key]) for key, x in statistics(means).items()}


def _intervals(statistics: Statistics, means: np.ndarray, drawn: Iterable[np.ndarray]) -> dict[Key, intervals.Interval]:
    found, resampled = statistics(means), [statistics(each) for each in drawn]
    values = {key: np.array([each[key].value for each in resampled]) for key in found}
    return {
        key: intervals.of_resamples(x.value, values[key], centred=True, limits=x.limits) for key, x in found.items()
    }


def _uncertain(data: Cube, statistics: Statistics, over_heads: bool) -> dict[Key, float]:
    """How far off another machine may find an estimate or an end: the farthest that is found in either way."""

    def some(values: Float[np.ndarray, "samples contexts L H C"], n: int) -> list[np.ndarray]:
        drawn = resamples(data._replace(values=values), over_heads=over_heads)
        return [values.mean(0), *itertools.islice(drawn, n)]

    sums = map(functools.partial(_added_up, statistics), some(data.values, _ADDED_UP), some(data.uncertain, _ADDED_UP))
    farthest = functools.reduce(lambda a, b: {key: max(a[key], b[key]) for key in a}, sums)
    standing = _of_some(statistics, some(data.values, _AT_ONCE))
    for way in ways(data.uncertain):
        found = _of_some(statistics, some(data.values + way, _AT_ONCE))
        farthest = {key: max(x, float(_distance(found[key], standing[key]).max())) for key, x in farthest.items()}
    return farthest


def ways(uncertain: Float[np.ndarray, "*shape"]) -> Iterator[Float[np.ndarray, "*shape"]]:
    """How all ranks may move at once, each as far as it is uncertain, up or down at random, and the other way round."""
    draw = np.random.default_rng(0)
    for _ in range(_WAYS):
        way = draw.choice([-1, 1], uncertain.shape) * uncertain
        yield from (way, -way)


def _of_some(statistics: Statistics, means: list[np.ndarray]) -> dict[Key, Float[np.ndarray, "3"]]:
    return {key: np.array(interval) for key, interval in _intervals(statistics, means[0], means[1:]).items()}


def _added_up(statistics: Statistics, means: Means, doubt: Means) -> dict[Key, float]:
    """The sum of how far each doubtful mean moves a statistic alone, at most its range.

    Infinite where the statistic is undefined on one side and has no limits.
    """
    found = statistics(means)
    values = lambda found: np.array([x.value for x in found.values()])  # noqa: E731
    total = np.zeros(len(found))
    for place in zip(*np.nonzero(doubt), strict=True):
        off = np.zeros_like(means)
        off[place] = doubt[place]
        moves = [_distance(values(statistics(means + way)), values(found)) for way in (off, -off)]
        total += np.max(moves, axis=0)
    widths = [high - low for _, (low, high), _ in found.values()]
    return dict(zip(found, np.minimum(total, widths).tolist(), strict=True))


def _distance(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """|a − b|, infinite where one of them alone is NaN."""
    return np.where(np.isnan(a) & np.isnan(b), 0.0, np.nan_to_num(abs(a - b), nan=np.inf))


def columns(found: Mapping[str, intervals.Interval | Observed]) -> dict[str, float]:
    """Intervals side by side in one row: `name`, `name_lo`, `name_hi` of each, the farthest `uncertain` of them."""
    row = {name + end: x for name, each in found.items() for end, x in zip(("", "_lo", "_hi"), each, strict=False)}
    doubts = [each.uncertain for each in found.values() if isinstance(each, Observed)]
    return row | ({"uncertain": max(doubts)} if doubts else {})


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
