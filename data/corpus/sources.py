"""Reads whole documents, one text each, out of unpacked Debian packages."""

import gzip
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

AUSTEN = "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
STANDARD_LIBRARY = "usr/lib/python3.13"
PYTHON_DOCS = "usr/share/doc/python3.13/html/_sources"
SET_MM = "usr/share/metamath/databases/set.mm"

R_STRING_VECTOR, R_STRING = 16, 9
MACHINE_MADE = re.compile(r"^(encodings|pydoc_data|test|idlelib|lib-dynload|_sysconfigdata)")
CHAPTER = re.compile(r"^chapter (?:[ivxlc]+|\d+)\.?$", re.IGNORECASE | re.MULTILINE)
TITLED_CHAPTER = re.compile(r"^CHAPTER \d+\. .+$", re.MULTILINE)
HEADING = re.compile(r"^\$\(\s*\n(?:####|#\*#\*|=-=-|-\.-\.)\S*\n\s*(\S[^\n]*)\n", re.MULTILINE)
PROOF = re.compile(r"\$=.*?\$\.", re.DOTALL)
CREDIT = re.compile(r"\s*\((?:Contributed|Revised|Proof\s+shortened|Proof\s+revised) by [^()]*\)")
DISCOURAGED = re.compile(r"\s*\((?:New\s+usage|Proof\s+modification)\s+is\s+discouraged\.\)")
STATEMENT = re.compile(r"\$\((?:.*?)\$\)|\$\{|\$\}|\$d.*?\$\.|\S+\s+\$[aep].*?\$\.|\$[cvf].*?\$\.", re.DOTALL)


@dataclass(frozen=True)
class Document:
    """One whole document: what it is called within its domain, and what it says."""

    id: str
    text: str


@dataclass(frozen=True)
class Source:
    """Where a domain's documents come from, and under which licence."""

    domain: str
    package: str
    licence: str
    text: str
    documents: Callable[[Path], Iterator[Document]]


def version(unpacked: Path, package: str) -> str:
    """The version of an unpacked package, from the first line of its changelog."""
    with gzip.open(unpacked / "usr/share/doc" / package / "changelog.Debian.gz", "rt", encoding="utf-8") as lines:
        return re.search(r"\((\S+)\)", next(lines))[1]


def chapters(unpacked: Path) -> Iterator[Document]:
    """The chapters of Jane Austen's six novels, one paragraph a line."""
    for lines in r_string_vectors((unpacked / AUSTEN).read_bytes()):
        novel = "\n".join(lines)
        title = re.search(r"\S[^\n]*", novel)[0].strip().lower().replace(" ", "-")
        starts = [match.start() for match in CHAPTER.finditer(novel)]
        for number, (start, stop) in enumerate(zip(starts, [*starts[1:], len(novel)], strict=True), 1):
            yield Document(f"{title}/{number:02}", reflow(novel[start:stop]))


def modules(unpacked: Path) -> Iterator[Document]:
    """The modules of Python's standard library that people wrote, four spaces turned into a tab."""
    for path, name in _files(unpacked / STANDARD_LIBRARY, "*.py"):
        if not MACHINE_MADE.match(name):
            yield Document(name, path.read_text(encoding="utf-8").replace("    ", "\t"))


def manuals(unpacked: Path) -> Iterator[Document]:
    """The sources of Python's documentation, each three or four spaces turned into a tab."""
    for path, name in _files(unpacked / PYTHON_DOCS, "*.rst.txt"):
        if not name.startswith("whatsnew/changelog"):
            yield Document(name.removesuffix(".txt"), re.sub(" {3,4}", "\t", path.read_text(encoding="utf-8")))


def sections(unpacked: Path) -> Iterator[Document]:
    """The sections of set.mm from its first axiom on, one statement a line, without proofs or credits."""
    database = (unpacked / SET_MM).read_text(encoding="utf-8")
    headings = list(HEADING.finditer(database, database.index("CLASSICAL FIRST-ORDER LOGIC WITH EQUALITY") - 200))
    stops = [heading.start() for heading in headings[1:]] + [len(database)]
    for number, (heading, stop) in enumerate(zip(headings, stops, strict=True)):
        name = re.sub(r"\W+", "-", heading[1].lower()).strip("-")
        yield Document(f"{number:04}-{name}", _statements(database[heading.start() : stop]))


SOURCES = (
    Source("prose", "r-cran-janeaustenr", "public domain (packaging: MIT)", "six novels by Jane Austen", chapters),
    Source("code", "libpython3.13-stdlib", "PSF-2.0", "Python's standard library", modules),
    Source("math", "metamath-databases", "CC0-1.0", "set.mm, the Metamath proof explorer's database", sections),
    Source("technical", "python3.13-doc", "PSF-2.0, examples 0BSD", "Python's documentation", manuals),
)


def _files(root: Path, pattern: str) -> list[tuple[Path, str]]:
    named = [(path, path.relative_to(root).as_posix()) for path in root.rglob(pattern) if not path.is_symlink()]
    return sorted(named, key=lambda pair: pair[1])


def reflow(text: str) -> str:
    """One paragraph a line."""
    paragraphs = (" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text))
    return "\n".join(paragraph for paragraph in paragraphs if paragraph) + "\n"


def _statements(section: str) -> str:
    bare = DISCOURAGED.sub("", CREDIT.sub("", PROOF.sub("$.", section)))
    lines = (" ".join(match[0].split()) for match in STATEMENT.finditer(bare))
    return "\n".join(re.sub(r"\S{40,}\s?", "", line) for line in lines if line != "$( $)") + "\n"


def r_string_vectors(rdb: bytes) -> Iterator[list[str]]:
    """The character vectors of an R lazy-load database: chunks of a big-endian length and a zlib stream."""
    while rdb:
        inflate = zlib.decompressobj()
        serialised = inflate.decompress(rdb[4:]) + inflate.flush()
        rdb = inflate.unused_data
        strings = _r_strings(serialised)
        if strings is not None:
            yield strings


def _r_strings(serialised: bytes) -> list[str] | None:
    """One R character vector (serialisation format 2 or 3, XDR); None where the object is something else."""
    format_version, encoding_length = struct.unpack(">2x i 8x i", serialised[:18])
    at = 14 if format_version == 2 else 18 + encoding_length
    kind, count = struct.unpack_from(">2i", serialised, at)
    if kind & 0xFF != R_STRING_VECTOR:
        return None
    at, strings = at + 8, []
    for _ in range(count):
        kind, length = struct.unpack_from(">2i", serialised, at)
        assert kind & 0xFF == R_STRING
        strings.append(serialised[at + 8 : at + 8 + length].decode("utf-8"))
        at += 8 + length
    return strings
