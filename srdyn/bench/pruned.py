"""A model without a share of its heads beside the original: steps, prefill, whole models."""

import functools
from collections.abc import Callable, Mapping

import pandas as pd
import torch
from torch import Tensor

from srdyn import architectures, models
from srdyn.architectures import linear_cache
from srdyn.bench import subjects, timing

ORIGINAL, PRUNED, STOCK = "original", "pruned", "original, transformers' own step"
READ = 16
"""Tokens that a cache has read before the steps that are timed; a step's cost does not depend on them."""


def table(
    shipped: Mapping[str, models.Model], *, layers: int, removed: float, batches: tuple[int, ...], T: int, rounds: int
) -> pd.DataFrame:
    """`timing.medians` of original and pruned models: model, what, B, tokens (per call), ratio to the original.

    `layer step` is one token through the linear layers alone of a random model with Qwen3-Next's layer geometry, also
    with transformers' functions instead of ours; `layer prefill` is T tokens through them. `model step` is one token
    through the whole of that model, and of the `shipped` ones after T tokens.
    """
    wide = subjects.drawn(layers, hidden=256, **subjects.QWEN3_NEXT)
    narrow = subjects.smaller(wide, removed)
    tables = []
    for B in batches:
        whole, named = layer_step(wide, B), {"model": "Qwen3-Next layers", "what": "layer step", "B": B, "tokens": B}
        tables.append(_timed({ORIGINAL: whole, PRUNED: layer_step(narrow, B)}, rounds, **named))
        # On its own: a case that goes over the state a dozen times leaves the next one cold caches.
        beside = _timed({ORIGINAL: whole, STOCK: layer_step(subjects.stock(wide), B)}, rounds, **named)
        tables.append(beside[beside["case"] == STOCK])
        cases = {ORIGINAL: model_step(wide, B, READ), PRUNED: model_step(narrow, B, READ)}
        tables.append(_timed(cases, rounds, model="Qwen3-Next layers", what="model step", B=B, tokens=B))
    cases = {ORIGINAL: layer_prefill(wide, T), PRUNED: layer_prefill(narrow, T)}
    tables.append(_timed(cases, rounds, model="Qwen3-Next layers", what="layer prefill", B=1, tokens=T))
    for name, model in shipped.items():
        cases = {
            case: model_step(one, batches[0], T)
            for case, one in ((ORIGINAL, model), (PRUNED, subjects.smaller(model, removed)))
        }
        tables.append(_timed(cases, rounds, model=name, what="model step", B=batches[0], tokens=batches[0]))
    return pd.concat(tables, ignore_index=True)


def _timed(cases: Mapping[str, timing.Case], rounds: int, **named: object) -> pd.DataFrame:
    rows = timing.medians(timing.interleaved(cases, rounds=rounds), base=ORIGINAL).assign(**named)
    return rows.assign(per_second=rows["tokens"] / rows["median"])


def layer_step(model: models.Model, B: int) -> timing.Case:
    """One more token of B sequences through the linear layers alone."""
    mixers, cache = _mixers(model), linear_cache.empty(model.hf)
    first, coming = (_hidden(model, B, T) for T in (READ, 1))
    run = functools.partial(_through, mixers, cache=cache)
    run(first)
    return functools.partial(run, coming)


def layer_prefill(model: models.Model, T: int) -> timing.Case:
    """T tokens of one sequence through the linear layers alone, into an empty cache."""
    mixers, hidden = _mixers(model), _hidden(model, 1, T)
    return lambda: _through(mixers, hidden, cache=linear_cache.empty(model.hf))


def model_step(model: models.Model, B: int, T: int) -> timing.Case:
    """One more token of B sequences, after T of them, through the whole model.

    The cache goes on: where layers attend, every call sees one token more.
    """
    ids, cache = subjects.tokens(model, B, T), linear_cache.empty(model.hf)

    @torch.no_grad()
    def read(ids: Tensor) -> None:
        model.hf(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)

    read(ids)
    return lambda: read(ids[:, -1:])


@torch.no_grad()
def _through(mixers: list[Callable], hidden: Tensor, *, cache: object) -> None:
    for mixer in mixers:
        mixer(hidden, cache_params=cache)


def _mixers(model: models.Model) -> list[Callable]:
    return [site.mixer for site in architectures.sites(model.hf)]


def _hidden(model: models.Model, B: int, T: int) -> Tensor:
    return torch.randn(B, T, model.hf.config.hidden_size, generator=torch.Generator().manual_seed(T))
