"""The bounds on what another processor moves, against all that it could move."""

import itertools
import re

import bands
import numpy as np
import pytest

from srdyn import strata
from srdyn.loading import files
from srdyn.study.analysis import mechanism
from srdyn.study.run import store

RANKS = np.array([0.0, 0.5, 1.0])
"""One of each stratum, where D is 1."""


def kappa(labels, others):
    """Of each row of labels beside the same others."""
    labels = np.atleast_2d(labels)
    return strata.kappa(RANKS[labels], RANKS[np.broadcast_to(others, labels.shape)], 1)


def by_chance(labels, others):
    p, q = (np.bincount(x, minlength=3) / len(x) for x in (labels, others))
    return p @ q


def flipped(labels, m):
    """All that labels become where m of them change, a row each."""
    for places in itertools.combinations(range(len(labels)), m):
        for steps in itertools.product((1, 2), repeat=m):
            changed = labels.copy()
            changed[list(places)] += steps
            yield changed % 3


@pytest.mark.parametrize(("n", "m", "tries"), [(8, 1, 200), (8, 2, 20), (12, 3, 10), (48, 1, 40)])
def test_no_change_of_strata_moves_kappa_farther_than_its_bound(n, m, tries):
    draw, nearest = np.random.default_rng(m), 0.0
    for _ in range(tries):
        shares = draw.dirichlet(np.ones(3))
        labels = draw.choice(3, n, p=shares)
        others = np.where(draw.random(n) < 0.3, draw.choice(3, n, p=shares), labels)
        changed = np.array(list(flipped(labels, m)))
        [before] = kappa(labels, others)
        if np.isnan(before):  # all in one stratum
            continue
        bound = bands.kappa_moves(before, by_chance(labels, others), n, m)
        moved = abs(kappa(changed, others) - before)
        assert np.nanmax(moved) <= bound + 1e-12
        nearest = max(nearest, np.nanmax(moved) / bound)
    assert nearest > 0.4, "a bound that is never nearly met says little"


def test_kappa_is_held_too_where_both_sides_change():
    draw = np.random.default_rng(0)
    for _ in range(20):
        labels, others = draw.choice(3, (2, 8))
        [before] = kappa(labels, others)
        pairs = np.array([(a, b) for a in flipped(labels, 1) for b in flipped(others, 1)])
        bound = bands.kappa_moves(before, by_chance(labels, others), 8, 2)
        assert np.nanmax(abs(kappa(pairs[:, 0], pairs[:, 1]) - before)) <= bound + 1e-12


def test_kappa_of_few_heads_is_held_by_nothing():
    assert bands.kappa_moves(0.0, 0.9, 10, 1) == np.inf


def test_the_strata_that_stand_move_kappa_no_farther():
    """Every head of every model into every other stratum, those near a limit and all others."""
    told = bands.splits().set_index(["model", "split"])
    heads = store.load_table("05_mechanism_heads", run="reference")
    for model in told.index.unique("model"):
        own = heads[heads["model"] == model]
        labels = np.digitize(own["rank"] / own["D"], [np.nextafter(strata.LOW, 1), strata.HIGH])
        others = np.digitize(own["predicted"] / own["D"], [np.nextafter(strata.LOW, 1), strata.HIGH])
        row = told.loc[model, mechanism.CLOSED_FORM]
        assert kappa(labels, others)[0] == pytest.approx(row["kappa"], abs=1e-8)
        assert by_chance(labels, others) == pytest.approx(row["chance"], abs=1e-8)
        changed = np.array(list(flipped(labels, 1)))
        moved = abs(kappa(changed, others) - row["kappa"]).max()
        assert row["moves"] / 2 < moved <= row["moves"]


def r2(actual, predicted, axes):
    """1 − SSE/SST over the last axes, of deviations from the mean over all of them, or over the first alone."""
    deviations = actual - actual.mean(axes, keepdims=True)
    return 1 - ((actual - predicted) ** 2).sum((-2, -1)) / (deviations**2).sum((-2, -1))


def moved_r2(actual, predicted, bands_of, draw, axes, within):
    """The farthest that R² comes, of ranks at either end of their bands and between."""
    off = [draw.choice([-1, 1, 0, 0.3], (500, *band.shape)) * band for band in bands_of]
    ways = np.sign(actual - predicted) * np.array([1, -1])[:, None, None]
    off = [np.concatenate([x, side * ways * band]) for x, side, band in zip(off, (1, -1), bands_of, strict=True)]
    a, p = actual + off[0], predicted + off[1]
    if within:
        p = p + a.mean(-2, keepdims=True) - p.mean(-2, keepdims=True)
        predicted = predicted + actual.mean(-2, keepdims=True) - predicted.mean(-2, keepdims=True)
    return abs(r2(a, p, axes) - r2(actual, predicted, axes)).max()


@pytest.mark.parametrize("within", [False, True])
def test_no_change_of_ranks_moves_r2_farther_than_its_bound(within):
    """Of means of the heads, one context alone; or of contexts beside the mean of each head."""
    draw, axes, nearest = np.random.default_rng(0), -2 if within else (-2, -1), 0.0
    for _ in range(30):
        shape = (4 if within else 1, int(draw.integers(3, 20)))
        actual = draw.uniform(0, 64, shape)
        predicted = actual + draw.normal(size=shape) * draw.uniform(0.1, 40)
        limits = [draw.uniform(0, 1, shape) * draw.integers(2, size=shape), draw.uniform(0, 1, shape)]
        centred = predicted + within * (actual.mean(0) - predicted.mean(0))
        s = np.linalg.norm(actual - actual.mean(0 if within else None))
        bound = bands.r2_moves(float(r2(actual, centred, axes)), s, *map(np.linalg.norm, limits))
        moved = moved_r2(actual, predicted, limits, draw, axes, within)
        assert moved <= bound
        nearest = max(nearest, moved / bound)
    assert nearest > 0.4, "a bound that is never nearly met says little"


def test_the_ranks_that_stand_move_r2_no_farther():
    told = bands.explained().query("quantity == @mechanism.BETWEEN").set_index(["model", "predictor"])
    assert {row.predictor for row in told.reset_index().itertuples()} == {"closed form", "mechanism", "untrained"}
    for (model, predictor), row in told.iterrows():
        if predictor == mechanism.CLOSED_FORM:
            continue
        own, null = bands.heads_of(model), bands.heads_of(model, predictor)
        actual, predicted = (x[["rank"]].to_numpy().T for x in (own, null))
        assert r2(actual, predicted, (-2, -1)) == pytest.approx(row["estimate"], abs=1e-7)
        limits = [x[["uncertain"]].to_numpy().T for x in (own, null)]
        assert moved_r2(actual, predicted, limits, np.random.default_rng(0), (-2, -1), False) <= row["moves"]


def test_the_page_says_how_far_they_move():
    page = " ".join((files.root() / "notebooks/site/verdicts.md").read_text().split())
    told = bands.splits().query("split != 'rank'")
    near = {model: int(bands.near_limits(bands.heads_of(model)).sum()) for model in told["model"].unique()}
    assert near == {"hybrid": 1, "pure": 0, "uniform": 0}
    assert (
        f"one head moves κ by {told['moves'].max():.2f} at most, and of those models the hybrid alone has one" in page
    )
    most = bands.explained().groupby(["predictor", "quantity"])["moves"].max().unstack().to_dict("index")
    said = {"mechanism": "by 0.005 at most between heads and by 0.08 within them", "closed form": "by 0.004 and 0.10"}
    for predictor, words in (said | {"untrained": "by 0.04 and 0.19"}).items():
        between, within = (float(x) for x in re.findall(r"0\.\d+", words))
        assert words in page
        assert between * 0.75 < most[predictor][mechanism.BETWEEN] <= between
        assert within * 0.75 < most[predictor][mechanism.WITHIN] <= within
