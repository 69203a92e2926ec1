"""Figures of whether the heads keep their ranks: in time, under attack, from token to token."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from srdyn.figures import style

_FIRST, _OTHERS = style.Look("#111111", "D"), style.Look("0.55", "o")
"""Linear layers: the first one, which an attack binds, and the others."""
_ORDER_KEPT = 0.9
"""Spearman ρ from which the order counts as kept (claim C3)."""


@style.draws(table="model layer head context | rank low high D bound text_rank")
def attacks(table: pd.DataFrame) -> Figure:
    """Every head's rank under a repetition attack (context) against that in text; `bound` is of the first layer."""
    labels = {"x": "effective rank r in text", "y": "effective rank r\nunder attack"}
    figure, parts = style.crossed(table, "context", "model", height=1.85, sharey=True, **labels)
    for panel, part in parts:
        style.equal_ranks(panel, part["D"])
        first = part["bound"].notna()
        for rows, look, front in ((part[~first], _OTHERS, 2), (part[first], _FIRST, 3)):
            mark = {"hollow": look == _FIRST, "markersize": 3, "zorder": front}
            style.points(panel, rows["text_rank"], rows, look, value="rank", width=0.6, front=front, **mark)
        for bound in part["bound"].dropna().unique():
            panel.axhline(bound, zorder=1, **style.BOUND)
            at, told = panel.get_yaxis_transform(), f"p + 3 = {bound:g}"
            panel.annotate(told, (1, bound), (-1, 4), at, "offset points", ha="right", size=6, color="0.3")
    first = style.handle("first linear layer", _FIRST, markerfacecolor="white", linestyle="")
    bound = style.handle("p + 3, bound in the first linear layer", **style.BOUND)
    style.legend(figure, [first, style.handle("other layers", _OTHERS, linestyle=""), bound])
    heads = f"{style.span(table.groupby(['model', 'context'])['rank'].count())} heads a panel, with 95 % interval"
    return style.finish(figure, heads, style.counted(table), "dotted: equal ranks")


@style.draws(table="model layer context sample position | cosine bound")
def cosine_bound(table: pd.DataFrame) -> Figure:
    """How far consecutive norm vectors turn, beside what Eq. 13 allows: 1 − cosine against t, a line for each layer.

    Lines are means over samples, bands reach from the smallest to the largest. A 1 − cosine of 0 or less (rounding) has
    no place on the log axis: it is left out, and counted at the foot.
    """
    turns = table.assign(turn=(1 - table["cosine"]).where(table["cosine"] < 1), allowed=1 - table["bound"])
    figure, parts = style.panels(turns, "model", x="position t (tokens)", y="1 − cos(n(t), n(t − 1))")
    for panel, part in parts:
        _turn_panel(panel, part)
    lost = (table["cosine"] >= 1).sum()
    return style.finish(
        figure,
        f"n = {table.groupby(['context', 'sample']).ngroups} samples, mean and range",
        "dark to light: first to last layer; dashed: what Eq. 13 allows, with B from gates and writes; below 1, and so "
        f"of use, in {(table['bound'] > 0).mean():.0%} of steps",
        f"{lost} of {len(table)} values are 0 within rounding, not shown" if lost else "",
    )


def _turn_panel(panel: Axes, table: pd.DataFrame) -> None:
    panel.set_yscale("log")
    layers, labels = list(table.groupby("layer")), []
    for (layer, rows), shade in zip(layers, style.shades(len(layers), 0.85), strict=True):
        steps = rows.groupby("position")
        turn, allowed = (steps[name].agg(["mean", "min", "max"]) for name in ("turn", "allowed"))
        panel.plot(turn.index, turn["mean"], color=shade, linewidth=0.8)
        panel.fill_between(turn.index, turn["min"], turn["max"], color=shade, alpha=0.2, linewidth=0)
        panel.plot(allowed.index, allowed["mean"], **(style.BOUND | {"linewidth": 0.6}))
        labels.append((turn["mean"].iloc[-1], f"layer {layer}", shade))
    style.log2_positions(panel, table["position"])
    allowed = table.loc[table["position"] == table["position"].max(), "allowed"].mean()
    ends = dict.fromkeys([labels[0], labels[-1], (allowed, "Eq. 13", "0.35")])
    style.label_right(panel, [end for end in ends if end[0] > 0])


@style.draws(table="kind seed source position | model spearman low high")
def time_order(table: pd.DataFrame) -> Figure:
    """Spearman ρ of the ranks after t tokens with the final ranks: seeds and nulls, a panel a kind; NaN is a gap."""
    figure, parts = style.panels(table, "kind", x="position t (tokens)", y="Spearman ρ to final ranks")
    for panel, part in parts:
        for (source, seed), line in part.sort_values("position").groupby(["source", "seed"]):
            look, model = style.SOURCES[source], source == style.MODEL
            bold = model and seed == part["seed"].min()
            drawn = {"color": look.colour, "marker": look.marker, "markersize": 2.5, "zorder": 4 if model else 2}
            panel.plot(line["position"], line["spearman"], linewidth=1.5 if bold else 0.8, **drawn)
            panel.fill_between(line["position"], line["low"], line["high"], color=look.colour, alpha=0.14, linewidth=0)
        panel.axhline(_ORDER_KEPT, zorder=1, **style.BOUND)
        style.log2_positions(panel, part["position"])
        panel.set_ylim(top=1.03)
    style.source_legend(figure, table, "spearman")
    return style.finish(figure, "bands: 95 % interval", style.counted(table), f"dashed: {_ORDER_KEPT:g}")
