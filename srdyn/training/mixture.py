"""The training stream of the reference models: what batch i holds, given only the seed and i."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from srdyn.loading import reference
from srdyn.text.tasks import ANSWER_WEIGHT, KINDS, SYMBOLS, Alphabet, Passage, Text, Writer

TOKENS_PER_BATCH = reference.TOKENS_PER_BATCH

# The curriculum: fixed token counts (millions), the same for every model, so that models which are compared have read
# the same tokens in the same order. Between two entries the value is interpolated.
SYMBOLS_IN_USE = ((0.0, 12), (0.8, 12), (1.2, 25), (1.5, SYMBOLS))
MOST_PAIRS = ((0.0, 4), (1.2, 4), (1.7, 10), (2.1, 16))
LONGEST_GAP = ((0.0, 8), (1.1, 8), (1.5, 30), (1.9, 72), (2.3, 120))
# From each token count on, the lengths that batches cycle through.
LENGTHS = ((0.0, (128,)), (0.4, (256,)), (1.4, (512,)), (4.8, (512, 1024, 512, 2048)))
# From each token count on, the share of rows of each kind. Every kind is padded with real text, so that half of all
# tokens are real text at first, and three quarters at the end.
SHARES = (
    (0.0, {"text": 0.36, "recall": 0.36, "needles": 0.14, "arithmetic": 0.10, "repeat": 0.04}),
    (1.2, {"text": 0.34, "recall": 0.19, "needles": 0.31, "arithmetic": 0.11, "repeat": 0.05}),
    (4.2, {"text": 0.42, "recall": 0.14, "needles": 0.29, "arithmetic": 0.10, "repeat": 0.05}),
)
EASY_ROWS = 0.3  # share of rows that stay below the curriculum's current level


@dataclass(frozen=True)
class Level:
    """How hard the tasks are after a number of tokens."""

    symbols: int
    pairs: int
    gap: int
    lengths: tuple[int, ...]
    shares: dict[str, float]


def level(tokens_seen: int) -> Level:
    """The curriculum's level after `tokens_seen` tokens."""
    millions = tokens_seen / 1e6
    interpolate = lambda table: int(np.interp(millions, *zip(*table, strict=True)))  # noqa: E731
    current = lambda table: [value for start, value in table if millions >= start][-1]  # noqa: E731
    return Level(
        symbols=interpolate(SYMBOLS_IN_USE),
        pairs=interpolate(MOST_PAIRS),
        gap=interpolate(LONGEST_GAP),
        lengths=current(LENGTHS),
        shares=current(SHARES),
    )


def batch(i: int, *, seed: int, alphabet: Alphabet, text: Text) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Batch `i` of the stream: tokens int64 [B T], loss weights float32 [B T], item numbers int64 [B T].

    Every batch holds `TOKENS_PER_BATCH` tokens. It depends on nothing but `seed`, `i`, the alphabet and the text.
    """
    rng = np.random.default_rng([seed, i])
    now = level(i * TOKENS_PER_BATCH)
    length = now.lengths[i % len(now.lengths)]
    rows = [_row(length, now, alphabet, text, rng) for _ in range(TOKENS_PER_BATCH // length)]
    tokens, weights, items = (
        np.array([getattr(row, name)[:length] for row in rows]) for name in ("tokens", "weights", "items")
    )
    return tokens.astype(np.int64), weights.astype(np.float32), items.astype(np.int64)


def _row(length: int, now: Level, alphabet: Alphabet, text: Text, rng: np.random.Generator) -> Passage:
    kinds = list(now.shares)
    kind = kinds[rng.choice(len(kinds), p=np.array(list(now.shares.values())) / sum(now.shares.values()))]
    pool = now.symbols
    if rng.random() < EASY_ROWS:
        pool = int(np.exp(rng.uniform(np.log(12), np.log(now.symbols + 1))))
    writer = Writer(alphabet, text, rng, pool=pool)
    passage = Passage()
    _ROWS[kind](writer, passage, length, now)
    writer.snippet(passage, length - len(passage))
    return passage


def _text(writer: Writer, passage: Passage, length: int, now: Level) -> None:
    writer.snippet(passage, length)


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
    most = max(1, min(8, length // (4 * writer.sentence_length())))
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


_ROWS = {"text": _text, "recall": _recall, "needles": _needles, "arithmetic": _arithmetic, "repeat": _repeat}
