"""Tables that the figures draw, made from head tables."""

import functools
import logging
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from srdyn import architectures, contexts, models, spectra, states, strata
from srdyn.study.analysis import bounds, intervals, observations, rank_statistics
from srdyn.study.analysis.observations import OF_A_SOURCE
from srdyn.study.run import opened
from srdyn.study.survey import null_tables, samples

log = logging.getLogger(__name__)

HALF_LIFE = 9.6
"""Tokens: the half-life above which a head of 128 dimensions saturates, ln 2 · 128 / ln(1/ε) at ε = 1e-4."""
OF_A_HEAD = [*OF_A_SOURCE, "layer", "head"]
UNBOUNDED = "it needs the gated delta rule with one decay a head, keys of length and write strengths of at most 1"
LONGEST_KEY = 1 + 1e-4  # as rounding leaves a key of length 1
Known = tuple[Float64[Tensor, "B T H"], ...]


def over_samples(heads: pd.DataFrame, by: list[str], *, value: str = "rank") -> pd.DataFrame:
    """Mean of `value` over samples (and over contexts that `by` does not name), with a bootstrap interval of the mean.

    Drawn again are the documents of each context, as for `observations.measure`; each context weighs alike. Columns:
    `by`, then `value`, low, high, n. Raises ValueError where groups differ in size: every group must hold the same
    samples of the same documents.

    Where the heads say of each sample how far off another machine may count it (`uncertain`; true is one), the table
    says it of the farthest of the three. Weights are positive, so that no count moves them farther than all together.
    """
    ordered = heads.sort_values([*by, "context", "sample"], kind="stable")
    sizes = ordered.groupby(by, sort=True, observed=True).size()
    if sizes.nunique() != 1:
        raise ValueError(f"groups hold between {sizes.min()} and {sizes.max()} rows; select contexts and sources alike")
    first = ordered.head(int(sizes.iloc[0]))
    documents = first["document"].to_numpy().reshape(first["context"].nunique(), -1).T
    values = ordered[value].to_numpy(np.float64).reshape(len(sizes), -1)
    times = intervals.times_drawn(documents)
    weights = (times / times.sum(-1, keepdims=True)).reshape(len(times), -1) / documents.shape[1]

    def ends(values: Float64[np.ndarray, "heads samples"]) -> Float64[np.ndarray, "3 heads"]:
        return np.stack([values.mean(1), *np.quantile(values @ weights.T, [0.025, 0.975], axis=1)])

    found, table = ends(values), sizes.index.to_frame(index=False)
    table = table.assign(**dict(zip([value, "low", "high"], found, strict=True)), n=values.shape[1])
    if "uncertain" not in ordered:
        return table
    band = ordered["uncertain"].to_numpy(np.float64).reshape(values.shape)
    return table.assign(uncertain=np.max([abs(ends(values + off) - found) for off in (band, -band)], axis=(0, 1)))


def final_ranks(text: pd.DataFrame, at: int) -> pd.DataFrame:
    """Every head after `at` tokens: mean rank with its interval, stratum, norm, log-decay, half-life in tokens."""
    last = text[text["position"] == at]
    extra = last.groupby(OF_A_HEAD, as_index=False)[["D", "nuclear_norm", "log_decay"]].mean()
    table = _of_each_source(last, OF_A_HEAD).merge(extra, on=OF_A_HEAD).assign(position=at)
    table["half_life"] = np.log(2) / -table["log_decay"]
    return strata.stratify(table, by=OF_A_HEAD)


def trajectories(text: pd.DataFrame, sources: list[str]) -> pd.DataFrame:
    """Mean rank of every head of two layers at every position: the most and the least forked of each model, seed 0.

    How forked a layer is, says the smaller of its low and high groups at the last position, then how few heads are
    between, then its place; `fork` is `most` or `least`. A model of one layer has no `least`.
    """
    layers = _forked(text[(text["source"] == null_tables.MODEL) & (text["seed"] == 0)])
    chosen = text[text["source"].isin(sources) & (text["seed"] == 0)].merge(layers, on=["model", "layer"])
    table = _of_each_source(chosen, [*OF_A_HEAD, "fork", "position", "D"])
    ends = table[table["position"] == table["position"].max()]
    table = table.merge(strata.stratify(ends, by=OF_A_HEAD)[[*OF_A_HEAD, "stratum"]], on=OF_A_HEAD)
    return table.sort_values("fork", ascending=False, kind="stable", ignore_index=True)


def _forked(text: pd.DataFrame) -> pd.DataFrame:
    """The most and the least forked layer of each model: model, layer, fork."""
    ends = text[text["position"] == text["position"].max()]
    ranks = ends.groupby(["model", "layer", "head"], as_index=False, sort=False)[["rank", "D"]].mean()
    rows = []
    for (model, layer), heads in ranks.groupby(["model", "layer"], sort=False):
        low, middle, high = strata.shares(heads["rank"].to_numpy()[None], int(heads["D"].iloc[0]))[0]
        rows.append({"model": model, "layer": layer, "smaller": min(low, high), "middle": middle})
    ordered = pd.DataFrame(rows).sort_values(["smaller", "middle", "layer"], ascending=[False, True, True])
    most, least = (ordered.drop_duplicates("model", keep=which) for which in ("first", "last"))
    both = pd.concat([most.assign(fork="most"), least.assign(fork="least")])
    return both.drop_duplicates(["model", "layer"])[["model", "layer", "fork"]]


def _of_each_source(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """`over_samples` of each source by itself: they may have read other documents."""
    return pd.concat([over_samples(part, by) for _, part in table.groupby(OF_A_SOURCE, sort=False)])


def shares(text: pd.DataFrame, at: int, *, eps: float = spectra.EPS) -> pd.DataFrame:
    """Shares of low, middle and high heads by the threshold ε, and split at the half-life of a 128-dimensional head.

    `eps` is the threshold that the column `rank` was taken at. Models without decays have no split at a half-life.
    """
    last = text[text["position"] == at]
    mean_decay = last.groupby(OF_A_HEAD, sort=False)["log_decay"].transform("mean")
    slow = last.assign(slow=np.where(-np.log(2) / mean_decay >= HALF_LIFE, last["D"], 0))
    forgetting = slow[slow.groupby(OF_A_SOURCE)["log_decay"].transform("count") > 0]
    splits = [(f"{e:.0e}", column, last) for e, column in null_tables.rank_columns(eps).items()]
    splits.append((f"half-life {HALF_LIFE}", "slow", forgetting))
    rows = []
    for split, column, table in splits:
        for about, part in observations.groups(table, OF_A_SOURCE):
            data = observations.cube(part, column)
            found = observations.columns(observations.observe_each(data, functools.partial(_of_a_layer, cube=data)))
            modes = observations.without_interval(data, functools.partial(rank_statistics.modes, cube=data))
            off = max(found.pop("uncertain"), *(mode.uncertain for mode in modes.values()))
            found |= {name: mode.estimate for name, mode in modes.items()} | {"uncertain": off}
            rows.append(about | {"split": split, "n": len(data.values)} | found)
    return pd.DataFrame(rows)


def _of_a_layer(means: observations.Means, cube: observations.Cube) -> dict[str, observations.Pooled]:
    share = functools.partial(rank_statistics.stratum_share, means, cube, at=cube.positions[0])
    return {stratum: share(stratum=stratum) for stratum in strata.STRATA}


def context_pairs(heads: pd.DataFrame, at: int) -> pd.DataFrame:
    """Spearman ρ of the mean ranks of all heads in every pair of contexts, for seed 0 of each model."""
    own = heads[(heads["source"] == null_tables.MODEL) & (heads["seed"] == 0) & (heads["position"] == at)]
    rows = []
    for about, table in observations.groups(own, ["model", "kind"]):
        data = observations.cube(table)
        for pair, rho in observations.without_interval(data, _orders_between).items():
            names = about | dict(zip("ab", (data.contexts[i] for i in pair), strict=True))
            rows.append(names | {"spearman": rho.estimate, "uncertain": rho.uncertain, "n": len(data.values)})
    return pd.DataFrame(rows)


def _orders_between(means: observations.Means) -> dict[tuple[int, int], observations.Pooled]:
    """Spearman ρ of the mean ranks of all heads in every pair of contexts, by their numbers."""
    ranks, found = means.reshape(len(means), -1), {}
    for a, of_context in enumerate(ranks):
        for b, rho in enumerate(strata.spearman(ranks, np.broadcast_to(of_context, ranks.shape))):
            found[a, b] = observations.single(rho, observations.CORRELATION)
    return found


def time_order(text: pd.DataFrame) -> pd.DataFrame:
    """Spearman ρ of a layer's mean ranks at t and at the last position, median over layers, for every t."""
    found = observations.measure_each(text, _orders_to_last)
    found = found.assign(position=found["measure"], measure="order in time").sort_values("position", kind="stable")
    return found.rename(columns={"estimate": "spearman"}).reset_index(drop=True)


def _orders_to_last(means: observations.Means, cube: observations.Cube) -> dict[int, observations.Pooled]:
    """`rank_statistics.order_in_time` from every position but the last to the last, by position."""
    ranks = np.moveaxis(means.mean(0), -1, 0)  # [C, L, H]
    found = strata.spearman(ranks[:-1], np.broadcast_to(ranks[-1], ranks[:-1].shape))
    parts = [observations.pooled(each, np.nanmedian, "layers", observations.CORRELATION) for each in found]
    return dict(zip(cube.positions, parts, strict=False))


def under_attack(heads: pd.DataFrame, attacks: Sequence[str], text: Sequence[str], at: int) -> pd.DataFrame:
    """Every head's mean rank under each attack beside its mean rank in text (`text_rank`), for seed 0 of each model.

    `uncertain` is how far off another machine may find the farther of the two.
    """
    own = heads[(heads["source"] == null_tables.MODEL) & (heads["seed"] == 0) & (heads["position"] == at)]
    by = [*observations.OF_A_MODEL, "context", "layer", "head", "D"]
    places, doubts = ["model", "layer", "head"], ["uncertain", "text_uncertain"]
    reading = own[own["context"].isin(text)].groupby(places, as_index=False)[["rank", "uncertain"]].mean()
    reading = reading.rename(columns={"rank": "text_rank", "uncertain": "text_uncertain"})
    table = over_samples(own[own["context"].isin(attacks)], by).merge(reading, on=places)
    return table.assign(uncertain=table[doubts].max(axis=1)).drop(columns="text_uncertain")


def first_layer_bound(table: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """The table of `under_attack` with `bound`, on the exact rank in the first layer of each model of `names`.

    It is p + 3 for the longest block of p tokens among the attack's variants, the 3 being one less than the width of
    the layer's convolution. NaN in other layers, and where a layer of another kind comes first.
    """
    parts = []
    for name in names:
        model = models.load(opened.found(name), offload="disk")  # none of the weights is needed, so that none is read
        own, first = table[table["model"] == model.name], architectures.sites(model.hf)[0]
        width, limit = first.recipe.convolution_width(first.mixer), {}
        for attack in own["context"].unique() if width is not None else ():
            longest = max(len(block) for block in contexts.blocks(attack, model.tokenizer))
            limit[attack] = bounds.periodic_rank_bound(longest, conv_width=width)
        parts.append(own.assign(bound=np.where(own["layer"] == 0, own["context"].map(limit), np.nan)))
    return pd.concat(parts, ignore_index=True)


def consecutive_cosines(name: str, reading: samples.Reading, tokens_at: list[int], *, n: int = 2) -> pd.DataFrame:
    """Cosine of a layer's nuclear-norm vectors at t − 1 and t beside the bound of Eq. 13, for each t of `tokens_at`.

    B comes from gates and writes (`bounds.step_bound`), before the step is measured. The text is that of the reading's
    domains, the first `n` samples of each. The bound is NaN, which is logged, in a model whose states do not follow the
    gated delta rule, and in layers with longer keys or strengths than 1: Eq. 13 says nothing of them.
    Rows: model, kind, seed, context, sample, layer, position, cosine, bound.
    """
    model = models.load(opened.found(name), offload="auto")
    parts = [reading.samples(domain, model.tokenizer).tokens[:n, : max(tokens_at)] for domain in reading.texts]
    sizes, tokens = [len(part) for part in parts], torch.cat(parts)
    rows = {"context": np.repeat(reading.texts, sizes), "sample": np.concatenate([np.arange(size) for size in sizes])}
    positions = sorted({p for t in tokens_at for p in (t - 1, t)})
    norms = spectra.nuclear_norm(states.trace(model, tokens, positions))  # [L, B, C, H]
    follows = null_tables.follows_gated_delta(model)
    known_of = states.from_inputs(model, tokens, _known) if follows else [None] * model.grid.L
    tables = []
    for place, (layer, inputs) in enumerate(zip(model.layers, known_of, strict=True)):
        for t in tokens_at:
            before, now = (norms[place, :, positions.index(p)] for p in (t - 1, t))
            bound = _promised(inputs, t, before) if inputs else np.nan
            columns = {"cosine": strata.cosine(before.numpy(), now.numpy()), "bound": bound}
            tables.append(pd.DataFrame({**opened.about(model), **rows, "layer": layer.index, "position": t, **columns}))
    table = pd.concat(tables, ignore_index=True)
    if unbounded := table.loc[table["bound"].isna(), "layer"].nunique():
        counts = unbounded, len(model.layers)
        log.warning("%s: no bound of Eq. 13 in %d of %d layers: %s", model.name, *counts, UNBOUNDED)
    return table


def _known(inputs: architectures.recipe.Inputs) -> Known | None:
    """What Eq. 13 may use of a layer: decays, write strengths, lengths of what is written, the bound on the state.

    None where the layer writes with a strength above 1 or under longer keys, of which Eq. 13 says nothing.
    """
    if (inputs.beta > 1).any() or (inputs.k.norm(dim=-1) > LONGEST_KEY).any():
        return None
    g, beta, written = (x.double().cpu() for x in (inputs.g, inputs.beta, inputs.v.norm(dim=-1)))
    return g, beta, written, bounds.frobenius_bound(g, beta, written)


def _promised(known: Known, t: int, before: Float64[Tensor, "B H"]) -> Float64[np.ndarray, " B"]:
    """The bound of Eq. 13 on the step to token t, from the norms before it and from what is known."""
    *writes, radius = known
    step = bounds.step_bound(*(x[:, t - 1] for x in writes), before, radius[:, t - 2])
    return bounds.cosine_lower_bound(step / before.norm(dim=-1)).numpy()


def within_cosine_bound(table: pd.DataFrame) -> pd.DataFrame:
    """Share of (layer, token) whose cosine is at least its bound, per model, with an interval over samples (Eq. 13).

    `why` says in how many steps the bound is above 0, below which no cosine of positive vectors lies, and its slack.
    Steps without a bound are left out; a model that has no other gets NaN, which `why` explains.
    """
    rows = []
    for names, part in observations.groups(table, observations.OF_A_MODEL):
        bounded = part[part["bound"].notna()]
        holds = (bounded["cosine"] >= bounded["bound"]).groupby([bounded["context"], bounded["sample"]]).mean()
        if holds.empty:
            share, why = intervals.Interval(np.nan, np.nan, np.nan), UNBOUNDED
        else:
            share = intervals.bootstrap(holds.to_numpy(), np.mean)
            says = bounded["bound"] > 0
            slack = (bounded["cosine"] - bounded["bound"])[says].median()
            why = f"bound above 0 in {says.mean():.0%} of steps" + (f", median slack {slack:.2g}" if says.any() else "")
        about = {"measure": "within bound", **names, **share._asdict(), "n": len(holds)}
        rows.append(about | {"over": "samples of all domains", "why": why})
    return pd.DataFrame(rows)
