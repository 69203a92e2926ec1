"""The figure of heads of other sizes."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from srdyn.figures import style

_QUANTITIES = {
    "measured": {"linestyle": "-", "hollow": False},
    "own decays": {"linestyle": ":", "hollow": True},
    "registered": {"linestyle": "", "hollow": True, "markersize": 7},
}
"""How a share is drawn that was measured, that the model's own decays give, that was written down before."""


@style.draws("model quantity", f"kind seed D n within {style.SHARES}")
def head_sizes(table: pd.DataFrame, heads: pd.DataFrame) -> Figure:
    """Shares of low, middle and high heads over the size of a head, beside how slowly the heads forget: a row a kind.

    `heads`: kind, D, half_life (tokens) of every head.
    """
    kinds, sizes = list(table["kind"].unique()), sorted(map(int, table["D"].unique()))
    colours = dict(zip(sizes, style.shades(len(sizes), 0.8), strict=True))
    figure, axes = style.grid(len(kinds), 2, height=2.0)
    for kind, (left, right) in zip(kinds, axes, strict=True):
        _shares(left, table[table["kind"] == kind], sizes)
        _half_lives(right, heads[heads["kind"] == kind], colours)
        left.set_title(f"{kind}: shares of heads")
        right.set_title(f"{kind}: share of heads that forget faster")
    style.outer_labels([row[0] for row in axes], x="dimensions of a head d", y="share of heads")
    style.outer_labels([row[1] for row in axes], x="half-life (tokens)", y="share of heads")
    handles = [style.handle(name, look, linestyle="") for name, look in style.STRATA.items()]
    handles += [style.handle(f"d = {d}", color=colour) for d, colour in colours.items()]
    style.legend(figure, handles)
    return style.finish(
        figure,
        f"{style.span(table['n'])} heads a model; bars: 95 % interval over heads",
        "filled: measured",
        "small, hollow: closed form of the model's own decays",
        "large, hollow: written down before the models of other sizes were trained",
    )


def _shares(panel: Axes, table: pd.DataFrame, sizes: list[int]) -> None:
    moved = style.apart(list(style.STRATA), 0.05)
    for name, look in style.STRATA.items():
        for quantity, mark in _QUANTITIES.items():
            rows = table[table["quantity"] == quantity].sort_values("D")
            at = rows["D"] * 2.0 ** moved[name]
            style.points(panel, at, rows, look, value=name, ends=(f"{name}_lo", f"{name}_hi"), **mark)
    panel.set_xscale("log", base=2)
    panel.set_xticks(sizes, map(str, sizes))
    panel.set_xlim(min(sizes) / 2**0.2, max(sizes) * 2**0.2)
    panel.set_ylim(-0.02, 1)


def _half_lives(panel: Axes, heads: pd.DataFrame, colours: dict[int, str]) -> None:
    for d, own in heads.groupby("D"):
        half_life = np.sort(own["half_life"])
        panel.step(half_life, np.arange(1, len(half_life) + 1) / len(half_life), color=colours[d], where="post")
    panel.set_xscale("log")
    panel.set_ylim(0, 1.02)
