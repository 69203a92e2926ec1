"""Whether what is committed is what was written: `make verify`.

`data/SHA256SUMS` holds the hash of every file of data/ and figures/ but texts and code (`sha256sum --check` reads it
too). `python -m srdyn.study.verify --record 'PATTERN' …` takes the files that match as they are. make does so after
each notebook of a committed run, for what it wrote, and after a benchmark: nothing else changes unseen. What was
recorded may still not be what the models say: a seeded sample of every table but timings and one training, which are
named, is computed again (`recompute`), some minutes.
"""

import argparse
import fnmatch
import functools
import itertools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from srdyn.loading import files, refusals
from srdyn.study.claims import readme, registration
from srdyn.study.run import code, parameters, store

_FOLDERS = ("data", "figures")
_UNRECORDED = ("*.md", "*.py", "*.tmp", "*/SHA256SUMS", "data/tables/code/*/*.txt")
"""Written by hand, made from tables (`texts` looks at those), not yet whole, or named after their own hashes."""
_OWN = "04_pruning_healed"
"""The table of a command (`srdyn.training.healing`) whose parameters no preset gives."""
_RECORD = "python -m srdyn.study.verify --record"
_SHOWN = 30
"""Characters of a line before and after the place where it differs."""


def sums() -> Path:
    """The list of recorded hashes."""
    return files.data_dir() / "SHA256SUMS"


def faults() -> Iterator[str]:
    """What is not as it was written, a line each that begins with the place; for the run `reference`."""
    return itertools.chain(bytes_changed(), tables(), unexplained(), texts())


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
    for path, side in _sides():
        found = [table for table in (path.with_suffix(".csv"), path.with_suffix(".parquet")) if table.exists()]
        if len(found) != 1:
            yield f"{_name(path)}: describes {len(found)} tables, not one"
        elif side.get("table") != files.file_hash(found[0]):
            yield f"{_name(found[0])}: is not the table that its side file describes"
    for table in sorted((files.data_dir() / "tables").rglob("*.*")):
        if table.suffix in {".csv", ".parquet"} and not table.with_suffix(".json").exists():
            yield f"{_name(table)}: has no side file"


def unexplained() -> Iterator[str]:
    """Side files of unknown code or of other parameters than the run's; lists of code that are not what they were."""
    lists = {path.stem: path for path in store.code_dir().glob("*/*.txt")}
    for content, path in sorted(lists.items()):
        if files.file_hash(path) != content:
            yield f"{_name(path)}: is not the list of code that its name is the hash of"
    known = {*lists, *before()}
    given = functools.cache(lambda stem, run: json.loads(json.dumps(parameters.of_run([stem], run, {})[stem])))
    for path, side in _sides():
        if side.get("code") not in known:
            yield f"{_name(path)}: no list is kept of the code that it names"
        run = path.parent.name if path.parent.name in store.COMMITTED else store.REFERENCE
        wanted = given("_".join(path.stem.split("_")[:2]), run) if path.stem != _OWN else {}
        for name, value in side.get("parameters", {}).items():
            if wanted.get(name, value) != value:
                yield f"{_name(path)}: {name} is not what the run {run} is given"


def before() -> dict[str, str]:
    """By `files.content_hash` of a srdyn/ that made tables before lists of code were kept, its commit or nothing."""
    lines = (store.code_dir() / "before.txt").read_text().splitlines()
    return {content: commit for content, _, commit in (line.partition(" ") for line in lines)}


def changed_since() -> Iterator[str]:
    """A line for the tables of each code: which of its modules, and whether claims.yaml, have changed since.

    That is no fault: what a change does to a table is seen where cells are computed again. Rows of claims are those of
    claims.yaml as it is now, or `texts` says so.
    """
    lists = {path.stem: path for path in store.code_dir().glob("*/*.txt")}
    registered, tables = files.content_hash(files.data_dir() / "paper" / "claims.yaml"), {}
    for path, side in _sides():
        tables.setdefault((side.get("code"), side.get("claims", registered) != registered), []).append(path)
    for (content, other), (first, *more) in tables.items():
        names = f"{_name(first)}{f' and {len(more)} more' if more else ''}"
        path = lists.get(content)
        if path is None:
            commit = before().get(content)
            told = f"by srdyn/ at {commit[:10]}" if commit else "by code of which no list was kept"
        elif path.parent.name != store.PYTHON:
            told = f"by code that only {path.parent.name} can compare, this is {store.PYTHON}"
        else:
            listed = path.read_text()
            since = code.changed(listed)
            told = f"{len(since)} of {len(listed.splitlines())} modules have changed since, no fault: {' '.join(since)}"
        yield f"{names}: {told}{'; so has claims.yaml' if other else ''}"


def _sides() -> Iterator[tuple[Path, dict]]:
    for path in sorted((files.data_dir() / "tables").rglob("*.json")):
        yield path, json.loads(path.read_bytes())


def texts() -> Iterator[str]:
    """Lines of the scorecard, the README and the pages that the tables of the run at work do not say."""
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


def computed_again(seed: int = 17) -> list[str]:
    """Print a line for every table, how far it is from what the models say; return the lines that are faults."""
    from srdyn.study import recompute  # heavy, and recording does not need it

    done = []
    for checked in recompute.sample(seed):
        print(checked, flush=True)
        done.append(checked)
    for name in recompute.others([checked.table for checked in done]):
        print(f"{name}: {'measured by make bench' if '/07_cost_' in name else 'hash only'}, not computed again")
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
    parser.add_argument("--seed", type=int, default=17, help="draws which model and which rows are computed again")
    given = parser.parse_args()
    if given.record:
        record(given.record)
        return
    os.environ["SRDYN_RUN"] = store.REFERENCE  # what is committed says what this run found
    found = list(faults())
    print(*found, *changed_since(), sep="\n")
    found += computed_again(given.seed)
    if found:
        told = f"{len(found)} faults. After a change of data that is meant: {_RECORD} 'data/…'"
        sys.exit("\n".join(["", *found, told]))
    print(f"{len(_known())} files are as recorded; README and scorecard say what the tables say")


if __name__ == "__main__":
    main()
