"""Figures of how ranks, decays and the order of the heads form over training."""

from collections.abc import Callable, Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from srdyn import strata
from srdyn.figures import style
from srdyn.study.analysis import emergence

_STEPS = "training step"
_REFERENCES = {
    "final": style.Look("#111111", "o"),
    "untrained": style.SOURCES["untrained"],
    "other half": style.Look("#117733", ""),
}
"""What an order is compared with; the last is a ceiling, and dashed."""
_ARMS = {"low": style.STRATA["low"], "high": style.STRATA["high"], "random": style.Look("#777777", "D")}
"""Which heads are removed."""
_STRATA = {name if name == "middle" else f"{name}-rank": look for name, look in style.STRATA.items()}
_VALUES = {emergence.RANK: "ranks", emergence.DECAY: "decays"}
_ORIGINS = ("rank at the start", "decay at the end", "start beyond decay", "decay beyond start")


@style.draws(
    heads="layer head kind step | rank D stratum seed", distribution="kind seed step measure | estimate low high n"
)
def rank_formation(heads: pd.DataFrame, distribution: pd.DataFrame) -> Figure:
    """Every head's rank over training above the shares of low, middle and high heads, a column for each kind of model.

    `heads` are those of one seed of each kind, with their stratum at the end. A measure of the `distribution` is a
    `share of low` … or a `rank of low` …, the mean of the heads that end there.
    """
    figure, columns = _columns(heads, ["effective rank r", "share of heads"], height=1.8, sharex="col", x=_STEPS)
    distribution = distribution[distribution["kind"].isin(heads["kind"])].sort_values("step", kind="stable")
    for top, bottom, part in columns:
        rows = distribution[distribution["kind"] == part["kind"].iloc[0]]
        for bound in (strata.LOW, strata.HIGH):
            top.axhline(bound * part["D"].iloc[0], zorder=1, **style.BOUND)
        own = rows[rows["seed"] == part["seed"].iloc[0]]
        for stratum, look in style.STRATA.items():
            _lines(top, own[own["measure"] == f"rank of {stratum}"], look._replace(marker=""))
            _lines(bottom, rows[rows["measure"] == f"share of {stratum}"], look)
        top.set_title(f"{top.get_title()}, {part.groupby(['layer', 'head']).ngroups} heads")
        bottom.set_ylim(-0.03, 1.03)
        _heads(top, part, "rank")
    _legend(figure, _STRATA)
    shares = distribution[distribution["measure"] == "share of high"]
    said = _said(shares, lambda rows: f"{rows['estimate'].iloc[0]:.2f} → {rows['estimate'].iloc[-1]:.2f}")
    return style.finish(
        figure,
        f"colours: stratum at the end (above), at the step (below); bold: mean, bands: 95 % interval over "
        f"{style.span(distribution['n'])} windows; dashed: bounds of the strata",
        f"share of high heads before and after training: {said}",
    )


@style.draws(table="kind seed step value measure reference | estimate low high n")
def identity_formation(table: pd.DataFrame) -> Figure:
    """Spearman ρ of the heads' order at each step with the final and the untrained one: ranks above, decays below."""
    table = table[(table["measure"] == "spearman") & table["value"].isin(_VALUES)].sort_values("step", kind="stable")
    named = table.assign(named="Spearman ρ of " + table["value"].map(_VALUES))
    figure, parts = style.crossed(named, "named", "kind", height=1.7, x=_STEPS, sharex="col", sharey=True)
    for panel, part in parts:
        for other, look in _REFERENCES.items():
            line = "--" if other == emergence.HALVES else "-"
            _lines(panel, part[part["reference"] == other], look, line=line)
        panel.axhline(0, color="0.8", linewidth=0.6, zorder=0)
        _step_axis(panel, part["step"])
    named = ["with the final model", "with the untrained model", "between halves of the windows"]
    _legend(figure, dict(zip(named, _REFERENCES.values(), strict=True)))
    ranks = table[(table["value"] == emergence.RANK) & (table["reference"] == "untrained")]
    return style.finish(
        figure,
        f"bands: 95 % interval over windows, n = {style.span(table.loc[table['reference'] == 'final', 'n'])}",
        "halves: the ceiling at each step" + ("; thin: second seed" if table["seed"].nunique() > 1 else ""),
        f"ρ of final with untrained ranks: {_said(ranks, _last)}",
    )


@style.draws(heads="layer head kind step | half_life D stratum seed", origin="kind seed measure | estimate low high n")
def decay_formation(heads: pd.DataFrame, origin: pd.DataFrame) -> Figure:
    """Every head's half-life over training above what explains the final ranks, a column for each kind of model.

    `heads`: as for `rank_formation`, half-lives in tokens.
    """
    origin = origin[origin["kind"].isin(heads["kind"])]
    figure, columns = _columns(heads, ["half-life (tokens)", ""], height=1.7, x="R² of the final ranks")
    for top, bottom, part in columns:
        top.set_yscale("log")
        fills = emergence.half_life_that_saturates(int(part["D"].iloc[0]))
        top.axhline(fills, zorder=3, **style.BOUND)
        top.set_xlabel(_STEPS)
        _heads(top, part, "half_life")
        _origins(bottom, origin[origin["kind"] == part["kind"].iloc[0]])
    _legend(figure, _STRATA)
    return style.finish(
        figure,
        f"above: a line a head, dashed: {fills:.2g} tokens, from where constant decay lets a head fill up",
        f"below: share of variance between heads, both as ranks; bars: 95 % interval over {style.span(origin['n'])} "
        "windows",
        "open: second seed" if origin["seed"].nunique() > 1 else "",
        f"explained by the start and by the decay: {_said(origin, _explained)}",
    )


@style.draws(table="kind seed step arm reference | estimate low high n removed")
def contrast_formation(table: pd.DataFrame) -> Figure:
    """What removing heads costs over training (beside `intact`), above low minus high, a column a kind of model."""
    labels = ["cost (bits per byte)", "low − high\n(bits per byte)"]
    figure, columns = _columns(table, labels, height=1.6, sharex="col", x=_STEPS)
    for top, bottom, part in columns:
        for which, (arm, look) in enumerate(_ARMS.items()):
            _dots(top, part[(part["arm"] == arm) & (part["reference"] == "intact")], look, shift=which - 1)
        _dots(bottom, part[(part["arm"] == "low") & (part["reference"] == "high")], _REFERENCES["final"], shift=0)
        for panel in (top, bottom):
            panel.axhline(0, color="0.8", linewidth=0.6, zorder=0)
        removed = part.loc[part["removed"] > 0, "removed"]
        top.set_title(f"{top.get_title()}, {style.span(removed.astype(int))} heads removed")
        _step_axis(bottom, part["step"])
    _legend(figure, {f"{arm} heads" if arm == "random" else f"{arm}-rank heads": look for arm, look in _ARMS.items()})
    ends = table[(table["arm"] == "low") & (table["reference"] == "high")]
    return style.finish(
        figure,
        f"bars: 95 % interval over {style.span(table['n'])} windows and draws of heads",
        "open: second seed" if table["seed"].nunique() > 1 else "",
        "dotted: nothing was measured between" if table.groupby("kind")["step"].nunique().min() == 2 else "",
        f"low − high at the end: {_said(ends.sort_values('step', kind='stable'), _last)}",
    )


def _columns(
    table: pd.DataFrame, labels: list[str], **given: float | str
) -> tuple[Figure, list[tuple[Axes, Axes, pd.DataFrame]]]:
    """A column for each kind of model: two panels, whose vertical axes are labelled, and its rows in order of steps."""
    parts = list(table.sort_values("step", kind="stable").groupby("kind", sort=False))
    figure, axes = style.grid(2, len(parts), sharey="row", y=labels, titles=[kind for kind, _ in parts], **given)
    return figure, [(*pair, part) for (_, part), pair in zip(parts, axes.T, strict=True)]


def _dots(panel: Axes, table: pd.DataFrame, look: style.Look, *, shift: int) -> None:
    """Points with bars, a line for the first seed, dotted where it joins two; `shift` moves arms apart."""
    for which, (_, rows) in enumerate(table.groupby("seed")):
        line = "" if which else "-" if len(rows) > 2 else ":"
        style.points(panel, rows["step"] * 1.07**shift, rows, look, hollow=which > 0, linestyle=line, zorder=3)


def _heads(panel: Axes, table: pd.DataFrame, value: str) -> None:
    """A line for each head, in the colour of the stratum that it ends in; at the right how many end there."""
    for (stratum, _, _), line in table.groupby(["stratum", "layer", "head"], observed=True):
        panel.plot(line["step"], line[value], color=style.STRATA[stratum].colour, linewidth=0.5, alpha=0.4, zorder=2)
    _step_axis(panel, table["step"])
    last = table[table["step"] == table["step"].max()]
    ends = last.groupby(last["stratum"].astype(str))[value].agg(["median", "size"])
    labels = [(end.median, f"{end.size}", style.STRATA[end.Index].colour) for end in ends.itertuples()]
    style.label_right(panel, labels)


def _lines(panel: Axes, table: pd.DataFrame, look: style.Look, *, line: str = "-") -> None:
    """A line for each seed, the first with markers and its interval."""
    for which, (_, rows) in enumerate(table.groupby("seed")):
        drawn = {"color": look.colour, "marker": "" if which else look.marker, "linewidth": 0.6 if which else 1.4}
        panel.plot(rows["step"], rows["estimate"], line, markersize=2.2, zorder=3, **drawn)
        if not which:
            bounds = rows["low"], rows["high"]
            panel.fill_between(rows["step"], *bounds, color=look.colour, alpha=0.2, linewidth=0, zorder=1)


def _origins(panel: Axes, table: pd.DataFrame) -> None:
    table = table[table["measure"].isin(_ORIGINS)]
    asides = style.apart(sorted(table["seed"].unique()), 0.16)
    for which, (seed, rows) in enumerate(table.groupby("seed")):
        at = rows["measure"].map(_ORIGINS.index) + asides[seed]
        style.points(panel, at, rows, _REFERENCES["final"], hollow=which > 0, listed=True, zorder=3)
    style.listed(panel, [measure.replace(" beyond", ", beyond") for measure in _ORIGINS])
    panel.set_xlim(-0.04, 1.04)
    panel.axvline(0, color="0.8", linewidth=0.6, zorder=0)


def _step_axis(panel: Axes, steps: pd.Series) -> None:
    """Logarithmic in steps with a place for step 0, left of the first one observed; few steps are all named."""
    later = sorted(step for step in set(steps) if step > 0)
    first, last = later[0], later[-1]
    panel.set_xscale("symlog", base=2, linthresh=first, linscale=1.2)
    fours = [first * 4**i for i in range(20) if first * 4**i <= last]
    ticks = [0, *(later if len(later) <= 4 else fours)]
    panel.set_xticks(ticks, [str(tick) for tick in ticks])
    panel.minorticks_off()
    panel.set_xlim(-0.15 * first, last * 1.18)


def _legend(figure: Figure, looks: Mapping[str, style.Look]) -> None:
    lines = {name: {"linewidth": 1.4, "linestyle": "-" if look.marker else "--"} for name, look in looks.items()}
    style.legend(figure, [style.handle(name, look, markersize=2.8, **lines[name]) for name, look in looks.items()])


def _said(table: pd.DataFrame, told: Callable[[pd.DataFrame], str]) -> str:
    """`hybrid 0.60 → 0.27, pure …`: what is told of the first seed of each kind, whose rows are in order of steps."""
    first = table[table["seed"] == table.groupby("kind")["seed"].transform("min")]
    found = [f"{kind} {told(rows)}" for kind, rows in first.groupby("kind", sort=False)]
    return ", ".join(text.replace(" ", "\N{NO-BREAK SPACE}") for text in found)


def _explained(rows: pd.DataFrame) -> str:
    shares = rows.set_index("measure")["estimate"]
    return f"{shares['rank at the start']:.2f} and {shares['decay at the end']:.2f}"


def _last(rows: pd.DataFrame) -> str:
    row = rows.iloc[-1]
    return f"{row['estimate']:.2f} [{row['low']:.2f}, {row['high']:.2f}]".replace("-", "−")
