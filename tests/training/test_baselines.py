import random
from collections import Counter

import pytest

from srdyn.training import baselines


class Naive:
    """Interpolated Kneser–Ney by dictionaries, all bytes after a context."""

    def __init__(self, documents, order):
        padded = [b"\0" * (order - 1) + document for document in documents]
        grams = Counter(d[i - order + 1 : i + 1] for d in padded for i in range(order - 1, len(d)))
        self.counts = {order: grams}
        for k in range(order - 1, 0, -1):
            self.counts[k] = Counter(gram[1:] for gram in self.counts[k + 1])

    def discount(self, k):
        tally = Counter(self.counts[k].values())
        return tally[1] / (tally[1] + 2 * tally[2]) if tally[1] else 0.5

    def probabilities(self, context, k):
        if k == 0:
            return [1 / 256] * 256
        below, context = self.probabilities(context, k - 1), context[len(context) - k + 1 :]
        after = {gram[-1]: count for gram, count in self.counts[k].items() if gram[:-1] == context}
        if not after:
            return below
        total, discount = sum(after.values()), self.discount(k)
        share = discount * len(after) / total
        return [max(after.get(byte, 0) - discount, 0) / total + share * below[byte] for byte in range(256)]


DOCUMENTS = [bytes(random.Random(i).choices(b"abcd", weights=[6, 3, 2, 1], k=60)) for i in range(3)] + [b"ab"]


@pytest.mark.parametrize("order", [1, 3, 5])
@pytest.mark.parametrize("context", [b"", b"a", b"abab", b"dddd", b"xyz", b"zzab"])
def test_probabilities_are_those_of_the_definition_and_sum_to_one(order, context, monkeypatch):
    monkeypatch.setattr(baselines, "ORDER", order)
    model, naive = baselines.KneserNey(DOCUMENTS), Naive(DOCUMENTS, order)
    asked = b"abcdxz\xff"  # some that occur, some that do not, which all cost the same
    ours = [2.0 ** -model.bits(context + bytes([byte]))[-1] for byte in asked]
    exact = naive.probabilities(context.rjust(order, b"\0"), order)
    assert sum(exact) == pytest.approx(1, abs=1e-12)
    assert ours == pytest.approx([exact[byte] for byte in asked], rel=1e-12)


def test_every_byte_of_a_document_costs_what_it_does_after_those_before_it():
    model, document = baselines.KneserNey(DOCUMENTS), b"abcdxa"
    assert model.bits(document) == pytest.approx([model.bits(document[: i + 1])[i] for i in range(len(document))])


def test_what_follows_always_is_learned_and_an_empty_document_is_free():
    model = baselines.KneserNey([b"abcdefgh" * 400])
    assert model.bits(b"abcdefgh" * 5)[8:].mean() < 0.01
    assert len(model.bits(b"")) == 0


def test_xz_squeezes_what_repeats_and_nothing_else():
    letters = "".join(random.Random(0).choices("0123456789abcdef", k=20_000))
    for document, low, high in ((letters, 4, 5), ("abc" * 10_000, 0, 0.1), ("ß" * 10_000, 0, 0.1)):
        assert low < baselines.xz_bits_per_byte([document.encode(), document[:10].encode()]) < high


def test_text_with_a_zero_byte_is_refused():
    with pytest.raises(ValueError, match="zero byte"):
        baselines.KneserNey([b"a\0b"])
