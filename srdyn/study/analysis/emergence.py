"""How heads come to differ over training, in rank and in decay, from the spectra that it writes down (`stages`).

The same held-out windows are read at about a dozen steps from 0 on. Intervals are from drawing these windows again with
replacement, the same draw at every step, centred on the estimate (`intervals.of_resamples`).
"""

import functools
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
from jaxtyping import Float

from srdyn import spectra, strata
from srdyn.study.analysis import intervals, observations
from srdyn.study.analysis.observations import OF_A_HEAD, OF_A_MODEL

RECORDED = ["measure", *OF_A_MODEL, "estimate", "low", "high", "n", "over"]
"""Columns of rows as `claims.record` takes them."""
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
RANK, DECAY = "rank", "log_decay"
HALVES = "other half"
"""A reference beside the final and the untrained model: the same step in other windows, which no agreement can be
expected to surpass."""
RHO, KAPPA = "rho with untrained, relative", "kappa with untrained, relative"

Windows = Float[np.ndarray, "windows L H S"]
"""One value of every head in every window at S steps."""
Draws = Float[np.ndarray, "draws L H S"]
"""Means over windows: the estimate first, then over windows drawn again."""


def half_life_that_saturates(d: int, *, eps: float = spectra.EPS) -> float:
    """Tokens: the half-life from which a head of `d` dimensions fills up, under constant decay and random keys."""
    return float(np.log(2) * d / np.log(1 / eps))


def trajectories(history: pd.DataFrame, *, at: int) -> pd.DataFrame:
    """Every head of each kind's first seed at every step: mean rank after `at` tokens, half-life in tokens.

    `stratum` is the one that the head ends training in.
    """
    first = history["seed"] == history.groupby("kind")["seed"].transform("min")
    table = _of_heads(history[first], at).assign(position=at)
    table["half_life"] = np.log(2) / -table[DECAY]
    final = _at_the_end(table)[[*OF_A_HEAD, "stratum"]]
    return table.drop(columns="stratum").merge(final, on=OF_A_HEAD)


def moved(history: pd.DataFrame, *, at: int) -> pd.DataFrame:
    """The heads that ended training in another stratum than they began in.

    Columns: model, kind, seed, layer, head, D, rank_before, before (the stratum), rank_after, after.
    """
    table = _of_heads(history, at).drop(columns=DECAY)
    steps = table.groupby("model")["step"]
    ends = [table[table["step"] == steps.transform(end)].drop(columns="step") for end in ("min", "max")]
    found = ends[0].merge(ends[1], on=[*OF_A_HEAD, "D"], suffixes=("_before", "_after"))
    found = found.rename(columns={"stratum_before": "before", "stratum_after": "after"})
    return found[found["before"] != found["after"]].reset_index(drop=True)


def distribution(history: pd.DataFrame, *, at: int) -> pd.DataFrame:
    """How the ranks after `at` tokens and the decays are spread over all heads of a model, at every step.

    `measure`: shares of heads in each stratum (`share of low` …), the mean rank of the heads that end training in it
    (`rank of low` …), quantiles of the ranks over heads (`quantile 0.1` …), the standard deviation over heads of
    rank/D (`spread of ranks`) and of the half-life in doublings (`spread of half-lives`).
    """
    tables = []
    for names, data in _of_each_model(history, at, RANK, DECAY):
        tables.append(_observed(_windows(data), functools.partial(_spread, d=data.D), names, data))
    return pd.concat(tables, ignore_index=True).assign(position=at)


def identity(history: pd.DataFrame, *, at: int, value: str = RANK) -> pd.DataFrame:
    """How far the order of all heads at a step agrees with that of the final and of the untrained model.

    `measure`: tie-averaged `spearman` ρ over all heads, the mean of ρ over layers (`spearman within layers`), and for
    ranks Cohen's `kappa` of the strata, between mean values over windows. `reference`: `final`, `untrained`, and
    `other half`: two halves of the windows at the same step, one window of each pair from a domain in either half,
    pairs drawn again. A statistic of equal values is undefined (NaN).
    """
    tables = []
    for names, data in _of_each_model(history, at, value):
        windows, halves = _windows(data), _halves(data)
        agree = functools.partial(_agreements, d=data.D if value == RANK else None)
        for name, step in {"final": -1, "untrained": 0}.items():
            beside = np.concatenate([windows, np.broadcast_to(windows[..., [step]], windows.shape)], -1)
            tables.append(_observed(beside, agree, names, data, observations.CORRELATION).assign(reference=name))
        found = _observed(halves, agree, names, data, observations.CORRELATION)
        tables.append(found.assign(reference=HALVES, over="pairs of windows"))
    return pd.concat(tables, ignore_index=True).assign(value=value, position=at)


def origin(history: pd.DataFrame, *, at: int) -> pd.DataFrame:
    """Shares of variance of the final ranks' order that rank at the start, and decay at the end, explain.

    R² of a linear regression among rank-transformed values of all heads (ρ² for one predictor): of the rank before the
    first step (`rank at the start`), the decay before it (`decay at the start`), the decay at the last step (`decay at
    the end`), and what start or decay adds to the other (`start beyond decay`, `decay beyond start`).
    """
    tables = []
    for names, data in _of_each_model(history, at, RANK, DECAY):
        ends = [x[..., [0, -1]] for x in np.split(_windows(data), 2, axis=-1)]
        found = _observed(np.concatenate(ends, -1), _explained, names, data, observations.SHARE)
        tables.append(found.drop(columns="step").assign(position=at))
    return pd.concat(tables, ignore_index=True)


def measured(identities: pd.DataFrame) -> pd.DataFrame:
    """The rows of claim C10 from the table of `identity`: Spearman ρ of the ranks at the last step.

    `identity with untrained`: with those before the first; `identity in training`: of two halves of the windows.
    """
    rows = _at_the_end(identities)
    rows = rows[(rows["measure"] == "spearman") & (rows["value"] == RANK)]
    names = {"untrained": "identity with untrained", HALVES: "identity in training"}
    tables = [rows[rows["reference"] == reference].assign(measure=name) for reference, name in names.items()]
    return pd.concat(tables, ignore_index=True)[RECORDED]


def relative_identity(history: pd.DataFrame, *, at: int) -> pd.DataFrame:
    """What the order and the strata of the heads have kept of the start, over what halves of the text share (C10).

    At the last step, from the mean ranks after `at` tokens: Spearman ρ (Cohen's κ) between the first and the last step
    over that between two halves of the windows at the last, pairs of windows drawn again together. Rows as
    `claims.record` takes them; NaN where halves do not agree at all.
    """
    tables = []
    for names, data in _of_each_model(history, at, RANK):
        found = _observed(_halves(data), functools.partial(_relative, d=data.D), names, data)
        tables.append(found.assign(over="pairs of windows"))
    return pd.concat(tables, ignore_index=True)[RECORDED]


def kept(history: pd.DataFrame, *, at: int) -> pd.DataFrame:
    """What κ between the strata before and after training is made of: their order, or how many heads are in each (C10).

    Columns: model, kind, seed, n (heads); `kappa` at the last step; `only_shares`, what it would be had training kept
    the order and changed the shares alone: strata of other sizes cannot agree; `same_shares`, κ of the trained strata
    with the start's order cut at the trained shares. Of heads that start equal, that of the earlier layer is lower.
    """
    rows = []
    for names, data in _of_each_model(history, at, RANK):
        before, after = (ends[0] for ends in _both_ends(_halves(data).mean(0)[None]))
        ordered = np.sort(after)[before.argsort(kind="stable").argsort()]  # the trained ranks in the order of the start
        pairs = {"kappa": (before, after), "only_shares": (before, ordered), "same_shares": (ordered, after)}
        found = {name: strata.kappa(a[None], b[None], data.D)[0] for name, (a, b) in pairs.items()}
        rows.append(names | {"n": len(after)} | found)
    return pd.DataFrame(rows)


def _observed(
    windows: Windows,
    statistic: Callable[[Draws], dict],
    names: dict,
    data: observations.Cube,
    limits: tuple[float, float] = (-np.inf, np.inf),
) -> pd.DataFrame:
    """Every statistic [draws, steps] of the means over windows, with its centred 95 % interval over windows."""
    n = len(windows)
    drawn = intervals.counts(n, intervals.generator())
    means = np.tensordot(np.vstack([np.ones(n), drawn]), windows, 1) / n  # whole numbers are summed: ties stay ties
    tables = {}
    for measure, values in statistic(means).items():
        found = [intervals.of_resamples(x[0], x[1:], centred=True, limits=limits) for x in values.T]
        about = {"n": n, "over": "windows", **names, "step": data.positions[: len(found)]}
        tables[measure] = pd.DataFrame(found).assign(**about)
    return pd.concat(tables, names=["measure"]).reset_index("measure").reset_index(drop=True)


def _of_heads(history: pd.DataFrame, at: int) -> pd.DataFrame:
    """Every head at every step: mean rank after `at` tokens, mean log-decay, the stratum that it is in then."""
    table = history[history["position"] == at]
    table = table.groupby([*OF_A_HEAD, "step", "D"], as_index=False, sort=False)[[RANK, DECAY]].mean()
    return strata.stratify(table, by=[*OF_A_HEAD, "step"]).astype({"stratum": str})


def _at_the_end(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of each model's last step."""
    return table[table["step"] == table.groupby("model")["step"].transform("max")]


def _of_each_model(history: pd.DataFrame, at: int, *values: str) -> Iterator[tuple[dict, observations.Cube]]:
    """Each model's names and its values after `at` tokens; along the last axis of the cube are the training steps."""
    table = history[history["position"] == at]
    if table.empty:
        taken = sorted(set(history["position"].tolist()))
        raise ValueError(f"no spectra were taken after {at} tokens, but after {taken}")
    for names, part in observations.groups(table, OF_A_MODEL):
        yield names, observations.cube(part.assign(position=part["step"]), *values)


def _windows(data: observations.Cube) -> Windows:
    return data.values.reshape(-1, *data.values.shape[2:])


def _halves(data: observations.Cube) -> Windows:
    """Pairs of windows from one domain, the second's steps behind the first's along the last axis."""
    pairs = len(data.values) // 2
    if not pairs:
        raise ValueError("halves need two samples of each context, got one")
    first, second = (data.values[i : 2 * pairs : 2] for i in (0, 1))
    return _windows(data._replace(values=np.concatenate([first, second], -1)))


def _spread(means: Draws, d: int) -> dict[str, Float[np.ndarray, "draws _"]]:
    """From means of the ranks and, behind them along the last axis, of the decays."""
    heads, decays = (_heads(half) for half in np.split(means, 2, axis=-1))
    shares, at_the_end = strata.shares(heads, d), strata.shares(heads[0, -1, :, None], d)
    found = {}
    for i, stratum in enumerate(strata.STRATA):
        found[f"share of {stratum}"], inside = shares[..., i], at_the_end[:, i] == 1
        if inside.any():
            found[f"rank of {stratum}"] = heads[..., inside].mean(-1)
    quantiles = np.quantile(heads, QUANTILES, axis=-1)
    found |= {f"quantile {q:g}": values for q, values in zip(QUANTILES, quantiles, strict=True)}
    return found | {"spread of ranks": heads.std(-1) / d, "spread of half-lives": np.log2(-decays).std(-1)}


def _heads(means: Draws) -> Float[np.ndarray, "draws S heads"]:
    return np.moveaxis(means, -1, 1).reshape(len(means), means.shape[-1], -1)


def _agreements(means: Draws, d: int | None) -> dict[str, Float[np.ndarray, "draws _"]]:
    """Of the first half of the last axis with the second."""
    pair = np.split(means, 2, axis=-1)
    in_layers = strata.spearman(*(np.moveaxis(x, -1, 1) for x in pair))
    defined = ~np.isnan(in_layers)
    mean = strata.ratio(np.where(defined, in_layers, 0).sum(-1), defined.sum(-1))
    of_all = [_heads(x) for x in pair]
    found = {"spearman": strata.spearman(*of_all), "spearman within layers": mean}
    return found if d is None else found | {"kappa": strata.kappa(*of_all, d)}


def _relative(means: Draws, d: int) -> dict[str, Float[np.ndarray, "draws 1"]]:
    """From means of either half of the windows side by side, along the last axis the steps of each."""
    start, end = _both_ends(means)
    halves = [_heads(half)[:, -1] for half in np.split(means, 2, axis=-1)]
    agreements = {RHO: strata.spearman, KAPPA: functools.partial(strata.kappa, d=d)}
    return {name: strata.ratio(agree(end, start), agree(*halves))[:, None] for name, agree in agreements.items()}


def _both_ends(means: Draws) -> tuple[Float[np.ndarray, "draws heads"], Float[np.ndarray, "draws heads"]]:
    """The heads' means over both halves at the first and at the last step; ties stay ties."""
    first, second = (_heads(half) for half in np.split(means, 2, axis=-1))
    return tuple((first[:, i] + second[:, i]).round(9) / 2 for i in (0, -1))


def _explained(means: Draws) -> dict[str, Float[np.ndarray, "draws 1"]]:
    """From means whose last axis is: rank before the first step and at the last, decay likewise."""
    start, final, first_decay, decay = (_heads(means[..., [i]]) for i in range(4))
    to_start, to_decay, between = (strata.spearman(*pair) for pair in ((final, start), (final, decay), (start, decay)))
    both = to_start**2 + to_decay**2 - 2 * to_start * to_decay * between
    both = strata.ratio(both, 1 - between**2)
    return {
        "rank at the start": to_start**2,
        "decay at the start": strata.spearman(final, first_decay) ** 2,
        "decay at the end": to_decay**2,
        "start beyond decay": both - to_decay**2,
        "decay beyond start": both - to_start**2,
    }
