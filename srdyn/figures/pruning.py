"""Figures of what is left of a model whose heads are removed by a score."""

from __future__ import annotations

from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from srdyn.figures import style

MAIN, RANDOM = "joint, α = 0.5", "random"
COLOURS = ("#004488", "#C99000", "#BB5566", "#5BA3CF", "#8DBE8A", "#C28BC0", "#7F5F3F", "#44AA99")
MARKERS = ("o", "^", "s", "v", "P", "X", "*", "d")
PAPER_SHARE = 0.389
KEPT = 0.95
"""Share of the intact accuracy from which it counts as kept (claim C9)."""


@style.style()
def rules(table: pd.DataFrame) -> Figure:
    """What is kept against the state that is left: quantities down, models across, a line for each rule.

    Columns: model, rule, state (share of the state's bytes left), panel, estimate, low, high. Raises ValueError for
    missing columns or repeated rows.
    """
    key = ["model", "panel", "rule", "state"]
    style.require(table, [*key, "estimate", "low", "high"], key=key)
    models, rows = list(table["model"].unique()), list(table["panel"].unique())
    looks = _looks(table["rule"])
    figure, axes = style.grid(len(rows), len(models), height=1.9, sharex=True, sharey="row")
    for (row, column), panel in np.ndenumerate(axes):
        part = table[(table["panel"] == rows[row]) & (table["model"] == models[column])]
        panel.axvline(1 - PAPER_SHARE, color="0.7", linestyle=":", linewidth=0.8, zorder=0)
        for rule, line in part.groupby("rule", sort=False):
            _line(panel, line.sort_values("state"), "state", looks[rule], main=rule in (MAIN, RANDOM))
        if row == 0:
            panel.set_title(models[column])
    axes[0, 0].invert_xaxis()
    for row, panel in zip(rows, axes[:, 0], strict=True):
        panel.set_ylabel(row)
    for panel in axes[-1]:
        panel.set_xlabel("share of state bytes left")
    style.legend(figure, _handles(looks))
    return style.finish(
        figure, "bars: 95 % interval over rows and draws", f"dotted: {PAPER_SHARE:.1%} of the state removed"
    )


@style.style()
def alphas(table: pd.DataFrame) -> Figure:
    """Accuracy kept against α of the joint score, from norm alone (0) to rank alone (1), a panel a model.

    Columns: model, alpha, estimate, low, high; a row without alpha (NaN) is random removal, drawn as a band. Raises
    ValueError for missing columns or repeated rows.
    """
    style.require(table, ["model", "alpha", "estimate", "low", "high"], key=["model", "alpha"])
    figure, axes = style.panels(table["model"], height=1.8, sharex=True, sharey=True)
    for model, panel in axes.items():
        part = table[table["model"] == model].sort_values("alpha")
        for row in part[part["alpha"].isna()].itertuples():
            panel.axhspan(row.low, row.high, color="0.88", linewidth=0)
            panel.axhline(row.estimate, color="0.55", linewidth=0.8)
            panel.text(0, row.high, "random", size=6, color="0.45", va="bottom")
        panel.axhline(KEPT, **style.BOUND)
        _line(panel, part[part["alpha"].notna()], "alpha", style.Look("#111111", "o"), main=True)
        panel.set_xlim(-0.05, 1.05)
    style.outer_labels(list(axes.values()), x="α (0: norm, 1: rank)", y="accuracy kept")
    return style.finish(figure, "bars and band: 95 % interval over rows and draws", f"dashed: {KEPT:g}")


@style.style()
def calibrations(table: pd.DataFrame) -> Figure:
    """How many of the removed heads stay the same when the calibration changes: variants down, a panel a model.

    Columns: model, variant, overlap (share of the reference's removed heads), chance. Raises ValueError for missing
    columns or repeated rows.
    """
    style.require(table, ["model", "variant", "overlap", "chance"], key=["model", "variant"])
    variants = list(table["variant"].unique())
    figure, axes = style.panels(table["model"], height=0.16 * len(variants) + 0.3, sharex=True, sharey=True)
    for model, panel in axes.items():
        part = table[table["model"] == model]
        places = [variants.index(variant) for variant in part["variant"]]
        panel.plot(part["overlap"], places, "o", color="#111111")
        panel.axvline(part["chance"].iloc[0], **style.BOUND)
        panel.set_yticks(range(len(variants)), variants)
        panel.set_ylim(len(variants) - 0.5, -0.5)
        panel.set_xlim(0, 1.04)
    style.outer_labels(list(axes.values()), x="share of removed heads in common", y="")
    return style.finish(figure, "dashed: as many heads drawn at random")


def _line(panel: Axes, line: pd.DataFrame, x: str, look: style.Look, *, main: bool) -> None:
    front, width = (4, 1.4) if main else (2, 0.7)
    panel.vlines(line[x], line["low"], line["high"], color=look.colour, linewidth=0.6 * width, zorder=front)
    panel.plot(
        line[x], line["estimate"], look.marker, color=look.colour, linestyle="-", linewidth=width, zorder=front,
        markersize=3.5 if main else 2.5,
    )  # fmt: skip


def _looks(rules: pd.Series) -> dict[str, style.Look]:
    fixed = {MAIN: style.Look("#111111", "o"), RANDOM: style.Look("#8C8C8C", "D")}
    free = cycle(zip(COLOURS, MARKERS, strict=True))
    return {rule: fixed[rule] if rule in fixed else style.Look(*next(free)) for rule in rules.unique()}


def _handles(looks: dict[str, style.Look]) -> list[Line2D]:
    return [Line2D([], [], color=look.colour, marker=look.marker, label=rule) for rule, look in looks.items()]
