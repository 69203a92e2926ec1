"""Figures of whether the heads keep their ranks: in time, under attack, from token to token."""

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from srdyn.figures import style

ORDER_KEPT = 0.9
"""Spearman ρ from which the order counts as kept (claim C3)."""


@style.style()
def attacks(table: pd.DataFrame) -> Figure:
    """Every head's rank under a repetition attack against its rank in text: models across, attacks down.

    Columns: model, layer, head, context (the attack), rank, low, high, D, bound (NaN except in the first layer),
    text_rank. Raises ValueError for missing columns or several rows of one head.
    """
    columns = ["model", "layer", "head", "context", "rank", "low", "high", "D", "bound", "text_rank"]
    style.require(table, columns, key=["model", "layer", "head", "context"])
    names, contexts = list(table["model"].unique()), list(table["context"].unique())
    figure, axes = style.grid(len(contexts), len(names), height=1.85, sharex=True, sharey=True)
    for (row, column), panel in np.ndenumerate(axes):
        panel.set_title(f"{names[column]}: {contexts[row]}")
        _attack_panel(panel, table[(table["model"] == names[column]) & (table["context"] == contexts[row])])
    style.outer_labels(list(axes.flat), x="effective rank r in text", y="effective rank r\nunder attack")
    handles = [
        Line2D([], [], marker="D", color="#111111", markerfacecolor="white", linestyle="", label="first linear layer"),
        Line2D([], [], marker="o", color="0.55", linestyle="", label="other layers"),
        Line2D([], [], label="p + 3, bound in the first linear layer", **style.BOUND),
    ]
    style.legend(figure, handles)
    heads = table.groupby(["model", "context"])["rank"].count()
    return style.finish(
        figure, f"{style.span(heads)} heads a panel, with 95 % interval", style.counted(table), "dotted: equal ranks"
    )


def _attack_panel(panel: Axes, table: pd.DataFrame) -> None:
    top = table["D"].max() if len(table) else 1
    panel.plot([0, top], [0, top], ":", color="0.7", linewidth=0.7, zorder=1)
    first = table["bound"].notna()
    for rows, colour, face, marker in ((table[~first], "0.55", "0.55", "o"), (table[first], "#111111", "white", "D")):
        front = 3 if face == "white" else 2
        panel.vlines(rows["text_rank"], rows["low"], rows["high"], color=colour, linewidth=0.6, zorder=front)
        panel.plot(
            rows["text_rank"], rows["rank"], marker, color=colour, markerfacecolor=face, markersize=3, zorder=front
        )
    for bound in table["bound"].dropna().unique():
        panel.axhline(bound, zorder=1, **style.BOUND)
        at = panel.get_yaxis_transform()
        panel.annotate(f"p + 3 = {bound:g}", (1, bound), (-1, 4), at, "offset points", ha="right", size=6, color="0.3")
    panel.set_xlim(-0.03 * top, 1.05 * top)
    panel.set_ylim(-0.03 * top, 1.05 * top)


@style.style()
def cosine_bound(table: pd.DataFrame) -> Figure:
    """How far consecutive norm vectors turn, beside what Eq. 13 allows: 1 − cosine against t, a line for each layer.

    Columns: model, layer, position, cosine, bound; with several samples (of several contexts) of a layer and position,
    lines are their means and bands reach from the smallest to the largest. A 1 − cosine of 0 or less (rounding) has no
    place on the log axis: it is left out, and counted at the foot. Raises ValueError for missing columns.
    """
    samples = [name for name in ("context", "sample") if name in table]
    key = ["model", "layer", *samples, "position"]
    style.require(table, ["model", "layer", "position", "cosine", "bound"], key=key)
    turns = table.assign(turn=1 - table["cosine"], allowed=1 - table["bound"])
    shown = turns.assign(turn=turns["turn"].where(turns["turn"] > 0))
    figure, axes = style.panels(table["model"], height=2.0, sharex=True, sharey=True)
    for model, panel in axes.items():
        _turn_panel(panel, shown[shown["model"] == model])
    style.outer_labels(list(axes.values()), x="position t (tokens)", y="1 − cos(n(t), n(t − 1))")
    lost = int((turns["turn"] <= 0).sum())
    return style.finish(
        figure,
        f"n = {table.groupby(samples).ngroups} samples, mean and range" if samples else style.counted(table),
        "dark to light: first to last layer; dashed: what Eq. 13 allows, with B from gates and writes; below 1, and so "
        f"of use, in {(table['bound'] > 0).mean():.0%} of steps",
        f"{lost} of {len(table)} values are 0 within rounding, not shown" if lost else "",
    )


def _turn_panel(panel: Axes, table: pd.DataFrame) -> None:
    panel.set_yscale("log")
    layers = sorted(table["layer"].unique())
    shades = [to_hex(shade) for shade in colormaps[style.COLOURMAP](np.linspace(0, 0.85, len(layers)))]
    for layer, shade in zip(layers, shades, strict=True):
        by_position = (
            table[table["layer"] == layer].groupby("position")[["turn", "allowed"]].agg(["mean", "min", "max"])
        )
        turn, allowed = by_position["turn"], by_position["allowed"]
        panel.plot(turn.index, turn["mean"], color=shade, linewidth=0.8)
        panel.fill_between(turn.index, turn["min"], turn["max"], color=shade, alpha=0.2, linewidth=0)
        panel.plot(allowed.index, allowed["mean"], **(style.BOUND | {"linewidth": 0.6}))
    style.log2_positions(panel, table["position"])
    last = table["position"] == table["position"].max()
    ends = table[last].groupby("layer")["turn"].mean().dropna()
    chosen = {layer: shade for layer, shade in zip(layers, shades, strict=True) if layer in (layers[0], layers[-1])}
    labels = [(ends[i], f"layer {i}", shade) for i, shade in chosen.items() if i in ends]
    allowed = table.loc[last, "allowed"].dropna()
    style.label_right(panel, labels + ([(allowed.mean(), "Eq. 13", "0.35")] if len(allowed) else []))


@style.style()
def time_order(table: pd.DataFrame) -> Figure:
    """Spearman ρ of the ranks after t tokens with the final ranks, as t grows: model seeds and nulls, a panel a kind.

    Columns: model, kind, seed, source, position, spearman, low, high. An undefined ρ (NaN) interrupts its line.
    Raises ValueError for missing columns or repeated rows.
    """
    key = ["kind", "seed", "source", "position"]
    style.require(table, [*key, "model", "spearman", "low", "high"], key=key)
    figure, axes = style.panels(table["kind"], height=2.0, sharex=True, sharey=True)
    for kind, panel in axes.items():
        part = table[table["kind"] == kind].sort_values("position")
        for (source, seed), line in part.groupby(["source", "seed"]):
            _order_line(panel, line, source, bold=int(seed) == style.seeds(part)[0])
        panel.axhline(ORDER_KEPT, zorder=1, **style.BOUND)
        style.log2_positions(panel, part["position"])
        panel.set_ylim(top=1.03)
    style.outer_labels(list(axes.values()), x="position t (tokens)", y="Spearman ρ to final ranks")
    style.source_legend(figure, table, "spearman")
    return style.finish(figure, "bands: 95 % interval", style.counted(table), f"dashed: {ORDER_KEPT:g}")


def _order_line(panel: Axes, line: pd.DataFrame, source: str, *, bold: bool) -> None:
    look, front = style.SOURCES[source], 4 if source == style.MODEL else 2
    width = 1.5 if bold and source == style.MODEL else 0.8
    panel.plot(
        line["position"], line["spearman"], color=look.colour, marker=look.marker, linewidth=width, markersize=2.5,
        zorder=front,
    )  # fmt: skip
    panel.fill_between(line["position"], line["low"], line["high"], color=look.colour, alpha=0.14, linewidth=0)
