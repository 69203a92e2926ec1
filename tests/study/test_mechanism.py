"""Each table of the mechanism against the same numbers reached another way."""

import numpy as np
import pandas as pd
import pytest
from scipy import optimize
from small import head_table

from srdyn.study.analysis import mechanism
from srdyn.study.survey import null_tables

pytestmark = pytest.mark.usefixtures("few_resamples")
EPS = 1e-4
D = 16
LAYERS, H, SAMPLES = (0, 2, 3), 4, 3
CONTEXTS = ("code", "math", "prose", "technical")


def head_rows(rank, log_decay, source="model", model="tiny", seed=0):
    """A head table from arrays [contexts, samples, layers, heads] of ranks and log-decays."""
    columns = {"rank": rank, "log_decay": log_decay} | {f"rank {e:.0e}": rank for e in null_tables.SWEEP}
    table = head_table(CONTEXTS, [64], **{name: x.swapaxes(0, 1)[..., None] for name, x in columns.items()})
    table["layer"] = np.array(LAYERS)[table["layer"]]
    names = {"model": model, "kind": "hybrid", "seed": seed, "source": source, "D": D}
    return table.assign(**names, nuclear_norm=1.0, uncertain=False)


@pytest.fixture(scope="module")
def measured():
    """Ranks and log-decays of a model, ranks of its mechanism null and of its start, [contexts, samples, L, H]."""
    rng = np.random.default_rng(0)
    shape = (len(CONTEXTS), SAMPLES, len(LAYERS), H)
    settled = rng.permutation(np.linspace(-3.5, 2.2, len(LAYERS) * H)).reshape(shape[-2:])
    log_decay = -np.exp(settled + rng.normal(0, 0.2, shape))
    rank = np.clip(np.round(0.8 * np.log(1 / EPS) / -log_decay + rng.normal(0, 0.5, shape)), 0, D)
    null = np.clip(rank + rng.integers(0, 3, shape), 0, D)
    return {"rank": rank, "log_decay": log_decay, "mechanism": null, "untrained": np.full(shape, D - 1.0)}


@pytest.fixture(scope="module")
def text(measured):
    ranks = {"model": measured["rank"]} | {name: measured[name] for name in ("mechanism", "untrained")}
    tables = [head_rows(rank, measured["log_decay"], source) for source, rank in ranks.items()]
    return pd.concat([*tables, head_rows(measured["rank"], measured["log_decay"], model="other", seed=1)])


def per_head(array):
    """Means over contexts and samples, a value for each layer and head."""
    return array.mean((0, 1)).ravel()


def test_heads_stand_beside_what_predicts_them(text, measured):
    table = mechanism.heads(text, 64, eps=EPS).set_index("model")
    own = table.loc["tiny"]
    np.testing.assert_allclose(own["rank"], per_head(measured["rank"]))
    expected = [min(D, np.log(1 / EPS) / -g) for g in per_head(measured["log_decay"])]
    np.testing.assert_allclose(own["predicted"], expected)
    np.testing.assert_allclose(own["mechanism"], per_head(measured["mechanism"]))
    np.testing.assert_allclose(own["residual"], own["rank"] - own["mechanism"], atol=1e-12)
    assert (own["residual_low"] <= own["residual"] + 1e-12).all()
    assert (own["residual_high"] >= own["residual"] - 1e-12).all()
    low = per_head(measured["mechanism"]) <= D / 4
    np.testing.assert_array_equal(own["mechanism_stratum"] == "low", low)
    assert 0 < low.sum() < len(low)


def test_a_model_without_the_null_has_no_residual(text):
    other = mechanism.heads(text, 64, eps=EPS).query("model == 'other'")
    assert len(other) == len(LAYERS) * H
    assert other[["mechanism", "residual", "residual_low"]].isna().all(axis=None)
    alone = mechanism.heads(text.query("model == 'other'"), 64, eps=EPS)
    assert alone["residual"].isna().all()
    assert alone["predicted"].notna().all()


def scores(table, predictor):
    return table[(table["model"] == "tiny") & (table["predictor"] == predictor)].set_index("quantity")["estimate"]


@pytest.fixture(scope="module")
def explained(text):
    return mechanism.explained(text, 64, eps=EPS)


def loops(actual, predicted):
    """R² between and within heads by their definitions, [contexts, heads]."""
    heads = range(actual.shape[1])
    mean = actual.mean()
    between = sum((actual[:, h].mean() - predicted[:, h].mean()) ** 2 for h in heads)
    all_between = sum((actual[:, h].mean() - mean) ** 2 for h in heads)
    within = all_within = 0.0
    for h in heads:
        for c in range(len(actual)):
            deviation = actual[c, h] - actual[:, h].mean()
            within += (deviation - predicted[c, h] + predicted[:, h].mean()) ** 2
            all_within += deviation**2
    return 1 - between / all_between, 1 - within / all_within


def test_the_closed_form_and_the_nulls_are_scored_as_they_stand(explained, measured):
    rank, g, null = (measured[name].mean(1).reshape(len(CONTEXTS), -1) for name in ("rank", "log_decay", "mechanism"))
    for predictor, predicted in {"closed form": np.minimum(D, np.log(1 / EPS) / -g), "mechanism": null}.items():
        found = scores(explained, predictor)
        np.testing.assert_allclose(found[[mechanism.BETWEEN, mechanism.WITHIN]], loops(rank, predicted))
        spearman = pd.Series(rank.mean(0)).corr(pd.Series(predicted.mean(0)), method="spearman")
        np.testing.assert_allclose(found[mechanism.ORDER], spearman)


def test_a_constant_predictor_explains_nothing_and_has_no_order(explained):
    found = scores(explained, "untrained")
    assert found[mechanism.BETWEEN] < 0
    assert found[mechanism.WITHIN] == pytest.approx(0)
    assert np.isnan(found[mechanism.ORDER])


def test_the_monotone_fit_sees_neither_the_head_nor_the_context(explained, measured):
    rank, g = (measured[name].mean(1).reshape(len(CONTEXTS), -1) for name in ("rank", "log_decay"))
    predicted = np.empty_like(rank)
    for c in range(len(CONTEXTS)):
        for h in range(rank.shape[1]):
            others = [(i, j) for i in range(len(CONTEXTS)) for j in range(rank.shape[1]) if (i - c) % 2 and (j - h) % 2]
            x, y = np.array(sorted((g[i, j], rank[i, j]) for i, j in others)).T
            predicted[c, h] = np.interp(g[c, h], x, optimize.isotonic_regression(y).x)
    np.testing.assert_allclose(
        scores(explained, "monotone fit")[[mechanism.BETWEEN, mechanism.WITHIN]], loops(rank, predicted)
    )


def test_what_memory_of_the_heads_gives_is_not_credited_to_decay():
    """Decays without a bearing on ranks: a fit that saw the same heads would do well all the same."""
    rng = np.random.default_rng(1)
    shape = (len(CONTEXTS), SAMPLES, len(LAYERS), H)
    rank = np.broadcast_to(rng.integers(0, D, shape[-2:]).astype(float), shape) + rng.integers(0, 2, shape)
    g = np.broadcast_to(-rng.uniform(0.01, 5, shape[-2:]), shape).copy()
    found = mechanism.explained(head_rows(rank, g), 64).set_index(["predictor", "quantity"])["estimate"]
    assert found["monotone fit", mechanism.BETWEEN] < 0.5


def test_intervals_hold_the_estimate_and_the_variance_adds_up(explained):
    defined = explained.dropna(subset="estimate")
    assert ((defined["low"] <= defined["estimate"]) & (defined["estimate"] <= defined["high"])).all()
    assert (defined["high"] <= 1).all()
    spread = explained.drop_duplicates(["model", "quantity"]).dropna(subset="variance")
    np.testing.assert_allclose(spread.groupby("model")["variance"].sum(), 1)
    assert set(explained.query("model == 'other'")["predictor"]) == {"closed form", "monotone fit"}


def test_variance_within_heads_that_is_noise_is_not_called_reproducible():
    """Heads alike in all contexts but for noise, then the same with contexts that shift every head its own way."""
    rng = np.random.default_rng(2)
    shape = (len(CONTEXTS), SAMPLES, len(LAYERS), H)
    noise, own = rng.normal(0, 1, shape), rng.normal(0, 5, shape[-2:])
    shift = rng.normal(0, 4, (len(CONTEXTS), 1, len(LAYERS), H))
    found = [
        mechanism.explained(head_rows(rank, np.full(shape, -1.0)), 64).set_index("quantity")["reproducible"]
        for rank in (own + noise, own + shift + noise)
    ]
    assert abs(found[0][mechanism.WITHIN].iloc[0]) < 0.4
    assert found[1][mechanism.WITHIN].iloc[0] > 0.9
    assert found[0][mechanism.BETWEEN].iloc[0] > 0.9


def test_one_context_has_no_variance_within_heads(text):
    with pytest.raises(ValueError, match="at least two contexts"):
        mechanism.explained(text.query("context == 'code'"), 64)


def strata_shares(ranks, d):
    return [(ranks <= 0.25 * d).mean(), ((ranks > 0.25 * d) & (ranks < 0.9 * d)).mean(), (ranks >= 0.9 * d).mean()]


def test_the_sweep_counts_heads_at_every_threshold(text, measured):
    table = mechanism.sweep(text, 64, eps=EPS).query("model == 'tiny'").set_index(["ranks_of", "eps"])
    assert sorted(table.loc["model"].index) == sorted([EPS, *null_tables.SWEEP])
    shares = ["low", "middle", "high"]
    for eps in (EPS, 1e-2):
        expected = np.minimum(D, np.log(1 / eps) / -per_head(measured["log_decay"]))
        np.testing.assert_allclose(table.loc[("closed form", eps), shares].astype(float), strata_shares(expected, D))
    for source, name in (("model", "rank"), ("mechanism", "mechanism")):
        found = table.loc[(source, EPS), shares].astype(float)
        np.testing.assert_allclose(found, strata_shares(per_head(measured[name]), D))
    assert (table["low_lo"] <= table["low"]).all()


def test_the_sweep_reads_each_threshold_s_own_column(text):
    changed = text.assign(**{"rank 1e-06": float(D)})
    table = mechanism.sweep(changed, 64, eps=EPS).query("ranks_of == 'model'").set_index(["model", "eps"])
    assert table.loc[("tiny", 1e-6), "high"] == 1
    assert table.loc[("tiny", 1e-5), "high"] == table.loc[("tiny", EPS), "high"] < 1


def test_splits_by_decay_at_two_sizes_and_at_the_half_life(text, measured):
    table = mechanism.splits(text, 64, eps=EPS).query("model == 'tiny'").set_index("split")
    g, rank = per_head(measured["log_decay"]), per_head(measured["rank"])
    wide, slow = np.minimum(128, np.log(1 / EPS) / -g), np.log(2) / -g >= 9.6
    shares = ["low", "middle", "high"]
    np.testing.assert_allclose(table.loc["rank", shares].astype(float), strata_shares(rank, D))
    np.testing.assert_allclose(table.loc["closed form, d = 128", shares].astype(float), strata_shares(wide, 128))
    np.testing.assert_allclose(table.loc["half-life 9.6", shares].astype(float), [1 - slow.mean(), 0, slow.mean()])
    assert table.loc["rank", "kappa"] == 1
    codes = [np.digitize(x, [0.25 + 1e-12, 0.9]) for x in (wide / 128, rank / D)]
    chance = sum((codes[0] == k).mean() * (codes[1] == k).mean() for k in range(3))
    kappa = ((codes[0] == codes[1]).mean() - chance) / (1 - chance)
    assert table.loc["closed form, d = 128", "kappa"] == pytest.approx(kappa)
    assert 0 < kappa < 1
