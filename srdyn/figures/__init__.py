"""Tables in, figures out: one function a figure, and `save`, which alone writes."""

from srdyn.figures.beside_nulls import measures
from srdyn.figures.consistency import attacks, cosine_bound, time_order
from srdyn.figures.cost import cost_growth, pruned_cost, spectrum_rates, tracing_cost, training_rates
from srdyn.figures.emergence import contrast_formation, decay_formation, identity_formation, rank_formation
from srdyn.figures.heatmaps import context_matrix, head_map
from srdyn.figures.interventions import coefficients, contrasts, doses, single_heads, truncations, windows
from srdyn.figures.mechanism import (
    explained_variance,
    head_splits,
    rank_against_decay,
    residual_map,
    rounded_ranks,
    threshold_sweep,
)
from srdyn.figures.memory import memory
from srdyn.figures.pruning import alphas, calibrations, rules
from srdyn.figures.scorecard import verdicts
from srdyn.figures.stratification import rank_distribution, shares, trajectories
from srdyn.study.run.figure_files import save

__all__ = [
    "alphas",
    "attacks",
    "calibrations",
    "coefficients",
    "context_matrix",
    "contrast_formation",
    "contrasts",
    "cosine_bound",
    "cost_growth",
    "decay_formation",
    "doses",
    "explained_variance",
    "head_map",
    "head_splits",
    "identity_formation",
    "measures",
    "memory",
    "pruned_cost",
    "rank_against_decay",
    "rank_distribution",
    "rank_formation",
    "residual_map",
    "rounded_ranks",
    "rules",
    "save",
    "shares",
    "single_heads",
    "spectrum_rates",
    "threshold_sweep",
    "time_order",
    "tracing_cost",
    "training_rates",
    "trajectories",
    "truncations",
    "verdicts",
    "windows",
]
