"""Items with a known answer, written as tokens into real text.

One `Passage` holds three parallel lists: tokens, the weight each token has in a training loss, and the number of the
item that a token is an answer of (0: none). An item counts as right when every one of its answer tokens is the model's
first choice.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from transformers import PreTrainedTokenizerBase

SYMBOLS = 72  # names, and as many values
MORE_SYMBOLS = 256  # of each, which the main models are trained with beside those
_SYMBOL_SEED = 123  # which of the tokenizer's words become names and which values
ANSWER_WEIGHT = 4.0
_COPY_WEIGHT = 1.5
_FORMAT_WEIGHT = 0.2
KINDS = {"recall": -1, "needles": -2, "chain": -3, "sum": -4, "copy": -5}  # item numbers of what is trained on


@dataclass(frozen=True)
class Alphabet:
    """Token ids that the tasks are written with; every name and value is one token."""

    names: np.ndarray
    values: np.ndarray
    digits: np.ndarray
    marks: dict[str, int]
    lead: list[int]
    verb: list[int]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, *, more: int = 0) -> Alphabet:
        """The alphabet of a tokenizer, with `more` symbols behind; ValueError for too few one-token words."""
        words, needed = sorted(i for token, i in tokenizer.get_vocab().items() if _is_word(token)), 2 * (SYMBOLS + more)
        if len(words) < needed:
            lower = "one-token lower-case words with a leading space"
            raise ValueError(f"the tasks need {needed} {lower}, this tokenizer has {len(words)}")
        drawn = np.random.default_rng(_SYMBOL_SEED).permutation(words)
        first, others = np.split(drawn[: 2 * SYMBOLS], 2), np.split(drawn[2 * SYMBOLS :][: 2 * more], 2)
        names, values = map(np.concatenate, zip(first, others, strict=True))
        one = lambda text: tokenizer.encode(text, add_special_tokens=False)  # noqa: E731
        digits = np.array([one(str(d))[-1] for d in range(10)])
        marks = {mark: one(mark)[-1] for mark in "\n?+-=:."}
        return cls(names, values, digits, marks, one("The key of"), one(" is"))


def unwritable(tokenizer: PreTrainedTokenizerBase) -> str:
    """Why no task can be written with this tokenizer; empty where they can."""
    try:
        Alphabet.of(tokenizer)
    except ValueError as error:
        return str(error)
    return ""


def _is_word(token: str) -> bool:
    word = token[1:]
    # Byte-level vocabularies and those of SentencePiece mark a leading space each in their own way.
    return token.startswith(("Ġ", "▁")) and len(word) >= 3 and word.isascii() and word.isalpha() and word.islower()


@dataclass
class Passage:
    """A growing token sequence with its loss weights and item numbers."""

    tokens: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    items: list[int] = field(default_factory=list)

    def add(self, tokens, weight: float, item: int = 0) -> None:
        tokens = [int(t) for t in tokens]
        self.tokens += tokens
        self.weights += [weight] * len(tokens)
        self.items += [item] * len(tokens)

    def __len__(self) -> int:
        return len(self.tokens)


class Text:
    """Real text by domain, one token array each, from which snippets are cut; `weights` (default 1) say how often."""

    def __init__(self, ids: dict[str, np.ndarray], *, weights: dict[str, float] | None = None) -> None:
        if not ids:
            raise ValueError("a Text needs at least one domain")
        if unknown := sorted(set(weights or {}) - set(ids)):
            raise ValueError(f"weights name domains {unknown} that the text lacks; it has {sorted(ids)}")
        self.ids = ids
        self.domains = sorted(ids)
        drawn = np.array([(weights or {}).get(name, 1.0) for name in self.domains])
        self.chances = drawn / drawn.sum()

    def snippet(self, n: int, *, rng: np.random.Generator) -> np.ndarray:
        """`n` consecutive tokens from a random place of a random domain; ValueError where that holds fewer."""
        source = self.ids[self.domains[rng.choice(len(self.domains), p=self.chances)]]
        if n > len(source):
            raise ValueError(f"a snippet of {n} tokens was asked for, the text has {len(source)}")
        start = rng.integers(0, len(source) - n + 1)
        return source[start : start + n]


@dataclass(frozen=True)
class Writer:
    """Writes episodes of each task into a passage; `pool` is how many of the symbols are in use."""

    alphabet: Alphabet
    text: Text
    rng: np.random.Generator
    pool: int = SYMBOLS

    def snippet(self, passage: Passage, n: int) -> None:
        if n > 0:
            passage.add(self.text.snippet(n, rng=self.rng), 1.0)

    def newline(self, passage: Passage) -> None:
        passage.add([self.alphabet.marks["\n"]], 0.0)

    def recall(self, passage: Passage, pairs: int, *, gap: int = 0, queries, item: int = KINDS["recall"]) -> None:
        """Multi-query associative recall: `pairs` of name and value, `gap` tokens of text, then `queries` (indices)."""
        names = self.rng.choice(self.alphabet.names[: self.pool], pairs, replace=False)
        values = self.rng.choice(self.alphabet.values[: self.pool], pairs)
        self.newline(passage)
        passage.add(np.stack([names, values], 1).ravel(), 0.0)
        self.newline(passage)
        if gap:
            self.snippet(passage, gap)
            self.newline(passage)
        passage.add([self.alphabet.marks["?"]], 0.0)
        for j, query in enumerate(queries):
            passage.add([names[query]], 0.0)
            passage.add([values[query]], ANSWER_WEIGHT, item if item < 0 else item + j)
        self.newline(passage)

    def sentence(self, passage: Passage, name: int, value: int, *, weight: float, item: int = 0) -> None:
        """`The key of <name> is <value>.` on a line of its own; weight 0 states a fact, more asks for it."""
        form = _FORMAT_WEIGHT if weight else 0.0
        self.newline(passage)
        passage.add([*self.alphabet.lead, name, *self.alphabet.verb], form)
        passage.add([value], weight, item)
        passage.add([self.alphabet.marks["."], self.alphabet.marks["\n"]], _FORMAT_WEIGHT)

    def sentence_length(self) -> int:
        return len(self.alphabet.lead) + len(self.alphabet.verb) + 5

    def facts(self, n: int) -> list[tuple[int, int]]:
        """`n` pairs of name and value: names all different, values free."""
        names = self.rng.choice(self.alphabet.names[: max(self.pool, n)], n, replace=False)
        values = self.rng.choice(self.alphabet.values[: self.pool], n)
        return [(int(a), int(b)) for a, b in zip(names, values, strict=True)]

    def needles(
        self, passage: Passage, n: int, *, length: int, item: int = KINDS["needles"], depths: list[float] | None = None
    ) -> None:
        """`n` facts in real text, at random or after these shares of it, all asked at the end: `length` tokens then."""
        free = length - len(passage) - 2 * n * self.sentence_length()
        if free < 0:
            they = "a needle does" if n == 1 else f"{n} needles do"
            raise ValueError(f"{they} not fit into {length} tokens that already hold {len(passage)}")
        facts = self.facts(n)
        cuts = np.sort(self.rng.integers(0, free + 1, n)) if depths is None else [round(x * free) for x in depths]
        gaps = np.diff(np.concatenate([[0], cuts, [free]]))
        for (name, value), gap in zip(facts, gaps[:-1], strict=True):
            self.snippet(passage, int(gap))
            self.sentence(passage, name, value, weight=0.0)
        self.snippet(passage, int(gaps[-1]))
        for j, i in enumerate(self.rng.permutation(n)):
            self.sentence(passage, *facts[i], weight=ANSWER_WEIGHT, item=item if item < 0 else item + j)

    def chain(self, passage: Passage, steps: int, *, item: int = KINDS["chain"]) -> None:
        """A running sum modulo 10, `x+y=z-w=…`; the item is the whole chain."""
        digits, marks = self.alphabet.digits, self.alphabet.marks
        x = int(self.rng.integers(10))
        passage.add([marks["\n"], digits[x]], 0.0)
        for _ in range(steps):
            y, minus = int(self.rng.integers(10)), bool(self.rng.integers(2))
            x = (x - y if minus else x + y) % 10
            passage.add([marks["-" if minus else "+"], digits[y], marks["="]], 0.0)
            passage.add([digits[x]], ANSWER_WEIGHT, item)
        self.newline(passage)

    def sum(self, passage: Passage, *, item: int = KINDS["sum"]) -> None:
        """A two-digit sum with the carry written out, `47+38:7+8=15:4+3+1=8=85`; the item is everything after `:`."""
        digits, marks = self.alphabet.digits, self.alphabet.marks
        a, b = (int(x) for x in self.rng.integers(10, 100, 2))
        (a1, a0), (b1, b0) = divmod(a, 10), divmod(b, 10)
        carry = (a0 + b0) // 10
        spell = {c: [marks[c]] for c in "+=:"} | {c: [digits[int(c)]] for c in "0123456789"}
        write = lambda s: [t for c in s for t in spell[c]]  # noqa: E731
        passage.add([marks["\n"], *write(f"{a}+{b}:")], 0.0)
        worked = f"{a0}+{b0}={a0 + b0}:{a1}+{b1}+{carry}={a1 + b1 + carry}={a + b}"
        passage.add(write(worked), ANSWER_WEIGHT / 2, item)
        self.newline(passage)

    def repeat(self, passage: Passage, n: int) -> None:
        """A snippet of real text, then the same snippet again."""
        snippet = self.text.snippet(n, rng=self.rng)
        for _ in range(2):
            self.newline(passage)
            passage.add(snippet, 1.0)

    def copy(self, passage: Passage, n: int, *, item: int = KINDS["copy"]) -> None:
        """`n` random symbols, then the same again; the item is the second time."""
        pool = np.concatenate([self.alphabet.names[: self.pool], self.alphabet.values[: self.pool]])
        symbols = self.rng.choice(pool, n)
        self.newline(passage)
        passage.add(symbols, 0.0)
        self.newline(passage)
        passage.add(symbols, _COPY_WEIGHT, item)
        self.newline(passage)
