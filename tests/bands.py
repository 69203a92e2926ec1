"""How far another processor can move κ and R², which are made of ranks: the formulas of notebooks/site/verdicts.md."""

import numpy as np

from srdyn import strata
from srdyn.study.analysis import mechanism
from srdyn.study.run import store


def kappa_moves(kappa, chance, n, m=1):
    """κ of n heads, a share `chance` agreeing by chance, where m change their stratum; inf if too many."""
    differ = n * (1 - chance)
    return m * (2 - kappa) / (differ - m) if m < differ else np.inf


def r2_moves(r2, s, u, v):
    """R² where ranks, whose deviations are s long, move by a vector u long at most, and predictions by one v long."""
    r = np.sqrt(1 - r2)
    moved = (u + v + r * u) / (s - u) if u < s else np.inf
    return (2 * r + moved) * moved


def heads_of(model, source="model"):
    """The heads of one model after the last token, or of one of its nulls, in the order of their places."""
    heads = store.load_table("01_stratification_heads", run="reference")
    chosen = (heads["model"] == model) & (heads["source"] == source)
    return heads[chosen].sort_values(["layer", "head"], ignore_index=True)


def near_limits(heads):
    """Which of these are as close to the limit of a stratum as their mean rank is uncertain."""
    off = [(heads["rank"] - limit * heads["D"]).abs() <= heads["uncertain"] for limit in (strata.LOW, strata.HIGH)]
    return np.logical_or(*off)


def splits():
    """Each row of `05_mechanism_splits`, and what one head that changes its stratum by rank moves κ by at most."""
    table = store.load_table("05_mechanism_splits", run="reference")
    shares = table[["model", "split", *strata.STRATA]].set_index(["model", "split"])
    chance = [shares.loc[row.model, row.split] @ shares.loc[row.model, "rank"] for row in table.itertuples()]
    given = zip(table["kappa"], chance, map(len, map(heads_of, table["model"])), strict=True)
    return table.assign(chance=chance, moves=[kappa_moves(*each) for each in given])


def explained():
    """Each R² of `05_mechanism_explained` but the monotone fit's, and what it moves by at most.

    Tables say how far off a head's mean over contexts may be: in one of four contexts it may be four times as far.
    """
    table = store.load_table("05_mechanism_explained", run="reference")
    table = table[table["quantity"].str.startswith("R²") & (table["predictor"] != mechanism.MONOTONE)]
    variance = table.groupby(["model", "quantity"])["variance"].first()
    return table.assign(moves=[_moves(row, variance[row.model]) for row in table.itertuples()])


def _moves(row, variance):
    own = heads_of(row.model)
    decays_alone = row.predictor == mechanism.CLOSED_FORM
    u = np.linalg.norm(own["uncertain"])
    v = 0.0 if decays_alone else np.linalg.norm(heads_of(row.model, row.predictor)["uncertain"])
    s = np.linalg.norm(own["rank"] - own["rank"].mean())
    if row.quantity == mechanism.BETWEEN:
        return r2_moves(row.estimate, s, u, v)
    contexts = own["n"].iloc[0] // row.n
    s *= np.sqrt(contexts * row.variance / variance[mechanism.BETWEEN])
    return r2_moves(row.estimate, s, contexts * u, contexts * v)
