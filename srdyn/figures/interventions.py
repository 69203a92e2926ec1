"""Figures of what models lose with some of their heads: by dose, against random heads, head by head, by window."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from srdyn.figures import style

ARMS = {
    "intact": style.Look("#111111", "_"),
    "high": style.STRATA["high"],
    "low": style.STRATA["low"],
    "random": style.Look("#8C8C8C", "D"),
    "decay-matched": style.Look("#C28BC0", "s"),
}
TITLES = {"intact": "intact", "high": "highest rank removed", "low": "lowest rank removed"}
TITLES |= {"random": "random heads removed", "decay-matched": "others with the decays of the highest"}
MARK = {"color": "0.7", "linestyle": ":", "linewidth": 0.8}
ROW = 0.17
"""Inches: the height of a probe in a list of contrasts."""


@style.style()
def doses(table: pd.DataFrame, *, marked: float) -> Figure:
    """What is answered against the share of heads removed: quantities down, models across, a line for each arm.

    Columns: model, arm, share, panel (what a row of panels shows, with its unit), estimate, low, high. A dotted line
    marks one share. Raises ValueError for missing columns or repeated rows.
    """
    key = ["model", "panel", "arm", "share"]
    style.require(table, [*key, "estimate", "low", "high"], key=key)
    models, rows = list(table["model"].unique()), list(table["panel"].unique())
    figure, axes = style.grid(len(rows), len(models), height=1.25, sharex=True, sharey="row")
    for (row, column), panel in np.ndenumerate(axes):
        panel.axvline(marked, zorder=0, **MARK)
        _dose_panel(panel, table[(table["panel"] == rows[row]) & (table["model"] == models[column])])
    style.label_grid(axes, columns=models, rows=rows, x="share of heads removed")
    style.legend(figure, arm_handles(table["arm"]))
    return style.finish(figure, "bars: 95 % interval over rows and draws", f"dotted: {marked:.1%}", _sizes(table))


def arm_handles(arms: pd.Series) -> list[Line2D]:
    """The legend of the arms that occur."""
    drawn = {name: {"color": look.colour, "marker": look.marker} for name, look in ARMS.items() if name in set(arms)}
    if "intact" in drawn:
        drawn["intact"] = style.BOUND
    return [Line2D([], [], label=TITLES[name], **look) for name, look in drawn.items()]


def _dose_panel(panel: Axes, table: pd.DataFrame) -> None:
    for intact in table.loc[table["arm"] == "intact", "estimate"]:
        panel.axhline(intact, zorder=1, **style.BOUND)
    shifts = dict(zip(ARMS, np.linspace(-0.012, 0.012, len(ARMS)), strict=True))
    for arm, line in table[table["arm"] != "intact"].groupby("arm", sort=False):
        look, line = ARMS[arm], line.sort_values("share")
        x = line["share"] + shifts[arm]
        panel.vlines(x, line["low"], line["high"], color=look.colour, linewidth=0.8, zorder=2)
        panel.plot(x, line["estimate"], look.marker, color=look.colour, linestyle="-", linewidth=0.9, zorder=3)


@style.style()
def contrasts(table: pd.DataFrame, *, unit: str, better: str = "right") -> Figure:
    """What removing high-rank and low-rank heads costs beyond as many random heads: probes down, a panel a model.

    Columns: model, probe, arm, difference, low, high (in `unit`), testable. `better` is the side of 0 where removing
    the group costs less than removing random heads: right for accuracy, left for bits. Raises ValueError for missing
    columns or repeated rows.
    """
    key = ["model", "probe", "arm"]
    style.require(table, [*key, "difference", "low", "high", "testable"], key=key)
    probes = list(table["probe"].unique())
    height = ROW * len(probes) * table["arm"].nunique() * 0.62 + 0.35
    figure, axes = style.panels(table["model"], height=height, sharex=True, sharey=True)
    arms = [arm for arm in ARMS if arm in set(table["arm"])]
    places = dict(zip(arms, np.linspace(-0.25, 0.25, len(arms)) if len(arms) > 1 else [0.0], strict=True))
    for model, panel in axes.items():
        panel.axvline(0, zorder=1, **style.BOUND)
        for row in table[table["model"] == model].itertuples():
            _contrast(panel, probes.index(row.probe) + places[row.arm], row)
        panel.set_yticks(range(len(probes)), probes)
        panel.set_ylim(len(probes) - 0.5, -0.5)
        panel.tick_params(axis="y", length=0)
    style.outer_labels(list(axes.values()), x=f"difference to random heads\n({unit})", y="")
    style.legend(figure, arm_handles(table["arm"]))
    note = f"bars: 95 % interval over rows and draws; {better} of the dashed line: better than random heads removed"
    hollow = "hollow: the intact model is below 90 %, no verdict" if not table["testable"].all() else ""
    return style.finish(figure, note, hollow, _sizes(table))


def _contrast(panel: Axes, y: float, row: tuple) -> None:
    look = ARMS[row.arm]
    face = look.colour if row.testable else "white"
    panel.hlines(y, row.low, row.high, color=look.colour, linewidth=0.9, zorder=2)
    panel.plot(row.difference, y, look.marker, color=look.colour, markerfacecolor=face, markersize=3.2, zorder=3)


@style.style()
def single_heads(table: pd.DataFrame) -> Figure:
    """What removing one head costs against its effective rank: probes down, models across, dark to light by layer.

    Columns: model, layer, head, probe, rank, damage, D. Raises ValueError for missing columns or repeated rows.
    """
    key = ["model", "probe", "layer", "head"]
    style.require(table, [*key, "rank", "damage", "D"], key=key)
    models, rows = list(table["model"].unique()), list(table["probe"].unique())
    figure, axes = style.grid(len(rows), len(models), height=1.4, sharex=True, sharey="row")
    for (row, column), panel in np.ndenumerate(axes):
        part = table[(table["probe"] == rows[row]) & (table["model"] == models[column])]
        panel.scatter(part["rank"], part["damage"], c=part["layer"], cmap=style.COLOURMAP, s=9, linewidth=0, zorder=2)
        panel.axhline(0, zorder=1, **style.BOUND)
        panel.set_yscale("symlog", linthresh=0.01)
    style.label_grid(axes, columns=models, rows=rows, x="effective rank r (calibration)")
    heads = table.groupby("model")[["layer", "head"]].apply(lambda t: len(t.drop_duplicates()))
    return style.finish(figure, f"{style.span(heads)} heads a model", "dark to light: first to last layer")


@style.style()
def coefficients(table: pd.DataFrame) -> Figure:
    """Standardised regression coefficients of single-head damage: predictors down, a panel a model, probes by marker.

    Columns: model, probe, predictor, coefficient, low, high. Raises ValueError for missing columns, repeated rows or
    more than four probes.
    """
    key = ["model", "probe", "predictor"]
    style.require(table, [*key, "coefficient", "low", "high"], key=key)
    predictors, probes = list(table["predictor"].unique()), list(table["probe"].unique())
    figure, axes = style.panels(table["model"], height=0.3 * len(predictors) + 0.3, sharex=True, sharey=True)
    looks = dict(zip(probes, [*ARMS.values()][1:], strict=False))
    if len(looks) < len(probes):
        raise ValueError(f"at most {len(looks)} probes can be told apart, got {', '.join(probes)}; select some")
    places = dict(zip(probes, np.linspace(-0.2, 0.2, len(probes)) if len(probes) > 1 else [0.0], strict=True))
    for model, panel in axes.items():
        panel.axvline(0, zorder=1, **style.BOUND)
        for row in table[table["model"] == model].itertuples():
            y, look = predictors.index(row.predictor) + places[row.probe], looks[row.probe]
            panel.hlines(y, row.low, row.high, color=look.colour, linewidth=0.9, zorder=2)
            panel.plot(row.coefficient, y, look.marker, color=look.colour, markersize=3.2, zorder=3)
        panel.set_yticks(range(len(predictors)), predictors)
        panel.set_ylim(len(predictors) - 0.5, -0.5)
    style.outer_labels(list(axes.values()), x="coefficient (ranks, standardised)", y="")
    handles = [Line2D([], [], color=k.colour, marker=k.marker, label=name) for name, k in looks.items()]
    style.legend(figure, handles)
    return style.finish(figure, "bars: 95 % interval, heads resampled", "positive: more of it, more damage")


@style.style()
def windows(table: pd.DataFrame) -> Figure:
    """How much more an arm costs when softmax attention sees the last w tokens only: probes across, a line an arm.

    Columns: probe, arm, window, interaction, low, high (nats). Raises ValueError for missing columns or repeated rows.
    """
    key = ["probe", "arm", "window"]
    style.require(table, [*key, "interaction", "low", "high"], key=key)
    figure, axes = style.panels(table["probe"], height=1.9, sharex=True)
    sizes = sorted(table["window"].unique())
    for name, panel in axes.items():
        panel.axhline(0, zorder=1, **style.BOUND)
        for arm, line in table[table["probe"] == name].groupby("arm", sort=False):
            look, line = ARMS[arm], line.sort_values("window")
            x = np.array([sizes.index(size) for size in line["window"]]) + 0.03 * (list(ARMS).index(arm) - 2)
            panel.vlines(x, line["low"], line["high"], color=look.colour, linewidth=0.8)
            panel.plot(x, line["interaction"], look.marker, color=look.colour, linestyle="-", linewidth=0.9)
        panel.set_xticks(range(len(sizes)), [f"{size}" for size in sizes])
        panel.set_xlim(-0.5, len(sizes) - 0.5)
    style.outer_labels(list(axes.values()), x="softmax window w (tokens)", y="arm × window\n(nats)")
    style.legend(figure, arm_handles(table["arm"]))
    note = "bars: 95 % interval over rows and draws; above 0: the missing heads cost more when softmax cannot look back"
    return style.finish(figure, note, _sizes(table))


@style.style()
def truncations(table: pd.DataFrame) -> Figure:
    """What is answered against the rank that states are cut to: quantities down, models across, a line for each set.

    Columns: model, panel, heads (whose states are cut), rank (0: the heads are removed), estimate, low, high, intact
    (the estimate without any cut). Raises ValueError for missing columns or repeated rows.
    """
    key = ["model", "panel", "heads", "rank"]
    style.require(table, [*key, "estimate", "low", "high", "intact"], key=key)
    models, rows, sets = (list(table[name].unique()) for name in ("model", "panel", "heads"))
    figure, axes = style.grid(len(rows), len(models), height=1.25, sharex=True, sharey="row")
    ranks = sorted(table["rank"].unique())
    looks = dict(zip(sets, [style.Look("#111111", "o"), style.STRATA["high"], style.STRATA["low"]], strict=False))
    for (row, column), panel in np.ndenumerate(axes):
        part = table[(table["panel"] == rows[row]) & (table["model"] == models[column])]
        panel.axhline(part["intact"].iloc[0], zorder=1, **style.BOUND)
        for name, line in part.groupby("heads", sort=False):
            x = np.array([ranks.index(rank) for rank in line["rank"]]) + 0.08 * (sets.index(name) - 1)
            panel.vlines(x, line["low"], line["high"], color=looks[name].colour, linewidth=0.8)
            panel.plot(x, line["estimate"], looks[name].marker, color=looks[name].colour, linestyle="-", linewidth=0.9)
        panel.set_xticks(range(len(ranks)), ["removed" if rank == 0 else f"{rank}" for rank in ranks])
    style.label_grid(axes, columns=models, rows=rows, x="rank that the states are cut to")
    style.legend(figure, [Line2D([], [], color=k.colour, marker=k.marker, label=name) for name, k in looks.items()])
    return style.finish(figure, "bars: 95 % interval over rows; dashed: nothing is cut", TOLD, _sizes(table))


TOLD = "tasks: share of items right; text: bits per byte"


def _sizes(table: pd.DataFrame) -> str:
    """`n = 200–431 items`, where the table says n."""
    return f"n = {style.span(table['n'].astype(int))} items" if "n" in table else ""
