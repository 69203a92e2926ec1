"""The figure that shows every measure of the paper's claims beside its nulls."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from srdyn.figures import style

ROW = 0.36
"""Inches: the height of a measure."""
MEASURE = ["claim", "measure"]
Lane = tuple[str, int]
"""A source and a seed."""


@style.style()
def measures(table: pd.DataFrame, rules: pd.DataFrame) -> Figure:
    """Every measure (row) of the models and their nulls with interval and threshold, a panel for each kind of model.

    `table`: claim, measure, model, kind, seed, source, estimate, low, high. `rules`: claim, measure, at_least, at_most,
    one of the two NaN; their order is that of the rows, and rules without a measurement are left out. A symbol is
    filled where the whole interval passes. Raises ValueError for missing columns, repeated rows, or a measure without
    exactly one threshold.
    """
    key = [*MEASURE, "kind", "seed", "source"]
    style.require(table, [*key, "model", "estimate", "low", "high"], key=key)
    rows = _rows(table, rules)
    lanes = [
        (source, seed) for source in style.sources(table) for seed in style.seeds(table[table["source"] == source])
    ]
    figure, axes = style.panels(table["kind"], height=ROW * len(rows) + 0.3, sharex=True, sharey=True)
    left, right = _limits(table, rows)
    for kind, panel in axes.items():
        panel.set_xlim(left, right)
        for y, rule in enumerate(rows.itertuples(index=False)):
            _threshold(panel, y, rule)
            of_rule = (table[MEASURE] == [rule.claim, rule.measure]).all(axis=1) & (table["kind"] == kind)
            _measured(panel, y, table[of_rule], rule, lanes)
        panel.set_yticks(range(len(rows)), [f"{rule.measure}  {rule.claim}" for rule in rows.itertuples()])
        panel.set_ylim(len(rows) - 0.5, -0.5)
        panel.tick_params(axis="y", length=0)
    style.outer_labels(list(axes.values()), x="value (own unit)", y="")
    style.source_legend(figure, table, "estimate")
    note = (
        "bars: 95 % interval, in the legend's order; shaded: where the claim holds; filled: the whole interval passes"
    )
    return style.finish(figure, note, style.counted(table))


def _rows(table: pd.DataFrame, rules: pd.DataFrame) -> pd.DataFrame:
    style.require(rules, [*MEASURE, "at_least", "at_most"], key=MEASURE)
    measured = set(table[MEASURE].itertuples(index=False, name=None))
    kept = [pair in measured for pair in rules[MEASURE].itertuples(index=False, name=None)]
    rows = rules[kept].reset_index(drop=True)
    lacking = measured - set(rows[MEASURE].itertuples(index=False, name=None))
    both = rows[["at_least", "at_most"]].notna().sum(axis=1) != 1
    if lacking or both.any():
        wrong = [*sorted(lacking), *rows.loc[both, MEASURE].itertuples(index=False, name=None)]
        raise ValueError(f"every measure needs a rule with either at_least or at_most; see {wrong}")
    return rows


def _limits(table: pd.DataFrame, rows: pd.DataFrame) -> tuple[float, float]:
    values = np.concatenate([table[["estimate", "low", "high"]], rows[["at_least", "at_most"]]], axis=None)
    low, high = min(0.0, np.nanmin(values)), max(1.0, np.nanmax(values))
    margin = 0.05 * (high - low)
    return low - margin, high + margin


def _threshold(panel: Axes, y: int, rule: tuple) -> None:
    at_least = not np.isnan(rule.at_least)
    threshold = rule.at_least if at_least else rule.at_most
    end = panel.get_xlim()[1 if at_least else 0]
    panel.fill_betweenx([y - 0.46, y + 0.46], threshold, end, color="0.93", linewidth=0, zorder=0)
    panel.plot([threshold, threshold], [y - 0.46, y + 0.46], zorder=1, **style.BOUND)


def _measured(panel: Axes, y: int, rows: pd.DataFrame, rule: tuple, lanes: list[Lane]) -> None:
    places = np.linspace(-0.36, 0.36, len(lanes)) if len(lanes) > 1 else [0.0]
    for row in rows.itertuples():
        place = y + places[lanes.index((row.source, row.seed))]
        look = style.SOURCES[row.source]
        if np.isnan(row.estimate):
            where = panel.get_yaxis_transform()
            panel.text(0.01, place, f"{row.source}: undefined", transform=where, color="0.35", size=5, va="center")
            continue
        passes = row.low >= rule.at_least or row.high <= rule.at_most
        panel.hlines(place, row.low, row.high, color=look.colour, linewidth=0.8, zorder=2)
        face = look.colour if passes else "white"
        panel.plot(row.estimate, place, look.marker, color=look.colour, markerfacecolor=face, markersize=3, zorder=3)
