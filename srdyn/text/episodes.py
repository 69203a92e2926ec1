"""What fills a row of a task: pieces that `tasks.Writer` writes, and text between them, until the row is full."""

from collections.abc import Callable
from functools import partial

import numpy as np

from srdyn.text import tasks

_QUERIES = 8  # of an episode of recall
_LONGEST_GAP = 64  # tokens of text inside an episode of recall
CHAIN_STEPS = (4, 8)
_DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the one needle of a task in `NEEDLES_AT`, as shares of the text
TEXT_BETWEEN = (8, 32)  # tokens of text before each piece of arithmetic


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
    writer: tasks.Writer, passage: tasks.Passage, length: int, *, size: int, write: Callable[..., None]
) -> None:
    """Text, a piece of arithmetic of at most `size` tokens, text … until the row is full."""
    item = 1
    while (spare := length - len(passage) - size) >= 0:
        writer.snippet(passage, min(int(writer.rng.integers(*TEXT_BETWEEN)), spare))
        write(writer, passage, item=item)
        item += 1


def _chain(writer: tasks.Writer, passage: tasks.Passage, *, steps: tuple[int, ...], item: int) -> None:
    writer.chain(passage, int(writer.rng.choice(steps)), item=item)


def _chains(*steps: int) -> Callable[[tasks.Writer, tasks.Passage, int], None]:
    return partial(_arithmetic, size=3 + 4 * max(steps), write=partial(_chain, steps=steps))


NEEDLES_AT: dict[str, float] = {f"needle at {100 * depth:.0f} %": depth for depth in _DEPTHS}
"""The tasks that ask for one needle, and its depth: with the length of a row, the grid of needle retrieval."""
TASKS: dict[str, Callable[..., None]] = {
    "needle": partial(tasks.Writer.needles, n=2, item=1),
    "needle4": partial(tasks.Writer.needles, n=4, item=1),
    "recall4": partial(_recall, pairs=4),
    "recall8": partial(_recall, pairs=8),
    "recall16": partial(_recall, pairs=16),
    "chain": _chains(*CHAIN_STEPS),
    **{f"chain{steps}": _chains(steps) for steps in CHAIN_STEPS},
    "sum": partial(_arithmetic, size=len("\n99+99:9+9=18:9+9+1=19=198\n"), write=tasks.Writer.sum),
    **{name: partial(tasks.Writer.needles, n=1, item=1, depths=[depth]) for name, depth in NEEDLES_AT.items()},
}
"""What fills a passage up to a `length` with items of a task, numbered from 1."""
