"""Figures of one number for each pair: layer and head, context and context."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from srdyn.figures import style

SCALE = colormaps[style.COLOURMAP].resampled(20)
"""One shade for every twentieth."""


@style.style()
def head_map(table: pd.DataFrame, *, sources: Sequence[str] = (style.MODEL, "untrained")) -> Figure:
    """Rank as a share of D, layer by head: models across, `null_tables` down. Heads without a rank are hatched.

    Columns: model, source, layer, head, rank, D. Rows of other sources are left out. Raises ValueError for missing
    columns, several rows of one head, or a table without these sources.
    """
    if "source" in table:
        table = table[table["source"].isin(sources)]
    style.require(table, ["model", "source", "layer", "head", "rank", "D"], key=["model", "source", "layer", "head"])
    names, present = list(table["model"].unique()), style.sources(table)
    deepest = table.groupby("model")["layer"].nunique().max()
    figure, axes = style.grid(len(present), len(names), height=0.5 + min(0.15 * deepest, 4))
    for (row, column), panel in np.ndenumerate(axes):
        part = table[(table["model"] == names[column]) & (table["source"] == present[row])]
        if part.empty:
            panel.set(frame_on=False, xticks=[], yticks=[])
            continue
        shares = part.assign(share=part["rank"] / part["D"]).pivot(index="layer", columns="head", values="share")
        _heatmap(panel, shares)
    style.outer_labels([panel for panel in axes.flat if panel.collections], x="head h", y="")
    for row, source in enumerate(present):
        axes[row, 0].set_ylabel(f"{source}\nlayer ℓ")
    for column, name in enumerate(names):
        axes[0, column].set_title(name)
    _colourbar(figure, list(axes.flat), "effective rank r / d")
    heads = table.groupby(["model", "source"]).size()
    return style.finish(figure, f"{style.span(heads)} heads a panel", style.counted(table))


@style.style()
def context_matrix(table: pd.DataFrame) -> Figure:
    """Spearman ρ of the heads' ranks in every pair of contexts, for each model, as colour and number; NaN is hatched.

    Columns: model, a, b, spearman; contexts keep the order in which they appear in a. A negative ρ has the colour of 0.
    Raises ValueError for missing columns or several rows of one pair.
    """
    style.require(table, ["model", "a", "b", "spearman"], key=["model", "a", "b"])
    order = list(table["a"].unique())
    order += [name for name in table["b"].unique() if name not in order]
    figure, axes = style.panels(table["model"], height=0.9 + 0.165 * len(order), sharex=True, sharey=True)
    for model, panel in axes.items():
        pairs = table[table["model"] == model].pivot(index="a", columns="b", values="spearman")
        _heatmap(panel, pairs.reindex(index=order, columns=order).astype(float), annotate=True)
        panel.tick_params(axis="x", rotation=90)
    _colourbar(figure, list(axes.values()), "Spearman ρ of ranks")
    return style.finish(figure, "ρ over all heads of a model; hatched: undefined", style.counted(table))


def _heatmap(panel: Axes, values: pd.DataFrame, *, annotate: bool = False) -> None:
    """Values in 0 … 1 as colours, NaN hatched; with two decimals on request."""
    texts = values.map(lambda value: "" if np.isnan(value) else f"{value:.2f}".replace("0.", ".", 1))
    panel.set_facecolor("white")
    panel.patch.set(hatch="//////", edgecolor="0.6")
    sns.heatmap(
        values, ax=panel, vmin=0, vmax=1, cmap=SCALE, cbar=False, linewidths=0.3, linecolor="white",
        annot=texts if annotate else None, fmt="", annot_kws={"size": 5},
    )  # fmt: skip
    panel.set(xlabel="", ylabel="")
    panel.tick_params(length=0)
    panel.tick_params(axis="y", rotation=0)


def _colourbar(figure: Figure, axes: Sequence[Axes], label: str) -> None:
    """The scale 0 … 1 of `heatmap`, once, at the right."""
    scale = ScalarMappable(Normalize(0, 1), SCALE)
    bar = figure.colorbar(scale, ax=axes, label=label, aspect=30, fraction=0.03, pad=0.01)
    bar.outline.set_visible(False)
