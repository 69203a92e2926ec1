"""The corpus: whole documents apart, no shared windows, a tokenizer that gives every text back."""

import importlib.util
import json
import lzma
from collections import Counter

import pytest

from srdyn import contexts
from srdyn.loading import files

DOMAINS = ["code", "math", "prose", "technical"]
TASK_WORDS = 150


@pytest.fixture(scope="module")
def overlap():
    spec = importlib.util.spec_from_file_location("overlap", files.data_dir() / "corpus" / "overlap.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def texts():
    return {folder: {name: documents(folder, name) for name in DOMAINS} for folder in ("corpus", "contexts")}


def documents(folder, name):
    with lzma.open(files.data_dir() / folder / f"{name}.jsonl.xz", "rt", encoding="utf-8") as lines:
        return {row["id"]: row["text"] for row in map(json.loads, lines)}


def windows(text):
    collapsed = " ".join(text.split())
    return (collapsed[at : at + 50] for at in range(len(collapsed) - 49))


def shared(held_out, training):
    """Windows of 50 characters that stand in both, compared as text: no hash of the module under test."""
    wanted = {window for text in held_out for window in windows(text)}
    return {window for text in training for window in windows(text) if window in wanted}


def test_held_out_text_shares_no_window_with_the_training_text(texts):
    training = [text for domain in texts["corpus"].values() for text in domain.values()]
    held_out = [text for domain in texts["contexts"].values() for text in domain.values()]
    assert shared(held_out, training) == set()
    planted = held_out[0] + "\n" + training[-1].replace(" ", "\n")[:200]
    assert len(shared([planted], training[-1:])) > 100


def test_whole_documents_are_held_out(texts):
    for name in DOMAINS:
        assert not texts["corpus"][name].keys() & texts["contexts"][name].keys()
    books = {folder: {id.split("/")[0] for id in texts[folder]["prose"]} for folder in texts}
    assert books["contexts"] == {"persuasion"}
    assert len(books["corpus"]) == 5
    assert "persuasion" not in books["corpus"]


def test_there_is_enough_training_text_of_every_domain(texts):
    for name in DOMAINS:
        assert sum(map(len, texts["corpus"][name].values())) >= 3_000_000


def test_shared_lines_go_and_the_others_stay(overlap):
    training = "A sentence of the training text, long enough to fill a window of fifty characters."
    known = overlap.known_windows([training, "short"])
    own = [f"Line {number} says what only the held-out text says, at some length." for number in range(3)]
    broken = training.replace(" training ", " \n\t training   ")
    text = "\n".join([own[0], broken, own[1], "", "  " + training[10:] + " And more.", own[2]])
    assert overlap.without_shared_lines(text, known) == "\n".join([own[0], own[1], "", own[2]]) + "\n"
    assert overlap.without_shared_lines(training[:49], known) == training[:49] + "\n"


def test_windows_that_a_removal_creates_go_too(overlap):
    first, second = "the first half of a window, ", "the second half of that window"
    training = first + second
    other = "Another training sentence that fills a window of fifty characters, too."
    text = "\n".join([first, other, second, "own words"])
    assert overlap.without_shared_lines(text, overlap.known_windows([training, other])) == "own words\n"


def test_window_hashes_are_as_many_and_as_distinct_as_the_windows(overlap, texts):
    text = overlap.collapse(next(iter(texts["contexts"]["math"].values()))) + " é—β" * 30
    hashes, strings = overlap.window_hashes(text), list(windows(text))
    assert len(hashes) == len(strings)
    by_hash, by_text = Counter(hashes.tolist()), Counter(strings)
    assert sorted(by_hash.values()) == sorted(by_text.values())
    assert len(set(zip(hashes.tolist(), strings, strict=True))) == len(by_text)


def test_tokenizer_gives_every_text_back(texts, tokenizer):
    strange = "tabs\t\tand  spaces \n\n\r\n 3+4=7 ß ∀x∈ℝ 🙂 \x00 a , b . don 't"
    for text in [strange, *(text for domain in texts["contexts"].values() for text in domain.values())]:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_tokenizer_has_the_tokens_that_the_tasks_need(tokenizer):
    vocabulary = tokenizer.get_vocab()
    assert len(tokenizer) == 1024
    assert sorted(vocabulary.values()) == list(range(1024))
    assert tokenizer.convert_ids_to_tokens(0) == tokenizer.eos_token == tokenizer.pad_token == "<|endoftext|>"
    assert [len(tokenizer(number)["input_ids"]) for number in ("7", "38", "4821")] == [1, 2, 4]
    assert not [token for token in vocabulary if any(c.isdigit() and c.isascii() for c in token) and len(token) > 1]
    words = [tokenizer.decode([id]) for id in vocabulary.values()]
    assert sum(w[0] == " " and len(w) >= 4 and w[1:].isascii() and w[1:].isalpha() and w.islower() for w in words) >= (
        TASK_WORDS
    )


def test_what_the_attacks_repeat_is_rare_and_common(texts):
    counts = Counter(c for domain in texts["corpus"].values() for text in domain.values() for c in text)
    rare, common = (contexts.ATTACKS[name][0] for name in ("rare character", "common number"))
    assert 0 < counts[rare] < 1e-6 * counts.total()
    assert counts[common] == max(counts[digit] for digit in "0123456789")
