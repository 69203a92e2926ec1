"""How the cost of a trace with spectra grows with tokens, layers and heads."""

import functools

import pandas as pd

from srdyn import models, states
from srdyn.bench import subjects, timing

EVERY = 64
COLUMNS = ["axis", "size", "n", "median", "spread", "unit", "exponent", "low", "high"]


def table(
    pure: models.Model,
    *,
    lengths: tuple[int, ...],
    layers: tuple[int, ...],
    heads: tuple[int, ...],
    T: int,
    rounds: int,
) -> pd.DataFrame:
    """A row for each size of each axis: axis (T, L, H), size, n, median, spread, unit, exponent, low, high.

    T grows on the model `pure`, L and H on random models of its kind at `T` tokens; one sequence, a state every 64
    tokens. `exponent` is the slope of log time over log size, one for all rows of an axis, with its interval over
    rounds.
    """
    by_length = {size: (pure, size) for size in lengths}
    by_layers = {size: (subjects.drawn(size), T) for size in layers}
    by_heads = {size: (subjects.drawn(2, heads=size), T) for size in heads}
    tables = [_grown(*axis, rounds) for axis in (("T", by_length), ("L", by_layers), ("H", by_heads))]
    return pd.concat(tables, ignore_index=True)


def _grown(axis: str, subject: dict[int, tuple[models.Model, int]], rounds: int) -> pd.DataFrame:
    cases = {f"{size}": _trace(model, T) for size, (model, T) in subject.items()}
    times = timing.interleaved(cases, rounds=rounds)
    sizes = {f"{size}": size for size in subject}
    fit = timing.exponent(timing.wide(times), sizes)
    rows = timing.medians(times, base=next(iter(cases))).drop(columns=["base", "ratio", "low", "high"])
    rows = rows.assign(axis=axis, size=rows.pop("case").map(sizes))
    return rows.assign(exponent=fit.estimate, low=fit.low, high=fit.high)[COLUMNS]


def _trace(model: models.Model, T: int) -> timing.Case:
    positions = list(range(min(EVERY, T), T + 1, EVERY))
    return functools.partial(states.trace, model, subjects.tokens(model, 1, T), positions)
