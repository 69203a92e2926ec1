"""Contexts: windows that are held out, distinct and apart; attacks of the stated period."""

import itertools
import json
import lzma

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import seeded
from transformers import AutoTokenizer

from srdyn import contexts
from srdyn.loading import files

TOKENIZER = AutoTokenizer.from_pretrained(files.data_dir() / "tokenizer")


def draw(name, *, n=4, length=512, seed=0, part="trace"):
    return contexts.domain(name, TOKENIZER, n=n, length=length, generator=seeded(seed), part=part)


def test_four_domains_with_enough_windows_in_every_part():
    assert contexts.domains() == ["code", "math", "prose", "technical"]
    for name, part in itertools.product(contexts.domains(), contexts.PARTS):
        assert draw(name, n=16, length=2048, part=part).shape == (16, 2048)


def test_windows_are_distinct_stretches_of_one_held_out_document_that_do_not_overlap():
    documents = contexts.held_out_documents("math", part="trace")
    encoded = [TOKENIZER(text)["input_ids"] for text in documents]
    available = sum(len(tokens) // 500 for tokens in encoded)
    drawn = draw("math", n=available, length=500)
    assert drawn.dtype == torch.long
    expected = [tuple(t[at : at + 500]) for t in encoded for at in range(0, len(t) - 499, 500)]
    assert sorted(map(tuple, drawn.tolist())) == sorted(expected)


@pytest.mark.parametrize("name", ["prose", "technical"])
def test_documents_take_turns(name):
    documents = contexts.held_out_documents(name, part="trace")
    windows = [len(TOKENIZER(text)["input_ids"]) // 2048 for text in documents]
    for n in (len(documents), sum(windows) - 1):
        found = contexts.spread(name, TOKENIZER, n=n, length=2048, generator=seeded())
        assert all(TOKENIZER.decode(row) in documents[at] for row, at in zip(found.tokens, found.document, strict=True))
        assert len({tuple(row) for row in found.tokens.tolist()}) == n
        turns = np.bincount(found.document, minlength=len(documents))
        assert max(turns) <= 1 + min(t for t, most in zip(turns, windows, strict=True) if t < most)
    some = contexts.spread(name, TOKENIZER, n=3, length=2048, generator=seeded())
    assert torch.equal(some.tokens, found.tokens[:3])
    with pytest.raises(ValueError, match="9999 windows of 2048 tokens asked for"):
        contexts.spread(name, TOKENIZER, n=9999, length=2048, generator=seeded())


@pytest.mark.parametrize("name", ["code", "math", "prose", "technical"])
def test_parts_share_no_document_and_miss_none(name):
    parts = [contexts.held_out_documents(name, part=part) for part in contexts.PARTS]
    together = [document for part in parts for document in part]
    assert len(together) == len(set(together))
    with lzma.open(files.data_dir() / "contexts" / f"{name}.jsonl.xz", "rt", encoding="utf-8") as lines:
        assert sorted(together) == sorted(json.loads(line)["text"] for line in lines)
    sizes = [sum(map(len, part)) for part in parts]
    assert max(sizes) < 1.2 * min(sizes)


def test_the_generator_decides_which_windows():
    assert torch.equal(draw("code", seed=1), draw("code", seed=1))
    assert not torch.equal(draw("code", seed=1), draw("code", seed=2))


def test_too_few_windows_say_how_many_there_are():
    with pytest.raises(ValueError, match=r"prose: 9999 windows of 2048 tokens asked for, but .*'trace' has \d+ of"):
        draw("prose", n=9999, length=2048)
    with pytest.raises(ValueError, match="has 0 of them"):
        draw("prose", n=1, length=10**6)
    with pytest.raises(ValueError, match="n must be at least 1, not 0"):
        draw("prose", n=0)


def test_a_model_without_a_tokenizer_is_told_what_is_missing():
    with pytest.raises(ValueError, match=r"no tokenizer: put its files \(tokenizer\.json"):
        contexts.domain("prose", None, n=1, length=8, generator=seeded())


def test_unknown_names_list_the_known_ones():
    for read in (draw, contexts.training_documents):
        with pytest.raises(ValueError, match="'poetry'; there are code, math, prose, technical"):
            read("poetry")
    with pytest.raises(ValueError, match="'test'; there are trace, calibration, evaluation"):
        draw("prose", part="test")
    with pytest.raises(ValueError, match="'zalgo'; there are rare character, common number"):
        contexts.blocks("zalgo", TOKENIZER)


def test_missing_files_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "data_dir", lambda: tmp_path)
    with pytest.raises(FileNotFoundError, match=r"data/corpus/build\.py"):
        contexts.domains()


def test_documents_of_ones_own_are_dealt_out_to_the_parts(tmp_path):
    text = "".join(f"It was a truth that number {i} is in want of a successor.\n" for i in range(200))
    (tmp_path / "own.jsonl").write_text("".join(json.dumps({"text": f"{i} " + text}) + "\n" for i in range(3)))
    for part in contexts.PARTS:
        assert draw(tmp_path / "own.jsonl", n=2, length=64, part=part).shape == (2, 64)
        assert len(contexts.held_out_documents(tmp_path / "own.jsonl", part=part)) == 1


def test_the_variants_of_the_attacks_are_single_characters_as_tokens():
    for name, characters in contexts.ATTACKS.items():
        blocks = contexts.blocks(name, TOKENIZER)
        assert [TOKENIZER.decode(block) for block in blocks] == list(characters)
        tokens = contexts.repeated(blocks[0], TOKENIZER, length=60)
        assert TOKENIZER.decode(tokens[0]) == characters[0] * (60 // len(blocks[0]))


@settings(deadline=None, max_examples=50)
@given(tokens=st.lists(st.integers(0, 1023), min_size=1, max_size=9), extra=st.integers(0, 40))
def test_a_block_comes_back_after_its_period(tokens, extra):
    context = contexts.repeated(tokens, TOKENIZER, length=len(tokens) + extra)
    assert context.tolist() == [[tokens[at % len(tokens)] for at in range(len(tokens) + extra)]]


def test_blocks_that_cannot_be_repeated_are_refused():
    for block in ([], [1, 2, 3]):
        with pytest.raises(ValueError, match="list of 1 to 2 token ids"):
            contexts.repeated(block, TOKENIZER, length=2)
    with pytest.raises(ValueError, match=r"0 … 1023, the vocabulary, not in 5 … 1024"):
        contexts.repeated([5, 1024], TOKENIZER, length=8)
