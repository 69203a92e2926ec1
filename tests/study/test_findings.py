"""What the findings say in numbers, found in the tables that they name."""

import pytest

from srdyn.loading import files
from srdyn.study.analysis import update_rules
from srdyn.study.run import store
from srdyn.study.trials import effects

FOUR = ["hybrid", "pure", "hybrid-seed1", "pure-seed1"]


def table(stem, where="", *, run=store.REFERENCE):
    found = store.load_table(stem, run=run)
    return found.query(where) if where else found


def says(sentence):
    """Whether the page says so, wherever its lines end: who changes a sentence looks at its test."""
    return sentence in " ".join((files.root() / "notebooks/site/findings.md").read_text().split())


def test_about_half_of_the_heads_hold_little():
    assert says("About half of the heads hold little in the four models")
    heads = table("01_stratification_heads", "source == 'model' and model in @FOUR")
    assert (heads["rank"] <= heads["D"] / 4).groupby(heads["model"]).mean().between(0.4, 0.67).all()


def test_without_the_slowest_quarter_needles_fall_far_below_random():
    assert says("far fewer needles are found than without as many random heads, in all five models")
    needle = table("03_ablation_estimates", "probe == 'needle' and share == 0.25 and window == 0", run=store.THOROUGH)
    found = needle.pivot_table(index="model", columns="arm", values="estimate")
    assert len(found) == 5
    assert (found["random"] - found["slow decay"] > 0.2).all()


def test_far_needles_hang_on_the_slower_of_the_saturated_heads():
    assert says("lost in three of the four models, in two of these although the ranks stay above 0.85 of their bound")
    assert says("at most one needle in ten is lost")
    far = table("05_mechanism_retention", "distance >= 512")
    intact = far[far["group"] == "intact"].set_index(["model", "distance"])["estimate"]
    cut = far[far["factor"] == 1 / 16].set_index(["model", "distance"])
    lost = -cut.set_index("group", append=True)["estimate"].unstack().sub(intact, axis=0)
    slow = lost["saturated, slow"].groupby("model").min() >= 0.4
    ranks = cut[cut["group"] == "saturated, slow"].groupby("model")[["rank", "D"]].first()
    assert slow.sum() == 3
    assert (slow & (ranks["rank"] > 0.85 * ranks["D"])).sum() == 2
    assert lost["saturated, fast"].max() <= 0.1 + 1e-9


def test_without_decay_no_head_is_low():
    assert says("has no low head: seven in ten are high after 2048 tokens, the others between")
    assert says("all states of DeltaNet are full")
    assert "whose rule does not decay has no low head" in " ".join((files.root() / "README.md").read_text().split())
    deltanet = table("10_rules_measures", "model == 'deltanet'").pivot(
        index="measure", columns="source", values="estimate"
    )
    assert (deltanet.loc["low heads"] == 0).all()
    assert round(deltanet.loc["high heads", "model"], 1) == 0.7
    assert (deltanet.loc["high heads", ["untrained", "mechanism"]] == 1).all()
    assert deltanet.loc["smaller group", "model"] == 0
    assert deltanet.loc[update_rules.RHO, ["untrained", "mechanism"]].abs().max() < 0.2


def test_deltanets_heads_agree_between_texts_and_recall_needs_the_highest():
    assert says("agree between texts in order as well as those of `pure`, in strata better")
    trained = table("10_rules_measures", "source == 'model'").set_index(["measure", "model"])
    order, strata = (trained.loc[name] for name in (update_rules.RHO, update_rules.KAPPA))
    assert abs(order.loc["deltanet", "estimate"] - order.loc["pure", "estimate"]) < 0.01
    assert strata.loc["deltanet", "low"] > strata.loc["pure", "high"]
    assert says("Recall stays whole without its quarter of lowest rank, and falls without that of highest")
    lost = table("10_rules_removed", "model == 'deltanet' and probe == 'recall8' and reference == 'intact'")
    assert lost.set_index("arm").loc["low", "low"] > -0.02
    assert lost.set_index("arm").loc["high", "high"] < 0


def test_at_the_papers_share_no_rule_keeps_all_tasks():
    assert says("the paper's share, no rule keeps all tasks")
    rivals = table("04_pruning_rivals", "share == 0.389")
    kept = rivals[rivals["testable"] & rivals["probe"].isin(["needle", "recall8", "chain", "sum"])]
    assert ((kept["estimate"] / kept["intact"]).groupby([kept["model"], kept["arm"]]).min() < 0.9).all()


def test_the_joint_score_among_random_sets_at_a_dose_that_the_oracle_stands():
    assert says("at a tenth of the heads, it is worse than nearly all random sets;")
    assert says("in the second, at a twentieth, like any other")
    doses = table("04_pruning_oracle", "testable").set_index("model")["share"]
    assert doses[FOUR].tolist() == [0.1, 0.1, 0.05, 0.05]
    places = table("04_pruning_places", f"probe == '{effects.KEPT}'").set_index("model")
    assert (places.loc[FOUR[:2], "place"] < 0.05).all()
    assert (places.loc[FOUR[2:], "verdict"] == "undecided").all()


def test_fewer_bits_lose_nothing_and_rank_8_five_thousandths():
    assert says("a quarter of the bytes is left, and nothing is lost that the few rows read could show")
    assert says("Cut to rank 8, states take as many bytes, and one model loses five thousandths of a bit a token")
    whole = table("04_pruning_frontier", "share == 1 and 0.24 < bytes < 0.26")
    rounded = whole[whole["how"].isin(["int8", "fp8"])]
    more = rounded[rounded["probe"] == "bits a token more"]
    assert len(more) == 8
    assert (more["low"] <= 0).all()
    assert (rounded.loc[rounded["probe"] == effects.KEPT, "estimate"] == 1).all()
    cut = whole[(whole["how"] == "rank") & (whole["probe"] == "bits a token more") & (whole["low"] > 0)]
    assert cut["estimate"].tolist() == pytest.approx([0.005], abs=5e-4)


def test_the_primary_contrast_has_two_signs():
    assert says("It comes out for the paper in one seed and against it in the other")
    asked = "probe == 'needle' and share == 0.25 and arm == 'high' and versus == 'random' and kind == 'hybrid'"
    found = table("03_ablation_differences", asked, run=store.THOROUGH).set_index("seed")
    assert found.loc[0, "low"] > 0 > found.loc[1, "high"]
    assert len(found) == 2


def test_no_choice_is_told_apart_among_random_sets_nor_text_spared_in_the_pure_models():
    assert says("neither the highest nor the lowest ranks are told apart from them, in any model")
    places = table("03_ablation_places")
    assert (len(places), set(places["verdict"])) == (8, {"undecided"})
    assert says("text is predicted worse in both pure models, even if the oracle chooses; in the hybrids that is open")
    asked = "how == 'removed' and rule == 'oracle' and share == 0.25 and probe == 'bits a token more'"
    more = table("04_pruning_frontier", asked).set_index("model")["low"]
    assert set(more.index[more > 0]) == {"pure", "pure-seed1"}
    assert len(more) == 4
