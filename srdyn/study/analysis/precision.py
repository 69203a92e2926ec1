"""Ranks of the same states in several precisions: which heads move, and whether the fork of C1 does."""

import functools
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from srdyn import models, spectra, states, strata
from srdyn.study.analysis import observations, rank_statistics, summaries
from srdyn.study.analysis.observations import OF_A_HEAD, OF_A_MODEL
from srdyn.study.claims import registration
from srdyn.study.run import opened
from srdyn.study.survey import samples
from srdyn.study.survey.null_tables import MODEL

PRECISIONS = ("float64", "float16", "bfloat16", "float32 Gram")
"""How the spectrum of a float32 state is taken; float64 is the way that every other table uses."""


def read(name: str | Path, reading: samples.Reading) -> pd.DataFrame:
    """Ranks of the same states in each of `PRECISIONS`, in the domains of a reading after its last position.

    `float16` and `bfloat16` round the state once, before a float64 decomposition; `float32 Gram` takes the square roots
    of the eigenvalues of a Gram matrix in float32. Columns as `observations.measure` asks for; `uncertain` is how far
    the rank moves where state and decomposition are as far off as float32 leaves them. Raises ValueError for a state
    beyond float16.
    """
    model, at = models.load(opened.found(name), offload="auto"), reading.positions[-1]
    measure = functools.partial(_ranks_and_bands, eps=reading.eps)
    layers, tables = [layer.index for layer in model.layers], []
    for domain in reading.texts:
        tokens, document = reading.samples(domain, model.tokenizer)
        ranks, bands = (each.numpy().ravel() for each in states.trace(model, tokens, [at], measure=measure).unbind(-2))
        axes = {"layer": layers, "sample": range(len(tokens)), "position": [at], "head": range(model.grid.H)}
        places = pd.MultiIndex.from_product([*axes.values(), PRECISIONS], names=[*axes, "precision"])
        table = places.to_frame(index=False).assign(context=domain, rank=ranks, uncertain=bands)
        tables.append(table.assign(document=document.numpy()[table["sample"]]))
    names = opened.about(model) | {"source": MODEL, "D": model.grid.D}
    return pd.concat(tables, ignore_index=True).assign(**names)


def heads(ranks: pd.DataFrame) -> pd.DataFrame:
    """Every head's mean rank in each precision with its interval, beside `exact`, the one in float64.

    `ranks` is what `read` returned, of any number of models. `moved` says whether the stratum differs.
    """
    by = [*OF_A_HEAD, "D", "precision"]
    table = pd.concat([summaries.over_samples(part, by) for _, part in ranks.groupby("model", sort=False)])
    table = strata.stratify(table, by=by)
    exact = table.loc[table["precision"] == PRECISIONS[0], [*OF_A_HEAD, "rank", "stratum"]]
    table = table.merge(exact, on=OF_A_HEAD, suffixes=("", "_exact")).rename(columns={"rank_exact": "exact"})
    return table.assign(moved=table["stratum"] != table["stratum_exact"]).drop(columns="stratum_exact")


def fork(ranks: pd.DataFrame) -> pd.DataFrame:
    """The measures of C1 in each precision, what the rule of each says of them, and whether float64 says otherwise.

    Columns of `observations.measure`, precision, outcome, moved.
    """
    at, parts = int(ranks["position"].iloc[0]), []
    for name in PRECISIONS:
        part = ranks[ranks["precision"] == name]
        smaller = observations.measure(part, "smaller group", rank_statistics.smaller_group, at=at)
        middle = observations.measure(part, "middle", rank_statistics.stratum_share, at=at, stratum="middle")
        parts.append(pd.concat([smaller, middle]).assign(precision=name))
    table = pd.concat(parts, ignore_index=True)
    rules = {measure.name: measure for measure in registration.load().claim("C1").measures}
    table["outcome"] = [rules[row.measure].outcome(row.estimate, row.low, row.high) for row in table.itertuples()]
    exact = table.groupby([*OF_A_MODEL, "measure"])["outcome"].transform("first")
    return table.assign(moved=table["outcome"] != exact)


def _ranks_and_bands(state: Float32[Tensor, "B H K V"], *, eps: float) -> Float64[Tensor, "B H 2 precisions"]:
    """The ranks in each precision; how far errors drawn at random, and their opposites, move them.

    Rounding is no continuous function: an error of `spectra.FLOAT32_ERROR` that meets a boundary grows to that of the
    rounding, so that no bound on singular values helps. A float32 decomposition adds an error of its own to what it
    decomposes, another in every library.
    """
    narrow = state if state.shape[-1] <= state.shape[-2] else state.mT
    sigma, gram = spectra.singular_values(state), narrow.mT @ narrow
    draw = torch.Generator().manual_seed(0)
    error, half = (torch.randn(x.shape, generator=draw) for x in (narrow, gram))
    error = _scaled(error, spectra.FLOAT32_ERROR * sigma[..., 0])
    own = _scaled(half + half.mT, torch.finfo(torch.float32).eps * sigma[..., 0] ** 2)
    ranks = _ranks_by_precision(narrow, torch.zeros_like(gram), eps=eps)
    ways = [_ranks_by_precision(narrow + sign * error, sign * own, eps=eps) for sign in (1, -1)]
    bands = torch.maximum(*(abs(way - ranks) for way in ways))
    bands[..., 0] = spectra.uncertain(sigma, eps).sum(-1)
    return torch.stack([ranks, bands], -2)


def _scaled(matrix: Float32[Tensor, "B H M N"], norm: Float64[Tensor, "B H"]) -> Float32[Tensor, "B H M N"]:
    """The matrix with this largest singular value."""
    return ((norm / spectra.singular_values(matrix)[..., 0])[..., None, None] * matrix).float()


def _ranks_by_precision(
    narrow: Float32[Tensor, "B H M N"], own: Float32[Tensor, "B H N N"], *, eps: float
) -> Float64[Tensor, "B H precisions"]:
    """The ranks of states that are at least as high as wide; `own` is added to what the last way decomposes."""
    sigma = [spectra.singular_values(each) for each in (narrow, narrow.half().float(), narrow.bfloat16().float())]
    # The wrong way: squaring leaves nothing below σ₁ · √(float32's precision), about 3e-4 σ₁.
    sigma.append(torch.linalg.eigvalsh(narrow.mT @ narrow + own).clamp(min=0).sqrt().double())
    return torch.stack([spectra.effective_rank(each, eps) for each in sigma], -1)
