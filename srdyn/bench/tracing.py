"""Tracing beside a plain forward pass, beside reading every prefix anew, as published scripts do, as it grows, live."""

import contextlib
import functools
from collections.abc import Callable

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from srdyn import architectures, models, spectra, states
from srdyn.bench import subjects, throughput, timing

_PLAIN, TRACED, SPECTRA = "forward pass", "traced", "traced, with spectra"
AGAIN, PUBLISHED = "prefixes anew", "prefixes anew, transformers' functions, numpy spectra"
_EVERY = 64
"""Tokens from one state to the next where growth is measured."""
UNWATCHED = "unwatched"
ONE_PASS, THROUGH_CACHE = "every token, one pass", "every token, through the cache"


def nothing(state: Float[Tensor, "B H K V"]) -> Float[Tensor, "B H"]:
    """One entry of every state: what is left to time is the tracing."""
    return state[..., 0, 0]


def ranks(state: Float[Tensor, "B H K V"]) -> Float[Tensor, "B H"]:
    """Effective ranks."""
    return spectra.effective_rank(spectra.singular_values(state))


def table(*, B: int, T: int, counts: tuple[int, ...], every_token: int, rounds: int) -> pd.DataFrame:
    """`timing.medians` of tracing the shipped hybrid, T tokens of B sequences, evenly spaced positions, by count.

    Columns besides: what, T, B, positions, per_state (seconds that a state costs beyond the plain pass). `prefixes`
    times reading every prefix anew in fewer rounds, once with the same functions as the trace and without spectra, once
    as published scripts do: with transformers' own functions and an SVD by numpy for each state, against a trace with
    our spectra. `every token` reads the first `every_token` tokens of one sequence and takes ranks.
    """
    model, most = subjects.shipped("hybrid"), max(counts)
    ids = subjects.tokens(model, B, T)
    tables = [_timed("overhead", model, ids, _spaced(T, most), (_PLAIN, TRACED, SPECTRA), rounds)]
    for count in counts:
        cases = (TRACED, SPECTRA, AGAIN, PUBLISHED) if count < most else (TRACED, AGAIN)
        tables.append(_timed("prefixes", model, ids, _spaced(T, count), cases, max(2, rounds // 2)))
    some, positions = ids[:1, :every_token], list(range(1, every_token + 1))
    cases = (_PLAIN, ONE_PASS, THROUGH_CACHE)
    tables.append(_timed("every token", model, some, positions, cases, max(2, rounds // 2)))
    return pd.concat(tables, ignore_index=True)


def _timed(
    what: str, model: models.Model, ids: Int[Tensor, "B T"], positions: list[int], cases: tuple[str, ...], rounds: int
) -> pd.DataFrame:
    subject = {case: _case(case, model, ids, positions) for case in cases}
    # prefixes take long, and what they call is warm from the cases before
    times = timing.interleaved(subject, rounds=rounds, warm_up=what != "prefixes")
    found = timing.medians(times, base=cases[0])
    if PUBLISHED in cases:  # like with like: spectra on both sides
        like = timing.medians(times, base=SPECTRA)
        found = found.where(~found["case"].isin([SPECTRA, PUBLISHED]), like)
    B, T = ids.shape
    read = model.grid.L * model.grid.H * B * len(positions)
    per_state = (found["median"] - times[_PLAIN].median()) / read if _PLAIN in cases else float("nan")
    return found.assign(what=what, T=T, B=B, positions=len(positions), per_state=per_state)


def _case(case: str, model: models.Model, ids: Int[Tensor, "B T"], positions: list[int]) -> Callable[[], object]:
    trace = functools.partial(states.trace, model, ids, positions)
    if case == PUBLISHED:
        return functools.partial(anew, subjects.stock(model), ids, positions, throughput.by_numpy)
    return {
        _PLAIN: functools.partial(subjects.read, model, ids),
        TRACED: functools.partial(trace, measure=nothing),
        SPECTRA: trace,
        AGAIN: functools.partial(anew, model, ids, positions, nothing),
        ONE_PASS: functools.partial(trace, measure=ranks),
        THROUGH_CACHE: functools.partial(trace, measure=ranks, route="segments"),
    }[case]


def anew(
    model: models.Model, ids: Int[Tensor, "B T"], positions: list[int], measure: states.Measure
) -> Float[Tensor, "L B C H *measured"]:
    """What `states.trace` gives, by a pass over every prefix."""
    found = []
    for position in positions:
        cache = subjects.read(model, ids[:, :position], cached=True)
        sites = architectures.sites(model.hf)
        held = [site.recipe.oriented(site.recipe.stored(cache, site.index)) for site in sites]
        found.append(torch.stack([measure(state) for state in held]))
    return torch.stack(found, dim=2)


def _spaced(T: int, count: int) -> list[int]:
    return [T * (i + 1) // count for i in range(count)]


def every_token(name: str, T: int, route: str) -> timing.Case:
    """Ranks of a shipped model's states at every one of T tokens, with all code compiled beforehand."""
    model = subjects.shipped(name)
    trace = functools.partial(states.trace, model, measure=ranks, route=route)
    trace(subjects.tokens(model, 1, 2), [1, 2])
    return functools.partial(trace, subjects.tokens(model, 1, T), list(range(1, T + 1)))


def growth(
    *, lengths: tuple[int, ...], layers: tuple[int, ...], heads: tuple[int, ...], T: int, rounds: int
) -> pd.DataFrame:
    """A row for each size of each axis: axis (T, L, H), size, n, median, spread, unit, exponent, low, high.

    T grows on the shipped pure model, L and H on random models of its kind at `T` tokens; one sequence, a state with
    spectra every few tokens. `exponent` is the slope of log time over log size, with its interval over rounds.
    """
    pure = subjects.shipped("pure")
    subject = {
        "T": {size: (pure, size) for size in lengths},
        "L": {size: (subjects.drawn(size), T) for size in layers},
        "H": {size: (subjects.drawn(2, heads=size), T) for size in heads},
    }
    tables = []
    for axis, by_size in subject.items():
        cases = {}
        for size, (model, tokens) in by_size.items():
            positions = list(range(min(_EVERY, tokens), tokens + 1, _EVERY))
            cases[f"{size}"] = functools.partial(states.trace, model, subjects.tokens(model, 1, tokens), positions)
        times = timing.interleaved(cases, rounds=rounds)
        rows = timing.medians(times, base=next(iter(cases))).assign(axis=axis, size=list(by_size))
        rows[["exponent", "low", "high"]] = timing.exponent(times)
        tables.append(rows[["axis", "size", "n", "median", "spread", "unit", "exponent", "low", "high"]])
    return pd.concat(tables, ignore_index=True)


def watched(*, names: tuple[str, ...], every: tuple[int, ...], T: int, new: int, rounds: int) -> pd.DataFrame:
    """`timing.compared` writing `new` tokens after T of them, greedily, by model and by how often states are looked at.

    Nothing is shown or logged meanwhile: a line a look would time the terminal.
    """
    tables = []
    states.log.disabled = True
    try:
        for name in names:
            model = subjects.shipped(name)
            cases = {UNWATCHED: writing(model, T, new, every=None)}
            cases |= {f"every {n}": writing(model, T, new, every=n) for n in every}
            tables.append(timing.compared(cases, rounds=rounds, base=UNWATCHED, tokens=new, model=name, T=T))
    finally:
        states.log.disabled = False
    return pd.concat(tables, ignore_index=True)


def writing(model: models.Model, T: int, new: int, *, every: int | None) -> timing.Case:
    """`new` tokens after T of them, never fewer; with `every`, watched after as many tokens each time."""
    ids = subjects.tokens(model, 1, T)
    options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}

    def write() -> list[int]:
        with contextlib.nullcontext() if every is None else states.watch(model, every=every):
            return model.hf.generate(ids, attention_mask=ids.new_ones(ids.shape), **options)[0].tolist()

    return write
