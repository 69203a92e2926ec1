"""Whether what is committed is what was written: `make verify`.

`data/SHA256SUMS` holds the hash of every file of data/ and figures/ but texts and code (`sha256sum --check` reads it
too). `python -m srdyn.study.verify --record 'PATTERN' …` takes the files that match as they are. make does so after
each notebook of a committed run, for what it wrote, and after a benchmark: nothing else changes unseen. What was
recorded may still not be what the models say: a seeded sample of every table is computed again (`recompute`), three
minutes of one core.
"""

import argparse
import fnmatch
import itertools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from srdyn.loading import files, refusals
from srdyn.study.run import store

_FOLDERS = ("data", "figures")
_UNRECORDED = ("*.md", "*.py", "*.tmp", "*/SHA256SUMS")
"""Written by hand, made from tables (`texts` looks at those), or not yet whole."""
_RECORD = "python -m srdyn.study.verify --record"
_SHOWN = 30
"""Characters of a line before and after the place where it differs."""


def sums() -> Path:
    """The list of recorded hashes."""
    return files.data_dir() / "SHA256SUMS"


def faults() -> Iterator[str]:
    """What is not as it was written, a line each that begins with the place; for the run `reference`."""
    return itertools.chain(bytes_changed(), tables(), texts())


def bytes_changed() -> Iterator[str]:
    """Files that are not the recorded ones, that are gone, or that nobody recorded."""
    known, present = _known(), _present()
    for name in sorted({*known, *present}):
        if name not in present:
            yield f"{name}: is gone"
        elif name not in known:
            yield f"{name}: is not recorded"
        elif files.file_hash(files.root() / name) != known[name]:
            yield f"{name}: differs from what was recorded"


def tables() -> Iterator[str]:
    """Committed tables without a side file of their bytes, and side files without a table of their own."""
    for side in sorted((files.data_dir() / "tables").rglob("*.json")):
        found = [path for path in (side.with_suffix(".csv"), side.with_suffix(".parquet")) if path.exists()]
        if len(found) != 1:
            yield f"{_name(side)}: describes {len(found)} tables, not one"
        elif json.loads(side.read_bytes()).get("table") != files.file_hash(found[0]):
            yield f"{_name(found[0])}: is not the table that its side file describes"
    for table in sorted((files.data_dir() / "tables").rglob("*.*")):
        if table.suffix in {".csv", ".parquet"} and not table.with_suffix(".json").exists():
            yield f"{_name(table)}: has no side file"


def texts() -> Iterator[str]:
    """Lines of the scorecard, the README and the pages that the tables of the run at work do not say."""
    from srdyn.study.claims import readme, registration  # heavy, and recording does not need it

    for claim in registration.load().claims:
        if not (files.root() / "notebooks" / f"{claim.notebook}.ipynb").is_file():
            yield f"data/paper/claims.yaml: {claim.id} is decided in {claim.notebook}, which is no notebook"
    for name in ("figures/scorecard.md", *readme.pages()):
        text = (files.root() / name).read_bytes().decode()
        try:
            written = readme.page(name, text) if name in readme.pages() else readme.scorecard()
            yield from (f"{name}:{fault}" for fault in _differences(text, written))
        except ValueError as error:
            yield f"{name}: cannot be made from the tables: {error}"


def computed_again(seed: int | None = None) -> list[str]:
    """Print a line for every table, how far it is from what the models say; return the lines that are faults."""
    from srdyn.study import recompute  # heavy, and recording does not need it

    done = []
    for checked in recompute.sample(recompute.SEED if seed is None else seed):
        print(checked, flush=True)
        done.append(checked)
    for name in recompute.others([checked.table for checked in done]):
        print(f"{name}: {'measured by make bench, not computed again' if '/07_cost_' in name else 'hash only'}")
    return [str(checked) for checked in done if checked.fault]


def record(patterns: Sequence[str]) -> None:
    """Take the files that match one of the patterns (`*` matches `/` too) as they are now; the others stay recorded."""
    with files.locked(files.root() / "build" / "sums.lock"):
        kept = {name: content for name, content in _known().items() if not _matches(name, patterns)}
        fresh = {name: files.file_hash(files.root() / name) for name in _present() if _matches(name, patterns)}
        lines = [f"{content}  {name}\n" for name, content in sorted((kept | fresh).items())]
        files.write_bytes(sums(), "".join(lines).encode())


def _known() -> dict[str, str]:
    text = sums().read_text(encoding="utf-8") if sums().exists() else ""
    return {name: content for content, name in (line.split("  ", 1) for line in text.splitlines())}


def _present() -> set[str]:
    names = {_name(path) for folder in _FOLDERS for path in (files.root() / folder).rglob("*") if path.is_file()}
    hidden = {name for name in names if any(part.startswith((".", "__")) for part in name.split("/"))}
    return {name for name in names - hidden if not _matches(name, _UNRECORDED)}


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _name(path: Path) -> str:
    return path.relative_to(files.root()).as_posix()


def _differences(text: str, expected: str) -> Iterator[str]:
    """`12: says … where the tables say …` for every line that differs, up to the first of texts of unequal length."""
    there, wanted = text.splitlines(), expected.splitlines()
    for number, (one, other) in enumerate(itertools.zip_longest(there, wanted, fillvalue=""), 1):
        if one != other:
            at = next(i for i, (a, b) in enumerate(itertools.zip_longest(one, other)) if a != b)
            part = slice(max(at - _SHOWN, 0), at + _SHOWN)
            yield f"{number}: says …{one[part]}… where the tables say …{other[part]}…"
            if len(there) != len(wanted):
                return


@refusals.door()
def main() -> None:
    """Print what is not as it was written, and end with 1 if anything is; or record."""
    parser = argparse.ArgumentParser(prog="python -m srdyn.study.verify", description=__doc__)
    parser.add_argument("--record", nargs="+", metavar="PATTERN", help="take the files that match as they are now")
    parser.add_argument("--seed", type=int, help="draws which model and which rows are computed again")
    given = parser.parse_args()
    if given.record:
        record(given.record)
        return
    os.environ["SRDYN_RUN"] = store.REFERENCE  # what is committed says what this run found
    found = list(faults())
    print(*found, sep="\n", end="\n" * bool(found))
    found += computed_again(given.seed)
    if found:
        sys.exit(f"{len(found)} faults. After a change of data that is meant: {_RECORD} 'data/…'")
    print(f"{len(_known())} files are as recorded; README and scorecard say what the tables say")


if __name__ == "__main__":
    main()
