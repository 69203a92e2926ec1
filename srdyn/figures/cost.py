"""Figures of what tracing, spectra, pruned decoding, training and whole caches cost."""

import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from srdyn.figures import style

_AXES = {"T": "tokens T", "L": "layers L", "H": "heads H"}
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_LOOKS = (
    style.Look("#111111", "o"),
    style.Look("#004488", "s"),
    style.Look("#C99000", "^"),
    style.Look("#BB5566", "D"),
)


@style.draws("what case positions", "base T B n ratio low high")
def tracing_cost(table: pd.DataFrame) -> Figure:
    """Left, a trace beside its base (`what`: `overhead`); right, every prefix anew beside one trace (`prefixes`)."""
    figure, axes = style.grid(1, 2, height=1.9)
    beside = table[(table["what"] == "overhead") & (table["case"] != table["base"])]
    _dots(axes[0, 0], beside, beside["case"], "time over that of the forward pass")
    axes[0, 0].axvline(1, **style.BOUND)
    anew, right = table[(table["what"] == "prefixes") & (table["case"] != table["base"])], axes[0, 1]
    for look, (case, line) in zip(_LOOKS, anew.groupby("case", sort=False), strict=False):
        mark = {"linestyle": "-", "label": textwrap.fill(str(case), 26)}
        style.points(right, line["positions"], line, look, value="ratio", **mark)
    counts = np.array(sorted(anew["positions"].unique()))
    right.plot(counts, (counts + 1) / 2, zorder=1, **style.BOUND)
    right.legend()
    right.set_ylim(bottom=0)
    style.log2_positions(right, counts.tolist())
    right.set_xlabel("positions")
    right.set_ylabel("time over that of one trace")
    size = f"T = {beside['T'].max()}, B = {beside['B'].max()}, {beside['positions'].max()} positions on the left"
    return style.finish(figure, _rounds(table), size, "dashed: the pass itself; tokens read, (n + 1)/2 passes")


@style.draws("d batch method", "n median spread per_second")
def spectrum_rates(table: pd.DataFrame) -> Figure:
    """Spectra per second against the batch, a panel a size, a line a method; NaN where a case was left out."""
    sizes = sorted(table["d"].unique())
    figure, axes = style.grid(1, len(sizes), height=1.9, sharex=True)
    methods = dict(zip(table["method"].unique(), _LOOKS, strict=False))
    for panel, d in zip(axes[0], sizes, strict=True):
        for method, look in methods.items():
            line = table[(table["d"] == d) & (table["method"] == method) & table["median"].notna()]
            slowest = line["median"] + line["spread"] / 2
            fastest = (line["median"] - line["spread"] / 2).clip(lower=line["median"] / 2)
            ends = line.assign(low=line["batch"] / slowest, high=line["batch"] / fastest)
            style.points(panel, line["batch"], ends, look, value="per_second", linestyle="-", label=method)
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_title(f"d = {d}")
    style.outer_labels(list(axes[0]), x="batch", y="spectra per second")
    style.legend(figure, axes[0, 0].get_legend_handles_labels()[0])
    return style.finish(figure, _rounds(table), "bars: interquartile range", "cases of many seconds are left out")


@style.draws("axis size", "n median spread exponent low high")
def cost_growth(table: pd.DataFrame) -> Figure:
    """Time of a trace with spectra against tokens, layers, heads, with the fitted exponents (low, high: their ends)."""
    figure, parts = style.panels(table, "axis", height=1.7, sharex=False, sharey=False)
    for panel, line in parts:
        line, axis = line.sort_values("size"), panel.get_title()
        half = line["spread"] / 2
        ends = line.assign(low=line["median"] - half, high=line["median"] + half)
        style.points(panel, line["size"], ends, _LOOKS[0], value="median", linestyle="-", label="")
        middle = np.exp(np.log(line["median"]).mean() - line["exponent"] * np.log(line["size"]).mean())
        panel.plot(line["size"], middle * line["size"] ** line["exponent"], zorder=1, **style.BOUND)
        fit = line.iloc[0]
        panel.set_title(rf"$\propto {axis}^{{{fit['exponent']:.2f}}}$ [{fit['low']:.2f}, {fit['high']:.2f}]")
        panel.set_yscale("log")
        style.log2_positions(panel, line["size"])
        panel.set_xlabel(_AXES.get(axis, axis))
    figure.axes[0].set_ylabel("time of a trace (s)")
    return style.finish(figure, _rounds(table), "bars: interquartile range; dashed: the power law fitted")


@style.draws("model what B case", "n ratio low high")
def pruned_cost(table: pd.DataFrame, *, left: float, wanted: float) -> Figure:
    """Time of what is pruned over the original's; dashed: the share of heads `left`, the ratio `wanted`, 1."""
    part = table[table["case"] == "pruned"]
    figure, axes = style.grid(1, 1, height=0.22 * len(part) + 0.5)
    names = part["model"] + ", " + part["what"] + ", B = " + part["B"].astype(str)
    _dots(axes[0, 0], part, names, "time over the original's")
    for bound in (left, wanted, 1.0):
        axes[0, 0].axvline(bound, **style.BOUND)
    return style.finish(figure, _rounds(part), f"dashed: {left:.3f} of the heads left, {wanted:g} aimed at, 1")


@style.draws("what case", "base n ratio low high")
def training_rates(table: pd.DataFrame) -> Figure:
    """Speed over that of transformers' functions, of whole training steps and of the recurrence alone."""
    part = table[table["case"] != table["base"]]
    figure, axes = style.grid(1, 1, height=0.22 * len(part) + 0.5)
    _dots(axes[0, 0], part, part["what"] + ", " + part["case"], "speed over transformers'")
    axes[0, 0].axvline(1, **style.BOUND)
    return style.finish(figure, _rounds(part), "steps: each with the change above it as well; dashed: as fast")


def _dots(panel: Axes, table: pd.DataFrame, names: pd.Series, label: str) -> None:
    """A dot with its interval for each row, from the top down, its value beside it."""
    places = np.arange(len(table))
    style.points(panel, places, table, _LOOKS[0], value="ratio", width=1.2, listed=True)
    for place, ratio, high in zip(places, table["ratio"], table["high"].fillna(table["ratio"]), strict=True):
        panel.annotate(f"{ratio:.2f}", (high, place), (4, 0), textcoords="offset points", size=6.5, va="center")
    style.listed(panel, names)
    panel.margins(x=0.15)
    panel.set_xlabel(label)


def _rounds(table: pd.DataFrame) -> str:
    return f"medians of {style.span(table['n'].dropna().astype(int))} rounds in one run"


@style.draws("model tokens", "heads removed_heads total_bytes removed_bytes freed break_even")
def memory(table: pd.DataFrame) -> Figure:
    """Bytes of the whole cache, intact and without the removed states, and the share freed, against context length.

    A line a model, dark to light by the length at which keys and values cost what states do (`break_even`, NaN: none).
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


def _lines(panel: Axes, table: pd.DataFrame, column: str) -> list[tuple[float, str, object]]:
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
        ends.append((float(line[column].iloc[-1]), model, shade))
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
    panel.set_yticks([2**power for power in powers], [f"{2 ** (power % 10)} {_UNITS[power // 10]}" for power in powers])
    panel.set_ylabel("whole cache of one sequence")


def _label_shares(panel: Axes, removed: float) -> None:
    panel.axhline(removed, zorder=1, **style.BOUND)
    place = {"textcoords": "offset points", "xycoords": panel.get_yaxis_transform()}
    panel.annotate(f"{removed:.1%} of the states", (1, removed), (-2, 3), size=6, color="0.3", ha="right", **place)
    panel.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
    panel.set_ylim(top=1)
    panel.set_ylabel("share of the whole cache freed")
