"""Figures of one number for each pair, layer and head or context and context, as colours."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from srdyn.figures import style

_SHARES = ScalarMappable(Normalize(0, 1), colormaps[style.COLOURMAP].resampled(20))
"""One shade for every twentieth."""


@style.draws(table="model source layer head | rank D")
def head_map(table: pd.DataFrame) -> Figure:
    """Rank as a share of D, layer by head: models across, below them untrained; heads without a rank are hatched."""
    table = table[table["source"].isin([style.MODEL, "untrained"])].sort_values("source", kind="stable")
    height = 0.5 + min(0.15 * table.groupby("model")["layer"].nunique().max(), 4)
    named = table.assign(row=table["source"] + "\nlayer ℓ")
    figure, parts = style.crossed(named, "row", "model", height=height, sharex=False, sharey=False)
    lowest = {}
    for panel, part in parts:
        if part.empty:
            panel.set(frame_on=False, xticks=[], yticks=[])
            continue
        lowest[part["model"].iloc[0]] = panel
        shares = part.assign(share=part["rank"] / part["D"]).pivot(index="layer", columns="head", values="share")
        _heatmap(panel, shares, _SHARES)
    for panel in lowest.values():
        panel.set_xlabel("head h")
    _colourbar(figure, "effective rank r / d", _SHARES)
    heads = table.groupby(["model", "source"]).size()
    return style.finish(figure, f"{style.span(heads)} heads a panel", style.counted(table))


@style.draws(table="model a b | spearman")
def context_matrix(table: pd.DataFrame) -> Figure:
    """Spearman ρ of the heads' ranks in every pair of contexts, a panel a model: colour (below 0 as 0) and number."""
    order = list(dict.fromkeys([*table["a"], *table["b"]]))
    figure, parts = style.panels(table, "model", height=0.9 + 0.165 * len(order))
    for panel, part in parts:
        pairs = part.pivot(index="a", columns="b", values="spearman").reindex(index=order, columns=order).astype(float)
        texts = pairs.map(lambda value: f"{value:.2f}".replace("0.", ".", 1))
        _heatmap(panel, pairs, _SHARES, texts=texts)
        panel.tick_params(axis="x", rotation=90)
    _colourbar(figure, "Spearman ρ of ranks", _SHARES)
    return style.finish(figure, "ρ over all heads of a model; hatched: undefined", style.counted(table))


@style.draws(table="model layer head | residual residual_low residual_high n stratum mechanism_stratum")
def residual_map(table: pd.DataFrame) -> Figure:
    """Rank less rank in the mechanism null, layer by head.

    Blank where the interval holds 0, framed where the stratum is another than in the null.
    """
    table = table.dropna(subset="residual")
    table = table.assign(framed=table["stratum"].astype(str) != table["mechanism_stratum"].astype(str))
    certain = (table["residual_low"] > 0) | (table["residual_high"] < 0)
    table["shown"] = table["residual"].where(certain, 0)
    widest = max(1, np.ceil(table["residual"].abs().max()))
    scale = ScalarMappable(Normalize(-widest, widest), colormaps["PuOr_r"])
    deepest = table.groupby("model")["layer"].nunique().max()
    own = {"sharex": False, "sharey": False, "x": "head h", "y": "layer ℓ"}
    figure, parts = style.panels(table, "model", height=0.6 + min(0.19 * deepest, 5), **own)
    for panel, part in parts:
        values, shown = (part.pivot(index="layer", columns="head", values=name) for name in ("residual", "shown"))
        _heatmap(panel, shown, scale, texts=values.map(lambda value: style.signed(f"{value:.0f}")), line="0.9")
        for head in part[part["framed"]].itertuples():
            place = (values.columns.get_loc(head.head) + 0.06, values.index.get_loc(head.layer) + 0.06)
            panel.add_patch(Rectangle(place, 0.88, 0.88, fill=False, edgecolor="#111111", linewidth=0.8))
    _colourbar(figure, "r less r in the null", scale)
    framed = table.groupby("model", sort=False)["framed"].agg(["sum", "size"])
    counted = ", ".join(f"{row.sum} of {row.size} ({row.Index})" for row in framed.itertuples())
    note = f"framed: another stratum than in the null, {counted}"
    return style.finish(figure, "blank: 95 % interval holds 0", style.counted(table), note)


def _heatmap(
    panel: Axes, values: pd.DataFrame, scale: ScalarMappable, *, texts: pd.DataFrame | None = None, line: str = "white"
) -> None:
    """Values as colours, NaN hatched; with texts on request."""
    labels = {"xlabel": panel.get_xlabel(), "ylabel": panel.get_ylabel()}
    panel.set_facecolor("white")
    panel.patch.set(hatch="//////", edgecolor="0.6")
    low, high = scale.get_clim()
    lines = {"linewidths": 0.3, "linecolor": line}
    text = {"annot": texts, "fmt": "", "annot_kws": {"size": 5}}
    sns.heatmap(values, ax=panel, vmin=low, vmax=high, cmap=scale.cmap, cbar=False, **lines, **text)
    panel.set(**labels)
    panel.tick_params(length=0)
    panel.tick_params(axis="y", rotation=0)


def _colourbar(figure: Figure, label: str, scale: ScalarMappable) -> None:
    """The scale of all panels, once, at the right."""
    bar = figure.colorbar(scale, ax=figure.axes, label=label, aspect=30, fraction=0.03, pad=0.01)
    bar.outline.set_visible(False)
