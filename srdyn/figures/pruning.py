"""Figures of what is left of a model whose heads are removed by a score, or whose states are held in fewer bytes."""

import itertools
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from srdyn.figures import style

_MAIN, _RANDOM = "joint, α = 0.5", "random"
_RULES = {
    "rank": style.Look("#BB5566", "s"),
    "fast decay": style.Look("#999933", "v"),
    "small output": style.Look("#EE8866", "^"),
    "oracle": style.Look("#117733", "D"),
}
_HELD = {
    "#004488": {"int8": "o", "fp8": "s", "int4": "v"},
    "#5BA3CF": {"int8 + int4": "o", "fp8 + int4": "s"},
    "#C99000": {"rank": "D"},
    "#AA4499": {"checkpoint, zero": "v", "checkpoint, replayed": "^", "checkpoint, int8": "o"},
}
_DRAWN, _OFF, _CHECKPOINT = "removed: random", "every state off", "checkpoint"


@style.draws(table="model panel rule state | estimate low high")
def rules(table: pd.DataFrame) -> Figure:
    """What is kept (`panel`) by each rule, models across, dark to light by the share of the state's bytes left."""
    names = list(table["rule"].unique())
    figure, parts = style.crossed(table, "panel", "model", height=0.15 * len(names) + 0.35, sharex="row", sharey=True)
    for panel, part in parts:
        for rule, line in part.groupby("rule", sort=False):
            shades = np.linspace(0, 0.6, len(line)).round(2)
            for shade, measured in zip(shades, line.sort_values("state").to_dict("records"), strict=True):
                look = style.Look("#BB5566" if rule in (_MAIN, _RANDOM) else str(shade), "o")
                style.points(panel, names.index(rule) + 0.25 * shade, measured, look, width=0.9, listed=True)
        style.listed(panel, names)
    titles = itertools.product(table["panel"].unique(), table["model"].unique())
    for (panel, _), (kept, model) in zip(parts, titles, strict=True):
        panel.set(title=model, xlabel=kept, ylabel="")
    left = table["state"]
    note = f"{left.min():.1%} to {left.max():.1%} of the state's bytes left; red: the paper's rule and random heads"
    return style.finish(figure, "bars: 95 % interval over rows and draws", note)


@style.draws(table="model panel alpha | estimate low high chosen")
def alphas(table: pd.DataFrame, *, wanted: Mapping[str, float]) -> Figure:
    """What is kept against α of the joint score; the same heads (`chosen`) joined, random removal (α NaN) a band."""
    figure, parts = style.crossed(table, "panel", "model", height=1.2, x="α (0: norm, 1: rank)")
    for panel, part in parts:
        for row in part[part["alpha"].isna()].itertuples():
            panel.axhspan(row.low, row.high, color="0.88", linewidth=0)
            panel.axhline(row.estimate, color="0.55", linewidth=0.8)
        line, drawn = part[part["alpha"].notna()].sort_values("alpha"), {"color": "#111111", "zorder": 4}
        panel.vlines(line["alpha"], line["low"], line["high"], linewidth=0.9, **drawn)
        for _, alike in line.groupby((line["chosen"] != line["chosen"].shift()).cumsum()):
            panel.plot(alike["alpha"], alike["estimate"], "o-", linewidth=1.4, markersize=3.5, **drawn)
        panel.set_xlim(-0.05, 1.05)
        for level in part["panel"].map(wanted).dropna().unique():
            panel.axhline(level, **style.BOUND)
    levels = ", ".join(f"{wanted[row]:g}" for row in table["panel"].unique() if row in wanted)
    note = "bars and band: 95 % interval over rows and draws; band: random heads; joined: the same heads"
    return style.finish(figure, note, f"dashed: {levels}" if levels else "")


@style.draws(table="model variant | overlap chance")
def calibrations(table: pd.DataFrame) -> Figure:
    """How many of the removed heads stay the same when the calibration changes: variants down, a panel a model."""
    variants = list(table["variant"].unique())
    height, label = 0.16 * len(variants) + 0.3, "share of removed heads in common"
    figure, parts = style.panels(table, "model", height=height, x=label)
    for panel, part in parts:
        places = [variants.index(variant) for variant in part["variant"]]
        panel.plot(part["overlap"], places, "o", color="#111111")
        panel.axvline(part["chance"].iloc[0], **style.BOUND)
        style.listed(panel, variants, tick=3.5)
        panel.set_xlim(0, 1.04)
    return style.finish(figure, "dashed: as many heads drawn at random")


@style.draws(table="model probe how rule share rank | bytes where replayed estimate low high n")
def frontier(table: pd.DataFrame, *, prefix: int) -> Figure:
    """What is kept (`probe`) against the share of the state's bytes that is left: models across, a line for each way.

    Heads `removed` by a rule, at random (a band), or states held otherwise; checkpoints hollow, but for those after
    which all tokens of the `prefix` are read again: they save nothing, and lose nothing. The loss is on a logarithmic
    axis beyond ± 0.01.
    """
    table = table[table["replayed"] < prefix]
    table = table.assign(line=table["how"].where(table["how"] != "removed", "removed: " + table["rule"]).fillna(_OFF))
    figure, parts = style.crossed(table, "probe", "model", height=1.9, x="state bytes left")
    rules = table.loc[table["how"] == "removed", "rule"].dropna().unique()
    looks = {f"removed: {rule}": _RULES.get(rule, style.Look("#111111", "o")) for rule in rules if rule != _RANDOM}
    held = {how: style.Look(colour, mark) for colour, ways in _HELD.items() for how, mark in ways.items()}
    held = {how: look for how, look in held.items() if how in set(table["how"])}
    for panel, part in parts:
        _ways(panel, part, looks | held)
        if "kept" in part["probe"].iloc[0]:
            panel.set_ylim(-0.1, 1.1)
        else:
            panel.set_yscale("symlog", linthresh=0.01)
            panel.set_yticks([0, 0.01, 0.1, 1, 10], ["0", "0.01", "0.1", "1", "10"])
        panel.set(xlim=(0, 1.06), xticks=style.QUARTERS, xticklabels=["0", "¼", "½", "¾", "1"])
    handles = [style.handle(line, look, linewidth=0.6) for line, look in looks.items()]
    handles.append(style.handle("random heads removed", color="#8C8C8C"))
    for how, look in held.items():
        face = {"markerfacecolor": "white"} if how.startswith(_CHECKPOINT) else {}
        name = "cut to rank r" if how == "rank" else how if face else f"all in {how}"
        handles.append(style.handle(name, look, linestyle="", **face))
    style.legend(figure, handles)
    ends = "bars: 95 % interval over rows; band: the least and greatest random set; dotted: every state off"
    rank = "dashed: nothing lost, and all bytes, which factors of rank K·V/(K+V) take"
    hollow = f"hollow: what a prefix checkpoint holds, states are whole; none where all {prefix} tokens are read again"
    sizes = table.groupby("probe", sort=False)["n"].agg(style.span)
    return style.finish(figure, ends, rank, hollow, *(f"{probe}: n = {n}" for probe, n in sizes.items()))


def _ways(panel: Axes, part: pd.DataFrame, looks: Mapping[str, style.Look]) -> None:
    """A line for each way, random heads as a band behind them."""
    panel.axhline(float("kept" in part["probe"].iloc[0]), zorder=1, **style.BOUND)
    panel.axvline(1, zorder=1, **style.BOUND)
    for off in part.loc[part["line"] == _OFF, "estimate"]:
        panel.axhline(off, color="0.45", linestyle=":", linewidth=0.9, zorder=1)
    random = part[part["line"] == _DRAWN].sort_values("bytes")
    panel.fill_between(random["bytes"], random["low"], random["high"], color="0.85", linewidth=0, zorder=0)
    panel.plot(random["bytes"], random["estimate"], color="#8C8C8C", zorder=1)
    for way, aside in style.apart(list(looks), 0.025).items():
        line = part[part["line"] == way].sort_values("bytes")
        mark = {"linestyle": "-", "linewidth": 0.6, "markersize": 3.2, "hollow": way.startswith(_CHECKPOINT)}
        style.points(panel, line["bytes"] + aside, line, looks[way], width=0.6, **mark)
