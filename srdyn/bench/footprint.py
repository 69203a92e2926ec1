"""Memory: what states cost before and after pruning, how far a trace or decoding lets memory rise."""

import functools
import tempfile
from pathlib import Path

import pandas as pd

from srdyn import models, pruning, states
from srdyn.architectures import linear_cache
from srdyn.bench import pruned, subjects, timing, tracing


def table(*, lengths: tuple[int, ...], layers: int, removed: float, B: int, T: int) -> pd.DataFrame:
    """Columns what, model, case, tokens, bytes, predicted.

    `states`, `cache`: what a cache of B sequences holds, for each model and the same model pruned; `predicted` is the
    original's share without the k of N heads. `trace`: how far memory rises while the states of one sequence are
    measured at every token, of the shipped pure model; `predicted` is what keeping those states would take. `decoding`:
    while B sequences read T tokens into an empty cache of a model with Qwen3-Next's layers, then 8 more one by one.
    """
    rows = [row for name in ("hybrid", "pure") for row in _held(subjects.shipped(name), name, removed, B)]
    wide = subjects.drawn(layers, hidden=256, **subjects.QWEN3_NEXT)
    rows += _held(wide, pruned.WIDE, removed, B)
    grid = subjects.shipped("pure").grid
    for case, route in ((tracing.ONE_PASS, "forward"), (tracing.THROUGH_CACHE, "segments")):
        for length in lengths:
            kept = 4 * grid.L * grid.H * grid.K * grid.V * length
            rose = timing.peak_bytes(every_token, "pure", length, route)
            rows.append(("trace", "pure", case, length, rose, kept))
    with tempfile.TemporaryDirectory() as folder:
        for case, model in ((pruned.ORIGINAL, wide), (pruned.PRUNED, subjects.smaller(wide, removed))):
            place = pruning.save(model, Path(folder, case))
            rose = timing.peak_bytes(decoding, f"{place}", B, T)
            rows.append(("decoding", pruned.WIDE, case, T, rose, None))
    return pd.DataFrame(rows, columns=["what", "model", "case", "tokens", "bytes", "predicted"])


def _held(model: models.Model, name: str, removed: float, B: int) -> list[tuple]:
    rows, whole = [], None
    for case, one in ((pruned.ORIGINAL, model), (pruned.PRUNED, subjects.smaller(model, removed))):
        states, cache = linear_cache.held_bytes(subjects.read(one, subjects.tokens(one, B, pruned.READ), cached=True))
        heads = sum(len(layer.heads) for layer in one.layers)
        whole = whole or (states, heads)
        rows.append(("states", name, case, pruned.READ, states, whole[0] * heads // whole[1]))
        rows.append(("cache", name, case, pruned.READ, cache, None))
    return rows


def every_token(name: str, T: int, route: str) -> timing.Case:
    """Ranks of a shipped model's states at every one of T tokens, with all code compiled beforehand."""
    model = subjects.shipped(name)
    trace = functools.partial(states.trace, model, measure=tracing.ranks, route=route)
    trace(subjects.tokens(model, 1, 2), [1, 2])
    return functools.partial(trace, subjects.tokens(model, 1, T), list(range(1, T + 1)))


def decoding(folder: str, B: int, T: int) -> timing.Case:
    """T tokens of B sequences into an empty cache of the model in a folder, then 8 more one by one."""
    model = models.load(folder, device="cpu")
    pruned.model_step(model, 1, 2)()

    def case() -> None:
        step = pruned.model_step(model, B, T)
        for _ in range(8):
            step()

    return case
