"""Tables of ablation arms: what is compared with what, what counts as solved, what a regression can tell apart."""

import numpy as np
import pandas as pd
import pytest

from srdyn.study.trials import effects, trials

ROWS, ITEMS, DRAWS = 20, 4, 10
INTACT = {"arm": trials.INTACT, "share": 0.0, "cut": "per layer", "layers": "all", "window": 0, "truncated": 0}
RIGHT = {"needle": 0.96, "hard": 0.5}
KINDS = dict.fromkeys(RIGHT, "task") | {"bits code": "text", "bits prose": "text", "induction second": "induction"}


def answers(arm=INTACT, *, model="hybrid", lost=0.0, draws=1, more_bits=0.0, seed=0):
    """Two tasks, two domains and induction; a draw k of K answers the rows with row % K = k."""
    rng, rows = np.random.default_rng(seed), []
    for probe, kind in KINDS.items():
        for row in range(ROWS):
            for item in range(ITEMS if probe in RIGHT else 1):
                solved = probe in RIGHT and rng.random() < RIGHT[probe] - lost
                bits = 3.0 + more_bits + 0.1 * rng.standard_normal()
                value, weight = (float(solved), 1.0) if probe in RIGHT else (bits * 100, 100.0)
                rows.append([probe, kind, row, item, value, weight, bits * weight, row % draws])
    columns = ["probe", "probe_kind", "row", "item", "value", "weight", "bits", "draw"]
    frame = pd.DataFrame(rows, columns=columns).assign(model=model, kind=model, seed=0, removed=12, **arm)
    return frame


def arm(name, share=0.25, **options):
    return INTACT | {"arm": name, "share": share} | options


@pytest.fixture
def experiment():
    return pd.concat(
        [
            answers(),
            answers(arm("high"), lost=0.5, draws=DRAWS, more_bits=1.0),
            answers(arm("random"), lost=0.1, draws=DRAWS, more_bits=0.2),
            answers(arm("high", 0.5), lost=0.8, draws=DRAWS, more_bits=2.0),
        ],
        ignore_index=True,
    )


def row(table, **named):
    found = table[(table[list(named)] == pd.Series(named)).all(axis=1)]
    assert len(found) == 1
    return found.iloc[0]


def test_estimates_are_sums_over_sums(experiment):
    table = effects.estimates(experiment)
    assert len(table) == 4 * 5
    high = experiment[(experiment["arm"] == "high") & (experiment["share"] == 0.25) & (experiment["probe"] == "needle")]
    found = row(table, arm="high", share=0.25, probe="needle")
    assert found["estimate"] == pytest.approx(high["value"].mean())
    assert found[["n", "rows", "draws", "removed"]].tolist() == [ROWS * ITEMS, ROWS, DRAWS, 12]
    assert row(table, arm="random", probe="bits code")["estimate"] == pytest.approx(3.2, abs=0.1)


def test_only_a_task_that_the_intact_model_solves_is_testable(experiment):
    table = effects.differences(effects.with_text(experiment), versus="intact")
    assert not table.query("probe == 'hard'")["testable"].any()
    assert table.query("probe != 'hard'")["testable"].all()
    found = effects.measured(table.query("arm == 'high' and probe == 'hard'"), "x")
    assert found["estimate"].isna().all()
    assert found["why"].str.contains("intact model is right in .*% of the items only").all()


def test_a_task_that_the_intact_model_was_not_asked_is_not_testable(experiment):
    alone = effects.with_text(experiment[experiment["arm"] != "intact"])
    table = effects.differences(alone, versus="random")
    assert not table.query("probe in ['needle', 'hard']")["testable"].any()
    assert table.query("probe not in ['needle', 'hard']")["testable"].all()


def test_differences_are_taken_at_the_same_share(experiment):
    table = effects.differences(experiment, versus="random")
    assert set(table["share"]) == {0.25}
    mean = {
        name: experiment.query("arm == @name and probe == 'needle' and share < 0.4")["value"].mean()
        for name in ("high", "random")
    }
    found = row(table, arm="high", probe="needle")
    assert found["difference"] == pytest.approx(mean["high"] - mean["random"])
    assert found["high"] < 0
    assert found["p"] < 0.01
    beside_intact = effects.differences(experiment, versus="intact")
    assert sorted(beside_intact["share"].unique()) == [0.25, 0.5]
    assert set(beside_intact["arm"]) == {"high", "random"}


def test_turning_a_difference_round_turns_its_interval_round(experiment):
    table = effects.differences(experiment, versus="intact").query(
        "arm == 'high' and probe == 'needle' and share == 0.25"
    )
    (there,), (back,) = (effects.measured(table, "x", sign=sign).to_dict("records") for sign in (1, -1))
    assert back["estimate"] == -there["estimate"]
    assert (back["low"], back["high"]) == (-there["high"], -there["low"])
    assert back["low"] <= back["estimate"] <= back["high"]


def test_text_of_all_domains_is_one_probe(experiment):
    table = effects.estimates(effects.with_text(experiment))
    high = experiment.query("arm == 'high' and share == 0.5 and probe in ['bits code', 'bits prose']")
    found = row(table, arm="high", share=0.5, probe=effects.TEXT)
    assert found["estimate"] == pytest.approx(high["value"].sum() / high["weight"].sum())
    assert found["rows"] == 2 * ROWS


def test_accuracy_kept_is_a_mean_over_solved_tasks_alone(experiment):
    kept = effects.with_kept(experiment)
    table = effects.estimates(kept)
    assert row(table, arm="intact", probe=effects.KEPT)["estimate"] == pytest.approx(1.0)
    value = experiment.query("probe == 'needle' and (arm == 'intact' or (arm == 'high' and share == 0.5))")
    by_arm = value.groupby("arm")["value"].mean()
    share = by_arm["high"] / by_arm["intact"]
    assert row(table, arm="high", share=0.5, probe=effects.KEPT)["estimate"] == pytest.approx(share)
    relative = effects.kept(effects.differences(kept, versus="intact"))
    assert row(relative, arm="high", share=0.5)["difference"] == pytest.approx(share)


def test_a_model_that_solves_nothing_has_no_accuracy_to_keep(experiment):
    unsolved = experiment[experiment["probe"] != "needle"]
    assert effects.KEPT not in set(effects.with_kept(unsolved)["probe"])


def test_the_primary_contrast_keeps_its_p_and_the_others_pay(experiment):
    table = effects.differences(experiment, versus="random")
    found = effects.adjusted(table, share=0.25)
    primary = row(found, probe="needle", arm="high")
    assert primary["primary"]
    assert primary["adjusted"] == primary["p"]
    others = found[~found["primary"]]
    assert len(others) == len(found) - 1
    assert others["adjusted"].notna().equals(others["testable"])
    tested = others[others["testable"]]
    assert (tested["adjusted"] >= tested["p"]).all()
    assert tested["adjusted"].min() == pytest.approx(min(1, tested["p"].min() * len(tested)))


@pytest.mark.parametrize(("versus", "more"), [("intact", (2.5 - 0.5) - 1.0), ("random", (2.5 - 1.2) - (1.0 - 0.2))])
def test_an_interaction_is_a_difference_of_differences_in_nats(experiment, versus, more):
    """Against random heads it leaves out what they lose too."""
    narrow = [answers(INTACT | {"window": 16}, more_bits=0.5)]
    narrow += [answers(arm("high", window=16), draws=DRAWS, more_bits=2.5)]
    narrow += [answers(arm("random", window=16), draws=DRAWS, more_bits=1.2)]
    table = effects.interactions(pd.concat([experiment, *narrow], ignore_index=True), versus=versus)
    for probe in ("bits code", "needle"):
        found = row(table, arm="high", window=16, probe=probe)
        assert found["interaction"] == pytest.approx(more * np.log(2), abs=0.1)
        assert found["low"] > more / 2


@pytest.fixture
def heads():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"layer": np.repeat(range(6), 8), "head": np.tile(range(8), 6)})
    rank, output = rng.random((2, 48))
    table = table.assign(rank=rank, output=output, decay=rank + 1e-6 * rng.random(48), probe="needle")
    return table.assign(damage=rank + 0.3 * output + 5 * table["layer"], model="m", kind="m", seed=0)


def test_the_regression_finds_what_was_planted_and_says_what_it_cannot_tell_apart(heads):
    found = effects.regression(heads).set_index("predictor")
    assert found.loc["effective rank", "explained"] > 0.99
    assert found.loc["log-decay", "explained"] > 0.99
    assert found.loc["output norm", "explained"] < 0.3
    apart = effects.regression(heads.assign(decay=np.random.default_rng(1).random(48))).set_index("predictor")
    assert apart.loc["effective rank", "low"] > apart.loc["output norm", "high"]
    assert apart.loc["output norm", "low"] > 0
    assert apart.loc["log-decay", "low"] < 0 < apart.loc["log-decay", "high"]
    assert (apart["n"] == 48).all()


def test_the_state_that_is_left_counts_the_heads_of_the_model(experiment):
    profiles = pd.DataFrame({"model": ["hybrid"] * 48, "rank": 1.0})
    table = effects.with_state(effects.estimates(experiment), profiles)
    assert row(table, arm="high", share=0.25, probe="needle")["state"] == pytest.approx(36 / 48)


def test_solved_tasks_are_named_and_a_model_without_any_is_not_testable(experiment):
    hopeless = pd.concat([answers(model="pure", lost=0.9), answers(arm("high"), model="pure", lost=0.9, draws=DRAWS)])
    both = effects.with_kept(pd.concat([experiment, hopeless], ignore_index=True))
    intact = effects.differences(both, versus="intact").query("arm == 'high' and share == 0.25")
    found = effects.over_solved(effects.measured(effects.kept(intact), "accuracy kept"), both).set_index("model")
    assert found.loc["hybrid", "over"].endswith("; needle")
    assert np.isnan(found.loc["pure", "estimate"])
    assert "solves no task" in found.loc["pure", "why"]


def test_a_measure_says_which_strata_were_removed(experiment):
    found = effects.measured(effects.differences(experiment, versus="random").query("probe == 'needle'"), "x")
    about = {"model": ["hybrid"], "arm": ["high"], "share": [0.25], "high": [0.75], "low": [0.0]}
    described = effects.described(found, pd.DataFrame(about), "high", share=0.25)
    assert described["why"].tolist() == ["75% of the removed heads high-rank, 0% low-rank"]
