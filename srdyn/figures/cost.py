"""Figures of what tracing, spectra, pruned decoding, training and whole caches cost."""

import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from srdyn.figures import style

_AXES = {"T": "tokens T", "L": "layers L", "H": "heads H"}
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_LOOKS = [style.Look(*look) for look in zip(("#111111", "#004488", "#C99000", "#BB5566"), "os^D", strict=True)]


@style.draws(table="what case positions | base T B n ratio low high")
def tracing_cost(table: pd.DataFrame) -> Figure:
    """Left, a trace beside its base (`what`: `overhead`); right, every prefix anew beside one trace (`prefixes`)."""
    figure, [[left, right]] = style.grid(1, 2, height=1.9)
    beside = table[(table["what"] == "overhead") & (table["case"] != table["base"])]
    _dots(left, beside, beside["case"], "time over that of the forward pass", bounds=[1])
    anew = table[(table["what"] == "prefixes") & (table["case"] != table["base"])]
    for look, (case, line) in zip(_LOOKS, anew.groupby("case", sort=False), strict=False):
        mark = {"linestyle": "-", "label": textwrap.fill(str(case), 26)}
        style.points(right, line["positions"], line, look, value="ratio", **mark)
    counts = np.array(sorted(anew["positions"].unique()))
    right.plot(counts, (counts + 1) / 2, zorder=1, **style.BOUND)
    right.legend()
    style.log2_positions(right, counts.tolist())
    right.set(xlabel="positions", ylabel="time over that of one trace", ylim=(0, None))
    size = f"T = {beside['T'].max()}, B = {beside['B'].max()}, {beside['positions'].max()} positions on the left"
    return style.finish(figure, _rounds(table), size, "dashed: the pass itself; tokens read, (n + 1)/2 passes")


@style.draws(table="d batch method | n median spread per_second")
def spectrum_rates(table: pd.DataFrame) -> Figure:
    """Spectra per second against the batch, a panel a size, a line a method; NaN where a case was left out."""
    table = table.sort_values("d", kind="stable").assign(size="d = " + table["d"].astype(str))
    labels = {"x": "batch", "y": "spectra per second"}
    figure, parts = style.panels(table, "size", height=1.9, columns=table["d"].nunique(), sharey=False, **labels)
    methods = dict(zip(table["method"].unique(), _LOOKS, strict=False))
    for panel, part in parts:
        for method, look in methods.items():
            line = part[(part["method"] == method) & part["median"].notna()]
            slowest = line["median"] + line["spread"] / 2
            fastest = (line["median"] - line["spread"] / 2).clip(lower=line["median"] / 2)
            ends = line.assign(low=line["batch"] / slowest, high=line["batch"] / fastest)
            style.points(panel, line["batch"], ends, look, value="per_second", linestyle="-", label=method)
        panel.set(xscale="log", yscale="log")
    style.legend(figure, figure.axes[0].get_legend_handles_labels()[0])
    return style.finish(figure, _rounds(table), "bars: interquartile range", "cases of many seconds are left out")


@style.draws(table="axis size | n median spread exponent low high")
def cost_growth(table: pd.DataFrame) -> Figure:
    """Time of a trace with spectra against tokens, layers, heads, with the fitted exponents (low, high: their ends)."""
    figure, parts = style.panels(table, "axis", height=1.7, sharex=False, sharey=False, y="time of a trace (s)")
    for panel, line in parts:
        line, axis = line.sort_values("size"), panel.get_title()
        half = line["spread"] / 2
        ends = line.assign(low=line["median"] - half, high=line["median"] + half)
        style.points(panel, line["size"], ends, _LOOKS[0], value="median", linestyle="-", label="")
        middle = np.exp(np.log(line["median"]).mean() - line["exponent"] * np.log(line["size"]).mean())
        panel.plot(line["size"], middle * line["size"] ** line["exponent"], zorder=1, **style.BOUND)
        fit = line.iloc[0]
        title = rf"$\propto {axis}^{{{fit['exponent']:.2f}}}$ [{fit['low']:.2f}, {fit['high']:.2f}]"
        panel.set(title=title, yscale="log", xlabel=_AXES.get(axis, axis))
        style.log2_positions(panel, line["size"])
    return style.finish(figure, _rounds(table), "bars: interquartile range; dashed: the power law fitted")


@style.draws(table="model what B case | n ratio low high")
def pruned_cost(table: pd.DataFrame, *, left: float, wanted: float) -> Figure:
    """Time of what is pruned over the original's; dashed: the share of heads `left`, the ratio `wanted`, 1."""
    part = table[table["case"] == "pruned"]
    names = part["model"] + ", " + part["what"] + ", B = " + part["B"].astype(str)
    figure, [[panel]] = style.grid(1, 1, height=0.22 * len(part) + 0.5)
    _dots(panel, part, names, "time over the original's", bounds=[left, wanted, 1])
    return style.finish(figure, _rounds(part), f"dashed: {left:.3f} of the heads left, {wanted:g} aimed at, 1")


@style.draws(table="what case | base n ratio low high")
def training_rates(table: pd.DataFrame) -> Figure:
    """Speed over that of transformers' functions, of whole training steps and of the recurrence alone."""
    part = table[table["case"] != table["base"]]
    figure, [[panel]] = style.grid(1, 1, height=0.22 * len(part) + 0.5)
    _dots(panel, part, part["what"] + ", " + part["case"], "speed over transformers'", bounds=[1])
    return style.finish(figure, _rounds(part), "steps: each with the change above it as well; dashed: as fast")


def _dots(panel: Axes, table: pd.DataFrame, names: pd.Series, label: str, *, bounds: list[float | int]) -> None:
    """A dot with its interval for each row, from the top down, its value beside it."""
    places = np.arange(len(table))
    style.points(panel, places, table, _LOOKS[0], value="ratio", width=1.2, listed=True)
    for place, ratio, high in zip(places, table["ratio"], table["high"].fillna(table["ratio"]), strict=True):
        panel.annotate(f"{ratio:.2f}", (high, place), (4, 0), textcoords="offset points", size=6.5, va="center")
    style.listed(panel, names)
    panel.margins(x=0.15)
    panel.set_xlabel(label)
    for bound in bounds:
        panel.axvline(bound, **style.BOUND)


def _rounds(table: pd.DataFrame) -> str:
    return f"medians of {style.span(table['n'].dropna().astype(int))} rounds in one run"


@style.draws(table="model tokens | heads removed_heads total_bytes removed_bytes freed break_even")
def memory(table: pd.DataFrame) -> Figure:
    """Bytes of the whole cache, intact and without the removed states, and the share freed, against context length.

    A line a model, dark to light by the length at which keys and values cost what states do (`break_even`, NaN: none).
    """
    table = table.sort_values(["break_even", "model", "tokens"])
    removed = table["removed_heads"].sum() / table["heads"].sum()
    figure, [[whole, freed]] = style.grid(1, 2, height=2.7, x="context length (tokens)")
    ends = {whole: _lines(whole, table, "total_bytes"), freed: _lines(freed, table, "freed")}
    low, high = np.log2(whole.get_ylim())
    powers = range(5 * int(np.ceil(low / 5)), int(high) + 1, 5)
    whole.set_yticks([2**power for power in powers], [f"{2 ** (power % 10)} {_UNITS[power // 10]}" for power in powers])
    whole.set_ylabel("whole cache of one sequence")
    freed.axhline(removed, zorder=1, **style.BOUND)
    place = {"textcoords": "offset points", "xycoords": freed.get_yaxis_transform()}
    freed.annotate(f"{removed:.1%} of the states", (1, removed), (-2, 3), size=6, color="0.3", ha="right", **place)
    freed.yaxis.set_major_formatter(lambda share, place: f"{100 * share:g}%")
    freed.set(ylim=(None, 1), ylabel="share of the whole cache freed")
    for panel, labels in ends.items():
        panel.minorticks_off()
        style.log2_positions(panel, table["tokens"])
        style.label_right(panel, labels)
    return style.finish(
        figure,
        "from configurations alone",
        f"bands: what goes with {removed:.1%} of the states",
        "circles: keys and values cost as much as states (darker: sooner)",
    )


def _lines(panel: Axes, table: pd.DataFrame, column: str) -> list[tuple[float, str, str]]:
    """A line for each model, a circle where it breaks even; where they end, whose they are, their colours."""
    panel.set_yscale("log")
    ends, shades = [], style.shades(table["model"].nunique(), 0.8)
    for (model, line), shade in zip(table.groupby("model", sort=False), shades, strict=True):
        tokens, even = line["tokens"], line["break_even"].iloc[0]
        panel.plot(tokens, line[column], color=shade, zorder=3)
        if tokens.min() <= even <= tokens.max():
            # Along the line as it is drawn, straight between its points on logarithmic axes.
            height = np.exp(np.interp(np.log(even), np.log(tokens), np.log(line[column])))
            panel.plot(even, height, "o", color=shade, markerfacecolor="white", zorder=4)
        if column == "total_bytes":
            left = line["total_bytes"] - line["removed_bytes"]
            panel.fill_between(tokens, left, line["total_bytes"], color=shade, alpha=0.25, linewidth=0)
        ends.append((float(line[column].iloc[-1]), model, shade))
    return ends
