"""The training stream of the reference models: what batch i holds, given only the seed and i."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from srdyn.loading import reference
from srdyn.text.tasks import ANSWER_WEIGHT, KINDS, MORE_SYMBOLS, SYMBOLS, Alphabet, Passage, Text, Writer

_EASY_ROWS = 0.3  # share of rows that stay below the curriculum's current level
_Table = tuple[tuple[float, int], ...]


@dataclass(frozen=True)
class Level:
    """How hard the tasks are after a number of tokens."""

    symbols: int
    pairs: int
    gap: int
    facts: int
    lengths: tuple[int, ...]
    shares: dict[str, float]


@dataclass(frozen=True)
class Curriculum:
    """A fixed schedule over millions of tokens, so that models which are compared read the same tokens in one order.

    Between two entries of `symbols` (in use), `pairs` (at most, of an episode of recall) and `gap` (of text inside it,
    at longest) the value is interpolated. From each entry of `lengths` on, batches cycle through these lengths; from
    each of `shares` on, rows are of each kind that often. Every kind is padded with real text, which makes half of all
    tokens at first and three quarters at the end. A row of needles holds at most `facts` of them.
    """

    tokens_per_batch: int
    facts: int
    symbols: _Table
    pairs: _Table
    gap: _Table
    lengths: tuple[tuple[float, tuple[int, ...]], ...]
    shares: tuple[tuple[float, dict[str, float]], ...]

    def level(self, tokens_seen: int) -> Level:
        """How hard it is after `tokens_seen` tokens."""
        millions = tokens_seen / 1e6
        interpolate = lambda table: int(np.interp(millions, *zip(*table, strict=True)))  # noqa: E731
        current = lambda table: [value for start, value in table if millions >= start][-1]  # noqa: E731
        symbols, pairs, gap = map(interpolate, (self.symbols, self.pairs, self.gap))
        return Level(symbols, pairs, gap, self.facts, current(self.lengths), current(self.shares))

    def at_its_end(self, shares: dict[str, float]) -> Curriculum:
        """As hard from the first token on as this one is at last, with rows of each kind that often."""
        last = {name: ((0.0, getattr(self, name)[-1][1]),) for name in ("symbols", "pairs", "gap", "lengths")}
        return replace(self, **last, shares=((0.0, shares),))

    def longest(self, tokens: int) -> int:
        """The longest sequence among the first `tokens` tokens."""
        return max(length for start, lengths in self.lengths for length in lengths if start * 1e6 < tokens)


SMALL = Curriculum(
    tokens_per_batch=reference.TOKENS_PER_BATCH,
    facts=8,
    symbols=((0.0, 12), (0.8, 12), (1.2, 25), (1.5, SYMBOLS)),
    pairs=((0.0, 4), (1.2, 4), (1.7, 10), (2.1, 16)),
    gap=((0.0, 8), (1.1, 8), (1.5, 30), (1.9, 72), (2.3, 120)),
    lengths=((0.0, (128,)), (0.4, (256,)), (1.4, (512,)), (4.8, (512, 1024, 512, 2048))),
    shares=(
        (0.0, {"text": 0.36, "recall": 0.36, "needles": 0.14, "arithmetic": 0.10, "repeat": 0.04}),
        (1.2, {"text": 0.34, "recall": 0.19, "needles": 0.31, "arithmetic": 0.11, "repeat": 0.05}),
        (4.2, {"text": 0.42, "recall": 0.14, "needles": 0.29, "arithmetic": 0.10, "repeat": 0.05}),
    ),
)
MAIN = Curriculum(
    tokens_per_batch=4096,
    facts=128,
    symbols=((0.0, 12), (1.3, 12), (1.9, 25), (2.4, SYMBOLS), (4.5, SYMBOLS), (8.0, SYMBOLS + MORE_SYMBOLS)),
    pairs=((0.0, 4), (1.9, 4), (2.7, 10), (3.4, 16), (5.0, 16), (9.0, 64)),
    gap=((0.0, 8), (1.8, 8), (2.4, 30), (3.0, 72), (3.7, 120), (9.0, 400)),
    lengths=(
        (0.0, (128,)),
        (0.6, (256,)),
        (2.2, (512,)),
        (7.0, (512, 1024, 512, 2048)),
        (12.0, (512, 1024, 2048, 512, 2048, 1024, 512, 4096)),
    ),
    shares=(
        (0.0, {"text": 0.36, "recall": 0.32, "needles": 0.14, "arithmetic": 0.10, "repeat": 0.03, "copy": 0.05}),
        (1.9, {"text": 0.33, "recall": 0.18, "needles": 0.26, "arithmetic": 0.10, "repeat": 0.05, "copy": 0.08}),
        (7.0, {"text": 0.44, "recall": 0.12, "needles": 0.22, "arithmetic": 0.08, "repeat": 0.05, "copy": 0.09}),
    ),
)
"""Of the main models: in the end an episode has up to 64 pairs, as many as a state of 64 × 64 can hold, the longest
rows have dozens of needles, and strings of hundreds of random symbols are copied, so that a model with softmax layers
has reason to retrieve through them."""


def batch(
    i: int, *, seed: int, alphabet: Alphabet, text: Text, curriculum: Curriculum = SMALL
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Batch `i` of the stream: tokens int64 [B T], loss weights float32 [B T], item numbers int64 [B T]."""
    rng = np.random.default_rng([seed, i])
    now = curriculum.level(i * curriculum.tokens_per_batch)
    length = now.lengths[i % len(now.lengths)]
    rows = [_row(length, now, alphabet, text, rng) for _ in range(curriculum.tokens_per_batch // length)]
    tokens, weights, items = (
        np.array([getattr(row, name)[:length] for row in rows]) for name in ("tokens", "weights", "items")
    )
    return tokens.astype(np.int64), weights.astype(np.float32), items.astype(np.int64)


def _row(length: int, now: Level, alphabet: Alphabet, text: Text, rng: np.random.Generator) -> Passage:
    kinds = list(now.shares)
    kind = kinds[rng.choice(len(kinds), p=np.array(list(now.shares.values())) / sum(now.shares.values()))]
    pool = now.symbols
    if rng.random() < _EASY_ROWS:
        pool = int(np.exp(rng.uniform(np.log(12), np.log(now.symbols + 1))))
    writer = Writer(alphabet, text, rng, pool=pool)
    passage = Passage()
    if kind != "text":
        _ROWS[kind](writer, passage, length, now)
    writer.snippet(passage, length - len(passage))
    return passage


def _recall(writer: Writer, passage: Passage, length: int, now: Level) -> None:
    """Many short episodes; every name is asked, early on several times over."""
    rng = writer.rng
    rounds = 4 if now.pairs < 8 else 2
    writer.snippet(passage, int(rng.integers(4, 20)))
    while (room := length - len(passage)) >= 16:
        most = max(2, min(now.pairs, (room - 8) // 4))
        pairs = min(int(rng.integers(2, most + 1)), writer.pool)
        spare = room - 4 * pairs - 6
        gap = int(rng.integers(0, now.gap + 1)) if rng.random() < 0.5 else 0
        asked = [rng.permutation(pairs) for _ in range(int(rng.integers(1, rounds + 1)))]
        writer.recall(passage, pairs, gap=gap if gap <= spare else 0, queries=np.concatenate(asked))
        if rng.random() < 0.5:
            writer.snippet(passage, int(rng.integers(4, 16)))


def _needles(writer: Writer, passage: Passage, length: int, now: Level) -> None:
    """Rows where facts are frequent, which teach the task, beside rows where they lie far apart in text."""
    if writer.rng.random() < (0.6 if now.gap < 60 else 0.25):
        return _dense_needles(writer, passage, length)
    most = max(1, min(now.facts, length // (4 * writer.sentence_length())))
    if length >= 256 and writer.rng.random() < 0.5:
        writer.needles(passage, int(writer.rng.integers(1, most // 2 + 1)), length=length // 2)
    writer.needles(passage, int(writer.rng.integers(1, max(1, most // 2) + 1)), length=length)


def _dense_needles(writer: Writer, passage: Passage, length: int) -> None:
    rng = writer.rng
    writer.snippet(passage, int(rng.integers(2, 12)))
    while length - len(passage) >= 4 * writer.sentence_length():
        facts = writer.facts(int(rng.integers(1, 4)))
        for name, value in facts:
            writer.sentence(passage, name, value, weight=0.0)
            if rng.random() < 0.5:
                writer.snippet(passage, int(rng.integers(1, 12)))
        for _ in range(int(rng.integers(1, 3))):
            for i in rng.permutation(len(facts)):
                writer.sentence(passage, *facts[i], weight=ANSWER_WEIGHT, item=KINDS["needles"])
        if rng.random() < 0.3:
            writer.snippet(passage, int(rng.integers(1, 12)))


def _arithmetic(writer: Writer, passage: Passage, length: int, now: Level) -> None:
    rng = writer.rng
    while length - len(passage) >= 24:
        if rng.random() < 0.4:
            writer.chain(passage, int(rng.integers(3, 9)))
        else:
            for _ in range(int(rng.integers(1, 4))):
                writer.sum(passage)
        if rng.random() < 0.4:
            writer.snippet(passage, int(rng.integers(8, 32)))


def _repeat(writer: Writer, passage: Passage, length: int, now: Level) -> None:
    writer.snippet(passage, int(writer.rng.integers(0, length // 8)))
    writer.repeat(passage, int(writer.rng.integers(16, (length - len(passage)) // 2 - 1)))


def _copy(writer: Writer, passage: Passage, length: int, now: Level) -> None:
    """Strings of random symbols, each given twice, short ones as often as long ones."""
    while (room := length - len(passage)) >= 24:
        writer.copy(passage, int(np.exp(writer.rng.uniform(np.log(6), np.log(room // 2 - 3)))))
        writer.snippet(passage, int(writer.rng.integers(2, 24)))


_ROWS = {row.__name__[1:]: row for row in (_recall, _needles, _arithmetic, _repeat, _copy)}
