"""Figures of what models lose with some of their heads: by dose, against random sets, head by head, by window."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from srdyn import strata
from srdyn.figures import style
from srdyn.study.trials import effects

_ARMS = {
    "intact": ("intact", "#111111", "_"),
    "high": ("highest rank removed", *style.STRATA["high"]),
    "low": ("lowest rank removed", *style.STRATA["low"]),
    "random": ("random heads removed", "#8C8C8C", "D"),
    "decay-matched": ("others with the decays of the highest", "#C28BC0", "s"),
    "tied high": ("high-rank ones removed, ties at random", style.STRATA["high"].colour, "v"),
    "tied low": ("low-rank ones removed, ties at random", style.STRATA["low"].colour, "p"),
}
"""What a legend calls them, and how they are drawn."""
ARMS = {arm: style.Look(*look) for arm, (_, *look) in _ARMS.items()}
_PROBES = [style.Look(*look) for look in (("#111111", "o"), ("#8C8C8C", "D"), ("#44AA99", "s"), ("#882255", "v"))]
"""Tasks and texts side by side, in no colour that elsewhere means a stratum."""
_Placed = tuple[style.Look, float]
"""How a line is drawn, and how far it is moved aside."""
_BESIDE = {"intact": style.BOUND, "all off": {"color": "0.45", "linestyle": ":", "linewidth": 0.9}}
"""What stands across a panel of sets."""


@style.draws(table="model panel arm share | estimate low high")
def doses(table: pd.DataFrame) -> Figure:
    """What is answered (`panel`) with a share of each layer's heads removed: models across, side by side the arms."""
    figure, parts = style.crossed(table, "panel", "model", height=1.25, x="heads removed\n(share of a layer)")
    removed = table[table["arm"] != "intact"]
    arms = [arm for arm in ARMS if arm in set(removed["arm"])]
    looks = {arm: (ARMS[arm], aside) for arm, aside in style.apart(arms, 0.24).items()}
    for panel, part in parts:
        for intact in part.loc[part["arm"] == "intact", "estimate"]:
            panel.axhline(intact, zorder=1, **style.BOUND)
        _in_steps(panel, part, "arm", looks, removed["share"], linewidth=0.4, zorder=3)
        panel.set_xlim(-0.5, removed["share"].nunique() - 0.5)
    _arm_legend(figure, table["arm"])
    shares = "shares as near as a layer's heads allow"
    return style.finish(figure, "bars: 95 % interval over rows and draws", shares, style.counted(table, "items"))


def _in_steps(
    panel: Axes, table: pd.DataFrame, by: str, looks: dict[str, _Placed], steps: pd.Series, **mark: object
) -> None:
    """A line for each value of `by` over the values of the column that `steps` is, evenly spaced, each moved aside."""
    ticks = sorted(steps.unique())
    for name, line in table[table[by].isin(looks)].groupby(by, sort=False):
        (look, aside), line = looks[name], line.sort_values(steps.name)
        x = np.searchsorted(ticks, line[steps.name]) + aside
        style.points(panel, x, line, look, **{"linestyle": "-", "linewidth": 0.9} | mark)
    panel.set_xticks(range(len(ticks)), [f"{tick:g}" for tick in ticks])


def _arm_legend(figure: Figure, arms: pd.Series) -> None:
    """The arms that occur."""
    handles = {arm: style.handle(title, ARMS[arm]) for arm, (title, *_) in _ARMS.items()}
    handles["intact"] = style.handle("intact", **style.BOUND)
    style.legend(figure, [handle for arm, handle in handles.items() if arm in set(arms)])


@style.draws(table="model probe arm | difference low high testable")
def contrasts(table: pd.DataFrame, *, unit: str, better: str = "right") -> Figure:
    """What removing a group costs beyond as many random heads, in `unit`; on the side `better` of 0 it costs less."""
    height = 0.17 * table["probe"].nunique() * table["arm"].nunique() * 0.62 + 0.35  # inches
    label = f"difference to random heads\n({unit})"
    figure = _listed(table, "probe", "arm", ARMS, "difference", x=label, height=height, reach=0.25)
    _arm_legend(figure, table["arm"])
    note = f"bars: 95 % interval over rows and draws; {better} of the dashed line: better than random heads removed"
    hollow = "hollow: the intact model is below 90 %, no verdict" if not table["testable"].all() else ""
    return style.finish(figure, note, hollow, style.counted(table, "items"))


@style.draws(table="model probe layer head | rank damage D")
def single_heads(table: pd.DataFrame) -> Figure:
    """What removing one head costs: probes down, models across, in each layer the heads by effective rank, 0 … D."""
    table = strata.stratify(table, by=["model", "probe", "layer", "head"])
    label = "layer; within it, effective rank r / d"
    figure, parts = style.crossed(table, "probe", "model", height=1.4, x=label, sharex="col")
    for panel, part in parts:
        layers = sorted(part["layer"].unique())
        x = np.searchsorted(layers, part["layer"]) + 0.8 * (part["rank"] / part["D"] - 0.5)
        panel.set_yscale("symlog", linthresh=0.01)
        for name, look in style.STRATA.items():
            own = part["stratum"] == name
            panel.plot(x[own], part.loc[own, "damage"], look.marker, color=look.colour, markersize=3, zorder=2)
        panel.axhline(0, zorder=1, **style.BOUND)
        for between in range(1, len(layers)):
            panel.axvline(between - 0.5, color="0.85", linewidth=0.5, zorder=0)
        every = -(-len(layers) // 12)  # no more are named
        panel.set_xticks(range(0, len(layers), every), layers[::every])
        panel.tick_params(axis="x", length=0)
    style.legend(figure, [style.handle(f"{name} rank", look, linestyle="") for name, look in style.STRATA.items()])
    heads = table.drop_duplicates(["model", "layer", "head"])["model"].value_counts()
    unit = "bits lost without one head, a byte of text or an answer of a task; logarithmic beyond 0.01"
    return style.finish(figure, unit, f"{style.span(heads)} heads a model")


@style.draws(table="model probe predictor | coefficient low high")
def coefficients(table: pd.DataFrame) -> Figure:
    """Standardised regression coefficients of single-head damage: predictors down. ValueError beyond four probes."""
    probes = list(table["probe"].unique())
    looks = dict(zip(probes, _PROBES, strict=False))
    if len(looks) < len(probes):
        raise ValueError(f"at most {len(looks)} probes can be told apart, got {', '.join(probes)}; select some")
    height = 0.3 * table["predictor"].nunique() + 0.3
    label = "coefficient (all rank-transformed, standardised)"
    figure = _listed(table, "predictor", "probe", looks, "coefficient", x=label, height=height, reach=0.2)
    for panel in figure.axes:
        panel.tick_params(axis="y", length=3.5)
    style.legend(figure, [style.handle(*named) for named in looks.items()])
    note = "positive: more of it (of log-decay: the slower), more damage"
    return style.finish(figure, "bars: 95 % interval, heads resampled", note)


def _listed(
    table: pd.DataFrame, down: str, by: str, looks: dict[str, style.Look], value: str, *, reach: float, **given: object
) -> Figure:
    """A row for each value of `down`, in it a point for each of `by`; a panel a model. Hollow where not `testable`."""
    names, places = list(table[down].unique()), style.apart([x for x in looks if x in set(table[by])], reach)
    figure, parts = style.panels(table, "model", **given)
    for panel, part in parts:
        panel.axvline(0, zorder=1, **style.BOUND)
        for row in part.to_dict("records"):
            at, mark = names.index(row[down]) + places[row[by]], {"width": 0.9, "markersize": 3.2, "zorder": 3}
            hollow = not row.get("testable", True)
            style.points(panel, at, row, looks[row[by]], value=value, listed=True, hollow=hollow, **mark)
        style.listed(panel, names)
    return figure


@style.draws(table="probe arm window | interaction low high")
def windows(table: pd.DataFrame) -> Figure:
    """How much more an arm costs (nats) when softmax sees the last w tokens only: probes across, a line an arm."""
    labels = {"x": "softmax window w (tokens)", "y": "arm × window\n(nats an answer or byte)"}
    named = table.replace({"probe": {effects.TEXT: "text"}})
    figure, parts = style.panels(named, "probe", height=1.9, sharey=False, **labels)
    looks = {arm: (look, 0.03 * (place - 2)) for place, (arm, look) in enumerate(ARMS.items())}
    for panel, part in parts:
        panel.axhline(0, zorder=1, **style.BOUND)
        _in_steps(panel, part, "arm", looks, table["window"], value="interaction")
        panel.set_xlim(-0.5, table["window"].nunique() - 0.5)
    _arm_legend(figure, table["arm"])
    note = "bars: 95 % interval over rows and draws; above 0: the missing heads cost more when softmax cannot look back"
    return style.finish(figure, note, style.counted(table, "items"))


@style.draws(table="model every probe truncated | estimate low high")
def loads(table: pd.DataFrame) -> Figure:
    """What is answered against the rank that all states are cut to, every so many tokens: a line for each load.

    `truncated` is the rank, `probe` the task, which says how much a state has to hold; models across, `every` down.
    """
    named = table.assign(panel="every " + table["every"].astype(str) + " tokens")
    figure, parts = style.crossed(named, "panel", "model", height=1.4, x="rank that the states are cut to")
    probes = list(table["probe"].unique())
    drawn = [style.Look(*look) for look in zip(style.shades(len(probes), 0.9), "osD^v<>", strict=False)]
    aside = 0.06 * (np.arange(len(probes)) - len(probes) / 2)
    looks = dict(zip(probes, zip(drawn, aside, strict=True), strict=True))
    for panel, part in parts:
        _in_steps(panel, part, "probe", looks, table["truncated"])
    style.legend(figure, [style.handle(probe, look) for probe, (look, _) in looks.items()])
    told = "share of items right; recall n: n pairs at once, needle: two facts, needle4: four"
    return style.finish(figure, "bars: 95 % interval over rows", told, style.counted(table, "items"))


@style.draws(table="model arm share which draw | value n")
def places(table: pd.DataFrame, *, value: str) -> Figure:
    """What is answered without random sets of heads, in order, and without chosen ones among them: a panel a model.

    An arm's `chosen` sets stand at the share of `random` ones that do worse, ties counted half.
    """
    looks = {arm: ARMS.get(arm, style.Look("#111111", "o")) for arm in table["arm"].unique() if arm not in _BESIDE}
    labels = {"x": "share of random\nsets that do worse", "y": value}
    figure, parts = style.panels(table, "model", height=1.7, columns=table["model"].nunique(), **labels)
    for panel, part in parts:
        for name, line in _BESIDE.items():
            for height in part.loc[part["arm"] == name, "value"]:
                panel.axhline(height, zorder=1, **line)
        for arm, rows in part[part["which"] == "random"].groupby("arm", sort=False):
            ordered = np.sort(rows["value"])
            panel.step((np.arange(len(ordered)) + 0.5) / len(ordered), ordered, color="0.6", where="mid", zorder=2)
            chosen = part.loc[(part["arm"] == arm) & (part["which"] == "chosen"), "value"]
            worse = [np.searchsorted(ordered, chosen, side) / len(ordered) for side in ("left", "right")]
            look, mark = looks[arm], {"markersize": 4, "zorder": 3, "alpha": 0.7}
            panel.plot(np.mean(worse, 0), chosen, look.marker, color=look.colour, **mark)
        shares = part.loc[part["which"] == "random", "share"].unique()
        panel.set_title(", ".join([part["model"].iloc[0], *(f"{share:.0%}" for share in shares)]))
        panel.set(xlim=(-0.03, 1.03), xticks=[0, 0.5, 1], xticklabels=["0", "0.5", "1"])
    titles = {arm: title for arm, (title, *_) in _ARMS.items()}
    handles = [style.handle(titles.get(arm, arm), look, linestyle="") for arm, look in looks.items()]
    handles += [style.handle("random sets, in order", color="0.6")]
    style.legend(figure, [*handles, *(style.handle(name, **line) for name, line in _BESIDE.items())])
    random = table[table["which"] == "random"].groupby(["model", "arm"]).size()
    sets = f"{style.span(random)} random sets of as many heads (share of all in the title)"
    return style.finish(figure, sets, "a symbol for each draw of ties", style.counted(table, "items, the same for all"))
