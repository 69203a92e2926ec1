"""The look that all figures share: sizes, colours, markers, panels, the line at the foot."""

import contextlib
import textwrap
from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from srdyn.study.run import figure_files

NARROW, WIDE = 3.35, 6.9
"""Inches: a column, a page."""
LINE = 0.115
"""Inches: a line of the foot."""
RC = figure_files.STYLE | {
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
MODEL = "model"


class Look(NamedTuple):
    """How one thing is drawn wherever it appears."""

    colour: str
    marker: str


STRATA = {"low": Look("#004488", "o"), "middle": Look("#BB5566", "s"), "high": Look("#C99000", "^")}
SOURCES = {
    MODEL: Look("#111111", "o"),
    "untrained": Look("#8C8C8C", "s"),
    "mechanism": Look("#5BA3CF", "D"),
    "permuted decays": Look("#C28BC0", "^"),
    "common decay": Look("#8DBE8A", "v"),
    "permuted heads": Look("#E0905A", "P"),
}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """The style of all figures while it lasts, whatever the user has set; also a decorator."""
    with plt.style.context(RC, after_reset=True):
        yield


def require(table: pd.DataFrame, columns: Sequence[str], *, key: Sequence[str]) -> None:
    """Raise ValueError unless the table has rows and these columns, with one row for every value of `key`."""
    missing = [name for name in columns if name not in table]
    if missing:
        raise ValueError(f"the table lacks the columns {', '.join(missing)}; it has {', '.join(map(str, table))}")
    if table.empty:
        raise ValueError("the table has no rows, so there is nothing to draw")
    for column, known in (("source", SOURCES), ("stratum", STRATA)):
        strange = set(table[column].dropna()) - set(known) if column in columns else set()
        if strange:
            raise ValueError(f"no {column} is called {', '.join(map(repr, sorted(strange)))}; there are {list(known)}")
    if table.duplicated(list(key)).any():
        first = table.loc[table.duplicated(list(key)), list(key)].iloc[0].to_dict()
        raise ValueError(f"one row for every {', '.join(key)} is needed, but several have {first}; select or average")


def sources(table: pd.DataFrame) -> list[str]:
    """The sources in the table: the model first, then its nulls, in one order everywhere."""
    present = set(table["source"])
    return [name for name in SOURCES if name in present]


def seeds(table: pd.DataFrame) -> list[int]:
    """The seeds in the table, sorted: the first is drawn bold."""
    return sorted(int(seed) for seed in table["seed"].unique())


def grid(rows: int, columns: int, *, height: float, **shared: bool | str) -> tuple[Figure, np.ndarray]:
    """A figure of no window with its panels [rows, columns], each `height` inches high. `shared`: sharex, sharey.

    One column of panels is a text column wide, more are a page wide.
    """
    size = (NARROW if columns == 1 else WIDE, rows * height + 0.35)
    figure, panels = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **shared)
    # Created by pyplot, so that a notebook knows how to show it; closed, so that it is shown once.
    plt.close(figure)
    return figure, panels


def panels(names: pd.Series, *, height: float, **shared: bool | str) -> tuple[Figure, dict[Hashable, Axes]]:
    """A figure with one panel for each of the names, three to a row, titled by it. `shared`: sharex, sharey."""
    names = list(names.unique())
    columns = min(3, len(names))
    figure, axes = grid(-(-len(names) // columns), columns, height=height, **shared)
    for unused in axes.flat[len(names) :]:
        unused.remove()
    found = dict(zip(names, axes.flat, strict=False))
    for name, panel in found.items():
        panel.set_title(str(name))
    return figure, found


def outer_labels(axes: Sequence[Axes], *, x: str, y: str) -> None:
    """Axis labels where no other panel of these lies further left, or further down."""
    for panel in axes:
        place = panel.get_subplotspec()
        below = [p for p in axes if p.get_subplotspec().colspan == place.colspan]
        if place.is_first_col():
            panel.set_ylabel(y)
        if place.rowspan.stop == max(p.get_subplotspec().rowspan.stop for p in below):
            panel.set_xlabel(x)
            panel.tick_params(labelbottom=True)


def label_grid(axes: np.ndarray, *, columns: Sequence[str], rows: Sequence[str], x: str) -> None:
    """What a grid of panels shows: its columns' titles on top, its rows at their left, one x axis below."""
    for panel, title in zip(axes[0], columns, strict=True):
        panel.set_title(title)
    for panel, label in zip(axes[:, 0], rows, strict=True):
        panel.set_ylabel(label)
    for panel in axes[-1]:
        panel.set_xlabel(x)


def finish(figure: Figure, *notes: str) -> Figure:
    """Put the notes at the foot, lay out once, and keep this layout, so that saving again gives the same bytes."""
    width, height = figure.get_size_inches()
    lines = textwrap.wrap(" · ".join(note for note in notes if note), int(22.5 * width))
    foot = LINE * len(lines) + 0.04
    figure.set_size_inches(width, height + foot)
    share = foot / (height + foot)
    figure.get_layout_engine().set(rect=(0, share, 1, 1 - share))
    figure.text(0.01, 0.02 / (height + foot), "\n".join(lines), size=6, color="0.3", va="bottom", linespacing=1.15)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def counted(table: pd.DataFrame) -> str:
    """`n = 8 samples`, source by source where they differ; empty for a table that does not say n."""
    if "n" not in table:
        return ""
    parts = {"": table} if "source" not in table else dict(list(table.groupby("source", sort=False)))
    sizes: dict[str, list[str]] = {}
    for source, part in parts.items():
        if part["n"].isna().all():
            continue
        fewest, most = int(part["n"].min()), int(part["n"].max())
        sizes.setdefault(f"{fewest}" if fewest == most else f"{fewest}–{most}", []).append(source)
    if len(sizes) < 2:
        return "".join(f"n = {size} samples" for size in sizes)
    nulls = set(parts) - {MODEL}
    named = [f"{size} ({'nulls' if set(of) == nulls else ', '.join(of)})" for size, of in sizes.items()]
    return f"n = {', '.join(named)} samples"


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
        for bold, seed in zip([True, False, False, False], seeds(part), strict=False):
            several = len(seeds(part)) > 1
            name = f"{source}, seed {seed}" if several else source
            name += "" if part[value].notna().any() else " (undefined)"
            look, width = SOURCES[source], 1.5 if bold else 0.8
            handles.append(Line2D([], [], color=look.colour, marker=look.marker, linewidth=width, label=name))
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
    gap, to_axes = 0.11 / inches, panel.transData + panel.transAxes.inverted()
    places: list[float] = []
    for height, _, _ in ordered:
        wanted = to_axes.transform((panel.get_xlim()[0], height))[1]
        places.append(max(wanted, places[-1] + gap) if places else wanted)
    for i in reversed(range(len(places))):
        places[i] = min(places[i], 1.0 - gap * (len(places) - 1 - i))
    for place, (_, text, colour) in zip(places, ordered, strict=True):
        panel.annotate(
            text,
            (1, place),
            (2, 0),
            "axes fraction",
            "offset points",
            color=colour,
            size=6.5,
            va="center",
            annotation_clip=False,
        )


def span(sizes: pd.Series) -> str:
    """`64`, or `48–64` where sizes differ."""
    return f"{sizes.min()}" if sizes.nunique() == 1 else f"{sizes.min()}–{sizes.max()}"
