"""A model's own keys and values, written in another order: what text as such lets a head's rank be."""

from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from srdyn import spectra, states
from srdyn.architectures import recipe
from srdyn.kernels import denormals, recurrence
from srdyn.study.run import opened
from srdyn.study.survey import null_tables, samples

OWN, SHUFFLED = "rank", "shuffled"


def ranks(name: str | Path, reading: samples.Reading, *, n: int = 2, at: int = 512) -> pd.DataFrame:
    """Every head's mean rank after `at` tokens of `n` samples of each domain, and that with its writes shuffled.

    Keys and values change their places together, the same for all heads of a layer; decays and write strengths stay.
    A random key is new in every direction, a head's own keys repeat: where the shuffled rank is as low as the head's
    own, and random writes (`mechanism`) rise above, the text's few directions hold the rank down, not their order.
    Columns: layer, head, rank, shuffled, D, n (samples), model, kind, seed. Empty for other rules than the gated delta.
    """
    model = opened.model(name)
    if not null_tables.follows_gated_delta(model):
        return pd.DataFrame(columns=["layer", "head", OWN, SHUFFLED, "D", "n", "model", "kind", "seed"])
    tokens = torch.cat([reading.samples(domain, model.tokenizer).tokens[:n, :at] for domain in reading.texts])
    order = torch.randperm(at, generator=torch.Generator().manual_seed(reading.seed))
    with denormals.flushed():
        found = states.from_inputs(
            model, tokens, lambda read: [_ranks(read, o, reading.eps) for o in (slice(None), order)]
        )
    places = [(layer.index, head) for layer in model.layers for head in layer.heads]
    own, other = (torch.cat([each[i] for each in found if each is not None]).numpy() for i in (0, 1))
    table = pd.DataFrame(places, columns=["layer", "head"]).assign(**{OWN: own, SHUFFLED: other})
    return table.assign(D=model.grid.D, n=len(tokens), **opened.about(model))


def _ranks(read: recipe.Inputs, order: Int64[Tensor, " T"] | slice, eps: float) -> Float64[Tensor, " H"]:
    k, v = read.k[:, order], read.v[:, order]
    _, state = recurrence.gated_delta_rule(read.q, k, v, read.g, read.beta)  # [B, 1, H, K, V]
    return spectra.effective_rank(spectra.singular_values(state[:, 0]), eps).double().mean(0)
