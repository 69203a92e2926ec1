"""Every committed figure is the one that its committed tables give."""

import pytest
from committed import TASKS, drawn, table

from srdyn import figures
from srdyn.loading import presets
from srdyn.study.run import figure_files, store
from srdyn.study.trials.effects import KEPT, TEXT

STEMS = {
    "trajectories": "01_stratification", "head_map": "01_stratification_map",
    "rank_distribution": "01_stratification_distribution", "shares": "01_stratification_shares",
    "measures": "02_consistency", "context_matrix": "02_consistency_pairs", "attacks": "02_consistency_attacks",
    "cosine_bound": "02_consistency_steps", "time_order": "02_consistency_time",

    "places": "03_ablation_sets",
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
    "verdicts": "08_scorecard",
}  # fmt: skip

BESIDE = "versus == 'random' and share == 0.25 and arm in ['high', 'low', 'tied high', 'tied low']"
DOSES = "seed == 0 and arm in ['intact', 'high', 'low', 'random', 'decay-matched']"
WINDOWS = "versus == 'intact' and seed == 0 and arm in ['high', 'low', 'random', 'decay-matched']"
SCORED = [*TASKS, KEPT]
BITS = [f"bits {name}" for name in ("code", "math", "prose", "technical")] + [
    TEXT,
    "induction first",
    "induction second",
]
FAMILIES = presets.read(store.REFERENCE)["04_pruning"]["families"]
OTHERS = {
    "03_ablation": lambda: figures.contrasts(asked("03_ablation_differences", SCORED, BESIDE), unit="share of items"),
    "03_ablation_bits": lambda: figures.contrasts(
        asked("03_ablation_differences", BITS, BESIDE), unit="bits per byte or token", better="left"
    ),
    "03_ablation_doses": lambda: figures.doses(
        asked("03_ablation_estimates", [*TASKS, TEXT, "induction second"], DOSES)
    ),
    "03_ablation_heads": lambda: figures.single_heads(asked("03_ablation_heads", [*TASKS, "bits code"], "seed == 0")),
    "03_ablation_regression": lambda: figures.coefficients(
        asked("03_ablation_regression", ["needle", "recall8", "bits code", "bits prose"], "seed == 0")
    ),
    "03_ablation_window": lambda: figures.windows(asked("03_ablation_window", [*TASKS, TEXT], WINDOWS)),
    "04_pruning": lambda: figures.rules(asked("04_pruning_estimates", [KEPT, TEXT], "arm != 'intact'")),
    "04_pruning_sets": lambda: figures.places(asked("04_pruning_sets", [KEPT]), value="accuracy kept"),
    "04_pruning_memory": lambda: figures.memory(table("04_pruning_memory", f"model in {FAMILIES}")),
}


def asked(stem, probes, where=""):
    found = table(stem, where)
    found = found[found["probe"].isin(probes)].reset_index(drop=True)
    return found.assign(panel=found["probe"])


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
