import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from srdyn import intervals


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_bootstrap_agrees_with_scipy():
    values = np.random.default_rng(0).normal(3, 2, size=40)
    ours = intervals.bootstrap(values, np.median, generator=seeded(), n=4000)
    theirs = stats.bootstrap((values,), np.median, method="percentile", n_resamples=4000, rng=1).confidence_interval
    assert ours.estimate == np.median(values)
    # Two independent sets of 4000 resamples of a median over 40 values: their ends differ by a few hundredths.
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.15)
    assert ours.high - ours.low > 1


def test_bootstrap_covers_the_mean_about_as_often_as_it_says():
    rng, generator = np.random.default_rng(0), seeded()
    draws = [
        intervals.bootstrap(rng.normal(size=20), np.mean, generator=generator, n=200, level=0.8) for _ in range(200)
    ]
    # 160 of 200 are expected; the standard deviation is 5.7, and small samples make the interval narrow.
    assert 138 <= sum(interval.low <= 0 <= interval.high for interval in draws) <= 178


def test_bootstrap_resamples_whole_contexts():
    values = np.repeat(np.array([[0.0], [10.0]]), 5, axis=1)
    interval = intervals.bootstrap(values, lambda x: x.mean(), generator=seeded(), n=400)
    assert interval == (5.0, 0.0, 10.0)  # both contexts are equal in a quarter of the draws each


def test_bootstrap_is_decided_by_its_generator():
    values = np.arange(9.0)
    same = [intervals.bootstrap(values, np.mean, generator=seeded(3), n=50) for _ in range(2)]
    assert same[0] == same[1] != intervals.bootstrap(values, np.mean, generator=seeded(4), n=50)


def test_undefined_resamples_are_left_out_and_too_many_leave_no_interval():
    values = np.array([1.0, 2.0, 3.0, np.nan])
    mean_of_rest = intervals.bootstrap(values, lambda x: np.nan if (x == 1).all() else 5.0, generator=seeded(), n=400)
    assert mean_of_rest == (5.0, 5.0, 5.0)
    never = intervals.bootstrap(values, np.mean, generator=seeded(), n=400)
    assert np.isnan(never).all()


def test_pairs_of_contexts_never_pair_a_context_with_itself():
    matrix = np.full((5, 5), 0.2) + 0.8 * np.eye(5)
    assert intervals.bootstrap_pairs(matrix, generator=seeded(), n=100) == pytest.approx((0.2, 0.2, 0.2))
    matrix[0, 1:] = matrix[1:, 0] = 0.7
    interval = intervals.bootstrap_pairs(matrix, generator=seeded())
    assert interval.estimate == pytest.approx((4 * 0.7 + 6 * 0.2) / 10)
    assert interval.low == pytest.approx(0.2)
    assert interval.estimate < interval.high < 0.71  # 0 with one other context, each drawn twice or more
    matrix[0, 1:] = matrix[1:, 0] = np.nan
    assert intervals.bootstrap_pairs(matrix, generator=seeded(), n=100) == pytest.approx((0.2, 0.2, 0.2))


def test_wilson_against_published_values():
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81/263 and 0/20.
    assert intervals.wilson(81, 263) == pytest.approx((81 / 263, 0.2553, 0.3662), abs=5e-5)
    assert intervals.wilson(0, 20) == pytest.approx((0, 0, 0.1611), abs=5e-5)


@settings(max_examples=25, deadline=None)
@given(data=st.data(), n=st.integers(1, 300))
def test_wilson_solves_the_score_equation(data, n):
    successes = data.draw(st.integers(0, n))
    interval = intervals.wilson(successes, n, level=0.9)
    z = stats.norm.ppf(0.95)
    for end in (interval.low, interval.high):
        assert (interval.estimate - end) ** 2 == pytest.approx(z**2 * end * (1 - end) / n, abs=1e-9)
    assert 0 <= interval.low <= interval.estimate <= interval.high <= 1


def test_bad_requests_are_refused():
    with pytest.raises(ValueError, match="two contexts"):
        intervals.bootstrap(np.ones(1), np.mean, generator=seeded())
    with pytest.raises(ValueError, match="level"):
        intervals.bootstrap(np.ones(3), np.mean, generator=seeded(), level=95.0)
    for successes, n in ((1, 0), (4, 3), (-1, 3)):
        with pytest.raises(ValueError, match="successes"):
            intervals.wilson(successes, n)
