"""Ranks under other writes than a text's own in their order: a block that repeats after text, the writes shuffled."""

from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from srdyn import models, spectra, states
from srdyn.architectures import recipe
from srdyn.kernels import denormals, recurrence
from srdyn.study.run import opened
from srdyn.study.survey import null_tables, samples


def after_text(name: str | Path, reading: samples.Reading, *, prefix: int = 512) -> pd.DataFrame:
    """Every head's mean rank after `prefix` tokens of text and, `after`, once a block has repeated up to the end.

    Is a state that was full emptied, or only never filled? A sample of each domain goes before a variant of each
    attack. Columns: layer, head, before, after, attack, D, n, model, kind, seed.
    """
    model = opened.model(name)
    text, tables = _text(model, reading, 1, prefix), []
    for attack in reading.attacks:
        repeated = reading.samples(attack, model.tokenizer).tokens[: len(text), : reading.length - prefix]
        tokens = torch.cat([text[: len(repeated)], repeated], dim=1)
        with denormals.flushed():
            sigma = states.trace(model, tokens, [prefix, reading.length])  # [L, B, C, H, D]
        rank = spectra.effective_rank(sigma, reading.eps).mean(1)
        before, after = (at[~at.isnan()].numpy() for at in rank.unbind(1))  # NaN: pruned away
        tables.append(_table(model, len(tokens), before=before, after=after, attack=attack))
    return pd.concat(tables, ignore_index=True)


def shuffled(name: str | Path, reading: samples.Reading, *, n: int = 2, at: int = 512) -> pd.DataFrame:
    """Every head's mean rank after `at` tokens of `n` samples of each domain, and that with its writes shuffled.

    Keys and values change their places together, the same for all heads of a layer; decays and write strengths stay.
    A random key is new in every direction, a head's own keys repeat: where the shuffled rank is as low as the head's
    own, and random writes (`mechanism`) rise above, the text's few directions hold the rank down, not their order.
    Columns: layer, head, rank, shuffled, D, n (samples), model, kind, seed. Empty for other rules than the gated delta.
    """
    model = opened.model(name)
    if not null_tables.follows_gated_delta(model):
        return pd.DataFrame(columns=["layer", "head", "rank", "shuffled", "D", "n", "model", "kind", "seed"])
    tokens = _text(model, reading, n, at)
    order = torch.randperm(at, generator=torch.Generator().manual_seed(reading.seed))
    take = lambda read: [_ranks(read, places, reading.eps) for places in (slice(None), order)]  # noqa: E731
    with denormals.flushed():
        found = states.from_inputs(model, tokens, take)
    own, other = (torch.cat([each[i] for each in found if each is not None]).numpy() for i in (0, 1))
    return _table(model, len(tokens), rank=own, shuffled=other)


def _text(model: models.Model, reading: samples.Reading, n: int, length: int) -> Int64[Tensor, "B T"]:
    return torch.cat([reading.samples(domain, model.tokenizer).tokens[:n, :length] for domain in reading.texts])


def _table(model: models.Model, n: int, **columns: object) -> pd.DataFrame:
    """A row for every head that the model holds."""
    places = [(layer.index, head) for layer in model.layers for head in layer.heads]
    table = pd.DataFrame(places, columns=["layer", "head"])
    return table.assign(**columns, D=model.grid.D, n=n, **opened.about(model))


def _ranks(read: recipe.Inputs, order: Int64[Tensor, " T"] | slice, eps: float) -> Float64[Tensor, " H"]:
    k, v = read.k[:, order], read.v[:, order]
    _, state = recurrence.gated_delta_rule(read.q, k, v, read.g, read.beta)  # [B, 1, H, K, V]
    return spectra.effective_rank(spectra.singular_values(state[:, 0]), eps).mean(0)
