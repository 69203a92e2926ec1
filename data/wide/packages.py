"""What the wide corpus is made of: a line of packages.csv for each package, and how its files are read."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import readers
import sources as small  # of the small models' corpus, in data/corpus: its readers serve here too

TABLE = Path(__file__).resolve().with_name("packages.csv")

UNSEEN = ("aphorisms", "lisp", "pages", "plays")
"""Kinds of text that no training document resembles: for evaluation alone."""


class Package(NamedTuple):
    """A package of one domain: at most `most` characters of what its reader finds in `files` (patterns)."""

    domain: str
    name: str
    licence: str
    text: str
    reader: str
    most: int
    files: tuple[str, ...]

    def documents(self, unpacked: Path) -> Iterator[small.Document]:
        """The package's documents, named by package and place."""
        for name, text in READERS[self.reader](unpacked, self.files):
            yield small.Document(f"{self.name}/{name}", text)


def table() -> list[Package]:
    """The lines of packages.csv."""
    with TABLE.open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    return [Package(**row | {"most": int(row["most"]), "files": tuple(row["files"].split())}) for row in rows]


def _of_small(name: str):
    return lambda root, patterns: ((document.id, document.text) for document in getattr(small, name)(root))


def _novel(root: Path, patterns: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Moby-Dick by chapters, from R's serialised data."""
    (strings,) = small.r_string_vectors((root / patterns[0]).read_bytes())
    text = strings[0].replace("\r\n", "\n").partition("*** END OF")[0]
    starts = [match.start() for match in small.TITLED_CHAPTER.finditer(text)]
    for number, (start, stop) in enumerate(zip(starts, [*starts[1:], len(text)], strict=True), 1):
        yield f"moby-dick/{number:03}", small.reflow(text[start:stop])


READERS = {
    **{name: _of_small(name) for name in ("chapters", "manuals", "modules", "sections")},
    **{name: getattr(readers, name) for name in ("dictionary", "markup", "plain", "strings", "sword")},
    "novel": _novel,
}
