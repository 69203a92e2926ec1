"""Whether two checkpoints of one architecture have the same heads low-ranked and the same heads high-ranked (C6)."""

import functools
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

from srdyn import strata
from srdyn.study.analysis import intervals, observations
from srdyn.study.survey import null_tables, survey

NULL = "permuted heads"
"""The second checkpoint's heads in random order within each layer: what the layers alone have in common stays."""
PERMUTATIONS = 1000

Agreement = Callable[..., Float[np.ndarray, " rows"]]


def compare(first: str | Path, second: str | Path, reading: survey.Reading, *, at: int) -> pd.DataFrame:
    """How far the order and the strata of all heads agree between two checkpoints, beside their permutation null.

    Ranks are those after `at` tokens, each head's mean over the reading's domains and tasks. Measures: tie-averaged
    Spearman ρ, Cohen's κ of the strata. The pair's interval is from drawing documents again, the same ones for both
    checkpoints; its null has the mean and the middle 95 % of `PERMUTATIONS`. Columns of `observations.measure`: the
    pair is one model, "first / second", of the kind and seed that both have, else of a kind of its own; `why` says how
    many permutations agree as well. Raises ValueError for checkpoints of one name, of different grids, without all
    their heads, or that read different documents.
    """
    heads = [survey.heads([name], reading, sources=()) for name in (first, second)]
    contexts = [*reading.texts, *reading.tasks]
    tables = [table[table["context"].isin(contexts) & (table["position"] == at)] for table in heads]
    data = _side_by_side(*map(observations.cube, tables))
    pair = _label(*(table["model"].iloc[0] for table in tables))
    about = {name: {table[name].iloc[0] for table in tables} for name in ("kind", "seed")}
    alike = all(len(values) == 1 for values in about.values())
    named = {name: values.pop() for name, values in about.items()} if alike else {"kind": pair, "seed": 0}
    agreements = {"spearman": strata.spearman, "kappa": functools.partial(strata.kappa, d=data.D)}
    rows = [_rows(agree, data).assign(measure=f"{name} between checkpoints") for name, agree in agreements.items()]
    columns = ["measure", *observations.OF_A_MODEL, "n", "source", *observations.Observed._fields, "over", "why"]
    return pd.concat(rows, ignore_index=True).assign(model=pair, **named, n=len(data.values))[columns]


def _label(first: str, second: str) -> str:
    """Both names, of the second only what it does not share with the first."""
    if first == second:
        raise ValueError(f"checkpoints are told apart by the names of their folders, but both are called {first!r}")
    parts = [name.split("-") for name in (first, second)]
    shared = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*parts, strict=False))))
    return f"{first} / {'-'.join(parts[1][shared:]) or second}"


def _side_by_side(first: observations.Cube, second: observations.Cube) -> observations.Cube:
    """Both checkpoints' ranks where a cube has its positions."""
    if (first.values.shape, first.layers, first.D) != (second.values.shape, second.layers, second.D):
        grids = [f"{len(x.layers)} layers {x.layers} of {x.values.shape[3]} heads, D = {x.D}" for x in (first, second)]
        raise ValueError(f"only checkpoints of one grid have heads in common, not {' and '.join(grids)}")
    if not np.array_equal(first.documents, second.documents):
        raise ValueError("the checkpoints read different documents, as with different tokenizers: their texts differ")
    both = observations.beside([first, second])
    if np.isnan(both.values).any():
        raise ValueError("heads are compared where both checkpoints hold all of them, but some were pruned away")
    return both


def _rows(agree: Agreement, data: observations.Cube) -> pd.DataFrame:
    """The pair's row and its null's."""

    def statistic(means: observations.Means) -> dict[str, observations.Pooled]:
        first, second = np.moveaxis(means.mean(0).reshape(1, -1, 2), -1, 0)
        return {"pair": observations.single(float(agree(first, second)[0]), observations.CORRELATION, "pairs")}

    found, interval = statistic(data.values.mean(0))["pair"], observations.observe_each(data, statistic)["pair"]
    permuted = _permuted(agree, data)
    as_well = f"{int((permuted >= found.value).sum())} of {PERMUTATIONS} permutations agree as well"
    null = intervals.of_resamples(float(permuted.mean()), permuted)
    pair = {"source": null_tables.MODEL, **interval._asdict(), "over": data.drawn, "why": found.why or as_well}
    return pd.DataFrame([pair, {"source": NULL, **null._asdict(), "over": "permutations within layers", "why": ""}])


def _permuted(agree: Agreement, data: observations.Cube) -> Float[np.ndarray, " rows"]:
    a, b = np.moveaxis(data.values.mean((0, 1)), -1, 0)
    shape = (PERMUTATIONS, *a.shape)
    shuffled = np.random.default_rng(0).permuted(np.broadcast_to(b, shape), axis=-1)
    return agree(*(x.reshape(PERMUTATIONS, -1) for x in (np.broadcast_to(a, shape), shuffled)))
