"""Every committed figure is the one that its committed tables give."""

import pytest
from committed import BESIDE, CASES, drawn, table

from srdyn.study.run import figure_files, store
from srdyn.study.trials.effects import KEPT

STEMS = {
    "trajectories": "01_stratification", "head_map": "01_stratification_map",
    "rank_distribution": "01_stratification_distribution", "shares": "01_stratification_shares",
    "measures": "02_consistency", "context_matrix": "02_consistency_pairs", "attacks": "02_consistency_attacks",
    "cosine_bound": "02_consistency_steps", "time_order": "02_consistency_time",
    "doses": "03_ablation_doses", "contrasts": "03_ablation", "places": "03_ablation_sets",
    "single_heads": "03_ablation_heads", "coefficients": "03_ablation_regression", "windows": "03_ablation_window",
    "rules": "04_pruning", "memory": "04_pruning_memory",
    "alphas": "04_pruning_alphas", "frontier": "04_pruning_frontier",
    "calibrations": "04_pruning_calibration",
    "rank_against_decay": "05_mechanism", "explained_variance": "05_mechanism_explained",
    "residual_map": "05_mechanism_residuals", "rounded_ranks": "05_mechanism_precision",
    "threshold_sweep": "05_mechanism_sweep", "head_splits": "05_mechanism_splits",
    "loads": "05_mechanism_truncation", "half_lives": "05_mechanism_retention", "crossover": "05_mechanism_gaps",
    "damage_predictors": "05_mechanism_damage", "rank_formation": "06_emergence",
    "identity_formation": "06_emergence_identity", "decay_formation": "06_emergence_decay",
    "contrast_formation": "06_emergence_ablation", "tracing_cost": "07_cost", "spectrum_rates": "07_cost_spectra",
    "cost_growth": "07_cost_growth", "pruned_cost": "07_cost_pruned", "training_rates": "07_cost_training",
    "verdicts": "08_scorecard", "update_rules": "10_rules",
}  # fmt: skip

OTHERS = {
    "03_ablation_bits": lambda: CASES["contrasts"].draw(
        table("03_ablation_differences", f"{BESIDE} and (probe.str.startswith('bits') or probe.str.startswith('ind'))"),
        unit="bits per byte or token",
        better="left",
    ),
    "04_pruning_sets": lambda: CASES["places"].draw(
        table("04_pruning_sets", f"probe == '{KEPT}'"), value="accuracy kept"
    ),
}
"""Those that one function draws of other rows."""


def same(stem, figure):
    return figure_files._pixels(store.figure_dir(store.REFERENCE) / f"{stem}.png", figure_files._png(figure))


QUICK = ("measures", "rank_against_decay")


@pytest.mark.parametrize("path", sorted(store.figure_dir(store.REFERENCE).glob("*.png")), ids=lambda path: path.stem)
def test_committed_files_are_small_and_without_dates(path):
    assert path.stat().st_size <= 300_000
    content = path.with_suffix(".pdf").read_bytes()
    assert content.startswith(b"%PDF")
    assert b"CreationDate" not in content
    assert b"Type3" not in content


def test_every_committed_figure_is_redrawn():
    there = {path.stem for path in store.figure_dir(store.REFERENCE).glob("*.png")}
    assert there - {*STEMS.values(), *OTHERS} == {"05_mechanism_sizes"}  # whose heads are kept in no table


@pytest.mark.parametrize("name", [x if x in QUICK else pytest.param(x, marks=pytest.mark.slow) for x in STEMS])
def test_a_committed_figure_is_drawn_from_its_committed_tables(name):
    assert same(STEMS[name], drawn(name)) <= figure_files._FEW


@pytest.mark.slow
@pytest.mark.parametrize("stem", OTHERS)
def test_so_is_one_of_other_rows(stem):
    assert same(stem, OTHERS[stem]()) <= figure_files._FEW
