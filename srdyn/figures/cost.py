"""Figures of what tracing, spectra, pruned decoding and training cost, in time."""

import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from srdyn.figures import style

AXES = {"T": "tokens T", "L": "layers L", "H": "heads H"}
LOOKS = (style.Look("#111111", "o"), style.Look("#004488", "s"), style.Look("#C99000", "^"), style.Look("#BB5566", "D"))


@style.draws("what case positions", "base T B n ratio low high")
def tracing_cost(table: pd.DataFrame) -> Figure:
    """Left, what a trace costs beside its base; right, reading every prefix anew beside one trace, by positions.

    `what` is measured: `overhead`, `prefixes` or `every token`.
    """
    figure, axes = style.grid(1, 2, height=1.9)
    beside = table[(table["what"] == "overhead") & (table["case"] != table["base"])]
    _dots(axes[0, 0], beside, beside["case"], "time over that of the forward pass")
    axes[0, 0].axvline(1, **style.BOUND)
    anew, right = table[(table["what"] == "prefixes") & (table["case"] != table["base"])], axes[0, 1]
    for look, (case, line) in zip(LOOKS, anew.groupby("case", sort=False), strict=False):
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
    methods = dict(zip(table["method"].unique(), LOOKS, strict=False))
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
    figure, parts = style.panels(table, "axis", height=1.7)
    for panel, line in parts:
        line, axis = line.sort_values("size"), panel.get_title()
        half = line["spread"] / 2
        ends = line.assign(low=line["median"] - half, high=line["median"] + half)
        style.points(panel, line["size"], ends, LOOKS[0], value="median", linestyle="-", label="")
        middle = np.exp(np.log(line["median"]).mean() - line["exponent"] * np.log(line["size"]).mean())
        panel.plot(line["size"], middle * line["size"] ** line["exponent"], zorder=1, **style.BOUND)
        fit = line.iloc[0]
        panel.set_title(rf"$\propto {axis}^{{{fit['exponent']:.2f}}}$ [{fit['low']:.2f}, {fit['high']:.2f}]")
        panel.set_yscale("log")
        style.log2_positions(panel, line["size"])
        panel.set_xlabel(AXES.get(axis, axis))
    figure.axes[0].set_ylabel("time of a trace (s)")
    return style.finish(figure, _rounds(table), "bars: interquartile range; dashed: the power law fitted")


@style.draws("model what B case", "n ratio low high")
def pruned_cost(table: pd.DataFrame, *, left: float, wanted: float) -> Figure:
    """Time of the pruned model over that of the original, a row for each thing timed.

    Of the cases, `pruned` is drawn. `left` is the share of the heads left, and `wanted` the ratio that was aimed at;
    both are dashed.
    """
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
    style.points(panel, places, table, LOOKS[0], value="ratio", width=1.2, listed=True)
    for place, ratio, high in zip(places, table["ratio"], table["high"].fillna(table["ratio"]), strict=True):
        panel.annotate(f"{ratio:.2f}", (high, place), (4, 0), textcoords="offset points", size=6.5, va="center")
    style.listed(panel, names)
    panel.margins(x=0.15)
    panel.set_xlabel(label)


def _rounds(table: pd.DataFrame) -> str:
    return f"medians of {style.span(table['n'].dropna().astype(int))} rounds in one run"
