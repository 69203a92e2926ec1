import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from small import head_table

from srdyn import strata
from srdyn.study.analysis import emergence, intervals
from srdyn.study.claims import registration

STEPS = (0, 4, 8, 20)
CONTEXTS = ("code", "prose", "technical")
SAMPLES, L, H, D = 4, 3, 8, 16
W = SAMPLES * len(CONTEXTS)


def history(ranks, decays, *, model="hybrid", kind="hybrid", seed=0, steps=STEPS):
    """What training writes, from ranks and decays [samples, contexts, L, H, steps]; another position beside them."""
    table = head_table(CONTEXTS[: ranks.shape[1]], steps, rank=ranks, log_decay=decays)
    table = table.rename(columns={"position": "step"}).assign(model=model, kind=kind, seed=seed, D=D)
    return pd.concat([table.assign(position=64), table.assign(position=8, rank=0.0)], ignore_index=True)


def ends(start, end, noise=0.0):
    """What training writes of heads of 64 before the first and after the last step, in 8 windows of 2 contexts."""
    heads = np.stack([start, end], -1).astype(float)
    ranks = np.broadcast_to(heads, (8, 2, 1, *heads.shape))
    ranks = (ranks + noise * np.random.default_rng(0).normal(size=ranks.shape)).round(3)
    return history(ranks, -np.ones(ranks.shape), steps=(0, 100)).assign(D=64)


@pytest.fixture(scope="module")
def values():
    rng = np.random.default_rng(0)
    shape = (SAMPLES, len(CONTEXTS), L, H, len(STEPS))
    final, start = rng.uniform(0, D, (L, H, 1)), rng.uniform(0, D, (L, H, 1))
    path = start + (final - start) * np.array([0, 0.2, 0.7, 1])
    ranks = np.clip(np.round(path + rng.normal(0, 2, shape)), 0, D)
    return ranks, -np.exp(-path / 4 + rng.normal(0, 0.1, shape))


@pytest.fixture(scope="module")
def table(values):
    return history(*values)


def one(found, **wanted):
    for name, value in wanted.items():
        found = found[found[name] == value]
    return found[["estimate", "low", "high"]].to_numpy().squeeze()


@pytest.mark.parametrize("place", range(4))
def test_identity_is_scipy_s_spearman_and_cohen_s_kappa_of_the_means(values, table, place):
    found = emergence.identity(table, at=64)
    means = values[0].mean((0, 1))
    for name, other in (("final", means[..., -1]), ("untrained", means[..., 0])):
        a, b = means[..., place].ravel(), other.ravel()
        wanted = {"spearman": stats.spearmanr(a, b).statistic, "kappa": strata.agreement(a, b, d=D)["kappa"]}
        in_layers = [stats.spearmanr(x, y).statistic for x, y in zip(means[..., place], other, strict=True)]
        for measure, value in (wanted | {"spearman within layers": np.mean(in_layers)}).items():
            estimate, low, high = one(found, reference=name, measure=measure, step=STEPS[place])
            assert estimate == pytest.approx(value, abs=1e-12)
            assert low <= estimate <= high


def test_intervals_are_those_of_the_bootstrap_over_windows(values, table):
    windows = values[0].reshape(W, L, H, len(STEPS))[..., [1, 3]]

    def rho(chosen):
        return stats.spearmanr(*np.moveaxis(chosen.mean(0), -1, 0).reshape(2, -1)).statistic

    estimate, low, high = intervals.bootstrap(windows, rho)
    chosen = torch.randint(W, (intervals.RESAMPLES, W), generator=torch.Generator().manual_seed(0)).numpy()
    shift = estimate - np.median([rho(windows[drawn]) for drawn in chosen])
    wanted = estimate, low + shift, high + shift
    found = emergence.identity(table, at=64)
    np.testing.assert_allclose(one(found, reference="final", measure="spearman", step=4), wanted, rtol=1e-9)
    assert set(found.loc[found["reference"] == "final", "n"]) == {W}


def test_halves_share_no_window(values, table):
    first, second = values[0][::2].mean((0, 1)), values[0][1::2].mean((0, 1))
    found = emergence.identity(table, at=64)
    for place, step in enumerate(STEPS):
        wanted = stats.spearmanr(first[..., place].ravel(), second[..., place].ravel()).statistic
        assert one(found, reference="other half", measure="spearman", step=step)[0] == pytest.approx(wanted)
    assert set(found.loc[found["reference"] == "other half", "n"]) == {W // 2}
    noise = np.random.default_rng(1).uniform(0, D, values[0].shape)
    found = emergence.identity(history(noise, values[1]), at=64)
    assert abs(one(found, reference="other half", measure="spearman", step=0)[0]) < 0.5
    assert one(found, reference="untrained", measure="spearman", step=0)[0] == 1
    alone = table[table["sample"] == 0]
    with pytest.raises(ValueError, match="two samples"):
        emergence.identity(alone, at=64)


def test_decays_have_an_order_but_no_strata(values, table):
    found = emergence.identity(table, at=64, value="log_decay")
    assert set(found["measure"]) == {"spearman", "spearman within layers"}
    means = values[1].mean((0, 1))
    wanted = stats.spearmanr(means[..., 0].ravel(), means[..., -1].ravel()).statistic
    assert one(found, reference="final", measure="spearman", step=0)[0] == pytest.approx(wanted)


def test_equal_heads_have_no_order(values):
    ranks = values[0].copy()
    ranks[..., 0] = D
    found = emergence.identity(history(ranks, values[1]), at=64)
    assert np.isnan(one(found, reference="final", measure="spearman", step=0)).all()
    assert np.isnan(one(found, reference="other half", measure="spearman", step=0)).all()
    assert not np.isnan(one(found, reference="final", measure="spearman", step=4)).any()
    measured = emergence.measured(found).set_index("measure")
    assert np.isnan(measured.loc["identity with untrained", "estimate"])
    assert measured.loc["identity in training", "estimate"] > 0.9


def test_measures_of_the_claim_are_those_of_the_last_step(table):
    other = table.assign(model="hybrid-seed1", seed=1)
    other = other[other["step"] < 20]
    found = emergence.identity(pd.concat([table, other]), at=64)
    rows = emergence.measured(found)
    assert list(rows) == ["measure", "model", "kind", "seed", "estimate", "low", "high", "n", "over"]
    for (measure, model), row in rows.groupby(["measure", "model"]):
        place = {"identity with untrained": "untrained", "identity in training": "other half"}[measure]
        wanted = one(found, model=model, reference=place, measure="spearman", step=8 if "seed1" in model else 20)
        np.testing.assert_array_equal(row[["estimate", "low", "high"]].to_numpy().squeeze(), wanted)
    assert len(rows) == 4


def test_the_distribution_is_that_of_the_heads_means(values, table):
    found = emergence.distribution(table, at=64)
    means = values[0].mean((0, 1)).reshape(L * H, -1)
    low = means[:, -1] <= 0.25 * D
    assert low.any()
    for place, step in enumerate(STEPS):
        now = means[:, place]
        half_lives = np.log(2) / -values[1].mean((0, 1)).reshape(L * H, -1)[:, place]
        wanted = {"share of low": (now <= 0.25 * D).mean(), "share of high": (now >= 0.9 * D).mean()}
        wanted |= {"quantile 0.25": np.quantile(now, 0.25), "spread of ranks": now.std() / D}
        wanted |= {"rank of low": now[low].mean(), "spread of half-lives": np.log2(half_lives).std()}
        for measure, value in wanted.items():
            assert one(found, measure=measure, step=step)[0] == pytest.approx(value), (measure, step)
    shares = found[found["measure"].str.startswith("share") & (found["step"] == 8)]
    assert shares["estimate"].sum() == pytest.approx(1)
    assert not found.duplicated(["model", "step", "measure"]).any()


def test_a_stratum_that_nobody_ends_in_has_no_mean(values):
    ranks = np.full_like(values[0], D)
    found = emergence.distribution(history(ranks, values[1]), at=64)
    assert {"rank of high"} == {name for name in found["measure"] if name.startswith("rank of")}


def test_explained_variance_is_that_of_a_regression_on_ranks(values, table):
    means = [x.mean((0, 1)).reshape(L * H, -1) for x in values]
    start, final, decay, first_decay = means[0][:, 0], means[0][:, -1], means[1][:, -1], means[1][:, 0]

    def explained(*predictors):
        x = np.stack([np.ones(L * H), *map(stats.rankdata, predictors)], 1)
        y = stats.rankdata(final)
        return 1 - np.var(y - x @ np.linalg.lstsq(x, y, rcond=None)[0]) / np.var(y)

    wanted = {"rank at the start": explained(start), "decay at the end": explained(decay)}
    wanted |= {"decay at the start": explained(first_decay)}
    wanted |= {"start beyond decay": explained(start, decay) - explained(decay)}
    wanted |= {"decay beyond start": explained(start, decay) - explained(start)}
    found = emergence.origin(table, at=64)
    assert set(found["measure"]) == set(wanted)
    for measure, value in wanted.items():
        assert one(found, measure=measure)[0] == pytest.approx(value, abs=1e-9), measure


def test_an_order_made_in_training_is_told_from_one_kept(values):
    rng = np.random.default_rng(2)
    fresh, kept = values[0].copy(), values[0].copy()
    fresh[..., 0] = rng.uniform(0, D, fresh.shape[:-1])
    kept[..., 0] = kept[..., -1]
    shares = [
        one(emergence.origin(history(r, values[1]), at=64), measure="rank at the start")[0] for r in (fresh, kept)
    ]
    assert shares[0] < 0.3
    assert shares[1] == pytest.approx(1)


def test_trajectories_name_the_stratum_at_the_end(values, table):
    second = history(*values, model="hybrid-seed1", seed=1)
    found = emergence.trajectories(pd.concat([table, second]), at=64)
    assert len(found) == L * H * len(STEPS)
    assert len(emergence.trajectories(second, at=64)) == len(found)  # alone it is the first seed that there is
    means, decays = (x.mean((0, 1)) for x in values)
    for row in found.sample(20, random_state=0).itertuples():
        here = (row.layer, row.head, STEPS.index(row.step))
        assert row.rank == pytest.approx(means[here])
        assert row.half_life == pytest.approx(math.log(2) / -decays[here])
        end = means[row.layer, row.head, -1] / D
        assert row.stratum == ("low" if end <= 0.25 else "middle" if end < 0.9 else "high")


def test_what_is_kept_of_the_start_is_over_what_halves_share():
    order = np.arange(16) * 4.0
    same = emergence.relative_identity(ends(order, order), at=64).set_index("measure")["estimate"]
    assert same.to_dict() == {emergence.RHO: 1.0, emergence.KAPPA: 1.0}
    other = emergence.relative_identity(ends(order[::-1], order, noise=8.0), at=64).set_index("measure")
    assert other.loc[emergence.RHO, "estimate"] < -0.9
    assert (other["low"] <= other["estimate"]).all()
    assert (other["over"] == "pairs of windows").all()
    shuffled = np.random.default_rng(1).permutation(order)
    noisy, plain = (emergence.relative_identity(ends(shuffled, order, noise=noise), at=64) for noise in (30.0, 0.0))
    rho = [table.set_index("measure").at[emergence.RHO, "estimate"] for table in (noisy, plain)]
    assert abs(rho[0] - rho[1]) < 0.5
    named = {measure.name for measure in registration.load().claim("C10").second.measures}
    assert set(same.index) <= named


def test_heads_that_moved_are_named():
    found = emergence.moved(ends([2, 30, 60, 60], [2, 60, 60, 3]), at=64)
    assert found["head"].tolist() == [1, 3]
    assert found[["before", "after"]].to_numpy().tolist() == [["middle", "high"], ["high", "low"]]
    assert found[["rank_before", "rank_after"]].to_numpy().tolist() == [[30, 60], [60, 3]]


def test_kappa_is_split_into_order_and_shares():
    def kept(*both):
        return emergence.kept(ends(*both), at=64).loc[0, ["kappa", "only_shares", "same_shares"]].tolist()

    assert kept([2, 3, 60, 61], [2, 3, 60, 61]) == [1, 1, 1]
    # All high before: the order is kept, and κ cannot say so.
    assert kept([60, 61, 62, 63], [2, 3, 60, 61]) == [0, 0, 1]
    assert kept([2, 3, 60, 61], [60, 61, 2, 3]) == [-1, 1, -1]


def test_a_head_fills_up_from_the_half_life_on():
    assert emergence.half_life_that_saturates(128) == pytest.approx(9.6, abs=0.05)
    fills = emergence.half_life_that_saturates(64, eps=1e-2)
    assert 0.5 ** (64 / fills) == pytest.approx(1e-2)


def test_a_position_that_was_not_read_is_named(table):
    with pytest.raises(ValueError, match=r"after 7 tokens, but after \[8, 64\]"):
        emergence.identity(table, at=7)
