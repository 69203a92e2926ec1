"""Figure of what a whole cache costs, beside what removing states frees of it."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from srdyn.figures import style

UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


@style.draws("model tokens", "heads removed_heads total_bytes removed_bytes freed break_even")
def memory(table: pd.DataFrame) -> Figure:
    """Bytes of the whole cache, intact and without the removed states, and the share freed, against context length.

    A line for each model, dark to light by the length at which keys and values cost what the states do: `break_even`,
    NaN without attention.
    """
    table = table.sort_values(["break_even", "model", "tokens"])
    removed = table["removed_heads"].sum() / table["heads"].sum()
    figure, axes = style.grid(1, 2, height=2.7)
    ends = [_lines(panel, table, column) for panel, column in zip(axes[0], ["total_bytes", "freed"], strict=True)]
    _label_bytes(axes[0, 0])
    _label_shares(axes[0, 1], removed)
    for panel, labels in zip(axes[0], ends, strict=True):
        panel.minorticks_off()
        style.log2_positions(panel, table["tokens"])
        panel.set_xlabel("context length (tokens)")
        style.label_right(panel, labels)
    return style.finish(
        figure,
        "from configurations alone",
        f"bands: what goes with {removed:.1%} of the states",
        "circles: keys and values cost as much as states (darker: sooner)",
    )


def _lines(panel: Axes, table: pd.DataFrame, column: str) -> list[tuple[float, str, str]]:
    """A line for each model; where they end, whose they are, their colours."""
    panel.set_yscale("log")
    lines = dict(list(table.groupby("model", sort=False)))
    ends = []
    for (model, line), shade in zip(lines.items(), style.shades(len(lines), 0.8), strict=True):
        panel.plot(line["tokens"], line[column], color=shade, zorder=3)
        _mark_break_even(panel, line, column, shade)
        if column == "total_bytes":
            left = line["total_bytes"] - line["removed_bytes"]
            panel.fill_between(line["tokens"], left, line["total_bytes"], color=shade, alpha=0.25, linewidth=0)
        ends.append((line[column].iloc[-1], model, shade))
    return ends


def _mark_break_even(panel: Axes, line: pd.DataFrame, column: str, shade: str) -> None:
    tokens, even = line["tokens"], line["break_even"].iloc[0]
    if tokens.min() <= even <= tokens.max():
        # Along the line as it is drawn, straight between its points on logarithmic axes.
        height = np.exp(np.interp(np.log(even), np.log(tokens), np.log(line[column])))
        panel.plot(even, height, "o", color=shade, markerfacecolor="white", zorder=4)


def _label_bytes(panel: Axes) -> None:
    low, high = np.log2(panel.get_ylim())
    powers = range(5 * int(np.ceil(low / 5)), int(high) + 1, 5)
    panel.set_yticks([2**power for power in powers], [f"{2 ** (power % 10)} {UNITS[power // 10]}" for power in powers])
    panel.set_ylabel("whole cache of one sequence")


def _label_shares(panel: Axes, removed: float) -> None:
    panel.axhline(removed, zorder=1, **style.BOUND)
    place = {"textcoords": "offset points", "xycoords": panel.get_yaxis_transform()}
    panel.annotate(f"{removed:.1%} of the states", (1, removed), (-2, 3), size=6, color="0.3", ha="right", **place)
    panel.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
    panel.set_ylim(top=1)
    panel.set_ylabel("share of the whole cache freed")
