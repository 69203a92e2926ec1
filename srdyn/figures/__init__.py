"""Tables in, figures out: one function a figure, and `save`, which alone writes."""

from srdyn.figures.beside_nulls import measures
from srdyn.figures.consistency import attacks, cosine_bound, time_order
from srdyn.figures.files import save
from srdyn.figures.heatmaps import context_matrix, head_map
from srdyn.figures.stratification import rank_distribution, shares, trajectories

__all__ = [
    "attacks",
    "context_matrix",
    "cosine_bound",
    "head_map",
    "measures",
    "rank_distribution",
    "save",
    "shares",
    "time_order",
    "trajectories",
]
