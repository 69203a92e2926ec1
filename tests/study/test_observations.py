import functools

import numpy as np
import pandas as pd
import pytest
from small import head_table

from srdyn import strata
from srdyn.study.analysis import observations, rank_statistics
from srdyn.study.claims import registration

POSITIONS = (1, 64, 128, 256)
EARLY = (4, 8, 64, 128, 256)
D = 64


def heads(ranks, *, contexts=("a", "b"), positions=POSITIONS):
    return head_table(contexts, positions, rank=ranks).assign(D=D)


def alike(*rows):
    """A head table of two samples of two contexts, all alike; a row is one head at the positions `EARLY`."""
    ranks = np.array(rows, dtype=float)
    return heads(np.broadcast_to(ranks, (2, 2, 1, *ranks.shape)), positions=EARLY)


def value(statistic, table, **options):
    cube = observations.cube(table)
    return statistic(cube.values.mean(0), cube, **options).value


@pytest.fixture
def random_ranks():
    return np.random.default_rng(0).integers(0, D + 1, (4, 2, 3, 8, 4)).astype(float)


def test_cube_keeps_every_value_in_its_place(random_ranks):
    table = heads(random_ranks).sample(frac=1.0, random_state=1).sort_values("context", kind="stable")
    cube = observations.cube(table)
    np.testing.assert_array_equal(cube.values, random_ranks)
    assert cube.positions == POSITIONS
    assert cube.contexts == ("a", "b")


def test_cube_refuses_a_table_with_holes_or_two_sources_and_names_a_position_that_is_not_there(random_ranks):
    table = heads(random_ranks)
    for broken in (table.iloc[1:], pd.concat([table, table.assign(source="mechanism")])):
        with pytest.raises(ValueError, match="full grid"):
            observations.cube(broken)
    with pytest.raises(ValueError, match="position 3"):
        observations.cube(table).at(3)


def test_a_planted_fork_is_found_and_a_continuum_is_not():
    fork = np.zeros((4, 2, 3, 8, 4)) + np.array([2, 2, 3, 4, 64, 64, 63, 64])[:, None]
    line = np.zeros((4, 2, 3, 8, 4)) + np.linspace(20, 56, 8)[:, None]
    for ranks, smaller, middle in ((fork, 0.5, 0.0), (line, 0.0, 1.0)):
        assert value(rank_statistics.smaller_group, heads(ranks), at=256) == smaller
        assert value(rank_statistics.stratum_share, heads(ranks), at=256, stratum="middle") == middle
    fork[:, 1, :, :3] = 32  # in the worse context it must survive
    assert value(rank_statistics.least_group, heads(fork), at=256) == 1 / 8


def test_followers_and_drifters_are_counted():
    ranks = np.zeros((2, 2, 1, 4, 4))
    ranks[..., 0, :] = np.minimum(POSITIONS, D)
    ranks[..., 1, :] = [1, 40, 64, 64]  # high at the end, but late
    ranks[..., 2, :] = 3
    ranks[..., 3, :] = [1, 3.2, 6.4, 9.6]  # rises by D/20 per doubling
    assert value(rank_statistics.follow, heads(ranks)) == 7 / 8
    assert value(rank_statistics.drift, heads(ranks)) == pytest.approx((0 + 0.05) / 2)


def test_strata_are_shares_of_all_heads():
    low, middle, high = ([4, *[x] * 4] for x in (16, 32, 60))
    table = pd.concat([alike(low, low, low, high), alike(middle, high, high, high).assign(layer=1)])
    shares = [value(rank_statistics.share_of_all, table, at=256, stratum=name) for name in strata.STRATA]
    assert shares == [3 / 8, 1 / 8, 4 / 8]
    found = observations.measure(table, "low", rank_statistics.share_of_all, at=256, stratum="low")
    assert found[["low", "high"]].to_numpy().tolist() == [[3 / 8, 3 / 8]]


def test_the_dip_is_of_all_heads_and_its_own_interval():
    rng = np.random.default_rng(0)
    fork = [[4.0, *[x] * 4] for x in [*rng.normal(8, 2, 24), *rng.normal(58, 2, 24)]]
    line = [[4.0, *[x] * 4] for x in np.linspace(2, 62, 48)]
    found = pd.concat([rank_statistics.dip(alike(*rows), "dip test", at=256) for rows in (fork, line, [[1] * 5] * 4)])
    assert (found["estimate"] < 0.01).tolist() == [True, False, False]
    assert found["estimate"].isna().tolist() == [False, False, True]
    assert found["estimate"].iloc[:2].equals(found["low"].iloc[:2])
    assert found["high"].iloc[0] == found["low"].iloc[0]


def test_high_heads_hold_from_an_eighth_of_d_on():
    # Of positions 8 … 256 the first head holds 4 of 4 though it lags at 4; the second 3, at 64 it has 50 < 57.6.
    rows = [0, 7.2, 57.6, 58, 64], [4, 8, 50, 60, 60], [4, 8, 8, 8, 8]
    assert value(rank_statistics.hold, alike(*rows)) == pytest.approx(7 / 8)
    assert np.isnan(value(rank_statistics.hold, alike(rows[2])))


def test_high_heads_settle_from_twice_d_on():
    # One doubling from 128 to 256, by 0, 2 and (not high) 20 ranks.
    table = alike([4, 8, 10, 60, 60], [4, 8, 10, 62, 60], [4, 8, 10, 10, 30])
    assert value(rank_statistics.settle, table) == pytest.approx(1 / 64)
    assert np.isnan(value(rank_statistics.settle, table.query("position < 200")))


def test_cosines_in_time_are_by_layer():
    table = pd.concat([alike([4, 8, 1, 0, 3], [4, 8, 0, 0, 4]), alike([1] * 5, [1] * 5).assign(layer=1)])
    assert value(rank_statistics.cosine_in_time, table, first=64, second=256) == pytest.approx((0.6 + 1) / 2)
    assert np.isnan(value(rank_statistics.cosine_in_time, table, first=64, second=2048))


def test_measures_without_their_group_are_undefined():
    table = heads(np.full((2, 2, 1, 4, 4), 32.0))
    remarks = {
        rank_statistics.follow: "there are no high-rank heads",
        rank_statistics.drift: "there are no low-rank heads",
        functools.partial(rank_statistics.order_in_time, first=64, second=256): "1 of 1 layers undefined",
    }
    for statistic, remark in remarks.items():
        found = observations.measure(table, "none", statistic)
        assert found[["estimate", "low", "high"]].isna().all(axis=None)
        assert found["why"].item() == remark


def test_undefined_parts_are_counted_and_left_out(random_ranks):
    random_ranks[:, 1] = random_ranks[:, 0]
    constant = np.full_like(random_ranks[:, :1], D)
    table = heads(np.concatenate([random_ranks, constant], axis=1), contexts=("a", "b", "c"))
    found = observations.measure(table, "rho", rank_statistics.spearman_between, at=256)
    assert found["estimate"].item() == pytest.approx(1)
    assert found["why"].item() == "2 of 3 pairs of contexts undefined"


def test_the_least_agreement_over_attacks_counts(random_ranks):
    contexts, text = ("text", "like", "unlike"), random_ranks[:, :1]
    ranks = np.concatenate([text, text, D - text], axis=1)
    options = {"at": 256, "text": ["text"]}
    for attacks, least in ((["like"], 1), (["unlike"], -1), (["like", "unlike"], -1)):
        table = heads(ranks, contexts=contexts)
        found = observations.measure(table, "rho", rank_statistics.spearman_to_text, attacks=attacks, **options)
        assert found["estimate"].item() == pytest.approx(least)
    ranks[:, 2] = 3
    table = heads(ranks, contexts=contexts)
    found = observations.measure(table, "rho", rank_statistics.spearman_to_text, attacks=["like", "unlike"], **options)
    assert np.isnan(found["estimate"].item())
    assert found["why"].item() == "1 of 2 attacks undefined"


def test_the_order_from_d_is_in_units_of_the_model_s_d_and_undefined_where_these_were_not_captured(random_ranks):
    table = heads(random_ranks).assign(D=16)
    own = value(rank_statistics.order_from_d, table.replace({"position": {1: 16}}))
    assert own == value(rank_statistics.order_in_time, table, first=1, second=256)
    found = observations.measure(table, "order", rank_statistics.order_from_d)
    assert np.isnan(found["estimate"].item())
    assert found["why"].item() == "there are no positions 16 and 256 among those captured"


def test_documents_are_drawn_whole(random_ranks):
    ranks = np.repeat(random_ranks[:2], 4, axis=0)  # two documents of four equal windows each
    table = heads(ranks)
    together = table.assign(document=table["sample"] // 4)
    once = heads(random_ranks[:2])
    measured = (
        observations.measure(x, "rho", rank_statistics.spearman_between, at=256) for x in (together, once, table)
    )
    (found, expected, apart), ends = measured, ["estimate", "low", "high"]
    assert found[ends].iloc[0].tolist() == pytest.approx(expected[ends].iloc[0].tolist())
    assert (apart["high"] - apart["low"] < found["high"] - found["low"]).all()
    assert (found["n"].item(), found["over"].item()) == (8, "2 documents of each context")


def test_equal_ranks_stay_on_their_side_of_a_threshold():
    table = heads(np.full((7, 2, 3, 8, 4), strata.LOW * D)).assign(document=lambda t: t["sample"] % 3)
    found = observations.measure(table, "low", rank_statistics.stratum_share, at=256, stratum="low")
    assert found[["estimate", "low", "high"]].to_numpy().tolist() == [[1, 1, 1]]


def test_an_interval_stays_within_the_range_of_its_statistic(random_ranks):
    table = heads(random_ranks / 4 + np.arange(8)[:, None] * 7)
    found = observations.measure(table, "rho", rank_statistics.spearman_between, at=256)
    assert found["low"].item() < found["estimate"].item() < 1
    assert found["high"].item() == 1


def test_cosine_of_positive_vectors_is_high_for_unrelated_heads(random_ranks):
    table = heads(random_ranks + 100)
    assert value(rank_statistics.cosine_between, table, at=256) > 0.97
    assert abs(value(rank_statistics.spearman_between, table, at=256)) < 0.6


def test_identical_contexts_agree_fully(random_ranks):
    random_ranks[:, 1] = random_ranks[:, 0]
    table = heads(random_ranks)
    for statistic in (rank_statistics.spearman_between, rank_statistics.kappa_between, rank_statistics.cosine_between):
        found = observations.measure(table, "same", statistic, at=256)
        assert found["estimate"].item() == pytest.approx(1.0)
        assert found["low"].item() < 1  # their documents are drawn apart


def test_the_interval_holds_its_estimate_and_repeats(random_ranks):
    table = heads(random_ranks + np.arange(8)[:, None] * 8)
    first, second = (observations.measure(table, "rho", rank_statistics.spearman_between, at=256) for _ in range(2))
    pd.testing.assert_frame_equal(first, second)
    assert first["low"].item() <= first["estimate"].item() <= first["high"].item()
    assert first["n"].item() == 4


def test_a_rank_above_the_bound_is_noticed():
    ranks = np.minimum(np.array(POSITIONS), D) * np.ones((2, 2, 1, 4, 1))

    def shares(ranks):
        table = rank_statistics.bounded(heads(ranks))
        options = {"statistic": rank_statistics.share_within, "value": "within"}
        return [observations.measure(table, "within", before_d=early, **options).iloc[0] for early in (False, True)]

    assert [share["estimate"] for share in shares(ranks)] == [1, 1]
    ranks[0, 0, 0, 0, 0] = 2
    everywhere, early = shares(ranks)
    assert everywhere["estimate"] == 1 - 1 / ranks.size
    assert early["estimate"] == 1 - 4 / ranks.size
    assert early["low"] < early["estimate"] < early["high"] == 1
    ranks[..., 0, :] = np.nan  # pruned away
    assert shares(ranks)[1]["why"] == "2 of 8 states undefined"


def test_thresholds_are_those_of_the_claims():
    assert registration.load().thresholds | {"low": strata.LOW, "high": strata.HIGH} == registration.load().thresholds


def doubtful(share=0.15, n=5):
    """Ranks of 24 heads around the limits of strata in two contexts, of which some are doubtful."""
    draw = np.random.default_rng(0)
    middle = draw.choice([8, 16, 16, 40, 57, 58, 63], (1, 1, 2, 12, 1)) + draw.normal(0, 0.5, (1, 2, 2, 12, 4))
    table = heads(np.clip(np.round(middle + draw.normal(0, 1.5, (n, 2, 2, 12, 4))), 0, D))
    return table.assign(uncertain=draw.random(len(table)) < share)


STATISTICS = {
    "low": (rank_statistics.share_of_all, {"at": 256, "stratum": "low", "over_heads": True}),
    "smaller": (rank_statistics.smaller_group, {"at": 256}),
    "rho": (rank_statistics.spearman_between, {"at": 256}),
    "kappa": (rank_statistics.kappa_between, {"at": 256}),
    "follow": (rank_statistics.follow, {}),
    "drift": (rank_statistics.drift, {}),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_a_statistic_of_ranks_is_as_far_off_as_it_says(name):
    """Whichever few of the doubtful ranks another machine counts one off, and in whichever direction."""
    statistic, options = STATISTICS[name]
    table, draw = doubtful(), np.random.default_rng(1)
    told = observations.measure(table, name, statistic, **options)
    assert 0 < told["uncertain"].iloc[0] < 0.5
    for _ in range(6):
        off = table["uncertain"] & (draw.random(len(table)) < 0.3)
        other = table.assign(rank=table["rank"] + off * draw.choice([-1, 1], len(table)), uncertain=False)
        found = observations.measure(other, name, statistic, **options)
        assert found["uncertain"].tolist() == [0.0]
        ends = ["estimate", "low", "high"]
        assert abs(found[ends] - told[ends]).to_numpy().max() <= told["uncertain"].iloc[0] + 1e-12


def test_only_ranks_are_doubtful_and_each_threshold_has_doubts_of_its_own():
    table = doubtful().assign(norm=1.0, **{"rank 1e-02": 3.0, "uncertain 1e-02": 2})
    cube = observations.cube(table, "rank", "norm", "rank 1e-02")
    own, norms, others = np.split(cube.uncertain, 3, -1)
    assert own.sum() == table["uncertain"].sum() > 0
    assert not norms.any()
    assert (others == 2).all()
    assert not observations.cube(table.drop(columns="uncertain")).uncertain.any()


def test_what_each_doubtful_mean_moves_is_added_up():
    """A mean of ranks is linear: by 1/24 for each of 24 heads, of which two are doubtful, in one of five samples."""
    table = doubtful().assign(uncertain=False)
    table.loc[table["head"].isin([3, 4]) & (table["sample"] == 0) & (table["position"] == 256), "uncertain"] = True
    cube = observations.cube(table[table["position"] == 256])
    mean = {"mean": lambda means: observations.single(float(means.mean()), observations.MAGNITUDE)}
    found = observations.without_interval(cube, lambda means: {name: of(means) for name, of in mean.items()})
    assert found["mean"].uncertain == pytest.approx(2 / 12 / 5)


@pytest.mark.parametrize(("limits", "far"), [(observations.MAGNITUDE, np.inf), (observations.CORRELATION, 2.0)])
def test_a_statistic_that_doubtful_ranks_leave_undefined_says_so(limits, far):
    cube = observations.cube(heads(np.zeros((2, 2, 1, 3, 4))).assign(uncertain=True))
    found = observations.without_interval(
        cube, lambda means: {"x": observations.single(np.nan if means.max() > 0 else 1.0, limits)}
    )
    assert found == {"x": (1.0, 1.0, 1.0, far)}
