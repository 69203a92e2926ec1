import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from srdyn.study.trials import contrasts

DRAWS = 10
TRUE, EFFECT = 2.0, 0.1  # bits per byte without heads, and what the arm costs beyond its reference


def frame(value, *, weight=1.0, row=None, item=0, draw=None):
    rows = np.arange(len(value)) if row is None else row
    table = pd.DataFrame({"probe": "bits code", "row": rows, "item": item, "value": value, "weight": weight})
    return table if draw is None else table.assign(draw=draw)


def texts(rng, rows, design, *, spread=0.1):
    """An arm and its reference on the same text: rows differ, draws of heads differ, and each row in each draw does."""
    row, weight, base = np.arange(rows), rng.integers(900, 1900, rows), TRUE + 0.35 * rng.standard_normal(rows)
    pair = []
    for effect in (EFFECT, 0.0):
        heads, noise = spread * rng.standard_normal(DRAWS), 0.1 * rng.standard_normal((DRAWS, rows))
        own = (base + effect + heads[:, None] + noise) * weight
        if design == "every row":
            draw = np.repeat(np.arange(DRAWS), rows)
            pair.append(frame(own.ravel(), weight=np.tile(weight, DRAWS), row=np.tile(row, DRAWS), draw=draw))
        elif design == "folds" or (design == "one arm in folds" and effect):
            pair.append(frame(own[row % DRAWS, row], weight=weight, draw=row % DRAWS))
        else:
            pair.append(frame((base + effect + noise[0]) * weight, weight=weight))
    return pair


def answered(rng, rows, items, *, right=(0.8, 0.9)):
    """A task with draws in folds: items of a row, and heads of a draw, have their luck in common."""
    row, item = np.divmod(np.arange(rows * items), items)
    hard, pair = rng.standard_normal(rows), []
    for share in right:
        ease = (
            0.5 * hard[row] + 0.5 * rng.standard_normal(DRAWS)[row % DRAWS] + rng.standard_normal(len(row))
        ) / 1.5**0.5
        value = (ease < stats.norm.ppf(share)).astype(float)
        pair.append(frame(value, row=row, item=item, draw=row % DRAWS))
    return pair


def coverage(make, truths, *, n=300):
    """How often the intervals of an arm and of its difference from the reference hold what is true."""
    rng, held = np.random.default_rng(1), np.zeros(2)
    for _ in range(n):
        arm, reference = make(rng)
        found = contrasts.estimate(arm), contrasts.difference(arm, reference)
        held += [interval.low <= truth <= interval.high for interval, truth in zip(found, truths, strict=True)]
    return held / n


@pytest.mark.parametrize(
    ("design", "rows"), [("no draws", 25), ("folds", 50), ("one arm in folds", 25), ("every row", 30), ("shares", 40)]
)
def test_intervals_cover_what_they_say(design, rows):
    if design == "shares":
        covered = coverage(lambda rng: answered(rng, rows, 6), (0.8, -0.1))
    else:
        covered = coverage(lambda rng: texts(rng, rows, design), (TRUE + EFFECT, EFFECT))
    # 300 trials have a standard deviation of 1.3 %.
    assert ((covered > 0.92) & (covered < 0.98)).all(), covered


def test_the_error_is_that_of_a_ratio_in_closed_form():
    arm, reference = texts(np.random.default_rng(0), 60, "no draws")
    weight = arm["weight"].to_numpy()
    for frames, signs in (((arm,), (1,)), ((arm, reference), (1, -1))):
        ratios = [table["value"].sum() / weight.sum() for table in frames]
        residual = sum(s * (t["value"] - r * weight) for s, t, r in zip(signs, frames, ratios, strict=True))
        error = np.sqrt(60 / 59 * (residual**2).sum()) / weight.sum()
        found = [contrasts.estimate, contrasts.difference][len(frames) - 1](*frames)
        estimate = float(np.dot(signs, ratios))
        half = stats.t.ppf(0.975, 59) * error
        assert found.estimate == pytest.approx(estimate)
        # 1000 resamples know a standard error to 2.2 %; the linearisation is off by less.
        assert (found.low - estimate, found.high - estimate) == pytest.approx((-half, half), rel=0.08)


@pytest.mark.parametrize("labels", [np.arange(DRAWS), np.array([7, 3, 9, 4, 0, 1, 2, 8, 6, 5])])
def test_draws_on_rows_of_their_own_are_one_observation_each(labels):
    arm, reference = texts(np.random.default_rng(2), 40, "folds")
    arm, reference = (
        arm.assign(value=arm["value"] / arm["weight"], weight=1.0),
        reference.assign(value=reference["value"] / reference["weight"], weight=1.0, draw=labels[reference["draw"]]),
    )
    means = [table.groupby(table["row"] % DRAWS)["value"].mean() for table in (arm, reference)]
    expected = stats.ttest_rel(*means)
    found = contrasts.difference(arm.sample(frac=1, random_state=0), reference)
    ends = expected.confidence_interval()
    assert found == pytest.approx(
        (float((means[0] - means[1]).mean()), ends.low, ends.high), abs=0.1 * (ends.high - ends.low)
    )
    p = contrasts.p_value(arm, reference)
    assert p == pytest.approx(2 * stats.t.sf(abs(expected.statistic), 9), rel=0.35)


def test_draws_that_answered_every_row_are_resampled_beside_the_rows():
    draw, row = np.divmod(np.arange(DRAWS * 30), 30)
    heads = np.random.default_rng(0).standard_normal(DRAWS)
    alike = frame(heads[draw], row=row, draw=draw)  # more rows tell no more of the heads
    expected = stats.t.interval(0.95, 9, heads.mean(), stats.sem(heads))
    found = contrasts.estimate(alike)
    assert (found.low, found.high) == pytest.approx(expected, abs=0.1)
    against_one = contrasts.difference(alike, frame(np.zeros(30)))
    assert (against_one.low, against_one.high) == pytest.approx(expected, abs=0.1)


def test_rows_are_paired():
    rng = np.random.default_rng(0)
    reference = frame(rng.normal(0, 5, 30))
    arm = reference.assign(value=reference["value"] + 1).sample(frac=1, random_state=0)
    found = contrasts.difference(arm, reference)
    assert found == pytest.approx((1, 1, 1))
    assert contrasts.estimate(arm).high - contrasts.estimate(arm).low > 2


def test_an_interaction_is_a_difference_of_differences():
    rng = np.random.default_rng(0)
    a1, a0 = texts(rng, 50, "folds")
    b1, b0 = texts(rng, 50, "no draws")
    b1, b0 = (table.assign(weight=a0["weight"]) for table in (b1, b0))
    found = contrasts.interaction(a1, a0, b1, b0)
    parts = [contrasts.difference(*pair).estimate for pair in ((a1, a0), (b1, b0))]
    assert found.estimate == pytest.approx(parts[0] - parts[1])
    assert found.low < found.estimate < found.high
    nothing = contrasts.interaction(a1, a0, a1, a0)
    assert nothing == pytest.approx((0, 0, 0), abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), effect=st.floats(-0.1, 0.1))
def test_p_is_below_a_twentieth_just_where_the_interval_leaves_zero_out(seed, effect):
    arm, reference = texts(np.random.default_rng(seed), 20, "no draws")
    arm["value"] += (effect - EFFECT) * arm["weight"]
    found = contrasts.difference(arm, reference)
    p = contrasts.p_value(arm, reference)
    assert (p < 0.05) == (found.low > 0 or found.high < 0)


def test_p_where_nothing_varies():
    none, every = frame(np.zeros(12)), frame(np.ones(12))
    assert contrasts.p_value(none, none) == 1
    assert contrasts.p_value(none, every) == 2**-11


def test_holm_by_hand():
    # 0.005 · 4, 0.01 · 3, 0.03 · 2, and 0.04 · 1, which must not fall below the one before it.
    assert contrasts.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert contrasts.holm(pd.Series([0.6, 0.4], index=[5, 9])).tolist() == [0.8, 0.8]
    assert contrasts.holm([]).shape == (0,)
    for p in (1.5, -0.1, np.nan):
        with pytest.raises(ValueError, match="between 0 and 1"):
            contrasts.holm([0.5, p])


@settings(max_examples=50, deadline=None)
@given(p=st.lists(st.floats(0, 1), min_size=1, max_size=12), level=st.floats(0.001, 0.999))
def test_holm_rejects_what_its_steps_reject(p, level):
    adjusted, rejected = contrasts.holm(p), set()
    for step, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        if p[i] * (len(p) - step) > level:
            break
        rejected.add(i)
    assert {i for i, q in enumerate(adjusted) if q <= level} == rejected


def test_frames_that_do_not_pair_are_refused():
    arm, reference = texts(np.random.default_rng(0), 20, "folds")
    whole = reference.drop(columns="draw")

    def refused(*frames, match):
        with pytest.raises(ValueError, match=match):
            contrasts.difference(*frames)

    refused(arm, whole[1:], match="same items")
    refused(arm, whole.assign(item=1), match="same items")
    refused(arm, reference.assign(draw=reference["row"] % 5), match="as many draws in each")
    refused(arm, pd.concat([whole, whole]), match="answered twice")
    refused(arm, pd.concat([whole, whole.assign(probe="bits math")]), match="of one probe")
    refused(arm[:0], whole[:0], match="of one probe")
    two = pd.concat([whole.assign(draw=0), whole[:5].assign(draw=1)])
    refused(two, whole, match="rows that no other draw answers")
    refused(whole[:1], whole[:1], match="at least two rows")
