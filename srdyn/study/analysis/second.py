"""What the second registration measures where the first measures something else (claims.yaml, `second`).

Statistics of mean values [contexts, layers, heads, positions] as in `observations`, for `observations.measure`: their
intervals are from drawing documents again. Agreement between domains alone (C5) is `observations.kappa_between` and
`spearman_between` of the domains' rows.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from srdyn import nulls, strata
from srdyn.study.analysis import emergence, observations
from srdyn.study.analysis.observations import CORRELATION, MAGNITUDE, OF_A_MODEL, SHARE, Cube, Means, Pooled

HOLDS = 0.9
"""Share of min(t, D) that a high-rank head holds."""
RHO, KAPPA = "rho with untrained, relative", "kappa with untrained, relative"


def share_of_all(means: Means, cube: Cube, *, at: int, stratum: str) -> Pooled:
    """Share of all heads, whatever their layer, in one stratum (C1)."""
    found = strata.shares(means[..., cube.at(at)].mean(0).reshape(1, -1), cube.D)
    return observations.pooled(found[:, strata.STRATA.index(stratum)], np.mean, "models", SHARE)


def dip(heads: pd.DataFrame, name: str, *, at: int) -> pd.DataFrame:
    """p of Hartigan's dip test that rank/D of all heads has one mode, for every model and source (C1).

    Columns as in `observations.measure`; a p is its own interval. NaN where all ranks are equal.
    """
    rows = []
    for names, table in observations.groups(heads, [*OF_A_MODEL, "source"]):
        data = observations.cube(table)
        found = strata.bimodality(data.values.mean((0, 1))[..., data.at(at)].ravel() / data.D)
        p = float(found["p"])
        why = "all ranks are equal" if np.isnan(p) else f"dip {found['dip']:.3f} of {found['n']:.0f} heads"
        about = names | {"measure": name, "n": len(data.values)}
        rows.append(about | {"estimate": p, "low": p, "high": p, "over": "heads, by the test", "why": why})
    return pd.DataFrame(rows)


def modes(heads: pd.DataFrame, *, at: int, eps: float, n: int = 200) -> pd.DataFrame:
    """Is it half-lives that form two groups, or ranks alone, since these end at D?

    Columns: model, kind, seed, quantity, estimate, n (heads). Quantities: p of the dip test of the models' own ranks,
    and of the logarithms of their half-lives; the share of `n` draws of log-normal half-lives, one mode with the heads'
    own mean and deviation, whose predicted ranks (`nulls.predicted_rank`) the test takes for two groups (p < 0.01).
    """
    rows = []
    for names, table in observations.groups(heads[heads["source"] == "model"], OF_A_MODEL):
        data, draw = observations.cube(table), np.random.default_rng(0)
        decay = np.log(-table.groupby(["layer", "head"])["log_decay"].mean().dropna().to_numpy())
        if len(decay) == 0:
            continue
        drawn = torch.from_numpy(-np.exp(draw.normal(decay.mean(), decay.std(), (n, len(decay)))))
        drawn = nulls.predicted_rank(drawn, data.D, eps).numpy()
        found = {
            "ranks": strata.bimodality(data.values.mean((0, 1))[..., data.at(at)].ravel())["p"],
            "log half-lives": strata.bimodality(decay)["p"],
            "two groups from one mode of half-lives": np.mean([strata.bimodality(one)["p"] < 0.01 for one in drawn]),
        }
        about = names | {"n": len(decay)}
        rows += [about | {"quantity": name, "estimate": float(value)} for name, value in found.items()]
    return pd.DataFrame(rows, columns=[*OF_A_MODEL, "quantity", "estimate", "n"])


def hold(means: Means, cube: Cube) -> Pooled:
    """Share of (high-rank head, position from D/8 on) with a mean rank of at least 0.9 min(t, D) (C2)."""
    late = np.asarray(cube.positions) >= cube.D / 8
    held = _high(means, cube) >= HOLDS * np.minimum(cube.positions, cube.D)
    return observations.pooled(held[:, late].mean(-1) if late.any() else np.empty(0), np.mean, "high-rank heads", SHARE)


def settle(means: Means, cube: Cube) -> Pooled:
    """|Change of rank/D per doubling of t| from t = 2 D on, mean over high-rank heads; NaN without such heads (C2)."""
    positions, high = np.asarray(cube.positions), _high(means, cube)
    late = positions >= 2 * cube.D
    if late.sum() < 2:
        return observations.pooled(np.empty(0), np.mean, "two positions from 2 d on", MAGNITUDE)
    slopes = np.polyfit(np.log2(positions[late]), high[:, late].T / cube.D, 1)[0] if len(high) else np.empty(0)
    return observations.pooled(np.abs(slopes), np.mean, "high-rank heads", MAGNITUDE)


def cosine_in_time(means: Means, cube: Cube, *, first: int, second: int) -> Pooled:
    """Cosine of a layer's vectors at two positions, their mean over contexts, median over layers (C4).

    NaN where one of the positions was not captured.
    """
    if not {first, second} <= set(cube.positions):
        named = f"positions {first} and {second} among those captured"
        return observations.pooled(np.empty(0), np.nanmedian, named, CORRELATION)
    at = means.mean(0)
    found = strata.cosine(at[..., cube.at(first)], at[..., cube.at(second)])
    return observations.pooled(found, np.nanmedian, "layers", CORRELATION)


def identity(history: pd.DataFrame, *, at: int) -> pd.DataFrame:
    """What the order and the strata of the heads have kept of the start, over what halves of the text share (C10).

    At the last step, from the mean ranks after `at` tokens: Spearman ρ (Cohen's κ) between the first and the last step
    over that between two halves of the windows at the last, pairs of windows drawn again together. Rows as
    `claims.record` takes them; NaN where halves do not agree at all.
    """
    tables = []
    for names, windows, data in emergence.halves_of_each_model(history, at):
        found = emergence.observed(windows, lambda means, data=data: _relative(means, data.D), names, data)
        tables.append(found.assign(over="pairs of windows"))
    columns = ["measure", *OF_A_MODEL, "estimate", "low", "high", "n", "over"]
    return pd.concat(tables, ignore_index=True)[columns]


def moved(history: pd.DataFrame, *, at: int) -> pd.DataFrame:
    """The heads that ended training in another stratum than they began in: layer, head, rank and stratum at both ends.

    Columns: model, kind, seed, layer, head, D, step, rank_before, rank_after, before, after.
    """
    key = [*OF_A_MODEL, "layer", "head", "D"]
    table = history[history["position"] == at].groupby([*key, "step"], as_index=False, sort=False)["rank"].mean()
    table = strata.stratify(table, by=[*key, "step"]).astype({"stratum": str})
    steps = table.groupby("model")["step"]
    ends = [table[table["step"] == steps.transform(end)].drop(columns="step") for end in ("min", "max")]
    found = ends[0].merge(ends[1], on=key, suffixes=("_before", "_after"))
    found = found.rename(columns={"stratum_before": "before", "stratum_after": "after"})
    return found[found["before"] != found["after"]].reset_index(drop=True)


def kept(history: pd.DataFrame, *, at: int) -> pd.DataFrame:
    """What κ between the strata before and after training is made of: their order, or how many heads are in each (C10).

    Columns: model, kind, seed, n (heads); `kappa` at the last step; `only_shares`, what it would be had training kept
    the order and changed the shares alone: strata of other sizes cannot agree; `same_shares`, κ of the trained strata
    with the start's order cut at the trained shares. Of heads that start equal, that of the earlier layer is lower.
    """
    rows = []
    for names, windows, data in emergence.halves_of_each_model(history, at):
        first, second = np.split(windows.mean(0), 2, axis=-1)
        before, after = ((first[..., i] + second[..., i]).ravel().round(9) / 2 for i in (0, -1))
        ordered = np.sort(after)[before.argsort(kind="stable").argsort()]  # the trained ranks in the order of the start
        pairs = {"kappa": (before, after), "only_shares": (before, ordered), "same_shares": (ordered, after)}
        found = {name: strata.kappa(a[None], b[None], data.D)[0] for name, (a, b) in pairs.items()}
        rows.append(names | {"n": len(after)} | found)
    return pd.DataFrame(rows)


def _high(means: Means, cube: Cube) -> Float[np.ndarray, "high C"]:
    """The mean ranks of the heads that are high-rank at the last position."""
    ranks = means.mean(0).reshape(-1, len(cube.positions))
    return ranks[ranks[:, -1] >= strata.HIGH * cube.D]


def _relative(means: emergence.Draws, d: int) -> dict[str, Float[np.ndarray, "draws 1"]]:
    """From means of either half of the windows side by side, along the last axis the steps of each."""
    first, second = np.split(means, 2, axis=-1)
    heads = lambda x: x.reshape(len(x), -1)  # noqa: E731
    start, end = (heads(first[..., i] + second[..., i]).round(9) / 2 for i in (0, -1))  # ties stay ties
    halves = heads(first[..., -1]), heads(second[..., -1])
    agreements = {RHO: strata.spearman, KAPPA: lambda a, b: strata.kappa(a, b, d)}
    return {name: strata.ratio(agree(end, start), agree(*halves))[:, None] for name, agree in agreements.items()}
