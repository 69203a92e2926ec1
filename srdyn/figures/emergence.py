"""Figures of how ranks, decays and the order of the heads form over training."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from srdyn import strata
from srdyn.figures import style
from srdyn.loading import reference
from srdyn.study.analysis import emergence

KEY = ["kind", "seed", "step"]
ENDS = ["estimate", "low", "high"]
FEW_STEPS = 4
NO_BREAK = "\N{NO-BREAK SPACE}"
STEPS = f"training step ({reference.TOKENS_PER_BATCH:,} tokens each)"
REFERENCES = {
    "final": style.Look("#111111", "o"),
    "untrained": style.SOURCES["untrained"],
    "other half": style.Look("#117733", ""),
}
"""What an order is compared with."""
ARMS = {"low": style.STRATA["low"], "high": style.STRATA["high"], "random": style.Look("#777777", "D")}
"""Which heads are removed."""
VALUES = {emergence.RANK: "ranks", emergence.DECAY: "decays"}
ORIGINS = {
    "rank at the start": "rank at the start",
    "decay at the end": "decay at the end",
    "start beyond decay": "start, beyond decay",
    "decay beyond start": "decay, beyond start",
}


@style.style()
def rank_formation(heads: pd.DataFrame, distribution: pd.DataFrame) -> Figure:
    """Every head's rank over training above the shares of low, middle and high heads, a column for each kind of model.

    `heads`: kind, seed, layer, head, step, rank, D, stratum (at the end of training), one seed of each kind.
    `distribution`: kind, seed, step, measure, estimate, low, high, n, with the measures `share of low` … and `rank of
    low` … (bold: the mean of the heads that end there). Raises ValueError for missing columns or repeated rows.
    """
    style.require(heads, ["layer", "rank", "D", "stratum", *KEY, "head"], key=["layer", "head", "kind", "step"])
    style.require(distribution, [*KEY, "measure", *ENDS], key=[*KEY, "measure"])
    kinds = list(heads["kind"].unique())
    figure, axes = style.grid(2, len(kinds), height=1.8, sharex="col", sharey="row")
    for (top, bottom), kind in zip(axes.T, kinds, strict=True):
        part, rows = heads[heads["kind"] == kind], distribution[distribution["kind"] == kind]
        _heads_panel(top, part, "rank")
        for bound in (strata.LOW, strata.HIGH):
            top.axhline(bound * part["D"].iloc[0], zorder=1, **style.BOUND)
        top.set_title(f"{kind}, {_count(part)} heads")
        for stratum, look in style.STRATA.items():
            own = rows[rows["seed"] == part["seed"].iloc[0]]
            _line(top, own[own["measure"] == f"rank of {stratum}"], look.colour, "-", bold=True)
            _lines(bottom, rows[rows["measure"] == f"share of {stratum}"], look)
        bottom.set_ylim(-0.03, 1.03)
        _step_axis(bottom, part["step"])
        _label_strata(top, part)
    axes[0, 0].set_ylabel("effective rank r")
    style.outer_labels(list(axes[1]), x=STEPS, y="share of heads")
    _strata_legend(figure)
    said = [_from_to(distribution, kind, "share of high") for kind in kinds]
    return style.finish(
        figure,
        f"colours: stratum at the end (above), at the step (below); bold: mean, bands: 95 % interval over "
        f"{_windows(distribution)} windows; dashed: bounds of the strata",
        f"share of high heads before and after training: {', '.join(said)}",
    )


@style.style()
def identity_formation(table: pd.DataFrame) -> Figure:
    """Spearman ρ of the heads' order at each step with the final and the untrained one: ranks above, decays below.

    Columns: kind, seed, step, value (rank, log_decay), measure, reference (final, untrained, other half), estimate,
    low, high, n; rows of measures other than `spearman` are left out. Raises ValueError for missing columns or
    repeated rows.
    """
    columns = [*KEY, "value", "measure", "reference", *ENDS, "n"]
    style.require(table, columns, key=[*KEY, "value", "measure", "reference"])
    table = table[table["measure"] == "spearman"]
    values = {name: text for name, text in VALUES.items() if name in set(table["value"])}
    kinds = list(table["kind"].unique())
    figure, axes = style.grid(len(values), len(kinds), height=1.7, sharex="col", sharey=True)
    for (row, column), panel in np.ndenumerate(axes):
        part = table[(table["kind"] == kinds[column]) & (table["value"] == list(values)[row])]
        for other, look in REFERENCES.items():
            _lines(panel, part[part["reference"] == other], look, line=_dash(other))
        panel.axhline(0, color="0.8", linewidth=0.6, zorder=0)
        panel.set_title(kinds[column] if row == 0 else "")
        _step_axis(panel, part["step"])
    style.outer_labels(list(axes[-1]), x=STEPS, y="")
    for panel, text in zip(axes[:, 0], values.values(), strict=True):
        panel.set_ylabel(f"Spearman ρ of {text}")
    names = ["with the final model", "with the untrained model", "between halves of the windows"]
    handles = [_handle(look, name, _dash(r)) for (r, look), name in zip(REFERENCES.items(), names, strict=True)]
    style.legend(figure, handles)
    ranks = table[(table["value"] == emergence.RANK) & (table["reference"] == "untrained")]
    said = [_at_the_end(ranks, kind) for kind in kinds]
    return style.finish(
        figure,
        f"bands: 95 % interval over windows, n = {_windows(table[table['reference'] == 'final'])}",
        "halves: the ceiling at each step" + _thin(table),
        f"ρ of final with untrained ranks: {', '.join(said)}",
    )


@style.style()
def decay_formation(heads: pd.DataFrame, origin: pd.DataFrame) -> Figure:
    """Every head's half-life over training above what explains the final ranks, a column for each kind of model.

    `heads`: as for `rank_formation`, with half_life (tokens). `origin`: kind, seed, measure, estimate, low, high, n.
    Raises ValueError for missing columns or repeated rows.
    """
    columns = ["layer", "half_life", "D", "stratum", *KEY, "head"]
    style.require(heads, columns, key=["layer", "head", "kind", "step"])
    style.require(origin, ["kind", "seed", "measure", *ENDS], key=["kind", "seed", "measure"])
    kinds = list(heads["kind"].unique())
    figure, axes = style.grid(2, len(kinds), height=1.7, sharey="row")
    for (top, bottom), kind in zip(axes.T, kinds, strict=True):
        part = heads[heads["kind"] == kind]
        top.set_yscale("log")
        top.yaxis.set_minor_locator(NullLocator())
        _heads_panel(top, part, "half_life")
        fills = emergence.half_life_that_saturates(int(part["D"].iloc[0]))
        top.axhline(fills, zorder=3, **style.BOUND)
        top.set_title(kind)
        top.set_xlabel(STEPS)
        _step_axis(top, part["step"])
        _label_strata(top, part, value="half_life")
        _origin_panel(bottom, origin[origin["kind"] == kind])
    axes[0, 0].set_ylabel("half-life (tokens)")
    style.outer_labels(list(axes[1]), x="R² of the final ranks", y="")
    _strata_legend(figure)
    return style.finish(
        figure,
        f"above: a line a head, dashed: {fills:.2g} tokens, from where constant decay lets a head fill up",
        f"below: share of variance between heads, both as ranks; bars: 95 % interval over {_windows(origin)} windows",
        "open: second seed" if len(style.seeds(origin)) > 1 else "",
        f"explained by the start and by the decay: {', '.join(_explained(origin, kind) for kind in kinds)}",
    )


@style.style()
def contrast_formation(table: pd.DataFrame) -> Figure:
    """What removing low-rank, high-rank or random heads costs over training, above low minus high, a column a kind.

    Columns: kind, seed, step, arm, reference, estimate, low, high, n, removed (heads), as `emergence.removals` gives
    them: references `intact` and, of the arm `low`, `high` are drawn. Raises ValueError for missing columns or repeated
    rows.
    """
    key = [*KEY, "arm", "reference"]
    style.require(table, [*key, *ENDS, "n", "removed"], key=key)
    kinds = list(table["kind"].unique())
    figure, axes = style.grid(2, len(kinds), height=1.6, sharex="col", sharey="row")
    for (top, bottom), kind in zip(axes.T, kinds, strict=True):
        part = table[table["kind"] == kind]
        for which, (arm, look) in enumerate(ARMS.items()):
            _dots(top, part[(part["arm"] == arm) & (part["reference"] == "intact")], look, shift=which - 1)
        _dots(bottom, part[(part["arm"] == "low") & (part["reference"] == "high")], REFERENCES["final"], shift=0)
        for panel in (top, bottom):
            panel.axhline(0, color="0.8", linewidth=0.6, zorder=0)
        removed = part.loc[part["removed"] > 0, "removed"]
        top.set_title(f"{kind}, {style.span(removed.astype(int))} heads removed")
        _step_axis(bottom, part["step"])
    axes[0, 0].set_ylabel("cost (bits per byte)")
    style.outer_labels(list(axes[1]), x=STEPS, y="low − high\n(bits per byte)")
    style.legend(
        figure,
        [_handle(look, f"{arm}-rank heads" if arm != "random" else "random heads") for arm, look in ARMS.items()],
    )
    ends = table[(table["arm"] == "low") & (table["reference"] == "high")]
    said = [_at_the_end(ends, kind) for kind in kinds]
    return style.finish(
        figure,
        f"bars: 95 % interval over {_windows(table)} windows and draws of heads",
        "open: second seed" if len(style.seeds(table)) > 1 else "",
        f"low − high at the end: {', '.join(said)}",
    )


def _dots(panel: Axes, table: pd.DataFrame, look: style.Look, *, shift: int) -> None:
    """Points with bars, a line for each seed; `shift` moves them aside, so that arms do not hide each other."""
    for seed in style.seeds(table):
        rows, first = table[table["seed"] == seed].sort_values("step"), seed == style.seeds(table)[0]
        steps = rows["step"] * 1.07**shift
        panel.vlines(steps, rows["low"], rows["high"], color=look.colour, linewidth=0.8)
        face, line = (look.colour, "-") if first else ("white", "")
        panel.plot(steps, rows["estimate"], look.marker + line, color=look.colour, markerfacecolor=face, zorder=3)


def _heads_panel(panel: Axes, table: pd.DataFrame, value: str) -> None:
    for (stratum, _, _), line in table.sort_values("step").groupby(["stratum", "layer", "head"], observed=True):
        panel.plot(line["step"], line[value], color=style.STRATA[stratum].colour, linewidth=0.5, alpha=0.4, zorder=2)


def _lines(panel: Axes, table: pd.DataFrame, look: style.Look, *, line: str = "-") -> None:
    """A line for each seed, the first with markers and its interval."""
    for seed in style.seeds(table):
        rows, first = table[table["seed"] == seed], seed == style.seeds(table)[0]
        _line(panel, rows, look.colour, line + (look.marker if first else ""), bold=first)


def _line(panel: Axes, rows: pd.DataFrame, colour: str, line: str, *, bold: bool) -> None:
    rows = rows.sort_values("step")
    width = 1.4 if bold else 0.6
    panel.plot(rows["step"], rows["estimate"], line, color=colour, linewidth=width, markersize=2.2, zorder=3)
    if bold:
        panel.fill_between(rows["step"], rows["low"], rows["high"], color=colour, alpha=0.2, linewidth=0, zorder=1)


def _dash(reference: str) -> str:
    """A ceiling is dashed."""
    return "--" if reference == emergence.HALVES else "-"


def _origin_panel(panel: Axes, table: pd.DataFrame) -> None:
    for place, measure in enumerate(ORIGINS):
        rows = table[table["measure"] == measure]
        for which, seed in enumerate(style.seeds(rows)):
            y = place + (0.16 if which else -0.16) * (len(style.seeds(table)) > 1)
            row = rows[rows["seed"] == seed].iloc[0]
            panel.hlines(y, row["low"], row["high"], color="#111111", linewidth=0.8)
            face = "white" if which else "#111111"
            panel.plot(row["estimate"], y, "o", color="#111111", markerfacecolor=face, zorder=3)
    panel.set_yticks(range(len(ORIGINS)), list(ORIGINS.values()))
    panel.set_ylim(len(ORIGINS) - 0.5, -0.5)
    panel.set_xlim(-0.04, 1.04)
    panel.axvline(0, color="0.8", linewidth=0.6, zorder=0)
    panel.tick_params(axis="y", length=0)


def _step_axis(panel: Axes, steps: Sequence[int] | pd.Series) -> None:
    """Logarithmic in steps with a place for step 0, left of the first one observed; few steps are all named."""
    later = sorted(step for step in set(steps) if step > 0)
    first, last = later[0], later[-1]
    panel.set_xscale("symlog", base=2, linthresh=first, linscale=1.2)
    fours = [first * 4**i for i in range(20) if first * 4**i <= last]
    ticks = [0, *(later if len(later) <= FEW_STEPS else fours)]
    panel.set_xticks(ticks, [str(tick) for tick in ticks])
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xlim(-0.15 * first, last * 1.18)


def _label_strata(panel: Axes, table: pd.DataFrame, *, value: str = "rank") -> None:
    last = table[table["step"] == table["step"].max()]
    ends = last.groupby(last["stratum"].astype(str))[value].agg(["median", "size"])
    style.label_right(
        panel, [(row["median"], f"{int(row['size'])}", style.STRATA[s].colour) for s, row in ends.iterrows()]
    )


def _strata_legend(figure: Figure) -> None:
    style.legend(
        figure, [_handle(look, f"{name}-rank" if name != "middle" else name) for name, look in style.STRATA.items()]
    )


def _handle(look: style.Look, name: str, line: str = "-") -> Line2D:
    marks = {"linestyle": line, "marker": look.marker, "linewidth": 1.4, "markersize": 2.8}
    return Line2D([], [], color=look.colour, label=name, **marks)


def _count(heads: pd.DataFrame) -> int:
    return len(heads[["layer", "head"]].drop_duplicates())


def _windows(table: pd.DataFrame) -> str:
    return style.span(table["n"].astype(int)) if "n" in table else ""


def _thin(table: pd.DataFrame) -> str:
    return "; thin: second seed" if len(style.seeds(table)) > 1 else ""


def _from_to(table: pd.DataFrame, kind: str, measure: str) -> str:
    """`hybrid 0.60 → 0.27`, of the first seed."""
    rows = table[(table["kind"] == kind) & (table["measure"] == measure)]
    rows = rows[rows["seed"] == rows["seed"].min()].sort_values("step")
    return f"{kind} {rows['estimate'].iloc[0]:.2f} → {rows['estimate'].iloc[-1]:.2f}".replace(" ", NO_BREAK)


def _explained(table: pd.DataFrame, kind: str) -> str:
    """`hybrid 0.42 and 0.93`, of the first seed."""
    rows = table[table["kind"] == kind]
    shares = rows[rows["seed"] == rows["seed"].min()].set_index("measure")["estimate"]
    return f"{kind} {shares['rank at the start']:.2f} and {shares['decay at the end']:.2f}".replace(" ", NO_BREAK)


def _at_the_end(table: pd.DataFrame, kind: str) -> str:
    """`hybrid 0.65 [0.56, 0.73]`, of the first seed."""
    rows = table[table["kind"] == kind]
    row = rows[rows["seed"] == rows["seed"].min()].sort_values("step").iloc[-1]
    return f"{kind} {row['estimate']:.2f} [{row['low']:.2f}, {row['high']:.2f}]".replace(" ", NO_BREAK).replace(
        "-", "−"
    )
