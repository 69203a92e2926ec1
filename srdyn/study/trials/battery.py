"""What a model is asked: one fixed set of questions and texts, answered by the model in any state."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int64
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from srdyn import evals, models
from srdyn.text import tasks

log = logging.getLogger(__name__)

INDUCTION = ("induction first", "induction second")
SKIPPED = 8
"""Tokens at the start of either copy that are not counted: a repetition shows only after some of it."""


@dataclass(frozen=True)
class Battery:
    """At least `items` items of each of `tasks` (`evals.TASKS`), `windows` windows of text from each of `domains`.

    All rows are `length` tokens long; a task fills at least `rows` of them, since intervals are over rows and draws of
    heads share them. `copies` are the rows of the induction probe, a text read twice; 0 leaves it out. Batteries of
    different parts (`contexts.PARTS`) share neither documents nor draws; `seed` draws the tasks anew. With
    `text_alone` a tokenizer that has no words to write tasks with is asked for text alone.
    """

    tasks: tuple[str, ...]
    domains: tuple[str, ...]
    length: int = 512
    items: int = 200
    windows: int = 8
    copies: int = 8
    part: str = "evaluation"
    seed: int = 0
    rows: int = 12
    text_alone: bool = False


class Probe(NamedTuple):
    """The rows of one task, domain or induction probe.

    `items` numbers the tokens that are asked for by their item, or by the copy they belong to; windows of text have
    none, all their tokens count, and `size` is the bytes they spell.
    """

    name: str
    kind: Literal["task", "text", "induction"]
    tokens: Int64[Tensor, "B T"]
    items: Int64[Tensor, "B T"] | None = None
    size: Int64[np.ndarray, " B"] | None = None

    def at(self, rows: Int64[Tensor, " b"]) -> Probe:
        """The probe with these rows alone."""
        items = None if self.items is None else self.items[rows]
        size = None if self.size is None else self.size[rows.numpy()]
        return self._replace(tokens=self.tokens[rows], items=items, size=size)


def sheet(battery: Battery, tokenizer: PreTrainedTokenizerBase) -> dict[str, Probe]:
    """The probes of a battery by name: a task's own, `bits <domain>`, `induction`.

    Raises ValueError for an unknown task, domain or part, where rows are too short or a part has too little text, and,
    unless `text_alone`, for a tokenizer without words to write tasks with.
    """
    asks = bool(battery.tasks or battery.copies)
    text, reason = evals.held_out_text(tokenizer, battery.part), tasks.unwritable(tokenizer) if asks else ""
    if reason and not battery.text_alone:
        raise ValueError(f"{reason}; this experiment asks tasks, so it needs a model with a larger vocabulary")
    if reason:
        log.warning("text alone is asked, no tasks: %s", reason)
    probes = [] if reason else [_task(name, battery, tokenizer, text) for name in battery.tasks]
    for name in battery.domains:
        chosen = evals.windows(name, tokenizer, length=battery.length, part=battery.part, n=battery.windows)
        probes.append(Probe(f"bits {name}", "text", chosen.tokens, size=chosen.stop - chosen.start))
    if battery.copies and not reason:
        probes.append(_induction(battery, tokenizer, text))
    return {probe.name: probe for probe in probes}


def answers(model: models.Model, sheet: dict[str, Probe], *, fold: tuple[int, int] = (0, 1)) -> pd.DataFrame:
    """One line for every item, window and copy: probe, probe_kind (as in `Probe`), row, item, value, weight, bits.

    Σ value / Σ weight over the lines of one probe is the share of items that are right for a task (value 1 or 0),
    bits per byte for text, and for induction bits per token, of the first copy and of the second (two probes, one
    pass). `bits` is what all of an answer took; for text and induction it is the value. `fold=(k, K)` answers only the
    rows with row % K = k, so that K draws of heads can share one pass; a probe of fewer than K rows is not asked of
    every draw.
    """
    (k, K), frames = fold, []
    for probe in sheet.values():
        rows = torch.arange(len(probe.tokens))[k::K]
        if len(rows):
            frame = (_text_answers if probe.kind == "text" else _item_answers)(model, probe.at(rows))
            frames.append(frame.assign(probe_kind=probe.kind, row=rows.numpy()[frame["row"]]))
    columns = ["probe", "probe_kind", "row", "item", "value", "weight", "bits"]
    return pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(columns=columns)


def _task(name: str, battery: Battery, tokenizer: PreTrainedTokenizerBase, text: tasks.Text) -> Probe:
    rng = evals.draws(name, part=battery.part, seed=battery.seed)
    write = partial(evals.task_rows, name, tokenizer=tokenizer, text=text, length=battery.length, rng=rng)
    written = [write(n=battery.items)]
    while sum(len(tokens) for tokens, _ in written) < battery.rows:
        written.append(write(n=1))
    tokens, items = map(torch.cat, zip(*written, strict=True))
    return Probe(name, "task", tokens, items=items)


def _induction(battery: Battery, tokenizer: PreTrainedTokenizerBase, text: tasks.Text) -> Probe:
    """A line break and a snippet, then both again; items 1 and 2 are the same tokens of either."""
    half = battery.length // 2
    if half - 1 <= SKIPPED:
        raise ValueError(f"a text read twice needs rows of more than {2 * SKIPPED + 3} tokens, got {battery.length}")
    rng = evals.draws("induction", part=battery.part, seed=battery.seed)
    writer, rows = tasks.Writer(tasks.Alphabet.of(tokenizer), text, rng), []
    for _ in range(battery.copies):
        passage = tasks.Passage()
        writer.repeat(passage, half - 1)
        rows.append(passage.tokens)
    counted = torch.arange(half) > SKIPPED
    items = torch.cat([counted * 1, counted * 2]).expand(battery.copies, -1)
    return Probe("induction", "induction", torch.tensor(rows), items=items)


def _text_answers(model: models.Model, probe: Probe) -> pd.DataFrame:
    bits = evals.window_bits(model, probe.tokens)
    about = {"probe": probe.name, "row": np.arange(len(bits)), "item": 0}
    return pd.DataFrame({**about, "value": bits, "weight": probe.size.astype(float), "bits": bits})


def _item_answers(model: models.Model, probe: Probe) -> pd.DataFrame:
    found = evals.outcomes(model, probe.tokens, probe.items)
    if probe.kind == "task":
        return found.assign(probe=probe.name, value=found["right"].astype(float), weight=1.0)
    names = np.array(INDUCTION)[found["item"] - 1]
    return found.assign(probe=names, item=0, value=found["bits"], weight=found["tokens"].astype(float))
