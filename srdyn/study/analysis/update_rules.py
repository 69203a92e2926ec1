"""Models of several update rules, trained alike, side by side: their measures, their heads, what they lose."""

import functools

import numpy as np
import pandas as pd

from srdyn import spectra, strata
from srdyn.study.analysis import mechanism, observations, rank_statistics
from srdyn.study.survey import null_tables
from srdyn.study.trials import effects, trials

SHARES = {stratum: f"{stratum} heads" for stratum in strata.STRATA}
"""By stratum, what the measure of its share is called."""
NULLS = ("untrained", "mechanism")
"""Beside each model; the second where its rule is the delta rule with one decay a head, or none."""
RHO, KAPPA = "spearman between domains", "kappa between domains"
HEADS, LAYER = "share of all heads", "share of a layer's heads"


def heads(text: pd.DataFrame, at: int, *, eps: float = spectra.EPS) -> pd.DataFrame:
    """Every head after `at` tokens, as `mechanism.heads`; without decay the half-life is infinite, which predicts D."""
    table = mechanism.heads(text, at, eps=eps)
    return table.fillna({"half_life": np.inf, "predicted": table["D"]})


def measures(text: pd.DataFrame, positions: list[int], *, eps: float = spectra.EPS) -> pd.DataFrame:
    """Ranks, the fork, agreement between domains, and what the closed form of the decays foretells.

    `text` are the domains' rows of `survey.heads`. Columns of `observations.measure` with `unit`: a row for every
    model, source and measure. All are taken at the last of the positions, mean ranks at each. The closed form
    (`mechanism.explained`) is asked of models whose heads forget.
    """
    of, at, anew = functools.partial(observations.measure, text), {"at": positions[-1]}, {"over_heads": True}
    tables = [of(f"rank after {t} tokens", _mean_rank, at=t, **anew).assign(unit="directions") for t in positions]
    for stratum, name in SHARES.items():
        tables.append(of(name, rank_statistics.share_of_all, stratum=stratum, **at, **anew).assign(unit=HEADS))
    tables += [
        of("smaller group", rank_statistics.smaller_group, **at).assign(unit=LAYER),
        of("middle", rank_statistics.stratum_share, stratum="middle", **at).assign(unit=LAYER),
        rank_statistics.dip(text, "dip", **at).assign(unit="p of one mode"),
        of(RHO, rank_statistics.spearman_between, **at).assign(unit="Spearman ρ"),
        of(KAPPA, rank_statistics.kappa_between, **at).assign(unit="Cohen's κ"),
    ]
    forget = text[text["log_decay"].notna()]
    if len(forget):
        found = mechanism.explained(forget, positions[-1], eps=eps).query("predictor == @mechanism.CLOSED_FORM")
        named = {"measure": "closed form, " + found["quantity"], "unit": found["quantity"]}
        tables.append(found.assign(source=null_tables.MODEL, over="documents", why="", **named))
    columns = ["measure", "unit", *observations.OF_A_SOURCE, *observations.Observed._fields, "n", "over", "why"]
    return pd.concat(tables, ignore_index=True)[columns]


def removed(answers: pd.DataFrame) -> pd.DataFrame:
    """`effects.costs` of these answers against the intact model and random heads, with their `unit`."""
    found = effects.costs(answers, [trials.INTACT, "random"])
    return found.assign(unit=np.where(found["probe"] == effects.TEXT, "bits per byte", "share of items"))


def _mean_rank(means: observations.Means, cube: observations.Cube, *, at: int) -> observations.Pooled:
    return observations.single(float(means[..., cube.at(at)].mean()), observations.MAGNITUDE)
