import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from srdyn.study.analysis import intervals


def test_bootstrap_agrees_with_scipy(monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 4000)
    values = np.random.default_rng(0).normal(3, 2, size=40)
    ours = intervals.bootstrap(values, np.median)
    theirs = stats.bootstrap((values,), np.median, method="percentile", n_resamples=4000, rng=1).confidence_interval
    assert ours.estimate == np.median(values)
    # Two independent sets of 4000 resamples of a median over 40 values: their ends differ by a few hundredths.
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.15)
    assert ours.high - ours.low > 1


def test_bootstrap_covers_the_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    draws = [intervals.bootstrap(rng.normal(size=20), np.mean) for _ in range(200)]
    # 190 of 200 are expected, but small samples make the interval narrow: about 184; the standard deviation is 4.
    assert 172 <= sum(interval.low <= 0 <= interval.high for interval in draws) <= 196


def test_bootstrap_resamples_whole_contexts():
    values = np.repeat(np.array([[0.0], [10.0]]), 5, axis=1)
    interval = intervals.bootstrap(values, lambda x: x.mean())
    assert interval == (5.0, 0.0, 10.0)  # both contexts are equal in a quarter of the draws each


def test_undefined_resamples_are_left_out_and_too_many_leave_no_interval():
    values = np.array([1.0, 2.0, 3.0, np.nan])
    mean_of_rest = intervals.bootstrap(values, lambda x: np.nan if (x == 1).all() else 5.0)
    assert mean_of_rest == (5.0, 5.0, 5.0)
    never = intervals.bootstrap(values, np.mean)
    assert np.isnan(never).all()


def test_a_moved_interval_stays_within_the_limits():
    resampled = np.linspace(0.5, 0.9, 101)
    moved = intervals.of_resamples(0.95, resampled, centred=True)
    assert moved == pytest.approx((0.95, 0.76, 1.14))
    assert intervals.of_resamples(0.95, resampled, centred=True, limits=(0.0, 1.0)) == pytest.approx((0.95, 0.76, 1.0))
    undefined = intervals.of_resamples(0.95, np.full(9, np.nan), centred=True, limits=(0.0, 1.0))
    assert np.isnan(undefined[1:]).all()


def test_samples_of_a_cluster_are_drawn_together(monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 3000)
    clusters = np.array([[0, 7], [0, 8], [3, 9], [5, 7]])
    times = intervals.times_drawn(clusters)
    assert times.shape == (3000, 2, 4)
    np.testing.assert_array_equal(times[:, 0, 0], times[:, 0, 1])
    np.testing.assert_array_equal(times[:, 1, 0], times[:, 1, 3])
    assert set(times[:, 0, [0, 2, 3]].sum(-1)) == set(times[:, 1, :3].sum(-1)) == {3.0}
    # Each is drawn once on average, with the binomial's variance 3 · 1/3 · 2/3; the groups are drawn apart.
    np.testing.assert_allclose(times.mean(0), 1, atol=0.06)
    np.testing.assert_allclose(times.var(0), 2 / 3, atol=0.08)
    assert abs(np.corrcoef(times[:, 0, 0], times[:, 1, 0])[0, 1]) < 0.08


def test_a_ratio_of_sums_is_resampled_over_rows():
    counts = np.array([[5.0, 5.0]] * 15 + [[0.0, 5.0]] * 5)
    interval, by_item = intervals.ratio(counts), intervals.wilson(75, 100)
    assert interval.estimate == 0.75
    # Rows are all right or all wrong, so that there are 20 outcomes rather than 100: about √5 times as wide.
    assert interval.high - interval.low > 1.8 * (by_item.high - by_item.low)


def test_wilson_against_published_values():
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81/263 and 0/20.
    assert intervals.wilson(81, 263) == pytest.approx((81 / 263, 0.2553, 0.3662), abs=5e-5)
    assert intervals.wilson(0, 20) == pytest.approx((0, 0, 0.1611), abs=5e-5)


@settings(max_examples=25, deadline=None)
@given(data=st.data(), n=st.integers(1, 300))
def test_wilson_solves_the_score_equation(data, n):
    successes = data.draw(st.integers(0, n))
    interval = intervals.wilson(successes, n)
    z = stats.norm.ppf(0.975)
    for end in (interval.low, interval.high):
        assert (interval.estimate - end) ** 2 == pytest.approx(z**2 * end * (1 - end) / n, abs=1e-9)
    assert 0 <= interval.low <= interval.estimate <= interval.high <= 1


def test_bad_requests_are_refused():
    with pytest.raises(ValueError, match="two contexts"):
        intervals.bootstrap(np.ones(1), np.mean)
    with pytest.raises(ValueError, match="two clusters"):
        intervals.times_drawn(np.array([[0, 1], [1, 1]]))
    for successes, n in ((1, 0), (4, 3), (-1, 3)):
        with pytest.raises(ValueError, match="successes"):
            intervals.wilson(successes, n)
