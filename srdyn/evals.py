"""What a model gets right: outcomes per item of the tasks, bits per window of held-out text.

Outcomes stay apart by item and window, so that two models, or a model and its ablation, can be compared in pairs.
Calibration and evaluation differ in both their documents (`contexts.PARTS`) and their draws (`generator`).
"""

import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float64, Int, Int64
from torch import Tensor
from transformers import PreTrainedTokenizerBase as Tokenizer

from srdyn import contexts, models
from srdyn.text import tasks
from srdyn.text.episodes import TASKS


class ByteWindows(NamedTuple):
    """Windows of held-out text; window i predicts bytes `start[i]` … `stop[i] - 1` of document `document[i]`."""

    tokens: Int64[Tensor, "N T"]
    document: Int64[np.ndarray, " N"]
    start: Int64[np.ndarray, " N"]
    stop: Int64[np.ndarray, " N"]


def draws(task: str, *, part: str, seed: int = 0) -> np.random.Generator:
    """The random numbers of one task in one part: calibration and evaluation never meet the same ones."""
    return np.random.default_rng([contexts.PARTS.index(part), seed, zlib.crc32(task.encode())])


def held_out_text(tokenizer: Tokenizer, part: str) -> tasks.Text:
    """One part of every held-out domain as tokens, each document after an end-of-text token, to write tasks into."""
    end = _end_of_text(tokenizer)
    documents = {name: contexts.held_out_documents(name, part=part) for name in contexts.domains()}
    encoded = {name: tokenizer(texts, add_special_tokens=False)["input_ids"] for name, texts in documents.items()}
    return tasks.Text({name: np.concatenate([[end, *ids] for ids in rows]) for name, rows in encoded.items()})


def task_rows(
    name: str, *, tokenizer: Tokenizer, text: tasks.Text, n: int, length: int, rng: np.random.Generator
) -> tuple[Int64[Tensor, "B T"], Int64[Tensor, "B T"]]:
    """Rows of `length` tokens with at least `n` items of one of `TASKS`: tokens, and the item each is an answer of.

    Items count from 1 within their row, 0 is no answer. Raises ValueError for an unknown task or too short a length.
    """
    if name not in TASKS:
        raise ValueError(f"no task is called {name!r}; there are {', '.join(TASKS)}")
    writer = tasks.Writer(tasks.Alphabet.of(tokenizer), text, rng)
    rows, items = [], 0
    while items < n:
        passage = tasks.Passage()
        TASKS[name](writer, passage, length=length)
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
    for rows, logits, after in _expected(model, tokens):
        chosen = asked[rows].to(after.device)
        right.append((logits[chosen].argmax(-1) == after[chosen]).cpu())
        bits.append(F.cross_entropy(logits[chosen].float(), after[chosen], reduction="none").double().cpu() / np.log(2))
    row = torch.arange(len(items))[:, None].expand_as(asked)
    answers = {"row": row[asked], "item": items[:, 1:][asked], "right": torch.cat(right), "bits": torch.cat(bits)}
    by_item = pd.DataFrame(answers).groupby(["row", "item"], as_index=False)
    return by_item.agg(right=("right", "all"), bits=("bits", "sum"), tokens=("bits", "size"))


def windows(
    name: str, tokenizer: Tokenizer, *, length: int = 512, part: str = "evaluation", n: int | None = None
) -> ByteWindows:
    """Windows of `length` tokens over the documents of one part of a held-out domain, all or `n` evenly spaced ones.

    A document is read after an end-of-text token; each window begins with the last token of the one before: every token
    is predicted once, but for what fills none. Raises ValueError for fewer than `n`, or tokens that spell no bytes.
    """
    found = [
        (tokens[a : a + length], i, ends[a], ends[a + length - 1])
        for i, document in enumerate(contexts.held_out_documents(name, part=part))
        for tokens, ends in [spelled(document, tokenizer)]
        for a in range(0, len(tokens) - length + 1, length - 1)
    ]
    if len(found) < (n or 1):
        raise ValueError(f"{name}: {n or 1} windows of {length} tokens asked for, the part {part!r} has {len(found)}")
    chosen = np.linspace(0, len(found) - 1, n or len(found)).round().astype(int)
    tokens, document, start, stop = zip(*(found[i] for i in chosen), strict=True)
    return ByteWindows(torch.tensor(np.array(tokens)), np.array(document), np.array(start), np.array(stop))


def window_bits(model: models.Model, tokens: Int[Tensor, "N T"], *, last: int = 0) -> Float64[np.ndarray, " N"]:
    """Bits that the model needs for all tokens of a window but the first, or for its `last` ones."""
    bits = [
        F.cross_entropy(logits.float().transpose(1, 2), after, reduction="none")[:, -last:].double().sum(1) / np.log(2)
        for _, logits, after in _expected(model, tokens)
    ]
    return torch.cat(bits).cpu().numpy()


def _expected(model: models.Model, tokens: Int[Tensor, "B T"]) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Some rows, their logits [b, U, N], and the tokens [b, U] that these should have foretold: all but the first."""
    together = min(8, models.batch_size(model, tokens.shape[1]))  # since their logits are held
    for start in range(0, len(tokens), together):
        rows = slice(start, start + together)
        logits = model.logits(tokens[rows])[:, :-1]
        yield rows, logits, tokens[rows, 1:].to(logits.device)


def spelled(document: str, tokenizer: Tokenizer) -> tuple[list[int], Int64[np.ndarray, " T"]]:
    """The document after an end-of-text token, and the byte at which each token ends."""
    tokens = tokenizer(document, add_special_tokens=False)["input_ids"]
    ends = np.cumsum([0, *(len(token) for token in tokenizer.convert_ids_to_tokens(tokens))])
    if ends[-1] != (size := len(document.encode())):
        raise ValueError(f"tokens spell {ends[-1]} bytes of {size}; bits per byte need a byte-level tokenizer")
    return [_end_of_text(tokenizer), *tokens], ends


def _end_of_text(tokenizer: Tokenizer) -> int:
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end-of-text token, which precedes every document")
    return tokenizer.eos_token_id
