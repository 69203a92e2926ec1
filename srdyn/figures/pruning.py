"""Figures of what is left of a model whose heads are removed by a score."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from srdyn.figures import style

_MAIN, _RANDOM = "joint, α = 0.5", "random"


@style.draws("model panel rule state", "estimate low high")
def rules(table: pd.DataFrame) -> Figure:
    """What is kept (`panel`) by each rule, models across, dark to light by the share of the state's bytes left."""
    names = list(table["rule"].unique())
    height = 0.15 * len(names) + 0.35
    figure, parts = style.crossed(table, "panel", "model", height=height, sharex="row", sharey=True)
    for panel, part in parts:
        for rule, line in part.groupby("rule", sort=False):
            shades = np.linspace(0, 0.6, len(line)).round(2)
            for shade, measured in zip(shades, line.sort_values("state").to_dict("records"), strict=True):
                look = style.Look("#BB5566" if rule in (_MAIN, _RANDOM) else str(shade), "o")
                style.points(panel, names.index(rule) + 0.25 * shade, measured, look, width=0.9, listed=True)
        model, kept = panel.get_title().split(": ", 1)
        panel.set_title(model)
        panel.set_xlabel(kept)
        style.listed(panel, names)
    left = table["state"]
    note = f"{left.min():.1%} to {left.max():.1%} of the state's bytes left; red: the paper's rule and random heads"
    return style.finish(figure, "bars: 95 % interval over rows and draws", note)


@style.draws("model panel alpha", "estimate low high chosen")
def alphas(table: pd.DataFrame, *, wanted: Mapping[str, float]) -> Figure:
    """What is kept against α of the joint score; the same heads (`chosen`) joined, random removal (α NaN) a band."""
    figure, parts = style.crossed(table, "panel", "model", height=1.2, x="α (0: norm, 1: rank)")
    for panel, part in parts:
        _alpha_panel(panel, part)
        for level in part["panel"].map(wanted).dropna().unique():
            panel.axhline(level, **style.BOUND)
    levels = ", ".join(f"{wanted[row]:g}" for row in table["panel"].unique() if row in wanted)
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


@style.draws("model variant", "overlap chance")
def calibrations(table: pd.DataFrame) -> Figure:
    """How many of the removed heads stay the same when the calibration changes: variants down, a panel a model."""
    variants = list(table["variant"].unique())
    figure, parts = style.panels(table, "model", height=0.16 * len(variants) + 0.3)
    for panel, part in parts:
        places = [variants.index(variant) for variant in part["variant"]]
        panel.plot(part["overlap"], places, "o", color="#111111")
        panel.axvline(part["chance"].iloc[0], **style.BOUND)
        style.listed(panel, variants, tick=3.5)
        panel.set_xlim(0, 1.04)
    style.outer_labels(figure.axes, x="share of removed heads in common", y="")
    return style.finish(figure, "dashed: as many heads drawn at random")
