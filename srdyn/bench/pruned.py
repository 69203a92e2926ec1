"""A model without a share of its heads beside the original: steps, prefill, whole models."""

import functools
from collections.abc import Callable, Mapping

import pandas as pd
import torch
from torch import Tensor

from srdyn import architectures, models
from srdyn.architectures import linear_cache
from srdyn.bench import subjects, timing

ORIGINAL, PRUNED, _STOCK = "original", "pruned", "original, transformers' own step"
WIDE = "Qwen3-Next layers"
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
    compared = functools.partial(timing.compared, rounds=rounds, base=ORIGINAL)
    wide = subjects.drawn(layers, hidden=256, **subjects.QWEN3_NEXT)
    both = {ORIGINAL: wide, PRUNED: subjects.smaller(wide, removed)}
    tables = []
    for B in batches:
        steps = {case: layer_step(model, B) for case, model in both.items()}
        tables.append(compared(steps, model=WIDE, what="layer step", B=B, tokens=B))
        # On its own: a case that goes over the state a dozen times leaves the next one cold caches.
        stock = {ORIGINAL: steps[ORIGINAL], _STOCK: layer_step(subjects.stock(wide), B)}
        beside = compared(stock, model=WIDE, what="layer step", B=B, tokens=B)
        tables.append(beside[beside["case"] == _STOCK])
        whole = {case: model_step(model, B, READ) for case, model in both.items()}
        tables.append(compared(whole, model=WIDE, what="model step", B=B, tokens=B))
    prefill = {case: layer_prefill(model, T) for case, model in both.items()}
    tables.append(compared(prefill, model=WIDE, what="layer prefill", B=1, tokens=T))
    B = batches[0]
    for name, model in shipped.items():
        both = {ORIGINAL: model, PRUNED: subjects.smaller(model, removed)}
        whole = {case: model_step(one, B, T) for case, one in both.items()}
        tables.append(compared(whole, model=name, what="model step", B=B, tokens=B))
    found = pd.concat(tables, ignore_index=True)
    return found.assign(per_second=found["tokens"] / found["median"])


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
