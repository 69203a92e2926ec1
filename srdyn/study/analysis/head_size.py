"""Does the size of a head decide how its layer forks? Rank is relative to d, decay is not.

From the decays of heads of 64 the closed form says how heads of another size would fork if decays stayed what they
are. These shares were written to data/paper/head_size.csv before the models of other sizes were trained.
"""

import numpy as np
import pandas as pd
from scipy import stats

from srdyn import strata
from srdyn.loading import files
from srdyn.study.analysis import intervals, observations, summaries

MEASURED, OWN, REGISTERED = "measured", "own decays", "registered"
OF_A_SIZE = ["kind", "seed", "D"]
FIRST = 64
"""Dimensions of the heads whose decays were known when the shares of the others were written down."""


def registered() -> pd.DataFrame:
    """The shares that were written down: model, kind, seed, D, heads, low, middle, high."""
    return pd.read_csv(files.data_dir() / "paper" / "head_size.csv")


def shares(heads: pd.DataFrame, predicted: pd.DataFrame) -> pd.DataFrame:
    """Shares of low, middle and high heads at every size: measured, from the model's own decays, and as registered.

    `heads` is `mechanism.heads`, `predicted` is `registered`. Columns: model, kind, seed, D, quantity, the shares with
    their ends (95 % interval over the model's heads; a registered share has none), n (heads), within (whether all three
    registered shares lie in the measured intervals).
    """
    rows = []
    for names, own in observations.groups(heads, observations.OF_A_MODEL):
        about = names | {"D": int(own["D"].iloc[0]), "n": len(own)}
        found = {name: _of_heads(own[column] / own["D"]) for name, column in ((MEASURED, "rank"), (OWN, "predicted"))}
        told = predicted.loc[(predicted[OF_A_SIZE] == pd.Series(about)[OF_A_SIZE]).all(axis=1)]
        within = None
        if len(told):
            measured, found[REGISTERED] = found[MEASURED], told.iloc[0][list(strata.STRATA)].to_dict()
            within = all(measured[f"{x}_lo"] <= share <= measured[f"{x}_hi"] for x, share in found[REGISTERED].items())
        rows += [about | {"quantity": name, "within": within} | values for name, values in found.items()]
    return pd.DataFrame(rows)


def decays(heads: pd.DataFrame) -> pd.DataFrame:
    """Whether decays move with the size of a head: half-lives of each model beside those of its kind at D = `FIRST`.

    Columns: model, kind, seed, D, n (heads), half_life (median, tokens), slow (share of heads with a half-life above
    that at which a head of 128 saturates), distance and p (Kolmogorov and Smirnov's, between the two models' heads; NaN
    without a second one).
    """
    rows = []
    for (kind, seed), alike in heads.groupby(["kind", "seed"], sort=False):
        before = alike.loc[alike["D"] == FIRST, "half_life"]
        for (model, d), own in alike.groupby(["model", "D"], sort=False):
            half_life = own["half_life"]
            values = {"half_life": half_life.median(), "slow": (half_life >= summaries.HALF_LIFE).mean()}
            if d != FIRST and len(before):
                found = stats.ks_2samp(half_life, before)
                values |= {"distance": found.statistic, "p": found.pvalue}
            rows.append({"model": model, "kind": kind, "seed": seed, "D": d, "n": len(own)} | values)
    return pd.DataFrame(rows, columns=["model", *OF_A_SIZE, "n", "half_life", "slow", "distance", "p"])


def _of_heads(share: pd.Series) -> dict[str, float]:
    inside = strata.shares(share.to_numpy()[:, None], 1)  # [heads, strata], each 0 or 1
    found = [intervals.bootstrap(column, np.mean) for column in inside.T]
    return observations.columns(dict(zip(strata.STRATA, found, strict=True)))
