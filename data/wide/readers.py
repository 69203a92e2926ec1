"""Reads whole documents out of unpacked packages, one function a format."""

import gzip
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path

SKIPPED = {"script", "style", "nav", "head", "form", "button", "svg", "math", "header", "footer", "select"}
BLOCKS = {"p", "div", "br", "li", "ul", "ol", "dl", "dt", "dd", "tr", "table", "pre", "blockquote", "section", "title"}
BLOCKS |= {"page", "note", "item", *(f"h{n}" for n in range(1, 7))}
GROUP = 20_000
"""Characters of dictionary entries that make one document."""
SHORTEST_LINE = 25
"""Characters of a translatable string that says something: shorter ones are names of things."""


def files(root: Path, patterns: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Name below `root` and text of each file that a pattern names, in order; .gz is opened."""
    for path in sorted({path for pattern in patterns for path in root.glob(pattern)}):
        if path.is_file() and not path.is_symlink():
            raw = gzip.decompress(path.read_bytes()) if path.suffix in (".gz", ".dz") else path.read_bytes()
            yield path.relative_to(root).as_posix(), decoded(raw)


def decoded(raw: bytes) -> str:
    """UTF-8 where it is that, else Latin-1; ends of lines as on Unix, no zero bytes."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    return text.replace("\r\n", "\n").replace("\0", "")


def plain(root: Path, patterns: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Text as it is, four spaces turned into a tab."""
    for name, text in files(root, patterns):
        yield name, text.replace("    ", "\t")


def markup(root: Path, patterns: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The words of HTML and its relatives, one paragraph a line; what stands in `pre` keeps its lines."""
    for name, text in files(root, patterns):
        yield name, words(text)


def words(html: str) -> str:
    """The words of one document in HTML, or in XML with like names."""
    parser = _Words()
    parser.feed(html)
    parser.close()
    lines = (line.rstrip() for line in "".join(parser.parts).split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


class _Words(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.skipped = self.kept = 0

    def handle_starttag(self, tag, attrs) -> None:
        self.skipped += tag in SKIPPED
        self.kept += tag == "pre"
        self._break(tag)

    def handle_endtag(self, tag) -> None:
        self.skipped = max(0, self.skipped - (tag in SKIPPED))
        self.kept = max(0, self.kept - (tag == "pre"))
        self._break(tag)

    def _break(self, tag) -> None:
        if tag in BLOCKS and not self.skipped and self.parts and not self.parts[-1].endswith("\n"):
            self.parts.append("\n")

    def handle_data(self, data) -> None:
        if self.skipped:
            return
        text = data.replace("    ", "\t") if self.kept else re.sub(r"\s+", " ", data)
        if not self.kept and (not self.parts or self.parts[-1].endswith(("\n", " "))):
            text = text.lstrip()
        if text:
            self.parts.append(text)


def dictionary(root: Path, patterns: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Entries of dictd dictionaries, reflowed, about `GROUP` characters of them a document."""
    for name, text in files(root, patterns):
        entries = [" ".join(entry.split()) for entry in re.split(r"\n(?=\S)", text)]
        group: list[str] = []
        for entry in filter(None, entries):
            group.append(entry)
            if sum(map(len, group)) >= GROUP:
                yield f"{name}/{group[0].split()[0].lower()}", "\n".join(group) + "\n"
                group = []


def strings(root: Path, patterns: Sequence[str]) -> Iterator[tuple[str, str]]:
    """What a game says to its player: the strings marked for translation in each file, one a line."""
    marked = re.compile(r'\b_\s*\(?\s*(?:"((?:[^"\\]|\\.|"")*)"|\[\[(.*?)\]\])', re.DOTALL)
    for name, text in files(root, patterns):
        said = (
            " ".join((one or two).replace('""', '"').replace("\\n", " ").split()) for one, two in marked.findall(text)
        )
        yield name, "\n".join(line.replace('\\"', '"') for line in said if len(line) >= SHORTEST_LINE) + "\n"


def sword(root: Path, patterns: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The blocks of a compressed SWORD module, its books or chapters; a pattern names the index of blocks."""
    for path in sorted({path for pattern in patterns for path in root.glob(pattern)}):
        index, packed = path.read_bytes(), path.with_suffix(path.suffix[:-1] + "z").read_bytes()
        for number, (start, size, _) in enumerate(struct.iter_unpack("<III", index)):
            if size:
                text = zlib.decompress(packed[start : start + size]).decode("utf-8")
                yield f"{path.parent.name}/{path.stem}-{number:03}", words(text.replace("</verse>", "<br>"))
