"""What held-out text costs without a neural network: a byte-level n-gram model, a general-purpose compressor.

Kneser & Ney, Improved backing-off for m-gram language modeling, ICASSP 1995; interpolated as in
Chen & Goodman, An empirical study of smoothing techniques for language modeling, Harvard TR-10-98, 1998.
"""

import lzma
from collections.abc import Iterable

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int64

ORDER = 5
"""Bytes of the longest n-grams; up to 7 pack into one integer."""
_BITS = 8  # of a byte, in a packed n-gram


class KneserNey:
    """A byte-level n-gram model with interpolated Kneser–Ney smoothing.

    P_k(w | c) = max(n(cw) − D_k, 0) / n(c·) + D_k N(c·) / n(c·) · P_{k−1}(w | c′), where c′ is c without its first
    byte, N(c·) the number of different bytes after c, and P_0 = 1/256. At the highest order n counts occurrences, below
    it the different bytes before the n-gram (continuation counts). D_k = n₁ / (n₁ + 2 n₂) from the n-grams of order k
    that are counted once and twice, ½ where none is counted once. Zero bytes stand before a document's first byte.
    """

    def __init__(self, documents: Iterable[bytes]) -> None:
        """Count the documents. Raises ValueError for a zero byte in them."""
        self.orders, grams = [], np.concatenate([_pack(document) for document in documents])
        for k in range(ORDER, 0, -1):
            grams, counts = np.unique(grams & _mask(k), return_counts=True)
            once, twice = (int((counts == n).sum()) for n in (1, 2))
            discount = once / (once + 2 * twice) if once else 0.5
            found = pd.Series(counts, grams)
            self.orders.append((found, found.groupby(grams >> _BITS).agg(["sum", "size"]), discount))

    def bits(self, document: bytes) -> Float64[np.ndarray, " T"]:
        """What each byte of a document costs, given all that precede it in the document."""
        packed = _pack(document)
        probability = np.full(len(packed), 1 / 256)
        for k, (counts, before, discount) in enumerate(reversed(self.orders), start=1):
            grams = packed & _mask(k)
            total, followers = before.reindex(grams >> _BITS).to_numpy(float).T
            kept = np.maximum(counts.reindex(grams, fill_value=0).to_numpy() - discount, 0) / total
            smoothed = kept + discount * followers / total * probability
            probability = np.where(np.isnan(total), probability, smoothed)
        return -np.log2(probability)


def xz_bits_per_byte(documents: Iterable[bytes]) -> float:
    """What `xz -9` makes of the documents, one after the other."""
    text = b"".join(documents)
    return 8 * len(lzma.compress(text, preset=9)) / len(text)


def _mask(order: int) -> int:
    return (1 << _BITS * order) - 1


def _pack(document: bytes) -> Int64[np.ndarray, " T"]:
    """The `ORDER` bytes that end at each byte of the document, as one integer; zeros stand before the first byte."""
    text = np.frombuffer(document, np.uint8)
    if not text.all():
        raise ValueError("the text holds a zero byte, which here stands for what precedes a document")
    padded = np.concatenate([np.zeros(ORDER - 1, np.int64), text.astype(np.int64)])
    packed = np.zeros(len(text), np.int64)
    for i in range(ORDER):
        packed = (packed << _BITS) + padded[i : i + len(text)]
    return packed
