"""Documents of one's own: from a text file, a folder of them, or a data set on the Hugging Face hub."""

import io
import itertools
import json
import logging
import lzma
import os
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from srdyn.loading import files, refusals

_HUB = "hf:"
"""What the name of a data set on the hub begins with."""
SUFFIXES = (".txt", ".jsonl", ".jsonl.xz")
MOST_DOCUMENTS, MOST_CHARACTERS = 2_000, 20_000_000
"""A data set on the hub is read from its beginning until there are so many."""

_MOST_BYTES = 2**28
"""Text that one file may hold, unpacked: more is no document that anyone wrote, and may never end."""

log = logging.getLogger(__name__)


class _Dataset(NamedTuple):
    """A split of a data set on the hub; documents are the texts in its column `field`."""

    repository: str
    config: str = ""
    split: str = "train"
    field: str = "text"


def is_place(name: str | Path) -> bool:
    """Whether a name says where documents lie: a path with a slash or one of `SUFFIXES`, or hf:…; the others ship."""
    text = str(name)
    return isinstance(name, Path) or text.startswith(_HUB) or text.endswith(SUFFIXES) or "/" in text


def short_name(place: str | Path) -> str:
    """The place without folders, suffix, owner: what tables and figures call it."""
    if str(place).startswith(_HUB):
        found = _dataset(str(place))
        return " ".join(part for part in (found.repository.split("/")[-1], found.config) if part)
    name = _path(place).resolve().name
    return next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), name)


def read(place: str | Path) -> list[str]:
    """The documents that lie there, without empty ones.

    A .txt is one document; .jsonl and .jsonl.xz hold one a line, {"text": …}; a folder holds those of all such files
    in it and below. A relative path is seen from here, else from the repository. Of a data set on the hub,
    hf:owner/name[:config[:split[:field]]], the first `MOST_DOCUMENTS` are read, at most `MOST_CHARACTERS`, and kept in
    build/datasets, where later runs find them offline. Raises FileNotFoundError for what is not there, ValueError for
    what cannot be read as text, ModuleNotFoundError and OSError where a data set needs `datasets` or the network.
    """
    found = [document for file in _files(place) for document in _documents(file) if document.strip()]
    if not found:
        raise ValueError(f"{place} holds no text: give files in {', '.join(SUFFIXES)} with a document in them")
    return found


def content_hash(place: str | Path) -> str:
    """What tells the documents that lie there now from any others."""
    return files.content_hash(*_files(place))


def _dataset(name: str) -> _Dataset:
    """A name of a data set by its parts; an empty part keeps its default."""
    repository, *rest = name.removeprefix(_HUB).split(":")
    if not name.startswith(_HUB) or not repository or len(rest) > 3:
        raise ValueError(f"a data set is named hf:owner/name[:config[:split[:field]]], not {name!r}")
    given = dict(zip(_Dataset._fields[1:], rest, strict=False))
    return _Dataset(repository, **{part: value for part, value in given.items() if value})


def _path(name: str | Path) -> Path:
    """The path as it is, or seen from the repository: notebooks run in a folder of their own."""
    path = Path(name).expanduser()
    return path if os.path.exists(path) else files.root() / path


def _files(place: str | Path) -> list[Path]:
    """The files that hold the documents, a hub's data set downloaded."""
    if str(place).startswith(_HUB):
        return [_downloaded(_dataset(str(place)))]
    path = _path(place)
    if not os.path.exists(path):
        wanted = f"give the path of a file in {', '.join(SUFFIXES)}, or of a folder of such files"
        raise FileNotFoundError(f"{Path(place).expanduser().absolute()!s:.200} is not there; {wanted}")
    found = sorted(file for file in path.rglob("*") if file.name.endswith(SUFFIXES)) if path.is_dir() else [path]
    if not found:
        raise FileNotFoundError(f"{path} holds no file in {', '.join(SUFFIXES)}")
    return found


def _documents(path: Path) -> list[str]:
    files.require_regular(path)
    if not path.name.endswith(SUFFIXES):
        raise ValueError(f"{path} is none of {', '.join(SUFFIXES)}")
    try:
        with (lzma.open if path.suffix == ".xz" else open)(path, "rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise ValueError(f"{path} holds more than {_MOST_BYTES:,} bytes of text: take a part of it")
        text = content.decode("utf-8")
    except (lzma.LZMAError, EOFError) as error:
        raise ValueError(f"{path} cannot be unpacked ({refusals.one_line(error)}): copy it again") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}): convert it") from error
    if path.name.endswith(".txt"):
        return [io.StringIO(text, newline=None).read()]
    lines = enumerate(io.StringIO(text, newline=None), 1)
    return [_text(line, f"{path}, line {i}") for i, line in lines if line.strip()]


def _text(line: str, where: str) -> str:
    with refusals.within(f"{where}: not JSON"):
        row = json.loads(line)
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        has = f"an object with {', '.join(row)}" if isinstance(row, dict) else f"a {type(row).__name__}"
        raise ValueError(f'{where}: every line must be a JSON object with its document under "text", this is {has}')
    return row["text"]


def _downloaded(wanted: _Dataset) -> Path:
    """The file in build/datasets that holds the documents, written when it is missing."""
    path = files.root() / "build" / "datasets" / (urllib.parse.quote(":".join(wanted), safe=":") + ".jsonl")
    told = path.with_suffix(".sha256")
    whole = path.exists() and (not told.exists() or told.read_bytes() == files.file_hash(path).encode())
    if path.exists() and not whole:
        log.warning("%s is broken and made again", path)
    if not whole:
        lines = [json.dumps({"text": text}) + "\n" for text in _texts(wanted)]
        files.write_bytes(path, "".join(lines).encode())
        files.write_bytes(told, files.file_hash(path).encode())
        log.warning("%d documents of the data set %s are kept in %s", len(lines), wanted.repository, path)
    return path


def _rows(wanted: _Dataset) -> Iterator[Mapping[str, object]]:
    try:
        import datasets  # no other domain needs it, and it brings twenty packages
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("a data set from the hub needs the package datasets: pip install datasets") from error
    try:
        yield from datasets.load_dataset(wanted.repository, wanted.config or None, split=wanted.split, streaming=True)
    except OSError as error:
        told = "is out of reach: check its name, and the network, which is needed once (HF_HUB_OFFLINE unset)"
        raise OSError(f"the data set {wanted.repository} {told}. datasets says: {error}") from error
    except ValueError as error:  # an unknown configuration or split
        raise ValueError(f"the data set {wanted.repository} cannot be read: {error}") from error


def _texts(wanted: _Dataset) -> Iterator[str]:
    """The first documents, as many as are read."""
    characters = 0
    for row in itertools.islice(_rows(wanted), MOST_DOCUMENTS):
        if not isinstance(text := row.get(wanted.field), str):
            columns = f"its columns are {', '.join(row)}: name one, hf:owner/name:config:split:field"
            raise ValueError(f"{wanted.repository} has no text in a column {wanted.field!r}, {columns}")
        yield text
        characters += len(text)
        if characters >= MOST_CHARACTERS:
            return
