"""Figures of what is left of a model whose heads are removed by a score."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from srdyn.figures import style

MAIN, RANDOM = "joint, α = 0.5", "random"
KEPT = 0.95
"""Share of the intact accuracy from which it counts as kept (claim C9)."""


@style.style()
def rules(table: pd.DataFrame) -> Figure:
    """What is kept by each rule (down): models across, quantities below each other, dark to light by the state left.

    Columns: model, rule, state (share of the state's bytes left), panel, estimate, low, high. Raises ValueError for
    missing columns or repeated rows.
    """
    key = ["model", "panel", "rule", "state"]
    style.require(table, [*key, "estimate", "low", "high"], key=key)
    models, rows, names = (list(table[name].unique()) for name in ("model", "panel", "rule"))
    figure, axes = style.grid(len(rows), len(models), height=0.15 * len(names) + 0.35, sharex="row", sharey=True)
    for (row, column), panel in np.ndenumerate(axes):
        part = table[(table["panel"] == rows[row]) & (table["model"] == models[column])]
        for rule, line in part.groupby("rule", sort=False):
            shades = np.linspace(0, 0.6, len(line)).round(2)
            for shade, measured in zip(shades, line.sort_values("state").itertuples(), strict=True):
                place = names.index(rule) + 0.25 * shade
                colour = "#BB5566" if rule in (MAIN, RANDOM) else str(shade)
                panel.hlines(place, measured.low, measured.high, color=colour, linewidth=0.9)
                panel.plot(measured.estimate, place, "o", color=colour)
        panel.set_title(models[column])
        panel.set_xlabel(rows[row])
        panel.set_yticks(range(len(names)), names)
        panel.set_ylim(len(names) - 0.5, -0.5)
        panel.tick_params(axis="y", length=0)
    left = table["state"]
    note = f"{left.min():.1%} to {left.max():.1%} of the state's bytes left; red: the paper's rule and random heads"
    return style.finish(figure, "bars: 95 % interval over rows and draws", note)


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
