"""Figures of the claims: every measure beside its nulls, every verdict."""

import re
import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from srdyn.figures import style

OUTCOMES = {
    "reproduced": style.Look("#2F6B3A", "o"),
    "not reproduced": style.Look("#A8323E", "X"),
    "inconclusive": style.Look("#8C8C8C", "s"),
    "not testable here": style.Look("#BBBBBB", "_"),
}
"""Colour and symbol by how a verdict begins; a control's or a single seed's `passes` counts as the first, and so on."""
_SINGLE = {"passes": "reproduced", "fails": "not reproduced", "undecided": "inconclusive"}
_CONTROL = "control"
_MEASURE = ["claim", "measure"]


@style.draws(ledger="claim kind | verdict leading why second second_leading")
def verdicts(ledger: pd.DataFrame) -> Figure:
    """Every claim's verdict in every kind of model, with the value that decides it, as `claims.both` has them.

    Those by the second rules stand below, if there are any. Hollow: a null passes as well. Raises ValueError for a
    verdict without a colour.
    """
    claims = list(ledger["claim"].unique())
    kinds = [kind for kind in ledger["kind"].unique() if kind]
    figure, [[panel]] = style.grid(1, 1, height=0.48 * len(claims) + 0.3)
    figure.set_figwidth(style.WIDE)
    for row in ledger.itertuples():
        y = claims.index(row.claim)
        for x in [kinds.index(row.kind)] if row.kind else range(len(kinds)):
            _verdict(panel, x, y - 0.24 * bool(row.second), row.verdict, row.leading or row.why)
            if row.second:
                _verdict(panel, x, y + 0.24, row.second, f"II: {row.second_leading}")
    style.listed(panel, claims)
    panel.set_xticks(range(len(kinds)), [_named(kind, ledger.loc[ledger["kind"] == kind, "verdict"]) for kind in kinds])
    panel.set(xlim=(-0.2, max(1, len(kinds)) - 0.2), ylim=(len(claims) - 0.5, -0.6))
    panel.xaxis.tick_top()
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    style.legend(figure, [style.handle(*named, linestyle="", markersize=6) for named in OUTCOMES.items()])
    note = "the value that decides, by seed, and its rule; hollow: a null model passes too; small: a control"
    return style.finish(figure, f"{note}; II: by the second rules")


def _named(kind: str, verdicts: pd.Series) -> str:
    """A kind of model, a control or one of a single seed called so."""
    tested = verdicts[~verdicts.str.startswith("not testable")]
    said = [told for told in (_CONTROL, "one seed") if len(tested) and tested.str.startswith(told).all()]
    return f"{kind} ({said[0]})" if said else kind


def outcome(verdict: str) -> str:
    """The one of `OUTCOMES` that a verdict amounts to. Raises ValueError for a verdict that is none."""
    plain = verdict.split(" (null")[0].split(": ")[-1]
    plain = _SINGLE.get(plain, plain)
    if plain not in (*OUTCOMES, "not measured yet"):
        raise ValueError(f"no verdict is called {verdict!r}; there are {', '.join(OUTCOMES)}")
    return "not testable here" if plain == "not measured yet" else plain


def _verdict(panel: Axes, x: float | int, y: float | int, verdict: str, told: str) -> None:
    look = OUTCOMES[outcome(verdict)]
    face = "white" if "null passes too" in verdict else look.colour
    size = 3 if verdict.startswith(_CONTROL) else 6
    panel.plot(x - 0.1, y, look.marker, color=look.colour, markerfacecolor=face, markersize=size)
    text = textwrap.fill(re.sub(r" (?=/ )|(?<= /) |(?<=[≥≤<]) ", "\N{NO-BREAK SPACE}", told), 34)
    panel.text(x - 0.04, y, text, size=6, va="center", color="0.25", linespacing=0.95)


@style.draws(table="claim measure kind seed source | model estimate low high", rules="claim measure | at_least at_most")
def measures(table: pd.DataFrame, rules: pd.DataFrame) -> Figure:
    """Every measure (row) of the models and their nulls with interval and threshold, a panel for each kind of model.

    `rules` are in the order of the rows, at_least or at_most NaN. A symbol is filled where the whole interval passes.
    """
    rows = rules.merge(table[_MEASURE].drop_duplicates()).rename_axis("y").reset_index()
    order, pairs = list(style.SOURCES), set(zip(table["source"], table["seed"], strict=True))
    places = style.apart(sorted(pairs, key=lambda pair: (order.index(pair[0]), pair[1])), 0.36)
    values = [[0, 1], table[["estimate", "low", "high"]], rows[["at_least", "at_most"]]]
    low, high = np.nanquantile(np.concatenate(values, axis=None), [0, 1])
    margin, height = 0.05 * (high - low), 0.36 * len(rows) + 0.3
    figure, parts = style.panels(table, "kind", height=height, x="value (own unit)")
    for panel, part in parts:
        panel.set_xlim(low - margin, high + margin)
        for rule in rows.itertuples():
            _threshold(panel, rule)
        placed = part.merge(rows, on=_MEASURE)
        for row in placed[placed["estimate"].notna()].to_dict("records"):
            at, look = row["y"] + places[row["source"], row["seed"]], style.SOURCES[row["source"]]
            passes = row["low"] >= row["at_least"] or row["high"] <= row["at_most"]
            style.points(panel, at, row, look, listed=True, hollow=not passes, markersize=3, zorder=3)
        for y, sources in placed[placed["estimate"].isna()].groupby("y")["source"].unique().items():
            where, told = panel.get_yaxis_transform(), f"undefined: {', '.join(sources)}"
            panel.text(0.01, y + 0.4, told, transform=where, color="0.35", size=5, va="center")
        style.listed(panel, rows["measure"] + "  " + rows["claim"])
    style.source_legend(figure, table, "estimate")
    told = "shaded: where the claim holds; filled: the whole interval passes"
    return style.finish(figure, f"bars: 95 % interval, in the legend's order; {told}", style.counted(table))


def _threshold(panel: Axes, rule: tuple) -> None:
    at_least = not np.isnan(rule.at_least)
    threshold = rule.at_least if at_least else rule.at_most
    end, y = panel.get_xlim()[1 if at_least else 0], [rule.y - 0.46, rule.y + 0.46]
    panel.fill_betweenx(y, threshold, end, color="0.93", linewidth=0, zorder=0)
    panel.plot([threshold, threshold], y, zorder=1, **style.BOUND)
