"""Tracing beside a plain forward pass, beside reading every prefix anew, as published scripts do, and as it grows."""

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
    found, base = timing.medians(times, base=cases[0]), times.groupby("case")["seconds"].median()
    if PUBLISHED in cases:  # like with like: spectra on both sides
        like = timing.medians(times, base=SPECTRA)
        found = found.where(~found["case"].isin([SPECTRA, PUBLISHED]), like)
    B, T = ids.shape
    read = model.grid.L * model.grid.H * B * len(positions)
    per_state = (found["median"] - base[cases[0]]) / read if cases[0] == _PLAIN else float("nan")
    return found.assign(what=what, T=T, B=B, positions=len(positions), per_state=per_state)


def _case(case: str, model: models.Model, ids: Int[Tensor, "B T"], positions: list[int]) -> Callable[[], object]:
    trace = functools.partial(states.trace, model, ids, positions)
    if case == PUBLISHED:
        return functools.partial(anew, subjects.stock(model), ids, positions, _by_numpy)
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


def _by_numpy(state: Float[Tensor, "B H K V"]) -> Float[Tensor, "B H D"]:
    return throughput.by_numpy(state.flatten(0, 1)).unflatten(0, state.shape[:2])


def _spaced(T: int, count: int) -> list[int]:
    return [T * (i + 1) // count for i in range(count)]


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
    return pd.concat([_grown(axis, by_size, rounds) for axis, by_size in subject.items()], ignore_index=True)


def _grown(axis: str, by_size: dict[int, tuple[models.Model, int]], rounds: int) -> pd.DataFrame:
    cases = {}
    for size, (model, T) in by_size.items():
        positions = list(range(min(_EVERY, T), T + 1, _EVERY))
        cases[f"{size}"] = functools.partial(states.trace, model, subjects.tokens(model, 1, T), positions)
    times = timing.interleaved(cases, rounds=rounds)
    fit = timing.exponent(timing.wide(times), {f"{size}": size for size in by_size})
    rows = timing.medians(times, base=next(iter(cases))).assign(axis=axis, size=list(by_size))
    rows = rows.assign(exponent=fit.estimate, low=fit.low, high=fit.high)
    return rows[["axis", "size", "n", "median", "spread", "unit", "exponent", "low", "high"]]
