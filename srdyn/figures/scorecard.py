"""The figure of all verdicts: claims down, kinds of model across."""

import re
import textwrap

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
SINGLE = {"passes": "reproduced", "fails": "not reproduced", "undecided": "inconclusive"}
CONTROL = "control"
ROW = 0.42
"""Inches: the height of a claim."""


@style.draws("claim kind", "verdict leading why")
def verdicts(ledger: pd.DataFrame) -> Figure:
    """Every claim's verdict in every kind of model, with the value that decides it, as `claims.ledger` has them.

    Hollow: a null passes as well. Raises ValueError for a verdict without a colour.
    """
    claims = list(ledger["claim"].unique())
    kinds = [kind for kind in ledger["kind"].unique() if kind]
    figure, axes = style.grid(1, 2, height=ROW * len(claims) + 0.3)
    axes[0, 1].remove()
    panel = axes[0, 0]
    panel.set_subplotspec(panel.get_gridspec()[0, :])
    for row in ledger.itertuples():
        for kind in [row.kind] if row.kind else kinds:
            _cell(panel, kinds.index(kind), claims.index(row.claim), row)
    panel.set_xlim(-0.2, max(1, len(kinds)) - 0.2)
    style.listed(panel, claims)
    panel.set_ylim(len(claims) - 0.5, -0.6)
    controls = set(ledger.loc[ledger["verdict"].str.startswith(CONTROL), "kind"])
    panel.set_xticks(range(len(kinds)), [f"{kind} ({CONTROL})" if kind in controls else kind for kind in kinds])
    panel.xaxis.tick_top()
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    style.legend(figure, [style.handle(*named, linestyle="", markersize=6) for named in OUTCOMES.items()])
    note = "the value that decides, both seeds, and its rule; hollow: a null model passes too; small: a control"
    return style.finish(figure, note)


def outcome(verdict: str) -> str:
    """The one of `OUTCOMES` that a verdict amounts to. Raises ValueError for a verdict that is none."""
    plain = verdict.split(" (null")[0].split(": ")[-1]
    plain = SINGLE.get(plain, plain)
    if plain not in (*OUTCOMES, "not measured yet"):
        raise ValueError(f"no verdict is called {verdict!r}; there are {', '.join(OUTCOMES)}")
    return "not testable here" if plain == "not measured yet" else plain


def _cell(panel: Axes, x: int, y: int, row: tuple) -> None:
    look = OUTCOMES[outcome(row.verdict)]
    face = "white" if "null passes too" in row.verdict else look.colour
    size = 3 if row.verdict.startswith(CONTROL) else 6
    panel.plot(x - 0.1, y, look.marker, color=look.colour, markerfacecolor=face, markersize=size)
    joined = lambda found: found[0].replace(" ", "\N{NO-BREAK SPACE}")  # noqa: E731
    text = textwrap.fill(re.sub(r" / |(?<=[≥≤<]) ", joined, row.leading or row.why), 34)
    panel.text(x - 0.04, y, text, size=6, va="center", color="0.25")
