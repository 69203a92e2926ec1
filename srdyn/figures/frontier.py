"""The figure of what is kept against the bytes of the state, by every way to hold fewer."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from srdyn.figures import style

_RULES = {
    "rank": style.Look("#BB5566", "s"),
    "fast decay": style.Look("#999933", "v"),
    "small output": style.Look("#EE8866", "^"),
    "oracle": style.Look("#117733", "D"),
}
_MAIN, _RANDOM = style.Look("#111111", "o"), style.Look("#8C8C8C", "_")
_HELD = {
    "int8": style.Look("#004488", "o"),
    "fp8": style.Look("#004488", "s"),
    "int4": style.Look("#004488", "v"),
    "int8 + int4": style.Look("#5BA3CF", "o"),
    "fp8 + int4": style.Look("#5BA3CF", "s"),
    "rank": style.Look("#C99000", "D"),
    "checkpoint, zero": style.Look("#AA4499", "v"),
    "checkpoint, replayed": style.Look("#AA4499", "^"),
    "checkpoint, int8": style.Look("#AA4499", "o"),
}


@style.draws("model probe how rule share rank", "bytes where replayed estimate low high n")
def frontier(table: pd.DataFrame, *, prefix: int, smallest: float = 0.01) -> Figure:
    """What is kept (`probe`) against the share of the state's bytes that is left: models across, a line for each way.

    Heads `removed` by a rule, at random (a band), or states held otherwise; checkpoints hollow, but for those after
    which all tokens of the `prefix` are read again: they save nothing, and lose nothing. The loss is on a logarithmic
    axis beyond ± `smallest`.
    """
    table = table[table["replayed"] < prefix]
    table = table.assign(line=table["rule"].where(table["how"] == "removed").fillna(""))
    figure, parts = style.crossed(table, "probe", "model", height=1.9, x="state bytes left")
    removed = [rule for rule in table.loc[table["line"] != "", "line"].unique() if rule != "random"]
    looks = {("removed", rule): _RULES.get(rule, _MAIN) for rule in removed}
    looks |= {(how, ""): look for how, look in _HELD.items() if how in set(table["how"])}
    places = style.apart(list(looks), 0.025)
    for panel, part in parts:
        kept = "kept" in part["probe"].iloc[0]
        panel.axhline(float(kept), zorder=1, **style.BOUND)
        panel.axvline(1, zorder=1, **style.BOUND)
        for off in part.loc[(part["how"] == "removed") & (part["line"] == ""), "estimate"]:
            panel.axhline(off, color="0.45", linestyle=":", linewidth=0.9, zorder=1)
        random = part[part["line"] == "random"].sort_values("bytes")
        panel.fill_between(random["bytes"], random["low"], random["high"], color="0.85", linewidth=0, zorder=0)
        panel.plot(random["bytes"], random["estimate"], color=_RANDOM.colour, zorder=1)
        for key, look in looks.items():
            line = part[(part["how"] == key[0]) & (part["line"] == key[1])].sort_values("bytes")
            hollow, style_of = key[0].startswith("checkpoint"), {"linestyle": "-", "linewidth": 0.6, "markersize": 3.2}
            style.points(panel, line["bytes"] + places[key], line, look, width=0.6, hollow=hollow, **style_of)
        if kept:
            panel.set_ylim(-0.1, 1.1)
        else:
            panel.set_yscale("symlog", linthresh=smallest)
            panel.set_yticks([0, *smallest * 10.0 ** np.arange(int(np.log10(20 / smallest)) + 1)])
            panel.yaxis.set_major_formatter(lambda value, place: f"{value:g}")
        panel.set_xlim(0, 1.06)
        panel.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "¼", "½", "¾", "1"])
    style.legend(figure, _handles(looks))
    ends = "bars: 95 % interval over rows; band: the least and greatest random set; dotted: every state off"
    rank = "dashed: nothing lost, and all bytes, which factors of rank K·V/(K+V) take"
    hollow = f"hollow: what a prefix checkpoint holds, states are whole; none where all {prefix} tokens are read again"
    sizes = {probe: style.span(part["n"].astype(int)) for probe, part in table.groupby("probe", sort=False)}
    return style.finish(figure, ends, rank, hollow, *(f"{probe}: n = {n}" for probe, n in sizes.items()))


def _handles(looks: dict[tuple[str, str], style.Look]) -> list[Line2D]:
    """What the lines are, by way and rule: heads removed, random ones, then states held otherwise."""
    names = {"rank": "cut to rank r"} | {how: how for how in _HELD if how.startswith("checkpoint")}
    handles = [style.handle(f"removed: {rule}", look, linewidth=0.6) for (_, rule), look in looks.items() if rule]
    handles += [style.handle("random heads removed", color=_RANDOM.colour)]
    held = {how: look for (how, rule), look in looks.items() if not rule}
    for how, look in held.items():
        face = {"markerfacecolor": "white"} if how.startswith("checkpoint") else {}
        handles.append(style.handle(names.get(how, f"all in {how}"), look, linestyle="", **face))
    return handles
