"""Finds the lines of a held-out text that also stand in the training text."""

from collections.abc import Iterable

import numpy as np

WINDOW = 50
MULTIPLIER = 0x9E3779B97F4A7C15


def collapse(text: str) -> str:
    """The text with every run of whitespace turned into one space."""
    return " ".join(text.split())


def window_hashes(text: str) -> np.ndarray:
    """A 64-bit hash of each 50-character window of a collapsed text, [characters - 49]; equal windows hash equal.

    Horner's rule in the characters, by doubling: a window of w + v is a window of w, times a power, plus one of v.
    """
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32).astype(np.uint64) + np.uint64(1)
    if len(codes) < WINDOW:
        return codes[:0]
    hashes, width = codes, 1
    for bit in f"{WINDOW:b}"[1:]:
        hashes = hashes[:-width] * np.uint64(pow(MULTIPLIER, width, 2**64)) + hashes[width:]
        width *= 2
        if bit == "1":
            hashes = hashes[:-1] * np.uint64(MULTIPLIER) + codes[width:]
            width += 1
    return hashes


def known_windows(texts: Iterable[str]) -> np.ndarray:
    """The sorted, distinct window hashes of all texts, none reaching across two of them."""
    return merged([window_hashes(collapse(text)) for text in texts])


def merged(hashes: Iterable[np.ndarray]) -> np.ndarray:
    """All hashes, sorted and distinct; much faster than np.unique."""
    found = np.sort(np.concatenate(list(hashes)))
    return found[np.concatenate([[True], found[1:] != found[:-1]])] if len(found) else found


def without_shared_lines(text: str, known: np.ndarray) -> str:
    """The text less its lines that touch a known window, repeated until no window that remains is known."""
    lines = text.splitlines()
    while (shared := _shared(lines, known)).any():
        lines = [line for line, drop in zip(lines, shared, strict=True) if not drop]
    return "\n".join(lines).strip("\n") + "\n"


def _shared(lines: list[str], known: np.ndarray) -> np.ndarray:
    """Which lines touch a known window, [lines]."""
    collapsed = [collapse(line) for line in lines]
    hashes = window_hashes(" ".join(line for line in collapsed if line))
    at = np.searchsorted(known, hashes)
    hits = np.flatnonzero(known[np.minimum(at, len(known) - 1)] == hashes)
    lengths = np.array([len(line) + 1 if line else 0 for line in collapsed], dtype=np.int64)
    stops = np.cumsum(lengths)
    first, last = np.searchsorted(hits, stops - lengths - WINDOW + 1), np.searchsorted(hits, stops - 1)
    return (last > first) & (lengths > 0)
