"""Figures of what is left of a model whose heads are removed by a score."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from srdyn.figures import style

MAIN, RANDOM = "joint, α = 0.5", "random"


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
def alphas(table: pd.DataFrame, *, wanted: Mapping[str, float]) -> Figure:
    """What is kept against α of the joint score, from norm alone (0) to rank alone (1): models across, panels down.

    Columns: model, panel, alpha, estimate, low, high, chosen (which heads went); a row without alpha (NaN) is random
    removal, drawn as a band. Neighbours that remove the same heads are joined. `wanted` names the panels that have a
    level to reach. Raises ValueError for missing columns or repeated rows.
    """
    columns = ["model", "panel", "alpha", "estimate", "low", "high", "chosen"]
    style.require(table, columns, key=columns[:3])
    models, rows = list(table["model"].unique()), list(table["panel"].unique())
    figure, axes = style.grid(len(rows), len(models), height=1.2, sharex=True, sharey="row")
    for (row, column), panel in np.ndenumerate(axes):
        _alpha_panel(panel, table[(table["panel"] == rows[row]) & (table["model"] == models[column])])
        if rows[row] in wanted:
            panel.axhline(wanted[rows[row]], **style.BOUND)
    style.label_grid(axes, columns=models, rows=rows, x="α (0: norm, 1: rank)")
    levels = ", ".join(f"{wanted[row]:g}" for row in rows if row in wanted)
    note = "bars and band: 95 % interval over rows and draws; band: random heads; joined: the same heads"
    return style.finish(figure, note, f"dashed: {levels}" if levels else "")


def _alpha_panel(panel: Axes, table: pd.DataFrame) -> None:
    for row in table[table["alpha"].isna()].itertuples():
        panel.axhspan(row.low, row.high, color="0.88", linewidth=0)
        panel.axhline(row.estimate, color="0.55", linewidth=0.8)
    line = table[table["alpha"].notna()].sort_values("alpha")
    panel.vlines(line["alpha"], line["low"], line["high"], color="#111111", linewidth=0.9, zorder=4)
    alike = (line["chosen"] != line["chosen"].shift()).cumsum()
    for _, joined in line.groupby(alike):
        panel.plot(joined["alpha"], joined["estimate"], "o-", color="#111111", linewidth=1.4, markersize=3.5, zorder=4)
    panel.set_xlim(-0.05, 1.05)


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
