import numpy as np
import pandas as pd
import pytest
from scipy import stats

from srdyn import observations, strata

POSITIONS = (1, 64, 128, 256)
D = 64


def heads(ranks, *, source="model", contexts=("a", "b")):
    """A head table with ranks [samples, contexts, L, H, C]."""
    ranks = np.asarray(ranks, dtype=float)
    axes = np.indices(ranks.shape)
    names = {"sample": axes[0].ravel(), "context": np.array(contexts)[axes[1].ravel()], "layer": axes[2].ravel()}
    names |= {"head": axes[3].ravel(), "position": np.array(POSITIONS)[axes[4].ravel()], "rank": ranks.ravel()}
    return pd.DataFrame(names).assign(model="m", kind="k", seed=0, source=source, D=D)


@pytest.fixture
def random_ranks():
    return np.random.default_rng(0).integers(0, D + 1, (4, 2, 3, 8, 4)).astype(float)


def test_cube_keeps_every_value_in_its_place(random_ranks):
    table = heads(random_ranks).sample(frac=1.0, random_state=1).sort_values("context", kind="stable")
    cube = observations.cube(table)
    np.testing.assert_array_equal(cube.values, random_ranks)
    assert cube.positions == POSITIONS
    assert cube.contexts == ("a", "b")


def test_cube_refuses_a_table_with_holes_or_two_sources(random_ranks):
    table = heads(random_ranks)
    with pytest.raises(ValueError, match="full grid"):
        observations.cube(table.iloc[1:])
    with pytest.raises(ValueError, match="full grid"):
        observations.cube(pd.concat([table, table.assign(source="mechanism")]))


def test_positions_and_contexts_that_are_not_there_are_named(random_ranks):
    cube = observations.cube(heads(random_ranks))
    with pytest.raises(ValueError, match="position 3"):
        cube.at(3)
    with pytest.raises(ValueError, match="no context called c"):
        cube.only(["a", "c"])


def test_a_planted_fork_is_found_and_a_continuum_is_not():
    fork = np.zeros((4, 2, 3, 8, 4)) + np.array([2, 2, 3, 4, 64, 64, 63, 64])[:, None]
    line = np.zeros((4, 2, 3, 8, 4)) + np.linspace(20, 56, 8)[:, None]
    for ranks, smaller, middle in ((fork, 0.5, 0.0), (line, 0.0, 1.0)):
        cube = observations.cube(heads(ranks))
        means = cube.values.mean(0)
        assert observations.smaller_group(means, cube, at=256) == smaller
        assert observations.stratum_share(means, cube, at=256, stratum="middle") == middle


def test_followers_and_drifters_are_counted():
    ranks = np.zeros((2, 2, 1, 4, 4))
    ranks[..., 0, :] = np.minimum(POSITIONS, D)
    ranks[..., 1, :] = [1, 40, 64, 64]  # high at the end, but late
    ranks[..., 2, :] = 3
    ranks[..., 3, :] = [1, 3.2, 6.4, 9.6]  # rises by D/20 per doubling
    cube = observations.cube(heads(ranks))
    means = cube.values.mean(0)
    assert observations.follow(means, cube) == 7 / 8
    assert observations.drift(means, cube) == pytest.approx((0 + 0.05) / 2)


def test_measures_without_their_group_are_undefined():
    cube = observations.cube(heads(np.full((2, 2, 1, 4, 4), 32.0)))
    means = cube.values.mean(0)
    assert np.isnan(observations.follow(means, cube))
    assert np.isnan(observations.drift(means, cube))
    assert np.isnan(observations.order_in_time(means, cube, first=64, second=256))


def test_spearman_and_kappa_equal_the_references(random_ranks):
    a, b = random_ranks[0, 0, :, :, 3] // 8 * 8, random_ranks[0, 1, :, :, 3] // 8 * 8
    expected = [stats.spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(observations.spearman(a, b), expected, rtol=1e-12)
    expected = [strata.agreement(x, y, d=D)["kappa"] for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(observations.kappa(a, b, D), expected, rtol=1e-12)


def test_cosine_of_positive_vectors_is_high_for_unrelated_heads(random_ranks):
    cube = observations.cube(heads(random_ranks + 100))
    means = cube.values.mean(0)
    assert observations.cosine_between(means, cube, at=256) > 0.97
    assert abs(observations.spearman_between(means, cube, at=256)) < 0.6


def test_identical_contexts_agree_fully(random_ranks):
    random_ranks[:, 1] = random_ranks[:, 0]
    table = heads(random_ranks)
    for statistic in (observations.spearman_between, observations.kappa_between, observations.cosine_between):
        found = observations.measure(table, "same", statistic, at=256)
        assert found[["estimate", "low", "high"]].to_numpy() == pytest.approx(1.0)


def test_the_interval_holds_its_estimate_and_repeats(random_ranks):
    table = heads(random_ranks + np.arange(8)[:, None] * 8)
    first, second = (observations.measure(table, "rho", observations.spearman_between, at=256) for _ in range(2))
    pd.testing.assert_frame_equal(first, second)
    assert first["low"].item() <= first["estimate"].item() <= first["high"].item()
    assert first["n"].item() == 4


def test_a_rank_above_the_bound_is_noticed():
    ranks = np.minimum(np.array(POSITIONS), D) * np.ones((2, 2, 1, 4, 1))
    cube = observations.cube(heads(ranks))
    assert observations.within_bound(cube.values.mean(0), cube) == 1.0
    ranks[0, 0, 0, 0, 0] = 2
    cube = observations.cube(heads(ranks))
    assert observations.within_bound(cube.values.mean(0), cube) == 1 - 1 / ranks.size


def test_thresholds_are_those_of_the_claims():
    from srdyn import claims

    assert claims.paper().thresholds["low"] == observations.LOW
    assert claims.paper().thresholds["high"] == observations.HIGH
