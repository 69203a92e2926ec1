"""The wide corpus: files as their table says, formats read as meant, a tokenizer that gives every text back."""

import csv
import hashlib
import importlib
import json
import lzma
import zlib

import pytest
from transformers import AutoTokenizer

from srdyn.loading import files
from srdyn.text import tasks

WIDE = files.data_dir() / "wide"
FOLDERS = {"training": files.root() / "build" / "wide", "held-out": WIDE / "held-out", "unseen": WIDE / "unseen"}


@pytest.fixture(scope="module")
def table():
    with (WIDE / "corpus.csv").open(encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


@pytest.fixture
def readers(monkeypatch):
    monkeypatch.syspath_prepend(WIDE)
    return importlib.import_module("readers")


def lines_of(row):
    """The bytes of the file that a row speaks of; None for training text that was not built here."""
    path = FOLDERS[row["role"]] / (row["domain"] + (".jsonl" if row["role"] == "training" else ".jsonl.xz"))
    if row["role"] == "training" and not path.exists():
        return None
    return path.read_bytes() if path.suffix == ".jsonl" else lzma.decompress(path.read_bytes())


def test_every_file_is_as_the_table_says(table):
    for row in table:
        lines = lines_of(row)
        if lines is not None:
            assert hashlib.sha256(lines).hexdigest() == row["sha256"]
            texts = [json.loads(line)["text"] for line in lines.splitlines()]
            assert (len(texts), sum(map(len, texts))) == (int(row["documents"]), int(row["characters"]))


def test_there_is_enough_text_of_many_kinds(table):
    training = {row["domain"]: int(row["characters"]) for row in table if row["role"] == "training"}
    assert len(training) == 14
    assert sum(training.values()) > 60_000_000
    assert max(training.values()) < sum(training.values()) / 10
    unseen = {row["domain"] for row in table if row["role"] == "unseen"}
    assert len(unseen) == 4
    assert not unseen & training.keys()
    assert {row["domain"] for row in table if row["role"] == "held-out"} == training.keys()
    assert all(row["licences"] for row in table)


def test_the_tokenizer_gives_text_back_and_has_words_for_the_tasks(table):
    tokenizer = AutoTokenizer.from_pretrained(WIDE / "tokenizer")
    assert len(tokenizer) == 4096
    text = json.loads(lines_of(table[1]).splitlines()[0])["text"][:5000] + " 2047 µ\tß"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert len(tokenizer("12345", add_special_tokens=False)["input_ids"]) == 5
    few, many = (tasks.Alphabet.of(tokenizer, more=more) for more in (0, tasks.MORE_SYMBOLS))
    assert list(many.names[: tasks.SYMBOLS]) == list(few.names)
    assert len({*many.names, *many.values}) == 2 * (tasks.SYMBOLS + tasks.MORE_SYMBOLS)


def test_markup_keeps_words_and_the_lines_of_what_is_set_as_code(readers):
    html = "<head><title>T</title></head><h1>A  title</h1><p>One &amp;\n two</p><pre>if x:\n    y</pre><nav>no</nav>"
    assert readers.words(html) == "A title\nOne & two\nif x:\n\ty\n"


def test_strings_are_what_is_marked_and_long_enough(readers, tmp_path):
    said = 'name= _ "Short"\nstory= _ "It was a ""dark"" and\n stormy night."\n_([[A long word from\nthe other game]])'
    (tmp_path / "a.cfg").write_text(said)
    ((name, text),) = readers.strings(tmp_path, ["*.cfg"])
    assert name == "a.cfg"
    assert text == 'It was a "dark" and stormy night.\nA long word from the other game\n'


def test_dictionaries_are_grouped_by_whole_entries(readers, tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "GROUP", 20)
    (tmp_path / "d").write_text("ant\n  a small animal\nbee\n  another one\ncow\n  a large one\n")
    found = dict(readers.dictionary(tmp_path, ["d"]))
    assert found == {"d/ant": "ant a small animal\nbee another one\n"}


def test_blocks_of_a_module_are_read_by_its_index(readers, tmp_path):
    blocks = [zlib.compress(text.encode()) for text in ("<p>First</p>", "<p>Second &lt;</p>")]
    index = b"".join(
        start.to_bytes(4, "little") + len(block).to_bytes(4, "little") + bytes(4)
        for start, block in zip((0, len(blocks[0])), blocks, strict=True)
    )
    (tmp_path / "ot.bzs").write_bytes(index)
    (tmp_path / "ot.bzz").write_bytes(b"".join(blocks))
    assert [text for _, text in readers.sword(tmp_path, ["*.bzs"])] == ["First\n", "Second <\n"]
