"""The figure of models with other update rules, a row a rule."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from srdyn import spectra
from srdyn.figures import interventions, style
from srdyn.study.analysis import update_rules as analysis
from srdyn.study.trials import effects, trials

_RULES = {
    "pure": "Gated\nDeltaNet:\ndecay, erasing",
    "kda": "KDA:\ndecays, erasing",
    "rwkv7": "RWKV-7:\ndecays, erasing",
    "mamba2": "Mamba-2:\ndecay",
    "gla": "GLA:\ndecays",
    "deltanet": "DeltaNet:\nerasing",
}
"""By kind the rule, and what it does besides writing; any other kind is called what it is."""
_ARMS = {"lowest": "low", "random": "random", "highest": "high"}
_TITLES = ("effective\nrank r", "share of\nheads", "agreement\nof texts", "needles\nfound", "bits per\nbyte more")


@style.draws(table="model source measure | kind estimate low high n")
def update_rules(table: pd.DataFrame, heads: pd.DataFrame, removed: pd.DataFrame) -> Figure:
    """Ranks, their shares, agreement between texts, what is lost with some of the heads (needles, text): a row a model.

    The tables are those of `analysis.update_rules`.
    """
    names = table["model"].unique()
    figure, axes = style.grid(len(names), len(_TITLES), height=0.75, sharex="col", titles=_TITLES)
    for name, row in zip(names, axes, strict=True):
        own, lost = (x[x["model"] == name] for x in (table, removed))
        _ranks(row[0], heads[heads["model"] == name], heads["half_life"])
        row[0].set_ylabel(_RULES.get(own["kind"].iloc[0], name), rotation=0, ha="right", va="center")
        _measures(row[1], own, analysis.SHARES)
        _measures(row[2], own, {"ρ": analysis.RHO, "κ": analysis.KAPPA})
        _arms(row[3], lost[(lost["probe"] == "needle") & lost["reference"].isna()])
        _arms(row[4], lost[(lost["probe"] == effects.TEXT) & (lost["reference"] == trials.INTACT)])
        row[4].set_yticklabels([])
    axes[-1, 0].set_xlabel("half-life (tokens)")
    for shares in (axes[-1, 1], axes[-1, 3]):
        shares.set_xlim(-0.05, 1.05)
    handles = [style.handle(f"{name} heads", look, linestyle="") for name, look in style.STRATA.items()]
    untrained = style.handle("untrained", style.Look("0.4", "o"), markerfacecolor="white", linestyle="")
    style.legend(figure, [*handles, untrained, style.handle("no head removed", **style.BOUND)])
    told = "dotted: min(d, ln(1/ε)/(−g)), g the mean over a head's channels; ∞: no decay"
    gone = f"right: {removed['share'].max():.0%} of each layer's heads removed"
    more = f"ρ, κ: order and strata of heads (κ not defined if all are in one); {gone}"
    return style.finish(figure, told, more, f"bars: 95 % interval; {style.counted(table.drop(columns='source'))}")


def _ranks(panel: Axes, heads: pd.DataFrame, half_lives: pd.Series) -> None:
    """Against the half-life; heads that never forget stand at the right, spread by their number in the layer."""
    d, known = heads["D"].max(), half_lives[np.isfinite(half_lives)].tolist() or [1.0]
    t, never = np.geomspace(min(known), max(known), 200), 8 * max(known)
    at = heads["half_life"].where(np.isfinite(heads["half_life"]), never * 1.2 ** (heads["head"] % 8))
    panel.plot(t, np.minimum(d, t * np.log(1 / spectra.EPS) / np.log(2)), ":", color="#111111", linewidth=0.9)
    for name, look in style.STRATA.items():
        own = heads["stratum"] == name
        panel.plot(at[own], heads.loc[own, "rank"], look.marker, color=look.colour, markersize=2)
    panel.set_xscale("log")
    panel.set_xticks([1, 100, 2 * never], ["1", "100", "∞"])
    panel.set_ylim(0, 1.06 * d)


def _measures(panel: Axes, own: pd.DataFrame, measures: dict[str, str]) -> None:
    """A line a measure, by its label: trained, and hollow below it before training."""
    for place, (label, measure) in enumerate(measures.items()):
        look = style.STRATA.get(label, style.SOURCES[style.MODEL])
        for source, at in ((style.MODEL, place - 0.18), ("untrained", place + 0.18)):
            rows = own[(own["source"] == source) & (own["measure"] == measure)]
            style.points(panel, np.full(len(rows), at), rows, look, listed=True, hollow=source != style.MODEL)
    style.listed(panel, [*measures])


def _arms(panel: Axes, rows: pd.DataFrame) -> None:
    """A line an arm; dashed: all heads are there, from which differences are zero."""
    panel.axvline(rows.loc[rows["arm"] == trials.INTACT, "estimate"].sum(), zorder=1, **style.BOUND)
    for place, arm in enumerate(_ARMS.values()):
        own = rows[rows["arm"] == arm]
        style.points(panel, np.full(len(own), place), own, interventions.ARMS[arm], listed=True)
    style.listed(panel, [*_ARMS])
