"""Figures of what heads keep and for how long."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from srdyn.figures import style
from srdyn.study.analysis import damage

_GROUPS = {
    "saturated, slow": style.Look("#C99000", "^"),
    "saturated, fast": style.Look("#8C8C8C", "D"),
    "others": style.STRATA["low"],
}
_PREDICTED = {
    "Spearman ρ": {"marker": "o"},
    "share of the damage in the worst tenth": {"marker": "D", "fillstyle": "none"},
}


@style.draws("model group half_life distance", "estimate low high rank D n")
def half_lives(table: pd.DataFrame) -> Figure:
    """Needles found, and the rank, against the half-life that all heads of a group are given: a column a model.

    Rows of panels: the slow half of the saturated heads, the fast half, the others, and the ranks of all three. A line
    for each distance, dark to light from the nearest; dashed: nothing is set.
    """
    names, distances = list(table["model"].unique()), sorted(table["distance"].unique())
    figure, axes = style.grid(len(_GROUPS) + 1, len(names), height=1.05, sharex=True, sharey="row")
    shades = dict(zip(map(int, distances), style.shades(len(distances), 0.9), strict=True))
    for column, name in zip(axes.T, names, strict=True):
        part = table[table["model"] == name]
        for panel, (group, look) in zip(column, _GROUPS.items(), strict=False):
            rows = part[part["group"] == group]
            _by_distance(panel, rows, part[part["group"] == "intact"], shades)
            ranks = rows.groupby("half_life")["rank"].first()
            column[-1].plot(ranks.index, ranks, look.marker, color=look.colour, linestyle="-", linewidth=0.8)
        column[-1].axhline(part["D"].max(), **style.BOUND)
        column[0].set_title(name)
    axes[0, 0].set_xscale("log")
    for panel, group in zip(axes[:, 0], _GROUPS, strict=False):
        panel.set_ylabel(f"needles found,\n{group}")
    style.outer_labels(list(axes[-1]), x="half-life set (tokens)", y="effective rank r")
    near = [style.handle(f"{distance} tokens back", color=colour) for distance, colour in shades.items()]
    style.legend(figure, [*near, *(style.handle(f"rank of {name}", look) for name, look in _GROUPS.items())])
    note = "bars: 95 % interval over items (Wilson); thin dashed: nothing is set; dashed grey: D"
    return style.finish(figure, note, f"n = {style.span(table['n'])} items a symbol")


def _by_distance(panel: Axes, rows: pd.DataFrame, intact: pd.DataFrame, shades: dict[int, str]) -> None:
    for place, (distance, colour) in enumerate(shades.items()):
        line = rows[rows["distance"] == distance].sort_values("half_life")
        x, look = line["half_life"] * 1.06 ** (place - 1.5), style.Look(colour, "o")
        style.points(panel, x, line, look, linestyle="-", linewidth=0.8, width=0.6, markersize=2.5)
        height = intact.loc[intact["distance"] == distance, "estimate"].iloc[0]
        panel.axhline(height, color=colour, linestyle=(0, (4, 2)), linewidth=0.5, zorder=1)
    panel.set_ylim(-0.06, 1.08)


@style.draws("model group quantity distance", "estimate low high n")
def crossover(table: pd.DataFrame) -> Figure:
    """What recall loses more than local prediction without each group of heads, by how far back it must reach."""
    figure, parts = style.panels(table[table["group"] != "intact"], "model", height=1.5, sharey=False)
    for panel, part in parts:
        for place, (group, look) in enumerate(_GROUPS.items()):
            line = part[(part["group"] == group) & (part["quantity"] == damage.BALANCE)]
            line = line.sort_values("distance")
            x = line["distance"] * 1.06 ** (place - 1)
            style.points(panel, x, line, look, linestyle="-", linewidth=0.8, width=0.6)
        panel.set_xscale("log", base=2)
        panel.axhline(0, zorder=0, **style.BOUND)
    style.outer_labels([panel for panel, _ in parts], x="distance (tokens)", y="recall − local\n(bits a token)")
    style.legend(figure, [style.handle(group, look) for group, look in _GROUPS.items()])
    note = "lost without the group; above 0 it is worth more to recall; bars: 95 % interval over passages"
    return style.finish(figure, note, f"n = {style.span(table['n'])} passages a symbol")


@style.draws("model changed predictor quantity", "estimate low high n")
def damage_predictors(table: pd.DataFrame) -> Figure:
    """What each predictor, fitted on the other models, foretells of single heads' damage in the model left out."""
    predictors = list(table["predictor"].unique())
    figure, parts = style.crossed(table, "changed", "model", height=0.16 * len(predictors) + 0.5, x="ρ, or share")
    looks = dict(zip(table["quantity"].unique(), _PREDICTED.values(), strict=False))
    for panel, part in parts:
        for place, (quantity, look) in enumerate(looks.items()):
            rows = part[part["quantity"] == quantity].set_index("predictor").reindex(predictors)
            y = np.arange(len(predictors)) + 0.26 * (place - 0.5)
            panel.hlines(y, rows["low"], rows["high"], color="#111111", linewidth=0.8)
            panel.plot(rows["estimate"], y, linestyle="", color="#111111", **look)
        panel.axvline(0, zorder=0, **style.BOUND)
        style.listed(panel, predictors)
    style.legend(figure, [style.handle(name, color="#111111", linestyle="", **look) for name, look in looks.items()])
    return style.finish(
        figure,
        "bars: 95 % interval, heads of the model left out drawn again; a tenth of the damage by chance",
        f"n = {style.span(table['n'])} heads",
    )
