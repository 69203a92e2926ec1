"""What a model gets right: outcomes per item of the tasks, bits per window of held-out text.

Outcomes stay apart by item and window, so that two models, or a model and its ablation, can be compared in pairs.
Calibration and evaluation differ in both their documents (`contexts.PARTS`) and their draws (`generator`).
"""

import zlib
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from srdyn import contexts, models
from srdyn.text import tasks

_QUERIES = 8  # of an episode of recall
_LONGEST_GAP = 64  # tokens of text inside an episode of recall
CHAIN_STEPS = (4, 8)
_DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the one needle of a task in `NEEDLES_AT`, as shares of the text
TEXT_BETWEEN = (8, 32)  # tokens of text before each piece of arithmetic


class ByteWindows(NamedTuple):
    """Windows of held-out text; window i predicts bytes `start[i]` … `stop[i] - 1` of document `document[i]`."""

    tokens: Int64[Tensor, "N T"]
    document: Int64[np.ndarray, " N"]
    start: Int64[np.ndarray, " N"]
    stop: Int64[np.ndarray, " N"]


def draws(task: str, *, part: str, seed: int = 0) -> np.random.Generator:
    """The random numbers of one task in one part: calibration and evaluation never meet the same ones."""
    return np.random.default_rng([contexts.PARTS.index(part), seed, zlib.crc32(task.encode())])


def held_out_text(tokenizer: PreTrainedTokenizerBase, part: str) -> tasks.Text:
    """One part of every held-out domain as tokens, each document after an end-of-text token, to write tasks into."""
    end = _end_of_text(tokenizer)
    documents = {name: contexts.held_out_documents(name, part=part) for name in contexts.domains()}
    encoded = {name: tokenizer(texts, add_special_tokens=False)["input_ids"] for name, texts in documents.items()}
    return tasks.Text({name: np.concatenate([[end, *ids] for ids in rows]) for name, rows in encoded.items()})


def task_rows(
    name: str, *, tokenizer: PreTrainedTokenizerBase, text: tasks.Text, n: int, length: int, rng: np.random.Generator
) -> tuple[Int64[Tensor, "B T"], Int64[Tensor, "B T"]]:
    """Rows of `length` tokens with at least `n` items of one of `TASKS`: tokens, and the item each is an answer of.

    Items count from 1 within their row; 0 marks every token that is no answer. Raises ValueError for an unknown task or
    a length that no item fits into.
    """
    if name not in TASKS:
        raise ValueError(f"no task is called {name!r}; there are {', '.join(TASKS)}")
    writer = tasks.Writer(tasks.Alphabet.of(tokenizer), text, rng)
    rows, items = [], 0
    while items < n:
        passage = tasks.Passage()
        TASKS[name](writer, passage, length)
        if not any(passage.items):
            raise ValueError(f"no item of {name!r} fits into {length} tokens; ask for longer rows")
        writer.snippet(passage, length - len(passage))
        rows.append(passage)
        items += max(passage.items)
    tokens, numbers = (torch.tensor([getattr(row, part) for row in rows]) for part in ("tokens", "items"))
    return tokens, numbers


def outcomes(model: models.Model, tokens: Int[Tensor, "B T"], items: Int[Tensor, "B T"]) -> pd.DataFrame:
    """One line for every item: row, item, right (all its answer tokens are the first choice), bits, tokens."""
    asked, right, bits = items[:, 1:] > 0, [], []
    for rows, chosen in zip(*(x.split(_together(model, tokens)) for x in (tokens, asked)), strict=True):
        logits, after = _expected(model, rows)
        chosen = chosen.to(after.device)
        right.append((logits[chosen].argmax(-1) == after[chosen]).cpu())
        bits.append(F.cross_entropy(logits[chosen].float(), after[chosen], reduction="none").double().cpu() / np.log(2))
    row = torch.arange(len(items))[:, None].expand_as(asked)
    answers = {"row": row[asked], "item": items[:, 1:][asked], "right": torch.cat(right), "bits": torch.cat(bits)}
    by_item = pd.DataFrame(answers).groupby(["row", "item"], as_index=False)
    return by_item.agg(right=("right", "all"), bits=("bits", "sum"), tokens=("bits", "size"))


def windows(
    name: str, tokenizer: PreTrainedTokenizerBase, *, length: int = 512, part: str = "evaluation", n: int | None = None
) -> ByteWindows:
    """Windows of `length` tokens over the documents of one part of a held-out domain, all or `n` evenly spaced ones.

    A document is read after an end-of-text token. Each window begins with the last token of the one before, so that
    every token is predicted once; what fills no window is not. Raises ValueError for fewer than `n`, or a tokenizer
    whose tokens do not spell bytes.
    """
    found = [
        (tokens[a : a + length], i, ends[a], ends[a + length - 1])
        for i, document in enumerate(contexts.held_out_documents(name, part=part))
        for tokens, ends in [_spelled(document, tokenizer)]
        for a in range(0, len(tokens) - length + 1, length - 1)
    ]
    if len(found) < (n or 1):
        raise ValueError(f"{name}: {n or 1} windows of {length} tokens asked for, the part {part!r} has {len(found)}")
    chosen = np.linspace(0, len(found) - 1, n or len(found)).round().astype(int)
    tokens, document, start, stop = zip(*(found[i] for i in chosen), strict=True)
    return ByteWindows(torch.tensor(np.array(tokens)), np.array(document), np.array(start), np.array(stop))


def window_bits(model: models.Model, tokens: Int[Tensor, "N T"]) -> Float64[np.ndarray, " N"]:
    """Bits that the model needs for all tokens of a window but the first."""
    bits = [
        F.cross_entropy(logits.float().transpose(1, 2), after, reduction="none").double().sum(1) / np.log(2)
        for logits, after in (_expected(model, rows) for rows in tokens.split(_together(model, tokens)))
    ]
    return torch.cat(bits).cpu().numpy()


def _together(model: models.Model, tokens: Int[Tensor, "B T"]) -> int:
    """How many rows are read together: 8 at most, since their logits are held."""
    return min(8, models.batch_size(model, tokens.shape[1]))


def _expected(model: models.Model, rows: Int[Tensor, "B T"]) -> tuple[Float[Tensor, "B U N"], Int64[Tensor, "B U"]]:
    """Logits, and the tokens that they should have foretold: all but the first."""
    logits = model.logits(rows)[:, :-1]
    return logits, rows[:, 1:].to(logits.device)


def _spelled(document: str, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], Int64[np.ndarray, " T"]]:
    """The document after an end-of-text token, and the byte at which each token ends."""
    tokens = tokenizer(document, add_special_tokens=False)["input_ids"]
    ends = np.cumsum([0, *(len(token) for token in tokenizer.convert_ids_to_tokens(tokens))])
    if ends[-1] != (size := len(document.encode())):
        raise ValueError(f"tokens spell {ends[-1]} bytes of {size}; bits per byte need a byte-level tokenizer")
    return [_end_of_text(tokenizer), *tokens], ends


def _end_of_text(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end-of-text token, which precedes every document")
    return tokenizer.eos_token_id


def _needles(writer: tasks.Writer, passage: tasks.Passage, length: int, *, needles: int) -> None:
    writer.needles(passage, needles, length=length, item=1)


def _needle_at(writer: tasks.Writer, passage: tasks.Passage, length: int, *, depth: float) -> None:
    """One fact after the share `depth` of the text, asked at the end: one item a row."""
    free = length - len(passage) - 2 * writer.sentence_length()
    if free < 0:
        raise ValueError(f"a needle does not fit into {length} tokens that already hold {len(passage)}")
    [(name, value)] = writer.facts(1)
    before = round(depth * free)
    writer.snippet(passage, before)
    writer.sentence(passage, name, value, weight=0.0)
    writer.snippet(passage, free - before)
    writer.sentence(passage, name, value, weight=tasks.ANSWER_WEIGHT, item=1)


def _recall(writer: tasks.Writer, passage: tasks.Passage, length: int, *, pairs: int) -> None:
    """Episodes until the row is full. Names are asked with replacement, so that elimination helps little; asked again
    in its episode, a name counts as no item, since its value was shown just before.
    """
    item, size = 1, 2 * pairs + 2 * _QUERIES + 5
    while (spare := length - len(passage) - size) >= 0:
        queries = writer.rng.integers(0, pairs, _QUERIES)
        gap = min(int(writer.rng.integers(0, _LONGEST_GAP + 1)), spare)
        before = len(passage)
        writer.recall(passage, pairs, gap=gap, queries=queries, item=item)
        first = np.isin(np.arange(_QUERIES), np.unique(queries, return_index=True)[1])
        number = np.where(first, item - 1 + np.cumsum(first), 0)
        passage.items[before:] = [int(number[i - item]) if i else 0 for i in passage.items[before:]]
        item += int(first.sum())


def _arithmetic(
    writer: tasks.Writer, passage: tasks.Passage, length: int, *, size: int, write: Callable[[int], None]
) -> None:
    """Text, a piece of arithmetic of at most `size` tokens, text … until the row is full."""
    item = 1
    while (spare := length - len(passage) - size) >= 0:
        writer.snippet(passage, min(int(writer.rng.integers(*TEXT_BETWEEN)), spare))
        write(item)
        item += 1


def _chains(writer: tasks.Writer, passage: tasks.Passage, length: int, *, steps: tuple[int, ...]) -> None:
    write = lambda item: writer.chain(passage, int(writer.rng.choice(steps)), item=item)  # noqa: E731
    _arithmetic(writer, passage, length, size=3 + 4 * max(steps), write=write)


def _sums(writer: tasks.Writer, passage: tasks.Passage, length: int) -> None:
    write, longest = partial(writer.sum, passage), "\n99+99:9+9=18:9+9+1=19=198\n"
    _arithmetic(writer, passage, length, size=len(longest), write=lambda item: write(item=item))


NEEDLES_AT: dict[str, float] = {f"needle at {100 * depth:.0f} %": depth for depth in _DEPTHS}
"""The tasks that ask for one needle, and its depth: with the length of a row, the grid of needle retrieval."""
TASKS: dict[str, Callable[[tasks.Writer, tasks.Passage, int], None]] = {
    "needle": partial(_needles, needles=2),
    "needle4": partial(_needles, needles=4),
    "recall4": partial(_recall, pairs=4),
    "recall8": partial(_recall, pairs=8),
    "recall16": partial(_recall, pairs=16),
    "chain": partial(_chains, steps=CHAIN_STEPS),
    **{f"chain{steps}": partial(_chains, steps=(steps,)) for steps in CHAIN_STEPS},
    "sum": _sums,
    **{name: partial(_needle_at, depth=depth) for name, depth in NEEDLES_AT.items()},
}
