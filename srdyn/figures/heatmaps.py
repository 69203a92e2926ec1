"""Figures of one number for each pair, layer and head or context and context, as colours."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from srdyn.figures import style

_SHADES = colormaps[style.COLOURMAP].resampled(20)
"""One shade for every twentieth."""
_DIVERGING = colormaps["PuOr_r"]


@style.draws("model source layer head", "rank D")
def head_map(table: pd.DataFrame) -> Figure:
    """Rank as a share of D, layer by head: models across, below them untrained; heads without a rank are hatched."""
    table = table[table["source"].isin([style.MODEL, "untrained"])]
    style.require(table, [], key=["model", "source", "layer", "head"])
    height = 0.5 + min(0.15 * table.groupby("model")["layer"].nunique().max(), 4)
    figure, parts = style.crossed(table, "source", "model", height=height, x="head h", sharex=False, sharey=False)
    rows = {panel: f"{panel.get_ylabel()}\nlayer ℓ" for panel, _ in parts if panel.get_ylabel()}
    for panel, part in parts:
        if part.empty:
            panel.set(frame_on=False, xticks=[], yticks=[], xlabel="")
            continue
        shares = part.assign(share=part["rank"] / part["D"]).pivot(index="layer", columns="head", values="share")
        _heatmap(panel, shares, _SHADES, (0.0, 1.0))
    style.outer_labels([panel for panel, _ in parts if panel.collections], x="head h", y="")
    for panel, label in rows.items():
        panel.set_ylabel(label)
    _colourbar(figure, "effective rank r / d", _SHADES, (0.0, 1.0))
    heads = table.groupby(["model", "source"]).size()
    return style.finish(figure, f"{style.span(heads)} heads a panel", style.counted(table))


@style.draws("model a b", "spearman")
def context_matrix(table: pd.DataFrame) -> Figure:
    """Spearman ρ of the heads' ranks in every pair of contexts, a panel a model: colour (below 0 as 0) and number."""
    order = list(dict.fromkeys([*table["a"], *table["b"]]))
    figure, parts = style.panels(table, "model", height=0.9 + 0.165 * len(order))
    for panel, part in parts:
        pairs = part.pivot(index="a", columns="b", values="spearman").reindex(index=order, columns=order).astype(float)
        texts = pairs.map(lambda value: "" if np.isnan(value) else f"{value:.2f}".replace("0.", ".", 1))
        _heatmap(panel, pairs, _SHADES, (0.0, 1.0), texts=texts)
        panel.tick_params(axis="x", rotation=90)
    _colourbar(figure, "Spearman ρ of ranks", _SHADES, (0.0, 1.0))
    return style.finish(figure, "ρ over all heads of a model; hatched: undefined", style.counted(table))


@style.draws("model layer head", "residual residual_low residual_high n stratum mechanism_stratum")
def residual_map(table: pd.DataFrame) -> Figure:
    """Rank less rank in the mechanism null, layer by head: blank where the interval holds 0, framed in another stratum.

    Raises ValueError where no head has a residual.
    """
    table = table.dropna(subset="residual")
    style.require(table, [], key=["model", "layer", "head"])
    table = table.assign(framed=table["stratum"].astype(str) != table["mechanism_stratum"].astype(str))
    widest = max(1, np.ceil(table["residual"].abs().max()))
    deepest = table.groupby("model")["layer"].nunique().max()
    figure, parts = style.panels(table, "model", height=0.6 + min(0.19 * deepest, 5), sharex=False, sharey=False)
    for panel, part in parts:
        _residual_panel(panel, part, widest)
    style.outer_labels(figure.axes, x="head h", y="layer ℓ")
    _colourbar(figure, "r less r in the null", _DIVERGING, (-widest, widest))
    framed = table.groupby("model", sort=False)["framed"].agg(["sum", "size"])
    counted = ", ".join(f"{row.sum} of {row.size} ({row.Index})" for row in framed.itertuples())
    note = f"framed: another stratum than in the null, {counted}"
    return style.finish(figure, "blank: 95 % interval holds 0", style.counted(table), note)


def _residual_panel(panel: Axes, table: pd.DataFrame, widest: float) -> None:
    values, low, high = (
        table.pivot(index="layer", columns="head", values=f"residual{end}") for end in ("", "_low", "_high")
    )
    shown = values.where((low > 0) | (high < 0) | values.isna(), 0)
    texts = values.map(lambda value: "" if np.isnan(value) else style.signed(f"{value:.0f}"))
    _heatmap(panel, shown, _DIVERGING, (-widest, widest), texts=texts, line="0.9")
    for head in table[table["framed"]].itertuples():
        place = (values.columns.get_loc(head.head) + 0.06, values.index.get_loc(head.layer) + 0.06)
        panel.add_patch(Rectangle(place, 0.88, 0.88, fill=False, edgecolor="#111111", linewidth=0.8))


def _heatmap(
    panel: Axes,
    values: pd.DataFrame,
    colours: Colormap,
    limits: tuple[float, float],
    *,
    texts: pd.DataFrame | None = None,
    line: str = "white",
) -> None:
    """Values as colours, NaN hatched; with texts on request."""
    panel.set_facecolor("white")
    panel.patch.set(hatch="//////", edgecolor="0.6")
    sns.heatmap(
        values, ax=panel, vmin=limits[0], vmax=limits[1], cmap=colours, cbar=False, linewidths=0.3, linecolor=line,
        annot=texts, fmt="", annot_kws={"size": 5},
    )  # fmt: skip
    panel.set(xlabel="", ylabel="")
    panel.tick_params(length=0)
    panel.tick_params(axis="y", rotation=0)


def _colourbar(figure: Figure, label: str, colours: Colormap, limits: tuple[float, float]) -> None:
    """The scale of all panels, once, at the right."""
    scale = ScalarMappable(Normalize(*limits), colours)
    bar = figure.colorbar(scale, ax=figure.axes, label=label, aspect=30, fraction=0.03, pad=0.01)
    bar.outline.set_visible(False)
