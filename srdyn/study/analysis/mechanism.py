"""Tables of what the heads' ranks owe to decay, and to training."""

import functools
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from scipy import optimize

from srdyn import nulls, spectra, strata
from srdyn.study.analysis import observations, rank_statistics, summaries
from srdyn.study.analysis.observations import OF_A_HEAD, OF_A_MODEL
from srdyn.study.survey import null_tables
from srdyn.study.survey.null_tables import MECHANISM, MODEL, UNTRAINED

CLOSED_FORM, MONOTONE = "closed form", "monotone fit"
BETWEEN, WITHIN, ORDER = "R² between heads", "R² within heads", "Spearman ρ"
PAPER_D = 128
"""Dimensions of a head in the paper's models."""

Means = Float64[np.ndarray, "contexts heads columns"]
"""Of the heads of all layers: the rank, then what is to be compared with it."""
Share = Callable[[Means], Float64[np.ndarray, " heads"]]
"""The rank of every head as a share of d."""


def heads(text: pd.DataFrame, at: int, *, eps: float = spectra.EPS) -> pd.DataFrame:
    """Every head after `at` tokens: its rank beside what its decay and the mechanism null make of it.

    Columns of `summaries.final_ranks` without source, then `predicted` (`nulls.predicted_rank` of the mean log-decay)
    and, NaN without the null, `mechanism` (its mean rank), `mechanism_stratum`, `residual` (model less null, mean over
    samples), `residual_low`, `residual_high`. `uncertain` is how far off another machine may count the ranks.
    """
    last = text[(text["position"] == at) & text["source"].isin([MODEL, MECHANISM])]
    final = summaries.final_ranks(last, at)
    own, null = (final[final["source"] == source].drop(columns="source") for source in (MODEL, MECHANISM))
    predicted = [_closed_form(np.array([row.log_decay]), int(row.D), eps).item() for row in own.itertuples()]
    null = null[[*OF_A_HEAD, "rank", "stratum"]].rename(columns={"rank": MECHANISM, "stratum": "mechanism_stratum"})
    table = own.assign(predicted=predicted).merge(null, on=OF_A_HEAD, how="left")
    table = table.merge(_residuals(last), on=OF_A_HEAD, how="left", suffixes=("", "_residual"))
    return table.assign(uncertain=table["uncertain"] + table.pop("uncertain_residual").astype(float).fillna(0.0))


def explained(text: pd.DataFrame, at: int, *, eps: float = spectra.EPS) -> pd.DataFrame:
    """How well each predictor gives the heads' mean ranks after `at` tokens in each context.

    Predictors: `closed form` of the mean log-decay; `monotone fit`, rank against log-decay fitted on half of the heads
    in half of the contexts, then used on the other heads in the other contexts; the same head's rank in the `mechanism`
    null and in the `untrained` model, where there are. Quantities: R² = 1 − SSE/SST of the predictions as they stand,
    between heads (means over contexts) and within heads (deviations of the contexts from them); Spearman ρ between
    heads. Columns: model, kind, seed, predictor, quantity, estimate, low, high, uncertain (how far off another machine
    may find them), n (samples of each context), `variance`
    (share of all variance that is between, or within, heads), `reproducible` (share of that which is not due to the
    choice of documents; what has read the same ones may explain more). Raises ValueError for fewer than two contexts.
    """
    rows = []
    for names, tables in _of_each_model(text, at):
        nulls_of_it = [source for source in (MECHANISM, UNTRAINED) if source in tables]
        data = observations.cube(tables[MODEL], "rank", "log_decay")
        if len(data.contexts) < 2:
            raise ValueError(f"ranks vary within a head between at least two contexts, got {data.contexts}")
        data = observations.beside([data, *(observations.cube(tables[source]) for source in nulls_of_it)])
        spread, off = _spread(tables[MODEL]), _spread_off(tables[MODEL])
        scores = functools.partial(_scores, sources=nulls_of_it, d=data.D, eps=eps)
        for (predictor, quantity), found in _observed(data, scores).items():
            labels = names | {"predictor": predictor, "quantity": quantity}
            found = found._replace(uncertain=max(found.uncertain, off.get(quantity, 0.0)))
            rows.append(labels | found._asdict() | {"n": len(data.values)} | spread.get(quantity, {}))
    return pd.DataFrame(rows)


def modes(heads: pd.DataFrame, *, at: int, eps: float, n: int = 200) -> pd.DataFrame:
    """Is it half-lives that form two groups, or ranks alone, since these end at D?

    Columns: model, kind, seed, quantity, estimate, n (heads). Quantities: p of the dip test of the models' own ranks,
    and of the logarithms of their half-lives; the share of `n` draws of log-normal half-lives, one mode with the heads'
    own mean and deviation, whose predicted ranks (`nulls.predicted_rank`) the test takes for two groups (p < 0.01).
    `uncertain` is how far off another machine may find an estimate.
    """
    rows = []
    for names, table in observations.groups(heads[heads["source"] == MODEL], OF_A_MODEL):
        data, draw = observations.cube(table[table["position"] == at]), np.random.default_rng(0)
        decay = np.log(-table.groupby(["layer", "head"])["log_decay"].mean().dropna().to_numpy())
        if len(decay) == 0:
            continue
        drawn = _closed_form(-np.exp(draw.normal(decay.mean(), decay.std(), (n, len(decay)))), data.D, eps)
        of_ranks = observations.without_interval(data, functools.partial(rank_statistics.modes, cube=data))["p"]
        found = {
            "ranks": of_ranks.estimate,
            "log half-lives": strata.bimodality(decay)["p"],
            "two groups from one mode of half-lives": np.mean([strata.bimodality(one)["p"] < 0.01 for one in drawn]),
        }
        for name, value in found.items():
            off = of_ranks.uncertain if name == "ranks" else 0.0
            rows.append(names | {"quantity": name, "estimate": float(value), "uncertain": off, "n": len(decay)})
    return pd.DataFrame(rows, columns=[*OF_A_MODEL, "quantity", "estimate", "uncertain", "n"])


def sweep(text: pd.DataFrame, at: int, *, eps: float = spectra.EPS) -> pd.DataFrame:
    """Shares of low, middle and high heads by the threshold: of the model, the mechanism null, the closed form.

    `eps` is the threshold that the column `rank` was taken at. Columns: model, kind, seed, ranks_of, eps, and for each
    stratum its share of all heads with the interval's ends (low, low_lo, low_hi, …), uncertain, n.
    """
    rows = []
    for names, tables in _of_each_model(text, at):
        for threshold, column in null_tables.rank_columns(eps).items():
            for source in (name for name in (MODEL, MECHANISM) if name in tables):
                data = observations.cube(tables[source], column)
                rows.append(names | {"ranks_of": source, "eps": threshold} | _split(data, _by_rank(data.D)))
            data = observations.cube(tables[MODEL], column, "log_decay")
            shares = _split(data, _by_decay(data.D, threshold))
            rows.append(names | {"ranks_of": CLOSED_FORM, "eps": threshold} | shares)
    return pd.DataFrame(rows)


def splits(text: pd.DataFrame, at: int, *, eps: float = spectra.EPS) -> pd.DataFrame:
    """Shares of low, middle and high heads by other splits than the measured rank, and how far they agree with it.

    `closed form` predicts the rank from the mean log-decay, at the model's own d or at the paper's; `half-life` calls
    heads high from the half-life on at which a head of the paper's dimensions saturates, the others low. Columns:
    model, kind, seed, split, the shares as in `sweep`, kappa (Cohen's κ with the strata by rank), kappa_lo, kappa_hi.
    """
    rows = []
    for names, tables in _of_each_model(text, at):
        data = observations.cube(tables[MODEL], "rank", "log_decay")
        found = {
            "rank": _by_rank(data.D),
            CLOSED_FORM: _by_decay(data.D, eps),
            f"{CLOSED_FORM}, d = {PAPER_D}": _by_decay(PAPER_D, eps),
            f"half-life {summaries.HALF_LIFE:g}": _slow,
        }
        for split, share in found.items():
            rows.append(names | {"split": split} | _split(data, share, found["rank"]))
    return pd.DataFrame(rows)


def _residuals(last: pd.DataFrame) -> pd.DataFrame:
    """Model less mechanism null, sample by sample, in the mean of each head."""
    keys = [*OF_A_HEAD, "context", "sample"]
    own, null = (last[last["source"] == source] for source in (MODEL, MECHANISM))
    taken = ["rank", "uncertain"]
    both = own[[*keys, "document", *taken]].merge(null[[*keys, *taken]], on=keys, suffixes=("", "_null"))
    both = both.assign(residual=both["rank"] - both["rank_null"])
    both["uncertain"] = both["uncertain"].astype(int) + both["uncertain_null"]
    parts = [summaries.over_samples(part, OF_A_HEAD, value="residual") for _, part in both.groupby("model")]
    columns = [*OF_A_HEAD, "residual", "low", "high", "uncertain"]
    table = pd.concat(parts)[columns] if parts else pd.DataFrame(columns=columns)
    return table.rename(columns={end: f"residual_{end}" for end in ("low", "high")})


def _of_each_model(text: pd.DataFrame, at: int) -> Iterator[tuple[dict, dict[str, pd.DataFrame]]]:
    """Its names, its head tables by source at one position."""
    for names, table in observations.groups(text[text["position"] == at], OF_A_MODEL):
        yield names, dict(list(table.groupby("source", sort=False)))


def _observed(data: observations.Cube, statistics: Callable[[Means], dict]) -> dict[object, observations.Observed]:
    """`observations.observe_each` of means that are not told apart by layer."""
    return observations.observe_each(data, lambda means: statistics(means.reshape(len(means), -1, means.shape[-1])))


def _closed_form(log_decay: Float64[np.ndarray, "*batch"], d: int, eps: float) -> Float64[np.ndarray, "*batch"]:
    return nulls.predicted_rank(torch.from_numpy(np.ascontiguousarray(log_decay)), d, eps).numpy()


def _monotone_fit(means: Means) -> Float64[np.ndarray, "contexts heads"]:
    """Each half of the heads in each half of the contexts, from a fit that has seen neither."""
    rank, log_decay = means[..., 0], means[..., 1]
    predicted = np.empty_like(rank)
    for contexts, other_contexts in ((0, 1), (1, 0)):
        for heads, other_heads in ((0, 1), (1, 0)):
            x, y = (values[other_contexts::2, other_heads::2].ravel() for values in (log_decay, rank))
            order = np.argsort(x, kind="stable")
            fitted = optimize.isotonic_regression(y[order]).x
            place = np.s_[contexts::2, heads::2]
            predicted[place] = np.interp(log_decay[place], x[order], fitted)
    return predicted


def _scores(means: Means, sources: list[str], d: int, eps: float) -> dict[tuple[str, str], observations.Pooled]:
    """Every quantity of every predictor; the means are of rank, log-decay, then the ranks of these sources."""
    actual, found = means[..., 0], {}
    predictions = {CLOSED_FORM: _closed_form(means[..., 1], d, eps), MONOTONE: _monotone_fit(means)}
    predictions |= {name: means[..., i] for i, name in enumerate(sources, start=2)}
    for predictor, predicted in predictions.items():
        own, other, mean = actual.mean(0), predicted.mean(0), actual.mean()
        order = float(strata.spearman(own[None], other[None])[0])
        found |= {
            (predictor, BETWEEN): _r2(own - mean, other - mean),
            (predictor, WITHIN): _r2(actual - own, predicted - other),
            (predictor, ORDER): observations.single(order, observations.CORRELATION),
        }
    return found


def _r2(actual: Float64[np.ndarray, "..."], predicted: Float64[np.ndarray, "..."]) -> observations.Pooled:
    """1 − SSE/SST of deviations; NaN where nothing varies."""
    total = (actual**2).sum()
    value = float(1 - ((actual - predicted) ** 2).sum() / total) if total > 0 else np.nan
    return observations.single(value, (-np.inf, 1.0))


def _spread(table: pd.DataFrame) -> dict[str, dict[str, float]]:
    """The variance between and within heads, as shares of both, and how much of each is no noise of the documents."""
    by = ["layer", "head", "context"]
    means = table.groupby(by)["rank"].mean().unstack().to_numpy()
    documents = table.groupby([*by, "document"])["rank"].mean().groupby(by)
    noise = (documents.var() / documents.size()).sum()  # of the means, summed over heads and contexts
    heads, contexts = means.shape
    between, within = ((means.mean(1) - means.mean()) ** 2).sum(), ((means - means.mean(1, keepdims=True)) ** 2).sum()
    found = np.array([contexts * between, within])
    by_chance = np.array([noise / contexts * (heads - 1) / heads, noise * (contexts - 1) / contexts])
    shares = strata.ratio(found, np.full(2, found.sum())), 1 - strata.ratio(by_chance, found)
    return {name: {"variance": a, "reproducible": b} for name, a, b in zip((BETWEEN, WITHIN), *shares, strict=True)}


def _spread_off(table: pd.DataFrame) -> dict[str, float]:
    """How far off another machine may find the farther share of each: all doubtful ranks moved at once, at random."""
    found, ways = pd.DataFrame(_spread(table)), observations.ways(table["uncertain"].to_numpy(np.float64))
    off = [abs(pd.DataFrame(_spread(table.assign(rank=table["rank"] + way))) - found) for way in ways]
    return dict(zip(found, np.max(off, axis=(0, 1)).tolist(), strict=True))


def _by_rank(d: int) -> Share:
    return lambda means: means[..., 0].mean(0) / d


def _by_decay(d: int, eps: float) -> Share:
    return lambda means: _closed_form(means[..., 1].mean(0), d, eps) / d


def _slow(means: Means) -> Float64[np.ndarray, " heads"]:
    log_decay = means[..., 1].mean(0)
    return np.where(np.isnan(log_decay), np.nan, -log_decay * summaries.HALF_LIFE <= np.log(2))


def _split(data: observations.Cube, share: Share, other: Share | None = None) -> dict[str, float]:
    """The share of heads in each stratum, and κ with those of another share."""

    def of_strata(means: Means) -> dict[str, observations.Pooled]:
        shares = strata.shares(share(means), 1).tolist()
        found = {s: observations.single(x, observations.SHARE) for s, x in zip(strata.STRATA, shares, strict=True)}
        if other is None:
            return found
        kappa = float(strata.kappa(share(means)[None], other(means)[None], 1)[0])
        return found | {"kappa": observations.single(kappa, observations.CORRELATION)}

    return observations.columns(_observed(data, of_strata)) | {"n": len(data.values)}
