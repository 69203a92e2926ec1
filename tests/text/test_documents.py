"""Documents of one's own: where they may lie, and what is said where they do not."""

import json
import lzma
import sys

import pytest
import torch

from srdyn import contexts
from srdyn.loading import files
from srdyn.study.survey import samples
from srdyn.text import documents

TEXTS = ["One. " * 200, "Two. " * 150, "Three. " * 100]


def lines(texts=TEXTS, field="text"):
    return "".join(json.dumps({field: text, "id": i}) + "\n" for i, text in enumerate(texts))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to work in, with a clone of the repository beside it that holds only the shipped data."""
    (tmp_path / "clone").mkdir()
    (tmp_path / "clone/data").symlink_to(files.data_dir())
    monkeypatch.setenv("SRDYN_ROOT", str(tmp_path / "clone"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def hub(here):
    """A data set as `datasets` would find it on the hub, which takes a folder of that name instead."""
    pytest.importorskip("datasets", reason="an optional package")
    (here / "owner/name").mkdir(parents=True)
    (here / "owner/name/train.jsonl").write_text(lines())
    (here / "owner/name/test.jsonl").write_text(lines(TEXTS[:1]))
    return here


def test_a_folder_holds_all_its_files_and_those_below(here):
    (here / "texts/more").mkdir(parents=True)
    (here / "texts/b.txt").write_text(TEXTS[0])
    (here / "texts/more/c.jsonl").write_text(lines(TEXTS[1:]))
    (here / "texts/a.md").write_text("not read")
    (here / "texts/empty.txt").write_text("\n")
    assert documents.read("./texts") == documents.read(here / "texts") == TEXTS
    before = documents.content_hash("./texts")
    (here / "texts/b.txt").write_text("changed")
    assert documents.content_hash("./texts") != before


def test_a_path_is_seen_from_here_then_from_the_repository(here):
    (here.parent / "clone/own.txt").write_text("in the repository")
    assert documents.read("own.txt") == ["in the repository"]
    (here / "own.txt").write_text("here")
    assert documents.read("own.txt") == ["here"]


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("gone.txt", None, FileNotFoundError, r"here/gone\.txt is not there; give the path of a file in \.txt"),
        ("empty.jsonl", "", ValueError, "empty.jsonl holds no text"),
        ("own.csv", "a,b", ValueError, r"own\.csv is none of \.txt"),
        ("field.jsonl", lines(field="body"), ValueError, 'line 1: .* under "text", this is an object with body, id'),
        ("list.jsonl", lines() + "[1]\n", ValueError, "line 4: .* this is a list"),
        ("broken.jsonl", lines() + "{\n", ValueError, "line 4: not JSON"),
        ("latin.txt", "é".encode("latin-1"), ValueError, r"latin\.txt is not UTF-8 text"),
    ],
)
def test_what_cannot_be_read_is_named(name, content, error, message, here):
    if content is not None:
        (here / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(error, match=message):
        documents.read(f"./{name}")


def test_a_folder_without_text_and_a_name_without_a_slash(here):
    (here / "texts").mkdir()
    with pytest.raises(FileNotFoundError, match=r"texts holds no file in \.txt"):
        documents.read("./texts")
    assert not documents.is_place("texts")
    assert all(map(documents.is_place, ("./texts", "own.txt", "~/own", "hf:owner/name", here / "texts")))


def test_a_data_set_is_read_once_and_kept(hub, caplog):
    assert documents.read("hf:owner/name") == TEXTS
    assert "3 documents of the data set owner/name are kept in" in caplog.text
    (hub / "owner/name/train.jsonl").unlink()
    assert documents.read("hf:owner/name") == TEXTS
    assert documents.read("hf:owner/name::test") == TEXTS[:1]
    assert documents.content_hash("hf:owner/name") != documents.content_hash("hf:owner/name::test")


def test_a_kept_data_set_that_broke_is_said_and_read_again(hub, caplog):
    documents.read("hf:owner/name")
    [kept] = (hub.parent / "clone/build/datasets").glob("*.jsonl")
    whole = kept.read_bytes()
    for broken in (whole.replace(b"id", b"ie", 1).replace(b"text", b"texs", 1), whole[:-9]):
        kept.write_bytes(broken)
        assert documents.read("hf:owner/name") == TEXTS
        assert f"{kept} is broken and made again" in caplog.text
        assert kept.read_bytes() == whole
        caplog.clear()


def test_only_the_beginning_of_a_data_set_is_read(hub, monkeypatch):
    monkeypatch.setattr(documents, "MOST_DOCUMENTS", 2)
    assert documents.read("hf:owner/name") == TEXTS[:2]
    monkeypatch.setattr(documents, "MOST_CHARACTERS", 10)
    assert documents.read("hf:owner/name:default") == TEXTS[:1]


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("hf:owner/name:::body", ValueError, "owner/name has no text in a column 'body', its columns are text, id"),
        ("hf:owner/name:::id", ValueError, "no text in a column 'id'"),
        ("hf:owner/name:french", ValueError, "owner/name cannot be read: .*french"),
        ("hf:owner/name::dev", ValueError, "owner/name cannot be read: .*dev.*test.*train|.*train.*test"),
        ("hf:", ValueError, r"is named hf:owner/name\[:config"),
        ("hf:a:b:c:d:e", ValueError, r"is named hf:owner/name\[:config"),
    ],
)
def test_what_a_data_set_lacks_is_named(name, error, message, hub):
    with pytest.raises(error, match=message):
        documents.read(name)
    assert not (hub.parent / "clone/build").exists()


def test_a_data_set_out_of_reach_says_that_the_network_is_needed(here, monkeypatch):
    datasets = pytest.importorskip("datasets", reason="an optional package")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=r"nobody/nothing is out of reach: .*network, which is needed once"):
        documents.read("hf:nobody/nothing")


def test_without_the_package_it_says_what_to_install(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ModuleNotFoundError, match="pip install datasets"):
        documents.read("hf:owner/name")


def test_tables_call_places_by_short_names(here):
    places = ("prose", "/data/prose.txt", "~/text.jsonl", "./text.jsonl.xz", "hf:owner/wiki:en", "./a/recall8/")
    reading = samples.Reading(places, ("recall8",), ("rare character",), (1, 8), n=2)
    assert reading.texts == ("prose", "prose 2", "text", "text 2", "wiki en", "recall8 2")
    assert reading.names() == [*reading.texts, "recall8", "rare character"]
    with pytest.raises(ValueError, match="every domain is read once"):
        samples.Reading(("prose", "prose"), (), (), (1,)).names()


def test_own_documents_become_contexts_as_shipped_ones_do(here, tokenizer):
    with lzma.open(here / "own.jsonl.xz", "wt") as file:
        file.write(lines())
    reading = samples.Reading(("./own.jsonl.xz",), (), (), (1, 16), n=2)
    tokens, document = reading.samples("own", tokenizer)
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(tokens, contexts.spread("./own.jsonl.xz", tokenizer, n=2, length=16, generator=generator).tokens)
    assert all(tokenizer.decode(row) in TEXTS[0] for row in tokens)
    (here / "one.txt").write_text(TEXTS[0])
    with pytest.raises(ValueError, match="the part 'calibration' has 0 of them"):
        contexts.domain("one.txt", tokenizer, n=1, length=16, generator=generator, part="calibration")
