"""A model without a share of its heads beside the original: how long it takes, and what it holds in memory."""

import functools
import tempfile
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from srdyn import models, pruning
from srdyn.architectures import linear_cache
from srdyn.bench import subjects, timing, tracing

ORIGINAL, PRUNED, _STOCK = "original", "pruned", "original, transformers' own step"
WIDE = "Qwen3-Next layers"
READ = 16
"""Tokens that a cache has read before the steps that are timed; a step's cost does not depend on them."""


def table(*, layers: int, removed: float, batches: tuple[int, ...], T: int, rounds: int) -> pd.DataFrame:
    """`timing.compared` original and pruned models, by model, what, B.

    `layer step` is one token through the linear layers alone of a random model with Qwen3-Next's layer geometry, also
    with transformers' functions instead of ours; `layer prefill` is T tokens through them. `model step` is one token
    through the whole of that model, and of the shipped ones after T tokens.
    """
    compared, tables = functools.partial(timing.compared, rounds=rounds, base=ORIGINAL), []
    wide = subjects.drawn(layers, hidden=256, **subjects.QWEN3_NEXT)
    both = {ORIGINAL: wide, PRUNED: subjects.smaller(wide, removed)}
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
    for name in ("hybrid", "pure"):
        model = subjects.shipped(name)
        whole = {ORIGINAL: model_step(model, B, T), PRUNED: model_step(subjects.smaller(model, removed), B, T)}
        tables.append(compared(whole, model=name, what="model step", B=B, tokens=B))
    return pd.concat(tables, ignore_index=True)


def layer_step(model: models.Model, B: int) -> timing.Case:
    """One more token of B sequences through the linear layers alone."""
    cache, coming = linear_cache.empty(model.hf), _hidden(model, B, 1)
    _through(model, _hidden(model, B, READ), cache)
    return lambda: _through(model, coming, cache)


def layer_prefill(model: models.Model, T: int) -> timing.Case:
    """T tokens of one sequence through the linear layers alone, into an empty cache."""
    hidden = _hidden(model, 1, T)
    return lambda: _through(model, hidden, linear_cache.empty(model.hf))


def model_step(model: models.Model, B: int, T: int) -> timing.Case:
    """One more token of B sequences, after T of them and then one more a call, through the whole model."""
    ids, cache = subjects.tokens(model, B, T), linear_cache.empty(model.hf)

    @torch.no_grad()
    def read(ids: Tensor) -> None:
        model.hf(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)

    read(ids)
    return lambda: read(ids[:, -1:])


@torch.no_grad()
def _through(model: models.Model, hidden: Tensor, cache: object) -> None:
    for layer in model.layers:
        model.hf.model.layers[layer.index].linear_attn(hidden, cache_params=cache)


def _hidden(model: models.Model, B: int, T: int) -> Tensor:
    return torch.randn(B, T, model.hf.config.hidden_size, generator=torch.Generator().manual_seed(T))


def memory(*, lengths: tuple[int, ...], layers: int, removed: float, B: int, T: int) -> pd.DataFrame:
    """Columns what, model, case, tokens, bytes, predicted.

    `states`, `cache`: what a cache of B sequences holds, for each model and the same model pruned; `predicted` is the
    original's share without the k of N heads. `trace`: how far memory rises while the states of one sequence are
    measured at every token, of the shipped pure model; `predicted` is what keeping those states would take. `decoding`:
    while B sequences read T tokens into an empty cache of a model with Qwen3-Next's layers, then 8 more one by one.
    """
    rows = [row for name in ("hybrid", "pure") for row in _held(subjects.shipped(name), name, removed, B)]
    wide = subjects.drawn(layers, hidden=256, **subjects.QWEN3_NEXT)
    rows += _held(wide, WIDE, removed, B)
    grid = subjects.shipped("pure").grid
    for case, route in ((tracing.ONE_PASS, "forward"), (tracing.THROUGH_CACHE, "segments")):
        for length in lengths:
            kept = 4 * grid.L * grid.H * grid.K * grid.V * length
            rose = timing.peak_bytes(tracing.every_token, "pure", length, route)
            rows.append(("trace", "pure", case, length, rose, kept))
    with tempfile.TemporaryDirectory() as folder:
        for case, model in ((ORIGINAL, wide), (PRUNED, subjects.smaller(wide, removed))):
            place = pruning.save(model, Path(folder, case))
            rose = timing.peak_bytes(decoding, f"{place}", B, T)
            rows.append(("decoding", WIDE, case, T, rose, None))
    return pd.DataFrame(rows, columns=["what", "model", "case", "tokens", "bytes", "predicted"])


def _held(model: models.Model, name: str, removed: float, B: int) -> list[tuple]:
    rows, whole = [], None
    for case, one in ((ORIGINAL, model), (PRUNED, subjects.smaller(model, removed))):
        states, cache = linear_cache.held_bytes(subjects.read(one, subjects.tokens(one, B, READ), cached=True))
        heads = sum(len(layer.heads) for layer in one.layers)
        whole = whole or (states, heads)
        rows.append(("states", name, case, READ, states, whole[0] * heads // whole[1]))
        rows.append(("cache", name, case, READ, cache, None))
    return rows


def decoding(folder: str, B: int, T: int) -> timing.Case:
    """T tokens of B sequences into an empty cache of the model in a folder, then 8 more one by one."""
    model = models.load(folder, device="cpu")
    model_step(model, 1, 2)()

    def case() -> None:
        step = model_step(model, B, T)
        for _ in range(8):
            step()

    return case
