"""Writing while `states.watch` looks on, beside writing unwatched."""

import contextlib
import logging
from unittest import mock

import pandas as pd

from srdyn import models, states
from srdyn.bench import subjects, timing

UNWATCHED = "unwatched"


def table(*, names: tuple[str, ...], every: tuple[int, ...], T: int, new: int, rounds: int) -> pd.DataFrame:
    """`timing.compared` writing `new` tokens after T of them, greedily, by model and by how often states are looked at.

    Nothing is shown or logged meanwhile: a line a look would time the terminal.
    """
    with mock.patch.object(logging.getLogger(states.__name__), "disabled", True):
        return pd.concat([_of(name, every, T, new, rounds) for name in names], ignore_index=True)


def _of(name: str, every: tuple[int, ...], T: int, new: int, rounds: int) -> pd.DataFrame:
    model = subjects.shipped(name)
    cases = {UNWATCHED: writing(model, T, new, every=None)}
    cases |= {f"every {n}": writing(model, T, new, every=n) for n in every}
    return timing.compared(cases, rounds=rounds, base=UNWATCHED, tokens=new, model=name, T=T)


def writing(model: models.Model, T: int, new: int, *, every: int | None) -> timing.Case:
    """`new` tokens after T of them, never fewer; with `every`, watched after as many tokens each time."""
    ids = subjects.tokens(model, 1, T)
    options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}

    def write() -> list[int]:
        with contextlib.nullcontext() if every is None else states.watch(model, every=every):
            return model.hf.generate(ids, attention_mask=ids.new_ones(ids.shape), **options)[0].tolist()

    return write
