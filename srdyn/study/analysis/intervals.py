"""Intervals by resampling, always by the same draws, or in closed form.

References
----------
Efron & Tibshirani, An Introduction to the Bootstrap, 1993 (percentile interval).
Wilson, Probable inference, the law of succession, and statistical inference, JASA 22, 1927.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int, Shaped
from scipy import stats

LEVEL = 0.95
"""Of every interval."""
RESAMPLES = 1000
"""Draws behind an interval."""


class Interval(NamedTuple):
    """An estimate with the ends of its confidence interval, in the estimate's unit."""

    estimate: float
    low: float
    high: float


def bootstrap(
    values_by_context: Shaped[np.ndarray, "contexts ..."], statistic: Callable[[np.ndarray], float]
) -> Interval:
    """Percentile interval of a statistic over `RESAMPLES` resamplings of the contexts (first axis) with replacement.

    It speaks of new contexts read by the same model. Resamples on which the statistic is NaN are left out; when fewer
    than half remain, the ends are NaN. Raises ValueError for fewer than two contexts.
    """
    contexts = len(values_by_context)
    if contexts < 2:
        raise ValueError(f"resampling needs at least two contexts, got {contexts}")
    draws = drawn(contexts, generator())
    resampled = np.array([statistic(values_by_context[draw]) for draw in draws], dtype=np.float64)
    return of_resamples(float(statistic(values_by_context)), resampled)


def of_resamples(
    estimate: float,
    resampled: Float64[np.ndarray, " n"],
    *,
    centred: bool = False,
    limits: tuple[float, float] = (-np.inf, np.inf),
) -> Interval:
    """Percentile interval of an estimate from its resamples, as `bootstrap` forms it; its ends stay within `limits`.

    `centred` moves it so that the median of the resamples falls on the estimate: means of repeated contexts are noisier
    than means of different ones, which pulls every agreement down.
    """
    defined = resampled[~np.isnan(resampled)]
    low = middle = high = np.nan
    if 2 * len(defined) >= len(resampled):
        low, middle, high = np.quantile(defined, [(1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2])
    shift = estimate - middle if centred else 0.0
    return Interval(estimate, *np.clip([low + shift, high + shift], *limits).tolist())


def times_drawn(cluster: Shaped[np.ndarray, "samples groups"]) -> Float64[np.ndarray, "n groups samples"]:
    """How often each sample comes, in `RESAMPLES` draws of each group's clusters with replacement.

    `cluster` labels what is drawn as a whole: samples that are not independent of each other, such as the windows of
    one document. Raises ValueError for a group of fewer than two clusters.
    """
    numbers = [np.unique(labels, return_inverse=True)[1] for labels in cluster.T]
    alone = sum(int(number.max() < 1) for number in numbers)
    if alone:
        told = f"but {alone} of {len(numbers)} groups have one; ask for more samples"
        raise ValueError(f"resampling needs at least two clusters in each group, {told}")
    draw = generator()
    return np.stack([counts(int(number.max()) + 1, draw)[:, number] for number in numbers], 1)


def counts(size: int, generator: torch.Generator) -> Float64[np.ndarray, "n size"]:
    """How often each of `size` things comes, in each of `drawn`."""
    places = drawn(size, generator) + size * np.arange(RESAMPLES)[:, None]
    return np.bincount(places.ravel(), minlength=RESAMPLES * size).reshape(RESAMPLES, size).astype(np.float64)


def ratio(counts: Shaped[np.ndarray, "contexts 2"]) -> Interval:
    """Sum of the first column over sum of the second, with its 95 % interval over contexts: every unit weighs alike.

    Such as right answers over items of rows that share their text, or bits over bytes of windows.
    """
    return bootstrap(counts, lambda drawn: float(np.divide(*drawn.sum(0))))


def wilson(successes: float | int, n: int) -> Interval:
    """Wilson's score interval of a proportion; ties may count half a success.

    Raises ValueError unless 0 ≤ successes ≤ n and n ≥ 1.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"a proportion needs 0 ≤ successes ≤ n and n ≥ 1, got {successes} of {n}")
    z = float(stats.norm.ppf((1 + LEVEL) / 2))
    middle, half = successes + z**2 / 2, z * np.sqrt(successes * (n - successes) / n + z**2 / 4)
    low, high = np.clip([middle - half, middle + half], 0, n + z**2) / (n + z**2)
    return Interval(float(successes / n), float(low), float(high))


def generator() -> torch.Generator:
    """Of the draws behind an interval: the same ones each time."""
    return torch.Generator().manual_seed(0)


def drawn(size: int, generator: torch.Generator) -> Int[np.ndarray, "n size"]:
    """`RESAMPLES` draws of `size` places out of as many, with replacement."""
    return torch.randint(size, (RESAMPLES, size), generator=generator).numpy()
