"""Figures of what the heads' ranks owe to decay, to training, and to the precision of their states."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from srdyn import spectra, strata
from srdyn.figures import style

NULL = style.SOURCES["mechanism"]
CLOSED = {"color": "#111111", "linewidth": 0.9, "linestyle": (0, (1, 1.2))}
"""The closed-form prediction, in every figure of this module."""
LEAST = -0.3
"""Where the axis of R² begins: what lies further left is worse than the mean of all heads, however far."""
QUANTITIES = (
    {"color": "#111111", "marker": "o", "markerfacecolor": "#111111"},
    {"color": "#111111", "marker": "o", "markerfacecolor": "white"},
    {"color": "0.5", "marker": "x"},
)
"""R² between heads, R² within heads, order."""
REPRODUCIBLE = {"color": "0.5", "marker": "|", "markersize": 7, "linestyle": ""}
HEAD = ["model", "layer", "head"]
DIVERGING = colormaps["PuOr_r"]
MOVED = "#111111"
SHOWN = ("low", "high")
LINES = {
    style.MODEL: {"linewidth": 1.3, "linestyle": "-"},
    "mechanism": {"linewidth": 0.8, "linestyle": (0, (4, 2)), "markerfacecolor": "white"},
    "closed form": {"linewidth": 0.8, "linestyle": (0, (1, 1.2)), "markerfacecolor": "white"},
}


@style.style()
def rank_against_decay(table: pd.DataFrame, *, eps: float = spectra.EPS) -> Figure:
    """Every head's rank against the half-life of what it holds, beside the mechanism null and the closed form.

    Columns: model, layer, head, rank, low, high, D, half_life (tokens), stratum, mechanism (the null's rank, NaN where
    there is none). Raises ValueError for missing columns or several rows of one head.
    """
    style.require(table, [*HEAD, "rank", "low", "high", "D", "half_life", "stratum", "mechanism"], key=HEAD)
    figure, axes = style.panels(table["model"], height=2.1, sharex=True, sharey=True)
    ends = np.log10(table["half_life"].agg(["min", "max"])) + [-0.15, 0.15]
    t = np.logspace(*ends, 200)
    for model, panel in axes.items():
        part = table[table["model"] == model]
        d = part["D"].max()
        panel.plot(t, np.minimum(d, t * np.log(1 / eps) / np.log(2)), zorder=1, **CLOSED)
        panel.plot(
            part["half_life"], part["mechanism"], NULL.marker, color=NULL.colour, markerfacecolor="white", zorder=2
        )
        for name, look in style.STRATA.items():
            rows = part[part["stratum"] == name]
            panel.vlines(rows["half_life"], rows["low"], rows["high"], color=look.colour, linewidth=0.7, zorder=3)
            panel.plot(rows["half_life"], rows["rank"], look.marker, color=look.colour, markersize=3, zorder=3)
        panel.set_xscale("log")
        panel.set_ylim(0, 1.06 * d)
    style.outer_labels(list(axes.values()), x="half-life ln 2/(−g) (tokens)", y="effective rank r")
    handles = [
        Line2D([], [], color=look.colour, marker=look.marker, linestyle="", label=f"{name} (model)")
        for name, look in style.STRATA.items()
    ]
    null = Line2D([], [], color=NULL.colour, marker=NULL.marker, markerfacecolor="white", linestyle="")
    null.set_label("mechanism null")
    style.legend(figure, [*handles, null, Line2D([], [], label="min(d, ln(1/ε)/(−g))", **CLOSED)])
    heads = table.groupby("model").size()
    told = "g: mean over a head's channels where they decay apart"
    return style.finish(figure, f"{style.span(heads)} heads a panel, with 95 % interval", told, style.counted(table))


@style.style()
def explained_variance(table: pd.DataFrame) -> Figure:
    """R² and Spearman ρ of each predictor of the heads' ranks, a panel for each model.

    Columns: model, predictor, quantity, estimate, low, high, variance, reproducible (the last two NaN for an order). An
    R² so far below zero that it would leave the panel is written at its left edge. Raises ValueError for missing
    columns or repeated rows.
    """
    columns = ["model", "predictor", "quantity", "estimate", "low", "high", "variance", "reproducible"]
    style.require(table, columns, key=columns[:3])
    predictors = list(table["predictor"].unique())
    looks = dict(zip(table["quantity"].unique(), QUANTITIES, strict=True))
    figure, axes = style.panels(table["model"], height=1.75, sharex=True, sharey=True)
    for model, panel in axes.items():
        part = table[table["model"] == model]
        for place, (quantity, look) in enumerate(looks.items()):
            rows = part[part["quantity"] == quantity].set_index("predictor").reindex(predictors)
            _scores(panel, rows, np.arange(len(predictors)) + (place - 1) * 0.26, look)
        panel.axvline(0, color="0.85", linewidth=0.7, zorder=0)
        panel.set_xlim(LEAST, 1.04)
        panel.set_yticks(range(len(predictors)), predictors)
        panel.set_ylim(len(predictors) - 0.5, -0.5)
        panel.tick_params(axis="y", length=0)
    style.outer_labels(list(axes.values()), x="R² or ρ", y="")
    handles = [Line2D([], [], label=quantity, linewidth=0.8, **look) for quantity, look in looks.items()]
    style.legend(figure, [*handles, Line2D([], [], label="reproducible", **REPRODUCIBLE)])
    noted = table.dropna(subset="variance").drop_duplicates(["model", "quantity"])
    parts = [f"{name} {_percent(rows['variance'])}" for name, rows in noted.groupby("quantity", sort=False)]
    return style.finish(
        figure,
        "bars: 95 % interval",
        style.counted(table),
        f"share of the variance: {', '.join(parts)}".replace("R² ", ""),
        "reproducible: the share of it that is no noise of the samples",
    )


def _percent(shares: pd.Series) -> str:
    low, high = (f"{100 * share:.1f}" for share in (shares.min(), shares.max()))
    return f"{low} %" if low == high else f"{low}–{high} %"


def _scores(panel: Axes, rows: pd.DataFrame, places: np.ndarray, look: dict[str, str]) -> None:
    panel.hlines(places, rows["low"].clip(lower=LEAST), rows["high"], color=look["color"], linewidth=0.8)
    panel.plot(rows["reproducible"], places, zorder=1, **REPRODUCIBLE)
    panel.plot(rows["estimate"], places, linestyle="", zorder=3, **look)
    for place, estimate in zip(places, rows["estimate"], strict=True):
        if estimate < LEAST:
            panel.text(LEAST, place, f" ◂ {_signed(f'{estimate:.2f}')}", color=look["color"], size=6, va="center")


def _signed(number: str) -> str:
    """With a minus sign, and none before a zero."""
    return number.strip("-") if float(number) == 0 else number.replace("-", "−")


@style.style()
def residual_map(table: pd.DataFrame) -> Figure:
    """Rank less rank in the mechanism null, layer by head, as colour and number: models across.

    Columns: model, layer, head, residual, residual_low, residual_high, n, stratum, mechanism_stratum. Heads whose
    interval holds 0 are left blank but for their number; where the null lies in another stratum the number is framed.
    Raises ValueError for missing columns, several rows of one head, or no residual at all.
    """
    columns = ["residual", "residual_low", "residual_high", "n", "stratum", "mechanism_stratum"]
    style.require(table, [*HEAD, *columns], key=HEAD)
    table = table.dropna(subset="residual")
    table = table.assign(framed=table["stratum"].astype(str) != table["mechanism_stratum"].astype(str))
    style.require(table, HEAD, key=HEAD)
    widest = max(1, np.ceil(table["residual"].abs().max()))
    deepest = table.groupby("model")["layer"].nunique().max()
    figure, axes = style.panels(table["model"], height=0.6 + min(0.19 * deepest, 5))
    for model, panel in axes.items():
        _residual_panel(panel, table[table["model"] == model], widest)
    style.outer_labels(list(axes.values()), x="head h", y="layer ℓ")
    scale = ScalarMappable(Normalize(-widest, widest), DIVERGING)
    bar = figure.colorbar(
        scale, ax=list(axes.values()), label="r less r in the null", aspect=30, fraction=0.03, pad=0.01
    )
    bar.outline.set_visible(False)
    framed = table.groupby("model", sort=False)["framed"].agg(["sum", "size"])
    counted = ", ".join(f"{row.sum} of {row.size} ({row.Index})" for row in framed.itertuples())
    note = f"framed: another stratum than in the null, {counted}"
    return style.finish(figure, "blank: 95 % interval holds 0", style.counted(table), note)


def _whole(value: float) -> str:
    return "" if np.isnan(value) else _signed(f"{value:.0f}")


def _residual_panel(panel: Axes, table: pd.DataFrame, widest: float) -> None:
    values, low, high = (
        table.pivot(index="layer", columns="head", values=f"residual{end}") for end in ("", "_low", "_high")
    )
    panel.set_facecolor("white")
    panel.patch.set(hatch="//////", edgecolor="0.6")
    sns.heatmap(
        values.where((low > 0) | (high < 0) | values.isna(), 0), ax=panel, vmin=-widest, vmax=widest, cmap=DIVERGING,
        cbar=False, linewidths=0.3, linecolor="0.9", annot=values.map(_whole), fmt="", annot_kws={"size": 5},
    )  # fmt: skip
    for head in table[table["framed"]].itertuples():
        place = (values.columns.get_loc(head.head) + 0.06, values.index.get_loc(head.layer) + 0.06)
        panel.add_patch(Rectangle(place, 0.88, 0.88, fill=False, edgecolor="#111111", linewidth=0.8))
    panel.set(xlabel="", ylabel="")
    panel.tick_params(length=0)
    panel.tick_params(axis="y", rotation=0)


@style.style()
def rounded_ranks(table: pd.DataFrame, fork: pd.DataFrame) -> Figure:
    """Rank of every head in each precision against its rank in float64: models across, precisions down.

    `table`: model, layer, head, precision, rank, low, high, n, D, exact, moved (to another stratum); rows in which rank
    is exact throughout are left out. `fork`: precision, measure, moved (whether what the rule of C1 says differs).
    Raises ValueError for missing columns or several rows of one head.
    """
    style.require(table, [*HEAD, "precision", "rank", "low", "high", "D", "exact", "moved"], key=[*HEAD, "precision"])
    rounded = table[table["precision"] != "float64"]
    names, precisions = list(table["model"].unique()), list(rounded["precision"].unique())
    figure, axes = style.grid(len(precisions), len(names), height=1.6, sharex=True, sharey=True)
    for (row, column), panel in np.ndenumerate(axes):
        panel.set_title(f"{names[column]}: {precisions[row]}")
        chosen = (rounded["model"] == names[column]) & (rounded["precision"] == precisions[row])
        _rounded_panel(panel, rounded[chosen])
    style.outer_labels(list(axes.flat), x="effective rank r in float64", y="r as read")
    handles = [
        Line2D([], [], marker="o", color="0.6", linestyle="", label="same stratum"),
        Line2D([], [], marker="D", color=MOVED, linestyle="", label="another stratum"),
        Line2D([], [], label="strata", **style.BOUND),
    ]
    style.legend(figure, handles)
    moved = fork.groupby("precision")["moved"].agg(["sum", "size"]).loc[precisions]
    outcomes = ", ".join(f"{row.sum} of {row.size} ({row.Index})" for row in moved.itertuples())
    note = f"C1 measures whose rule is decided otherwise than in float64: {outcomes}"
    return style.finish(figure, "with 95 % interval", style.counted(table), "dotted: equal ranks", note)


def _rounded_panel(panel: Axes, table: pd.DataFrame) -> None:
    top = table["D"].max() if len(table) else 1
    panel.plot([0, top], [0, top], ":", color="0.7", linewidth=0.7, zorder=1)
    for share in (strata.LOW, strata.HIGH):
        panel.axhline(share * top, zorder=1, **style.BOUND)
        panel.axvline(share * top, zorder=1, **style.BOUND)
    for moved, colour, marker in ((False, "0.6", "o"), (True, MOVED, "D")):
        rows = table[table["moved"] == moved]
        panel.vlines(rows["exact"], rows["low"], rows["high"], color=colour, linewidth=0.6, zorder=2)
        panel.plot(rows["exact"], rows["rank"], marker, color=colour, markersize=2.5, zorder=3)
    told = f"{table['moved'].sum()} of {len(table)} move"
    panel.annotate(told, (0.57, 0), (0, 3), "axes fraction", "offset points", ha="center", size=6.5)
    panel.set_xlim(-0.03 * top, 1.05 * top)
    panel.set_ylim(-0.03 * top, 1.05 * top)


@style.style()
def threshold_sweep(table: pd.DataFrame) -> Figure:
    """Shares of low and high heads against the threshold ε: the model, the mechanism null, the closed form.

    Columns: model, ranks_of, eps, low, low_lo, low_hi, high, high_lo, high_hi; the middle is the rest. A panel for each
    model. Raises ValueError for missing columns or repeated rows.
    """
    ends = [f"{name}{end}" for name in SHOWN for end in ("", "_lo", "_hi")]
    style.require(table, ["model", "ranks_of", "eps", *ends], key=["model", "ranks_of", "eps"])
    figure, axes = style.panels(table["model"], height=2.0, sharex=True, sharey=True)
    sources = list(table["ranks_of"].unique())
    for model, panel in axes.items():
        for name in SHOWN:
            for place, source in enumerate(sources):
                rows = table[(table["model"] == model) & (table["ranks_of"] == source)].sort_values("eps")
                x = rows["eps"] * 10 ** (0.09 * (place - 1))
                look, colour = LINES[source], style.STRATA[name].colour
                panel.vlines(x, rows[f"{name}_lo"], rows[f"{name}_hi"], color=colour, linewidth=0.7)
                panel.plot(x, rows[name], color=colour, marker=style.STRATA[name].marker, markersize=3, **look)
        panel.set_xscale("log")
        panel.set_xticks(sorted(table["eps"].unique()))
        panel.set_ylim(-0.03, 1.03)
        panel.set_yticks([0, 0.25, 0.5, 0.75, 1])
    next(iter(axes.values())).invert_xaxis()
    style.outer_labels(list(axes.values()), x="threshold ε (share of σ₁)", y="share of heads")
    strata = [
        Line2D([], [], color=style.STRATA[name].colour, marker=style.STRATA[name].marker, linestyle="", label=name)
        for name in SHOWN
    ]
    lines = [Line2D([], [], color="0.3", label=name, **LINES[name]) for name in sources]
    style.legend(figure, strata + lines)
    return style.finish(figure, "bars: 95 % interval", style.counted(table), "the rest of the heads is in the middle")


@style.style()
def head_splits(table: pd.DataFrame) -> Figure:
    """Shares of low, middle and high heads by each split, with its agreement κ with the split by rank.

    Columns: model, split, kappa, kappa_lo, kappa_hi, and for each stratum its share with the interval's ends: low,
    low_lo, low_hi, …. A panel for each model. Raises ValueError for missing columns or repeated rows.
    """
    shares = [f"{name}{end}" for name in style.STRATA for end in ("", "_lo", "_hi")]
    style.require(table, ["model", "split", "kappa", "kappa_lo", "kappa_hi", *shares], key=["model", "split"])
    order = list(table["split"].unique())
    figure, axes = style.panels(table["model"], height=0.5 + 0.28 * len(order), sharex=True, sharey=True)
    for model, panel in axes.items():
        rows = table[table["model"] == model].set_index("split").reindex(order)
        _stacked(panel, rows)
        panel.set_yticks(range(len(order)), order)
        panel.set_ylim(len(order) - 0.5, -0.5)
        panel.tick_params(axis="y", length=0)
    style.outer_labels(list(axes.values()), x="share of heads", y="")
    handles = [
        Line2D([], [], color=look.colour, marker="s", markersize=6, linestyle="", label=name)
        for name, look in style.STRATA.items()
    ]
    style.legend(figure, handles)
    return style.finish(
        figure,
        "bars, brackets: 95 % interval",
        style.counted(table),
        "half-life at which d = 128 saturates (tokens): slower heads high, others low",
        "κ: agreement with the split by rank, heads one by one",
    )


def _stacked(panel: Axes, rows: pd.DataFrame) -> None:
    places, start = np.arange(len(rows)), np.zeros(len(rows))
    for name, look in style.STRATA.items():
        panel.barh(places, rows[name], left=start, height=0.62, color=look.colour, linewidth=0)
        for place, left, share in zip(places, start, rows[name], strict=True):
            if share >= 0.12:
                colour = "#111111" if name == "high" else "white"
                panel.text(left + share / 2, place, _short(share), color=colour, size=6, ha="center", va="center")
        start = start + rows[name].to_numpy()
    for low, high in ((rows["low_lo"], rows["low_hi"]), (1 - rows["high_hi"], 1 - rows["high_lo"])):
        panel.hlines(places + 0.22, low, high, color="white", linewidth=2.2)
        panel.hlines(places + 0.22, low, high, color="#111111", linewidth=0.9)
    for place, row in zip(places, rows.itertuples(), strict=True):
        if row.kappa_lo == 1:
            continue
        text = f"κ {_short(row.kappa)}\n({_short(row.kappa_lo)}–{_short(row.kappa_hi)})"
        panel.annotate(text, (1, place), (2, 0), "data", "offset points", size=5.5, va="center", annotation_clip=False)
    panel.set_xlim(0, 1)
    panel.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])


def _short(share: float) -> str:
    return _signed(f"{share:.2f}".replace("0.", ".", 1))
