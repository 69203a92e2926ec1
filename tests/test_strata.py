import diptest
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial import distance

from srdyn import spectra, strata

L, B, C, H, D = 3, 2, 4, 5, 6
LAYERS, POSITIONS = (0, 1, 4), (1, 3, 64, 100)
HEAD = ["model", "seed", "context", "layer", "head", "position"]
NAMES = {"positions": POSITIONS, "layers": LAYERS, "context": "prose", "model": "hybrid", "seed": 1}


@pytest.fixture
def sigma():
    states = torch.randn(L, B, C, H, D, D + 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    states[2, 1, 3, 4] = 0
    return spectra.singular_values(states)


def rows(layer, head, ranks, **names):
    """One row a sample, of one head."""
    names = {"model": "m", "seed": 0, "context": "prose", "position": 8, "D": 8} | names
    return pd.DataFrame({"layer": layer, "head": head, "sample": range(len(ranks)), "rank": ranks, **names})


def test_head_table_holds_every_number_in_its_row(sigma):
    table = strata.head_table(sigma, eps=0.2, **NAMES)
    assert len(table) == L * B * C * H
    assert not table.duplicated(["layer", "sample", "position", "head"]).any()
    indexed = table.set_index(["layer", "sample", "position", "head"])
    for layer, sample, c, head in np.ndindex(L, B, C, H):
        row = indexed.loc[(LAYERS[layer], sample, POSITIONS[c], head)]
        spectrum = sigma[layer, sample, c, head].numpy()
        assert row["rank"] == (spectrum > 0.2 * spectrum.max()).sum()
        assert row["nuclear_norm"] == pytest.approx(spectrum.sum())
        assert row["stable_rank"] == pytest.approx((spectrum**2).sum() / (spectrum.max() ** 2 or 1))
        assert (row["D"], row["context"], row["model"], row["seed"]) == (D, "prose", "hybrid", 1)
    assert table["rank"].nunique() > 2
    assert table["uncertain"].dtype == bool


def test_head_table_marks_ranks_near_the_threshold(sigma):
    sigma[0, 0, 0, 0] = torch.tensor([1, 0.1, 1.005e-4, 0, 0, 0], dtype=torch.float64)
    table = strata.head_table(sigma, **NAMES)
    assert table.loc[table["uncertain"], ["layer", "sample", "position", "head", "rank"]].to_numpy().tolist() == [
        [0, 0, 1, 0, 3]
    ]


def test_head_table_keeps_removed_heads_without_a_rank(sigma):
    sigma[1, :, :, 3] = torch.nan
    table = strata.head_table(sigma, **NAMES)
    missing = table[table["rank"].isna()]
    assert set(zip(missing["layer"], missing["head"], strict=True)) == {(1, 3)}
    assert len(missing) == B * C
    assert strata.stratify(table, by=HEAD).loc[missing.index, "stratum"].isna().all()


def test_head_table_refuses_names_that_do_not_fit(sigma):
    for names in ({"layers": (0, 1)}, {"positions": (1, 2)}):
        with pytest.raises(ValueError, match="3 layers at 4 positions"):
            strata.head_table(sigma, **(NAMES | names))


def test_strata_come_from_the_mean_over_samples():
    table = pd.concat([rows(0, 0, [1, 3]), rows(0, 1, [2, 3]), rows(1, 0, [8, 6]), rows(1, 1, [8, 7])])
    out = strata.stratify(table, by=HEAD)
    expected = {(0, 0): ["low"], (0, 1): ["middle"], (1, 0): ["middle"], (1, 1): ["high"]}  # means 2, 2.5, 7, 7.5 of 8
    assert {head: list(found) for head, found in out.groupby(["layer", "head"])["stratum"].unique().items()} == expected
    at_the_edge = strata.stratify(rows(0, 0, [9, 9], D=10), by=HEAD)
    assert at_the_edge["stratum"].tolist() == ["high", "high"]
    assert list(out["stratum"].cat.categories) == list(strata.STRATA)
    assert "stratum" not in table


def test_strata_are_kept_apart_by_context_and_position():
    table = pd.concat([rows(0, 0, [1]), rows(0, 0, [8], context="code"), rows(0, 0, [4], position=4)])
    assert strata.stratify(table, by=HEAD)["stratum"].tolist() == ["low", "high", "middle"]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(3, 40))
def test_agreement_against_textbook_formulas(seed, n):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 9, size=(2, n)).astype(float)
    a[:2], b[:2] = (0, 8), (8, 1)
    out = strata.agreement(a, b, d=8)
    assert out["spearman"] == pytest.approx(np.corrcoef(stats.rankdata(a), stats.rankdata(b))[0, 1])
    assert out["cosine"] == pytest.approx(1 - distance.cosine(a, b))
    assert out["n"] == n
    label = np.array(["low", "middle", "high"])
    confusion = pd.crosstab(*(label[np.digitize(x, [2.1, 7.15])] for x in (a, b)))
    confusion = confusion.reindex(index=label, columns=label, fill_value=0).to_numpy() / n
    chance = confusion.sum(0) @ confusion.sum(1)
    assert out["kappa"] == pytest.approx((np.trace(confusion) - chance) / (1 - chance))


def test_independent_saturated_heads_do_not_agree():
    rng = np.random.default_rng(0)
    a, b = np.where(rng.random((2, 2000)) < 0.8, 64, rng.integers(0, 64, size=(2, 2000)))
    found = strata.agreement(a, b)
    assert abs(found["spearman"]) < 0.07  # ranking ties by their index would say 0.3 and more
    assert found["cosine"] > 0.9


def test_what_is_undefined_is_nan():
    varied, constant = np.array([1.0, 2.0, 8.0]), np.full(3, 8.0)
    assert np.isnan(strata.agreement(varied, constant)["spearman"])
    assert np.isnan(strata.agreement(constant, constant, d=8)["kappa"])
    assert np.isnan(strata.agreement(varied, varied)["kappa"])
    assert np.isnan(strata.agreement(varied, 0 * varied)["cosine"])
    assert strata.agreement(np.full(3, np.nan), varied, d=8)[["spearman", "kappa", "cosine"]].isna().all()


def test_rows_agree_as_each_of_them_does():
    a, b = np.random.default_rng(0).integers(0, 8, (2, 2, 3, 20)) * 8.0
    expected = [strata.agreement(x, y, d=64) for x, y in zip(a.reshape(-1, 20), b.reshape(-1, 20), strict=True)]
    found = {"spearman": strata.spearman(a, b), "kappa": strata.kappa(a, b, 64), "cosine": strata.cosine(a, b)}
    for name, rows in found.items():
        np.testing.assert_array_equal(rows.ravel(), [each[name] for each in expected])


def test_heads_missing_from_either_are_left_out():
    a = pd.Series([1.0, np.nan, 5.0, 8.0, 2.0])
    b = pd.Series([2.0, 7.0, np.nan, 8.0, 3.0])
    pd.testing.assert_series_equal(strata.agreement(a, b, d=8), strata.agreement(a[[0, 3, 4]], b[[0, 3, 4]], d=8))
    assert strata.agreement(a, b)["n"] == 3
    with pytest.raises(ValueError, match="got 5 and 4"):
        strata.agreement(a, b[:4])


def test_bimodality_tells_two_groups_from_one():
    rng = np.random.default_rng(0)
    one = strata.bimodality(rng.normal(30, 8, 300))
    two = strata.bimodality(np.concatenate([rng.normal(5, 2, 150), rng.normal(60, 2, 150)]))
    assert two["p"] < 0.001 < 0.05 < one["p"]
    assert one["sarle"] < 5 / 9 < two["sarle"]
    assert strata.bimodality(np.linspace(0, 1, 5000))["sarle"] == pytest.approx(5 / 9, abs=1e-3)


def test_sarle_is_that_of_sample_moments():
    """Against the sums written out; values that lean to one side, few enough for every correction to count."""
    x = np.array([0.0, 0, 0, 1, 5])
    n, d = len(x), x - x.mean()
    s2 = (d**2).sum() / (n - 1)
    skewness = n / ((n - 1) * (n - 2)) * (d**3).sum() / s2**1.5
    excess = n * (n + 1) / ((n - 1) * (n - 2) * (n - 3)) * (d**4).sum() / s2**2 - 3 * (n - 1) ** 2 / ((n - 2) * (n - 3))
    wanted = (skewness**2 + 1) / (excess + 3 * (n - 1) ** 2 / ((n - 2) * (n - 3)))
    assert strata.bimodality(x)["sarle"] == pytest.approx(wanted, rel=1e-12)


def test_shares_are_of_the_heads_that_have_a_rank():
    ranks = np.array([[2.0, 16, 17, 60], [57, 58, np.nan, 20], [np.nan] * 4])
    found = strata.shares(ranks, 64)  # low to 16, high from 57.6
    np.testing.assert_allclose(found, [[2 / 4, 1 / 4, 1 / 4], [0, 2 / 3, 1 / 3], [np.nan] * 3])


@settings(max_examples=20, deadline=None)
@given(ranks=st.lists(st.integers(0, 64), min_size=1, max_size=20), gone=st.integers(0, 5), seed=st.integers(0, 99))
def test_shares_are_one_together_whatever_the_order_and_are_those_of_the_strata(ranks, gone, seed):
    values = np.random.default_rng(seed).permutation([*map(float, ranks), *[np.nan] * gone])
    found = strata.shares(values[None], 64)[0]
    assert found.sum() == pytest.approx(1)
    np.testing.assert_allclose(found, strata.shares(np.array(ranks, float)[None], 64)[0])
    table = pd.concat([rows(0, head, [rank], D=64) for head, rank in enumerate(ranks)])
    named = strata.stratify(table, by=HEAD)["stratum"]
    np.testing.assert_allclose(found, [(named == name).mean() for name in strata.STRATA])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(4, 40), unit=st.sampled_from([-4.0, -1.0, 0.125, 2.0]))
def test_bimodality_knows_no_unit_direction_or_order(seed, n, unit):
    values = np.random.default_rng(seed).normal(size=n)
    found, again = strata.bimodality(values), strata.bimodality(unit * np.random.default_rng(0).permutation(values))
    np.testing.assert_allclose(again.to_numpy(), found.to_numpy(), rtol=1e-9)
    assert 0 < found["dip"] <= 0.25


def test_bimodality_without_spread_or_values_is_nan():
    values = np.array([3.0, 1.0, np.nan, 4.0, 1.0, 9.0])
    assert strata.bimodality(values)["n"] == 5
    assert strata.bimodality(values)["dip"] == diptest.dipstat(np.sort(values[~np.isnan(values)]))
    for empty in (np.full(9, 64.0), np.array([1.0, 2.0, np.nan, 3.0])):
        assert strata.bimodality(empty)[["dip", "p", "sarle"]].isna().all()
