"""Numbers of the scorecard, found again from the committed tables by other code."""

import numpy as np
import pytest

from srdyn.study.run import store


def table(stem):
    return store.load_table(stem, run=store.REFERENCE)


def recorded(stem, measure):
    rows = table(stem)
    return rows[(rows["measure"] == measure) & (rows["source"] == "model")].set_index("model")


def test_the_share_of_low_heads():
    """C1, second: from the ranks of single heads."""
    heads, found = table("01_stratification_heads"), recorded("01_stratification_claims_second", "low-rank heads")
    own = heads[heads["source"] == "model"]
    assert set(own["model"]) == set(found.index)
    for model, part in own.groupby("model"):
        share = sum(rank <= d / 4 for rank, d in zip(part["rank"], part["D"], strict=True)) / len(part)
        assert found.loc[model, "estimate"] == pytest.approx(share, abs=1e-9)
        assert found.loc[model, "low"] < share < found.loc[model, "high"]


def test_the_place_of_the_low_heads():
    """C8, second: from what every set answers."""
    sets, found = table("03_ablation_sets"), recorded("03_ablation_claims_second", "place of low")
    own = sets[(sets["arm"] == "tied low") & (sets["probe"] == "needle")]
    assert set(own["model"]) == set(found.index)
    for model, part in own.groupby("model"):
        apart = part.drop_duplicates(["which", "set"])  # draws that chose the same heads are one
        random, chosen = part[part["which"] == "random"]["bits"], apart[apart["which"] == "chosen"]["bits"]
        assert len(random) >= 200
        better = np.sign(random.to_numpy()[None, :] - chosen.to_numpy()[:, None])  # fewer bits: 1, as many: 0
        assert found.loc[model, "estimate"] == pytest.approx((better.mean() + 1) / 2, abs=1e-9)


def test_what_pruning_keeps():
    """C9, first: from the accuracy on each task, over that of the intact model."""
    found, estimates = recorded("04_pruning_claims", "accuracy kept"), table("04_pruning_estimates")
    tasks = estimates[estimates["probe"].isin(["needle", "recall8", "chain", "sum"])]
    for model, part in tasks.groupby("model"):
        intact = part[part["arm"] == "intact"].set_index("probe")["estimate"]
        arm = (part["arm"] == "joint, α = 0.5") & (part["share"] == 0.389) & (part["cut"] == "overall")
        pruned = part[arm].set_index("probe")["estimate"]
        solved = [task for task in intact.index if intact[task] >= 0.9]
        kept = np.mean([pruned[task] / intact[task] for task in solved])
        assert found.loc[model, "estimate"] == pytest.approx(kept, abs=1e-6)
