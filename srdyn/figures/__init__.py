"""Tables in, figures out: one function a figure."""

# ruff: noqa: F401
from srdyn.figures.consistency import attacks, cosine_bound, time_order
from srdyn.figures.cost import cost_growth, memory, pruned_cost, spectrum_rates, tracing_cost, training_rates
from srdyn.figures.emergence import contrast_formation, decay_formation, identity_formation, rank_formation
from srdyn.figures.heatmaps import context_matrix, head_map, residual_map
from srdyn.figures.interventions import coefficients, contrasts, doses, loads, places, single_heads, windows
from srdyn.figures.mechanism import explained_variance, head_splits, rank_against_decay, rounded_ranks, threshold_sweep
from srdyn.figures.pruning import alphas, calibrations, frontier, rules
from srdyn.figures.retention import crossover, damage_predictors, half_lives
from srdyn.figures.scorecard import measures, verdicts
from srdyn.figures.stratification import head_sizes, rank_distribution, shares, trajectories
from srdyn.figures.update_rules import update_rules
