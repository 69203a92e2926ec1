"""Figures of which rank the heads settle at, and of how many are low or high."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from srdyn import strata
from srdyn.figures import style

_SMALLEST_GROUP = 0.2
"""Share of heads: what each outer group must hold at least, and the middle at most (claim C1)."""
_SIZED = {
    "measured": {"linestyle": "-", "hollow": False},
    "own decays": {"linestyle": ":", "hollow": True},
    "registered": {"linestyle": "", "hollow": True, "markersize": 7},
}
"""How a share is drawn that was measured, that the model's own decays give, that was written down before."""


@style.draws(table="model source layer head position | fork rank low high D stratum")
def trajectories(table: pd.DataFrame) -> Figure:
    """Rank of every head of two layers of each model, the `most` and the `least` forked, against the position.

    Models across, sources down.
    """
    named = table.assign(row=table["fork"] + table["source"])
    labels = {"x": "position t (tokens)", "y": "effective rank r(t)"}
    figure, parts = style.crossed(named, "row", "model", height=1.45, sharex="col", sharey="col", **labels)
    for panel, part in parts:
        _trajectory_panel(panel, part)
        first = part.head(1).to_dict("records")
        panel.set_title("{model}, layer {layer}: {source}".format(**first[0]) if first else "")
    heads = table.groupby(["model", "source"])["head"].nunique()
    return style.finish(
        figure,
        f"a line a head, {style.span(heads)} heads a panel, with 95 % interval",
        style.counted(table),
        "colours: stratum at the last position (heads in it)",
        "of each model's layers the most forked (largest smaller group of low and high heads), then the least",
    )


def _trajectory_panel(panel: Axes, table: pd.DataFrame) -> None:
    if table.empty:
        panel.text(0.5, 0.5, "not measured", transform=panel.transAxes, ha="center", color="0.5")
        return
    d, last = int(table["D"].iloc[0]), table["position"].max()
    t = np.unique([*table["position"], min(d, last)])
    panel.plot(t, np.minimum(t, d), zorder=3, **style.BOUND)
    for _, line in table.dropna(subset="stratum").sort_values("position").groupby("head"):
        colour = style.STRATA[line["stratum"].iloc[-1]].colour
        panel.plot(line["position"], line["rank"], color=colour, linewidth=0.8)
        panel.fill_between(line["position"], line["low"], line["high"], color=colour, alpha=0.25, linewidth=0)
    style.log2_positions(panel, table["position"])
    panel.set_ylim(0, d * 1.08)
    panel.annotate("min(t, d)", (t[t <= d].max() / 2, d / 2), (-4, 2), textcoords="offset points", ha="right", size=6.5)
    ends = table[table["position"] == last].groupby(table["stratum"].astype(object))["rank"].agg(["mean", "size"])
    labels = [(row["mean"], f"{name} ({row['size']:.0f})", style.STRATA[name].colour) for name, row in ends.iterrows()]
    style.label_right(panel, labels)


@style.draws(table="model kind seed source layer head | rank low high D")
def rank_distribution(table: pd.DataFrame) -> Figure:
    """Share of heads whose rank is at most a share of D, by kind of model and null; low and high make a band."""
    figure, parts = style.panels(table, "kind", x="effective rank r / d", y="share of heads with at most r")
    low, high = strata.LOW, strata.HIGH
    for panel, part in parts:
        for source in reversed(style.sources(part)):
            for which, (_, heads) in enumerate(part[part["source"] == source].groupby("seed")):
                _distribution(panel, heads, source, bold=which == 0)
        for threshold in (low, high):
            panel.axvline(threshold, zorder=1, **style.BOUND)
        panel.set(xlim=(-0.02, 1.06), ylim=(0, 1.13), yticks=style.QUARTERS)
        panel.set_xticks([0, low, 0.5, high], ["0", f"{low:g}", "0.5", f"{high:g}"])
        for name, x in zip(style.STRATA, (low / 2, (low + high) / 2, (1.06 + high) / 2), strict=True):
            panel.text(x, 1.07, name, color=style.STRATA[name].colour, ha="center", va="center", size=6)
    style.source_legend(figure, table, "rank")
    heads = table.groupby(["model", "source"])["rank"].count()
    banded = "band: all heads at the ends of their 95 % intervals"
    return style.finish(figure, f"{style.span(heads)} heads a curve", style.counted(table), banded)


def _distribution(panel: Axes, heads: pd.DataFrame, source: str, *, bold: bool) -> None:
    shares = (heads["rank"] / heads["D"]).dropna()
    if shares.empty:
        return
    look, model = style.SOURCES[source], source == style.MODEL
    width, front = (1.6 if bold else 0.8) if model else 1.0, 3 if model else 2
    curve = np.array([[0, *np.sort(shares), 1], [*(np.arange(len(shares) + 1) / len(shares)), 1]])
    panel.step(*curve, where="post", color=look.colour, linewidth=width, zorder=front)
    marked = np.linspace(1, len(shares), 6).round().astype(int)
    panel.plot(*curve[:, marked], look.marker, color=look.colour, zorder=front)
    if model and bold:
        ends = [np.sort((heads[end] / heads["D"]).dropna()) for end in ("low", "high")]
        steps = np.arange(1, len(ends[0]) + 1) / len(ends[0])
        panel.fill_betweenx(steps, *ends, step="pre", color=look.colour, alpha=0.2, linewidth=0)


@style.draws(table=f"model kind seed source split | {style.SHARES}")
def shares(table: pd.DataFrame) -> Figure:
    """Shares of low, middle and high heads by each split, a threshold ("1e-04") or a name, a panel a kind of model."""
    table = table[table["source"] == style.MODEL]
    splits = table["split"].unique()  # thresholds from the largest to the smallest, then the others as they come
    splits = pd.Series(pd.to_numeric(splits, errors="coerce"), splits).sort_values(ascending=False, kind="stable")
    figure, parts = style.panels(table, "kind", x="threshold ε (share of σ₁)", y="share of a layer's heads")
    for panel, part in parts:
        for place, (name, look) in enumerate(style.STRATA.items()):
            for which, (_, rows) in enumerate(part.groupby("seed")):
                rows = rows.set_index("split").reindex(splits.index)
                x = np.arange(len(splits)) + (place - 1) * 0.28 + which * 0.13 - 0.065
                style.points(panel, x, rows, look, value=name, width=0.7, hollow=which > 0, zorder=3)
                line = {"color": look.colour, "linewidth": 0.5, "alpha": 0.6, "zorder": 1}
                panel.plot(x[splits.notna()], rows[name][splits.notna()], **line)
        panel.axhline(_SMALLEST_GROUP, zorder=1, **style.BOUND)
        panel.set_xticks(range(len(splits)), [_split_label(*split) for split in splits.items()])
        panel.set_ylim(-0.03, 1.03)
    handles = [style.handle(name, look, linewidth=0.8) for name, look in style.STRATA.items()]
    for face, seed in zip(["0.3", "white"], sorted(table["seed"].unique()), strict=False):
        handles.append(style.handle(f"seed {seed}", style.Look("0.3", "o"), markerfacecolor=face, linestyle=""))
    style.legend(figure, handles)
    notes = f"dashed: {_SMALLEST_GROUP:g}", "medians over layers", style.HALF_LIFE
    return style.finish(figure, "bars: 95 % interval", style.counted(table), *notes)


def _split_label(split: str, threshold: float) -> str:
    if np.isnan(threshold):
        return split.replace(" ", "\n")
    mantissa, exponent = f"{threshold:e}".split("e")
    return f"$10^{{{int(exponent)}}}$" if float(mantissa) == 1 else split


@style.draws(table=f"model quantity | kind seed D n within {style.SHARES}")
def head_sizes(table: pd.DataFrame, heads: pd.DataFrame) -> Figure:
    """Shares of low, middle and high heads over the size of a head, beside how slowly the heads forget: a row a kind.

    `heads`: kind, D, half_life (tokens) of every head.
    """
    kinds, sizes = list(table["kind"].unique()), sorted(map(int, table["D"].unique()))
    colours = dict(zip(sizes, style.shades(len(sizes), 0.8), strict=True))
    titles = [f"{kind}: {what}" for kind in kinds for what in ("shares of heads", "share of heads that forget faster")]
    figure, axes = style.grid(len(kinds), 2, height=2.0, x="half-life (tokens)", y="share of heads", titles=titles)
    for kind, (left, right) in zip(kinds, axes, strict=True):
        _sized(left, table[table["kind"] == kind], sizes)
        for d, own in heads[heads["kind"] == kind].groupby("D"):
            half_life = np.sort(own["half_life"])
            right.step(half_life, np.arange(1, len(half_life) + 1) / len(half_life), color=colours[d], where="post")
        right.set(xscale="log", ylim=(0, 1.02))
    axes[-1, 0].set_xlabel("dimensions of a head d")
    handles = [style.handle(name, look, linestyle="") for name, look in style.STRATA.items()]
    handles += [style.handle(f"d = {d}", color=colour) for d, colour in colours.items()]
    style.legend(figure, handles)
    return style.finish(
        figure,
        f"{style.span(table['n'])} heads a model; bars: 95 % interval over heads",
        "filled: measured",
        "small, hollow: closed form of the model's own decays",
        "large, hollow: written down before the models of other sizes were trained",
    )


def _sized(panel: Axes, table: pd.DataFrame, sizes: list[int]) -> None:
    moved = style.apart(list(style.STRATA), 0.05)
    for name, look in style.STRATA.items():
        for quantity, mark in _SIZED.items():
            rows = table[table["quantity"] == quantity].sort_values("D")
            at = rows["D"] * 2.0 ** moved[name]
            style.points(panel, at, rows, look, value=name, **mark)
    panel.set_xscale("log", base=2)
    panel.set_xticks(sizes, sizes)
    panel.set(xlim=(min(sizes) / 2**0.2, max(sizes) * 2**0.2), ylim=(-0.02, 1))
