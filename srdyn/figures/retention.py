"""Figures of what heads keep and for how long."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from srdyn.figures import mechanism, style
from srdyn.study.analysis import damage

_GROUPS = {
    "saturated, slow": style.Look("#C99000", "^"),
    "saturated, fast": style.Look("#8C8C8C", "D"),
    "others": style.STRATA["low"],
}
_PREDICTED = ({"color": "#111111", "marker": "o"}, {"color": "#111111", "marker": "D", "fillstyle": "none"})
"""Order, share of the damage in the worst tenth."""


@style.draws(table="model group half_life distance | estimate low high rank D n")
def half_lives(table: pd.DataFrame) -> Figure:
    """Needles found, and the rank, against the half-life that all heads of a group are given: a column a model.

    Rows of panels: the slow half of the saturated heads, the fast half, the others, and the ranks of all three. A line
    for each distance, dark to light from the nearest; dashed: nothing is set.
    """
    parts, distances = list(table.groupby("model", sort=False)), sorted(table["distance"].unique())
    labels = [*(f"needles found,\n{group}" for group in _GROUPS), "effective rank r"]
    size = {"height": 1.2, "sharex": True, "sharey": "row", "titles": [name for name, _ in parts]}
    figure, axes = style.grid(len(_GROUPS) + 1, len(parts), x="half-life set (tokens)", y=labels, **size)
    shades = dict(zip(map(int, distances), style.shades(len(distances), 0.9), strict=True))
    for column, (_, part) in zip(axes.T, parts, strict=True):
        for panel, (group, look) in zip(column, _GROUPS.items(), strict=False):
            rows = part[part["group"] == group]
            _by_distance(panel, rows, part[part["group"] == "intact"], shades)
            ranks = rows.groupby("half_life")["rank"].first()
            column[-1].plot(ranks.index, ranks, look.marker, color=look.colour, linestyle="-", linewidth=0.8)
        column[-1].axhline(part["D"].max(), **style.BOUND)
    axes[0, 0].set_xscale("log")
    near = [style.handle(f"{distance} tokens back", color=colour) for distance, colour in shades.items()]
    style.legend(figure, [*near, *(style.handle(f"rank of {name}", look) for name, look in _GROUPS.items())])
    note = "bars: 95 % interval over items (Wilson); thin dashed: nothing is set; dashed grey: D"
    return style.finish(figure, note, style.counted(table, "items a symbol"))


def _by_distance(panel: Axes, rows: pd.DataFrame, intact: pd.DataFrame, shades: dict[int, str]) -> None:
    for place, (distance, colour) in enumerate(shades.items()):
        line = rows[rows["distance"] == distance].sort_values("half_life")
        x, look = line["half_life"] * 1.06 ** (place - (len(shades) - 1) / 2), style.Look(colour, "o")
        style.points(panel, x, line, look, linestyle="-", linewidth=0.8, width=0.6, markersize=2.5)
        height = intact.loc[intact["distance"] == distance, "estimate"].iloc[0]
        panel.axhline(height, color=colour, linestyle=(0, (4, 2)), linewidth=0.5, zorder=1)
    panel.set_ylim(-0.06, 1.08)


@style.draws(table="model group quantity distance | estimate low high n")
def crossover(table: pd.DataFrame) -> Figure:
    """What recall loses more than local prediction without each group of heads, by how far back it must reach."""
    labels = {"x": "distance (tokens)", "y": "recall − local\n(bits a token)"}
    figure, parts = style.panels(table[table["group"] != "intact"], "model", height=1.5, sharey=False, **labels)
    for panel, part in parts:
        for place, (group, look) in enumerate(_GROUPS.items()):
            line = part[(part["group"] == group) & (part["quantity"] == damage.BALANCE)].sort_values("distance")
            x = line["distance"] * 1.06 ** (place - 1)
            style.points(panel, x, line, look, linestyle="-", linewidth=0.8, width=0.6)
        panel.set_xscale("log", base=2)
        panel.axhline(0, zorder=0, **style.BOUND)
    style.legend(figure, [style.handle(group, look) for group, look in _GROUPS.items()])
    note = "lost without the group; above 0 it is worth more to recall; bars: 95 % interval over passages"
    return style.finish(figure, note, style.counted(table, "passages a symbol"))


@style.draws(table="model changed predictor quantity | estimate low high n")
def damage_predictors(table: pd.DataFrame) -> Figure:
    """What each predictor, fitted on the other models, foretells of single heads' damage in the model left out."""
    predictors = list(table["predictor"].unique())
    figure, parts = style.crossed(table, "changed", "model", height=0.16 * len(predictors) + 0.5, x="ρ, or share")
    looks = dict(zip(table["quantity"].unique(), _PREDICTED, strict=False))
    for panel, part in parts:
        mechanism.scores(panel, part, predictors, looks)
        panel.axvline(0, zorder=0, **style.BOUND)
    style.legend(figure, [style.handle(quantity, linestyle="", **look) for quantity, look in looks.items()])
    note = "bars: 95 % interval, heads of the model left out drawn again; a tenth of the damage by chance"
    return style.finish(figure, note, style.counted(table, "heads"))
