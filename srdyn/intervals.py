"""Intervals by resampling or in closed form.

References
----------
Efron & Tibshirani, An Introduction to the Bootstrap, 1993 (percentile interval).
Wilson, Probable inference, the law of succession, and statistical inference, JASA 22, 1927.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Shaped
from scipy import stats


class Interval(NamedTuple):
    """An estimate with the ends of its confidence interval, in the estimate's unit."""

    estimate: float
    low: float
    high: float


def bootstrap(
    values_by_context: Shaped[np.ndarray, "contexts ..."],
    statistic: Callable[[np.ndarray], float],
    *,
    generator: torch.Generator,
    n: int = 1000,
    level: float = 0.95,
    centred: bool = False,
) -> Interval:
    """Percentile interval of a statistic over `n` resamplings of the contexts (first axis) with replacement.

    It speaks of new contexts read by the same model. Resamples on which the statistic is NaN are left out; when fewer
    than half remain, the ends are NaN. `centred` moves the interval so that the median of the resamples falls on the
    estimate: means of repeated contexts are noisier than means of different ones, which pulls every agreement down.
    Raises ValueError for fewer than two contexts or a level outside 0 … 1.
    """
    contexts = len(values_by_context)
    _require_level(level)
    if contexts < 2:
        raise ValueError(f"resampling needs at least two contexts, got {contexts}")
    draws = torch.randint(contexts, (n, contexts), generator=generator, device=generator.device).cpu().numpy()
    resampled = np.array([statistic(values_by_context[draw]) for draw in draws], dtype=np.float64)
    defined = resampled[~np.isnan(resampled)]
    tails = [(1 - level) / 2, (1 + level) / 2]
    estimate = float(statistic(values_by_context))
    low, middle, high = np.quantile(defined, [tails[0], 0.5, tails[1]]) if len(defined) >= n / 2 else [np.nan] * 3
    shift = estimate - middle if centred else 0.0
    return Interval(estimate, float(low + shift), float(high + shift))


def bootstrap_pairs(
    matrix: Float[np.ndarray, "contexts contexts"],
    *,
    generator: torch.Generator,
    n: int = 1000,
    level: float = 0.95,
) -> Interval:
    """Percentile interval of the mean agreement between two different contexts, contexts resampled.

    A context drawn twice is not paired with itself, which would count as perfect agreement; undefined (NaN) pairs are
    left out. Raises as `bootstrap` does.
    """

    def mean_over_pairs(chosen: np.ndarray) -> float:
        different = chosen[:, None] != chosen[None, :]
        agreements = matrix[np.ix_(chosen, chosen)][different]
        agreements = agreements[~np.isnan(agreements)]
        return float(agreements.mean()) if len(agreements) else np.nan

    return bootstrap(np.arange(len(matrix)), mean_over_pairs, generator=generator, n=n, level=level)


def wilson(successes: int, n: int, *, level: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion. Raises ValueError unless 0 ≤ successes ≤ n and n ≥ 1."""
    _require_level(level)
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"a proportion needs 0 ≤ successes ≤ n and n ≥ 1, got {successes} of {n}")
    ends = stats.binomtest(int(successes), int(n)).proportion_ci(level, method="wilson")
    return Interval(successes / n, float(ends.low), float(ends.high))


def _require_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"a confidence level lies between 0 and 1, got {level}")
