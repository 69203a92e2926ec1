"""A repetition attack that comes after text: is a state that was full emptied, or only never filled?"""

from pathlib import Path

import pandas as pd
import torch

from srdyn import spectra, states
from srdyn.kernels import denormals
from srdyn.study.run import opened
from srdyn.study.survey import samples


def ranks(name: str | Path, reading: samples.Reading, *, prefix: int = 512) -> pd.DataFrame:
    """Every head's mean rank after `prefix` tokens of text and, `after`, once a block has repeated up to the end.

    A sample of each domain goes before a variant of each attack. Columns: attack, layer, head, before, after, D, n,
    model, kind, seed; heads that were pruned away are left out.
    """
    model = opened.model(name)
    text = torch.cat([reading.samples(domain, model.tokenizer).tokens[:1, :prefix] for domain in reading.texts])
    places = [(layer.index, head) for layer in model.layers for head in range(model.grid.H)]
    tables = []
    for attack in reading.attacks:
        repeated = reading.samples(attack, model.tokenizer).tokens[: len(text), : reading.length - prefix]
        tokens = torch.cat([text[: len(repeated)], repeated], dim=1)
        with denormals.flushed():
            sigma = states.trace(model, tokens, [prefix, reading.length])  # [L, B, C, H, D]
        rank = spectra.effective_rank(sigma, reading.eps).double().mean(1)
        rank = rank.masked_fill(sigma.isnan().all(-1).any(1), torch.nan)
        columns = {"before": rank[:, 0].flatten().numpy(), "after": rank[:, 1].flatten().numpy()}
        table = pd.DataFrame(places, columns=["layer", "head"]).assign(**columns, attack=attack)
        tables.append(table.assign(D=sigma.shape[-1], n=len(tokens)))
    return pd.concat(tables, ignore_index=True).dropna(ignore_index=True).assign(**opened.about(model))
