"""The look that all figures share: sizes, colours, markers, panels, the line at the foot."""

import contextlib
import functools
import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib import colormaps, colors
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from srdyn.study.run import figure_files

NARROW, WIDE = 3.35, 6.9
"""Inches: a column, a page."""
_RC = figure_files.STYLE | {
    "font.family": "DejaVu Sans",  # comes with matplotlib, hence the same on every machine
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.minor.visible": False,
    "lines.linewidth": 1.0,
    "lines.markersize": 3.5,
    "lines.markeredgewidth": 0.7,
    "hatch.linewidth": 0.5,
    "figure.dpi": 150,
}
COLOURMAP = "cividis"
"""Monotone in lightness, so that it prints grey, and safe for the colour-blind."""
BOUND = {"color": "0.45", "linestyle": (0, (4, 2)), "linewidth": 0.9}
"""Bounds and thresholds, in every figure."""
QUARTERS = [0, 0.25, 0.5, 0.75, 1]
HALF_LIFE = "half-life at which d = 128 saturates (tokens): slower heads high, others low"
MODEL = "model"


class Look(NamedTuple):
    """How one thing is drawn wherever it appears."""

    colour: str
    marker: str


STRATA = {"low": Look("#004488", "o"), "middle": Look("#BB5566", "s"), "high": Look("#C99000", "^")}
SHARES = " ".join(f"{name}{end}" for name in STRATA for end in ("", "_lo", "_hi"))
"""The columns of a table of their shares, with the ends of the intervals."""
SOURCES = {
    MODEL: Look("#111111", "o"),
    "untrained": Look("#8C8C8C", "s"),
    "mechanism": Look("#5BA3CF", "D"),
    "common decay": Look("#8DBE8A", "v"),
    "permuted heads": Look("#E0905A", "P"),
}


def style() -> contextlib.AbstractContextManager[None]:
    """The style of all figures while it lasts, whatever the user has set."""
    return plt.style.context(_RC, after_reset=True)


def draws(**tables: str) -> Callable[[Callable[..., Figure]], Callable[..., Figure]]:
    """Decorates a function of tables with these columns, and one row for each value of those before the bar."""

    def decorate(draw: Callable[..., Figure]) -> Callable[..., Figure]:
        @functools.wraps(draw)
        def drawn(*given: object, **options: object) -> Figure:
            arguments = inspect.signature(draw).bind(*given, **options).arguments
            for name, columns in tables.items():
                require(arguments[name], *columns.split("|"))
            with style():
                return draw(*given, **options)

        told = ", ".join(f"of `{name}`: `{columns}`" for name, columns in tables.items())
        told = f"Columns {told}; one row for each value of those before the bar. Raises ValueError for other tables."
        drawn.__doc__ = f"{inspect.getdoc(draw)}\n\n{told}"
        return drawn

    return decorate


def require(table: pd.DataFrame, key: str, values: str = "") -> None:
    """Raise ValueError unless the table has rows and these columns, with one row for every value of `key`."""
    keys, columns = key.split(), [*key.split(), *values.split()]
    if missing := [name for name in columns if name not in table]:
        raise ValueError(f"the table lacks the columns {', '.join(missing)}; it has {', '.join(map(str, table))}")
    if table.empty:
        raise ValueError("the table has no rows, so there is nothing to draw")
    for column, known in (("source", SOURCES), ("stratum", STRATA)):
        if strange := set(table[column].dropna()) - set(known) if column in columns else set():
            raise ValueError(f"no {column} is called {', '.join(map(repr, sorted(strange)))}; there are {list(known)}")
    repeated = table.loc[table.duplicated(keys), keys]
    if len(repeated):
        first = repeated.iloc[0].to_dict()
        raise ValueError(f"one row for every {', '.join(keys)} is needed, but several have {first}; select or average")


def sources(table: pd.DataFrame) -> list[str]:
    """The sources in the table: the model first, then its nulls, in one order everywhere."""
    return [name for name in SOURCES if name in set(table["source"])]


def grid(
    rows: int, columns: int, *, height: float, x: str = "", y: Sequence[str] = "", titles: Sequence = (), **more: object
) -> tuple[Figure, np.ndarray]:
    """A figure of no window with panels [rows, columns] `height` inches high: a text column wide, several a page.

    `x` labels the lowest panel of each column, `y`, one for all or one a row, the first of each row. `titles` are those
    of the first row or of every panel, and then no more panels are left.
    """
    size = (NARROW if columns == 1 else WIDE, rows * height + 0.35)
    figure, panels = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **more)
    # Created by pyplot, so that a notebook knows how to show it; closed, so that it is shown once.
    plt.close(figure)
    count = len(titles) if len(titles) > columns else panels.size
    for place, panel in enumerate(panels.flat):
        if place >= count:
            panel.remove()
        if place % columns == 0:
            panel.set_ylabel(y if isinstance(y, str) else y[place // columns])
        if place + columns >= count:
            panel.set_xlabel(x)
            panel.tick_params(labelbottom=True)
    for panel, title in zip(panels.flat, titles, strict=False):
        panel.set_title(str(title))
    return figure, panels


def panels(
    table: pd.DataFrame, by: str, *, height: float = 2.0, columns: int | None = None, **shared: bool | str
) -> tuple[Figure, list[tuple[Axes, pd.DataFrame]]]:
    """A figure with a panel for each value of a column, beside its rows; shared axes, labelled by `x` and `y`.

    Unless the number of `columns` is given, three panels stand in a row, of four two.
    """
    names = list(table[by].unique())
    columns = columns or (2 if len(names) == 4 else min(3, len(names)))
    shared = {"sharex": True, "sharey": True} | shared
    figure, axes = grid(-(-len(names) // columns), columns, height=height, titles=names, **shared)
    return figure, [(panel, table[table[by] == name]) for panel, name in zip(axes.flat, names, strict=False)]


def crossed(
    table: pd.DataFrame, down: str, across: str, *, height: float, y: str = "", **shared: bool | str
) -> tuple[Figure, list[tuple[Axes, pd.DataFrame]]]:
    """A figure with a panel for each pair of values of two columns, beside its rows; `x` labels the horizontal axes.

    The values stand on top and at the left; where `y` labels the vertical axes, each panel is titled by both.
    """
    rows, columns = (list(table[by].unique()) for by in (down, across))
    shared = {"sharex": True, "sharey": "row"} | shared
    titles = [f"{column}: {row}" for row in rows for column in columns] if y else columns
    figure, axes = grid(len(rows), len(columns), height=height, y=y or rows, titles=titles, **shared)
    parts = [table[(table[down] == row) & (table[across] == column)] for row in rows for column in columns]
    return figure, list(zip(axes.flat, parts, strict=True))


def equal_ranks(panel: Axes, sizes: pd.Series) -> float:
    """Rank against rank up to the largest size of a head, which it returns; a dotted line where both are equal."""
    top = float(sizes.max()) if len(sizes) else 1.0
    panel.plot([0, top], [0, top], ":", color="0.7", linewidth=0.7, zorder=1)
    ends = (-0.03 * top, 1.05 * top)
    panel.set(xlim=ends, ylim=ends)
    return top


def listed(panel: Axes, names: Sequence[str] | pd.Series, *, tick: float | int = 0) -> None:
    """Names down the vertical axis, the first on top."""
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(len(names) - 0.5, -0.5)
    panel.tick_params(axis="y", length=tick)


def points(
    panel: Axes,
    at: object,
    rows: pd.DataFrame | Mapping[str, object],
    look: Look,
    *,
    value: str = "estimate",
    width: float = 0.8,
    front: int = 2,
    listed: bool = False,
    hollow: bool = False,
    **mark: object,
) -> None:
    """Points with bars `width` wide: over the places `at`, or beside them where these are `listed`.

    Bars go from `low` to `high`, or, where rows have them, from `<value>_lo` to `<value>_hi`.
    """
    low, high = (f"{value}_lo", f"{value}_hi") if f"{value}_lo" in rows else ("low", "high")
    bars = panel.hlines if listed else panel.vlines
    bars(at, rows[low], rows[high], color=look.colour, linewidth=width, zorder=front)
    places = (rows[value], at) if listed else (at, rows[value])
    mark = {"linestyle": "", "markerfacecolor": "white" if hollow else look.colour} | mark
    panel.plot(*places, color=look.colour, marker=look.marker, **mark)


def apart(names: Sequence[object], reach: float) -> dict[object, float]:
    """How far each of several things at one place is moved, from -`reach` to `reach`; a single one stays."""
    return dict(zip(names, np.linspace(-reach, reach, len(names)) if len(names) > 1 else [0.0], strict=True))


def finish(figure: Figure, *notes: str) -> Figure:
    """Put the notes at the foot, lay out once, and keep this layout, so that saving again gives the same bytes."""
    width, height = figure.get_size_inches()
    lines = textwrap.wrap(" · ".join(note for note in notes if note), int(22.5 * width))
    foot = 0.115 * len(lines) + 0.04  # inches
    figure.set_size_inches(width, height + foot)
    share = foot / (height + foot)
    figure.get_layout_engine().set(rect=(0, share, 1, 1 - share))
    figure.text(0.01, 0.02 / (height + foot), "\n".join(lines), size=6, color="0.3", va="bottom", linespacing=1.15)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def counted(table: pd.DataFrame, what: str = "samples") -> str:
    """`n = 8 samples`, source by source where they differ; empty for a table that does not say n."""
    if "n" not in table:
        return ""
    by = table["source"] if "source" in table else pd.Series("", table.index)
    sizes = table["n"].dropna().astype(int).groupby(by, sort=False).agg(span)
    if sizes.nunique() < 2:
        return "".join(f"n = {size} {what}" for size in sizes.unique())
    alike = {size: list(of.index) for size, of in sizes.groupby(sizes, sort=False)}
    nulls = set(by) - {MODEL}
    named = [f"{size} ({'nulls' if set(of) == nulls else ', '.join(of)})" for size, of in alike.items()]
    return f"n = {', '.join(named)} {what}"


def handle(name: str, look: Look | None = None, **more: object) -> Line2D:
    """An entry of a legend."""
    mark = {} if look is None else {"color": look.colour, "marker": look.marker}
    return Line2D([], [], label=name, **mark, **more)


def legend(figure: Figure, handles: Sequence[Line2D]) -> None:
    """Above the panels, in as few lines as the figure's width allows."""
    wanted = sum(len(handle.get_label()) + 8 for handle in handles) * 0.055
    lines = int(np.ceil(wanted / figure.get_size_inches()[0]))
    columns = int(np.ceil(len(handles) / lines))
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, columnspacing=1.2, handlelength=1.8)


def source_legend(figure: Figure, table: pd.DataFrame, value: str) -> None:
    """One line above the panels: the sources, the model seed by seed; those without any `value` are undefined."""
    handles = []
    for source in sources(table):
        part = table[table["source"] == source]
        undefined = "" if part[value].notna().any() else " (undefined)"
        seeds = sorted(part["seed"].unique())
        for which, seed in enumerate(seeds):
            name = f"{source}, seed {seed}" if len(seeds) > 1 else source
            handles.append(handle(name + undefined, SOURCES[source], linewidth=0.8 if which else 1.5))
    legend(figure, handles)


def log2_positions(panel: Axes, positions: Sequence[int] | pd.Series) -> None:
    """A log2 axis of positions, labelled with at most six powers of two."""
    first, last = np.log2(min(positions)), np.log2(max(positions))
    step = max(1, int(np.ceil((last - first) / 5)))
    if not np.isfinite(panel.dataLim.intervalx).all():  # nothing is drawn, and the limits 0 … 1 have no logarithm
        panel.set_xlim(min(positions), max(positions))
    panel.set_xscale("log", base=2)
    powers = 2 ** np.arange(int(np.ceil(first)), int(np.floor(last)) + 1, step)
    panel.set_xticks(powers, [str(power) for power in powers])


def label_right(panel: Axes, labels: Sequence[tuple[float, str, str]]) -> None:
    """Texts (height in data, text, colour) at the right edge, moved apart where they would overlap."""
    ordered = sorted(labels, key=lambda label: label[0])
    inches = panel.get_position().height * panel.figure.get_size_inches()[1]
    to_axes = panel.transData + panel.transAxes.inverted()
    wanted = [to_axes.transform((panel.get_xlim()[0], height))[1] for height, _, _ in ordered]
    steps = 0.11 / inches * np.arange(len(ordered))
    places = np.minimum(np.maximum.accumulate(wanted - steps) + steps, 1 - steps[::-1])
    beside = {"xycoords": "axes fraction", "textcoords": "offset points", "annotation_clip": False}
    for place, (_, text, colour) in zip(places, ordered, strict=True):
        panel.annotate(text, (1, place), (2, 0), color=colour, size=6.5, va="center", **beside)


def shades(count: int, last: float) -> list[str]:
    """Colours from dark to light, which end at a share of the map."""
    return [colors.to_hex(shade) for shade in colormaps[COLOURMAP](np.linspace(0, last, count))]


def signed(number: str) -> str:
    """With a minus sign, and none before a zero."""
    return number.strip("-") if float(number) == 0 else number.replace("-", "−")


def span(sizes: pd.Series) -> str:
    """`64`, or `48–64` where sizes differ."""
    return f"{sizes.min()}" if sizes.nunique() == 1 else f"{sizes.min()}–{sizes.max()}"
