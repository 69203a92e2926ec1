"""Figures of what the heads' ranks owe to decay, to training, and to the precision of their states."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from srdyn import spectra, strata
from srdyn.figures import style

_NULL = style.SOURCES["mechanism"]
_CLOSED = {"color": "#111111", "linewidth": 0.9, "linestyle": (0, (1, 1.2))}
"""The closed-form prediction, in every figure of this module."""
_LEAST = -0.3
"""Where the axis of R² begins: what lies further left is worse than the mean of all heads, however far."""
_QUANTITIES = (
    {"color": "#111111", "marker": "o", "markerfacecolor": "#111111"},
    {"color": "#111111", "marker": "o", "markerfacecolor": "white"},
    {"color": "0.5", "marker": "x"},
)
"""R² between heads, R² within heads, order."""
_REPRODUCIBLE = {"color": "0.5", "marker": "|", "markersize": 7, "linestyle": ""}
_ROUNDED = {"same stratum": style.Look("0.6", "o"), "another stratum": style.Look("#111111", "D")}
_SHOWN = ("low", "high")
_LINES = {
    style.MODEL: {"linewidth": 1.3, "linestyle": "-"},
    "mechanism": {"linewidth": 0.8, "linestyle": (0, (4, 2)), "markerfacecolor": "white"},
    "closed form": {"linewidth": 0.8, "linestyle": (0, (1, 1.2)), "markerfacecolor": "white"},
}


@style.draws(table="model layer head | rank low high D half_life stratum mechanism")
def rank_against_decay(table: pd.DataFrame, *, eps: float = spectra.EPS) -> Figure:
    """Every head's rank against its half-life (tokens), beside its rank in the `mechanism` null and the closed form."""
    figure, parts = style.panels(table, "model", height=2.1, x="half-life ln 2/(−g) (tokens)", y="effective rank r")
    ends = np.log10(table["half_life"].agg(["min", "max"])) + [-0.15, 0.15]
    t = np.logspace(*ends, 200)
    for panel, part in parts:
        d = part["D"].max()
        panel.plot(t, np.minimum(d, t * np.log(1 / eps) / np.log(2)), zorder=1, **_CLOSED)
        panel.plot(part["half_life"], part["mechanism"], _NULL.marker, color=_NULL.colour, markerfacecolor="white")
        for name, look in style.STRATA.items():
            rows, mark = part[part["stratum"] == name], {"front": 3, "markersize": 3, "zorder": 3}
            style.points(panel, rows["half_life"], rows, look, value="rank", width=0.7, **mark)
        panel.set(xscale="log", ylim=(0, 1.06 * d))
    handles = [style.handle(f"{name} (model)", look, linestyle="") for name, look in style.STRATA.items()]
    handles.append(style.handle("random writes", _NULL, markerfacecolor="white", linestyle=""))
    style.legend(figure, [*handles, style.handle("min(d, ln(1/ε)/(−g))", **_CLOSED)])
    heads = table.groupby("model").size()
    told = "g: mean over a head's channels where they decay apart"
    return style.finish(figure, f"{style.span(heads)} heads a panel, with 95 % interval", told, style.counted(table))


@style.draws(table="model predictor quantity | estimate low high variance reproducible")
def explained_variance(table: pd.DataFrame) -> Figure:
    """R² (those far below 0 at the left edge) and Spearman ρ of each predictor of the heads' ranks, a panel a model."""
    predictors = list(table["predictor"].unique())
    looks = dict(zip(table["quantity"].unique(), _QUANTITIES, strict=True))
    figure, parts = style.panels(table, "model", height=1.75, x="R² or ρ")
    for panel, part in parts:
        scores(panel, part, predictors, looks, least=_LEAST)
        panel.axvline(0, color="0.85", linewidth=0.7, zorder=0)
        panel.set_xlim(_LEAST, 1.04)
    handles = [style.handle(quantity, linewidth=0.8, **look) for quantity, look in looks.items()]
    style.legend(figure, [*handles, style.handle("reproducible", **_REPRODUCIBLE)])
    noted = table.dropna(subset="variance").groupby("quantity", sort=False)["variance"]
    shares = ", ".join(f"{name} {style.span((100 * part).round(1))} %" for name, part in noted).replace("R² ", "")
    note = "reproducible: the share of it that is no noise of the samples"
    return style.finish(figure, "bars: 95 % interval", style.counted(table), f"share of the variance: {shares}", note)


def scores(
    panel: Axes, table: pd.DataFrame, predictors: list[str], looks: dict[str, dict], *, least: float = -np.inf
) -> None:
    """A row for each predictor, in it a point with its bar for each quantity; the number of one below `least`."""
    for quantity, aside in style.apart(list(looks), 0.13 * (len(looks) - 1)).items():
        rows, look = table[table["quantity"] == quantity].set_index("predictor").reindex(predictors), looks[quantity]
        places = np.arange(len(predictors)) + aside
        panel.hlines(places, rows["low"].clip(lower=least), rows["high"], color=look["color"], linewidth=0.8)
        panel.plot(rows["estimate"], places, linestyle="", zorder=3, **look)
        if "reproducible" in rows:
            panel.plot(rows["reproducible"], places, zorder=1, **_REPRODUCIBLE)
        for place, estimate in zip(places, rows["estimate"], strict=True):
            if estimate < least:
                told = f" ◂ {style.signed(f'{estimate:.2f}')}"
                panel.text(least, place, told, color=look["color"], size=6, va="center")
    style.listed(panel, predictors)


@style.draws(table="model layer head precision | rank low high D exact moved")
def rounded_ranks(table: pd.DataFrame, fork: pd.DataFrame) -> Figure:
    """Rank of every head in each precision against its `exact` one in float64: models across, precisions down.

    `moved` says whether the stratum is another. `fork`: precision, measure, moved (whether C1 is decided otherwise).
    """
    rounded = table[table["precision"] != "float64"]
    labels = {"x": "effective rank r in float64", "y": "r as read"}
    figure, parts = style.crossed(rounded, "precision", "model", height=1.6, sharey=True, **labels)
    for panel, part in parts:
        top = style.equal_ranks(panel, part["D"])
        for share in (strata.LOW, strata.HIGH):
            panel.axhline(share * top, zorder=1, **style.BOUND)
            panel.axvline(share * top, zorder=1, **style.BOUND)
        for moved, look in enumerate(_ROUNDED.values()):
            rows = part[part["moved"] == bool(moved)]
            style.points(panel, rows["exact"], rows, look, value="rank", width=0.6, markersize=2.5, zorder=3)
        told = f"{part['moved'].sum()} of {len(part)} move"
        panel.annotate(told, (0.57, 0), (0, 3), "axes fraction", "offset points", ha="center", size=6.5)
    handles = [style.handle(name, look, linestyle="") for name, look in _ROUNDED.items()]
    style.legend(figure, [*handles, style.handle("strata", **style.BOUND)])
    moved = fork.groupby("precision")["moved"].agg(["sum", "size"]).loc[rounded["precision"].unique()]
    outcomes = ", ".join(f"{row.sum} of {row.size} ({row.Index})" for row in moved.itertuples())
    note = f"C1 measures whose rule is decided otherwise than in float64: {outcomes}"
    return style.finish(figure, "with 95 % interval", style.counted(table), "dotted: equal ranks", note)


@style.draws(table=f"model ranks_of eps | {style.SHARES}")
def threshold_sweep(table: pd.DataFrame) -> Figure:
    """Shares of low and high heads against ε, a panel a model: the model, the mechanism null, the closed form."""
    figure, parts = style.panels(table, "model", x="threshold ε (share of σ₁)", y="share of heads")
    sources = list(table["ranks_of"].unique())
    for panel, part in parts:
        for name in _SHOWN:
            for place, source in enumerate(sources):
                rows = part[part["ranks_of"] == source].sort_values("eps")
                x, mark = rows["eps"] * 10 ** (0.09 * (place - 1)), {"markersize": 3, **_LINES[source]}
                style.points(panel, x, rows, style.STRATA[name], value=name, width=0.7, **mark)
        panel.set(xscale="log", xticks=sorted(table["eps"].unique()), ylim=(-0.03, 1.03), yticks=style.QUARTERS)
    figure.axes[0].invert_xaxis()
    strata = [style.handle(name, style.STRATA[name], linestyle="") for name in _SHOWN]
    lines = [style.handle(name, color="0.3", **_LINES[name]) for name in sources]
    style.legend(figure, strata + lines)
    return style.finish(figure, "bars: 95 % interval", style.counted(table), "the rest of the heads is in the middle")


@style.draws(table=f"model split | kappa kappa_lo kappa_hi {style.SHARES}")
def head_splits(table: pd.DataFrame) -> Figure:
    """Shares of low, middle and high heads by each split, a panel a model, with its agreement κ with that by rank."""
    order = list(table["split"].unique())
    figure, parts = style.panels(table, "model", height=0.5 + 0.28 * len(order), x="share of heads")
    for panel, part in parts:
        _stacked(panel, part.set_index("split").reindex(order))
        style.listed(panel, order)
    blocks = {"marker": "s", "markersize": 6, "linestyle": ""}
    style.legend(figure, [style.handle(name, color=look.colour, **blocks) for name, look in style.STRATA.items()])
    kappa = "κ: agreement with the split by rank, heads one by one"
    return style.finish(figure, "bars, brackets: 95 % interval", style.counted(table), style.HALF_LIFE, kappa)


def _stacked(panel: Axes, rows: pd.DataFrame) -> None:
    places, start = np.arange(len(rows)), np.zeros(len(rows))
    for name, look in style.STRATA.items():
        bars = panel.barh(places, rows[name], left=start, height=0.62, color=look.colour, linewidth=0)
        told = [_short(share) if share >= 0.12 else "" for share in rows[name]]
        panel.bar_label(bars, told, label_type="center", color="#111111" if name == "high" else "white", size=6)
        start = start + rows[name].to_numpy()
    for low, high in ((rows["low_lo"], rows["low_hi"]), (1 - rows["high_hi"], 1 - rows["high_lo"])):
        panel.hlines(places + 0.22, low, high, color="white", linewidth=2.2)
        panel.hlines(places + 0.22, low, high, color="#111111", linewidth=0.9)
    for place, row in zip(places, rows.itertuples(), strict=True):
        if row.kappa_lo == 1:
            continue
        text = f"κ {_short(row.kappa)}\n({_short(row.kappa_lo)}–{_short(row.kappa_hi)})"
        panel.annotate(text, (1, place), (2, 0), "data", "offset points", size=5.5, va="center", annotation_clip=False)
    panel.set(xlim=(0, 1), xticks=style.QUARTERS, xticklabels=["0", "0.25", "0.5", "0.75", "1"])


def _short(share: float) -> str:
    return style.signed(f"{share:.2f}".replace("0.", ".", 1))
