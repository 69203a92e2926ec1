"""Runs the notebooks that are out of date: `python -m srdyn.study.reproduce [notebook …] [--preset … --set "…"]`.

A notebook is up to date as long as it, its parameters, the data, the tables that it reads and the code that its imports
reach are those of its last run. Executed copies lie in build/<run>/notebooks, where the site finds them.
"""

import argparse
import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from datetime import datetime
from pathlib import Path

import papermill
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from srdyn.loading import files, markdown, refusals
from srdyn.study import verify
from srdyn.study.claims import readme, registration
from srdyn.study.run import code, parameters, store

_BENCH, _SCORECARD = "07_cost", "08_scorecard"
_READS = {_BENCH: {store.REFERENCE: "07_cost_*.csv"}, "04_pruning": {store.THOROUGH: "04_pruning_healed.csv"}}
_READS |= {_SCORECARD: {None: "*_claims*.csv", **dict.fromkeys(store.BESIDE, "*.csv")}}
"""Notebooks that read tables of others: of which runs (None: the run at work), which."""
_SIDE_BY_SIDE = ("03_ablation", "01_stratification", "02_consistency", "05_mechanism", "04_pruning", "10_rules")
"""Those begun first, the longest before all; 02 and 05 use what 01 has kept, 04 what 03: at once both would make it.

No clock tells this order: by the time that they took, 04 would begin beside 03.
"""
_WRITES = {store.REFERENCE: ("figures/{}*", "data/tables/{}*")}
_WRITES |= {run: (f"data/tables/{run}/{{}}*",) for run in store.BESIDE}
"""What a notebook of a committed run writes, or finds within tolerance, and `make verify` looks at."""

_LONGEST = 64
"""Characters of a folder for sockets, whose whole path has 104 at most."""

log = logging.getLogger(__name__)


class _Stopped(Exception):
    """A notebook ended early; says which, where and why."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is out of date, then write the scorecard. Exits with one line where a notebook or a parameter fails."""
    parser = argparse.ArgumentParser(prog="python -m srdyn.study.reproduce", description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", help="their stems, such as 01_stratification; default: all")
    parser.add_argument("--preset", default=store.REFERENCE, help="one of notebooks/presets")
    parser.add_argument("--set", default="", help='parameters over it: \'n=4 models=["a", "b"]\'')
    parser.add_argument("--jobs", type=int, default=1, help="notebooks at a time")
    given = parser.parse_args(arguments)
    with refusals.door():
        chosen = parameters.of_run(given.notebooks or _every(), given.preset, parameters.parsed(given.set))
        registration.load()  # what is wrong there is said before any notebook runs
    logging.getLogger("papermill").setLevel(logging.ERROR)  # which warns of cells that it cannot parse; we have
    os.environ |= {"SRDYN_RUN": run_name(given.preset, given.set), "PYTHONHASHSEED": "0"}
    # More threads than cores wait for each other: two notebooks at a time on two cores took seven times as long.
    # Processes of one thread do not, so that each notebook may have one for every core: the last one left has all.
    if given.jobs > 1:
        threads = str(max(1, (os.cpu_count() or 1) // given.jobs))
        os.environ["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", threads)
    note(notebooks=" ".join(chosen), P=given.set, PRESET=given.preset)
    try:
        in_place = contextlib.chdir(files.root() / "notebooks")  # where paths among the parameters are seen from
        with files.locked(store.build_dir() / "lock"), in_place:
            store.forget_compared()
            run_all(chosen, jobs=given.jobs)
    except _Stopped as error:
        raise SystemExit(f"stopped: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit("interrupted; what was finished stays") from None
    readme.publish()
    if said := store.as_committed() or _left(chosen):
        print(said)


def _left(stems: Iterable[str]) -> str:
    """Where the figures and tables of these notebooks of the run at work lie, in a line; empty without figures."""
    found = [path.name for stem in stems for path in sorted(store.figure_dir().glob(f"{stem}*.png"))]
    figures, tables = (folder.relative_to(files.root()) for folder in (store.figure_dir(), store.table_dir()))
    more = f" and {len(found) - 4} more" if len(found) > 4 else ""
    return f"{figures}: {', '.join(found[:4])}{more}; {tables}: what they draw" if found else ""


def run_name(preset: str, overrides: str = "") -> str:
    """The preset with the overrides behind it, in 48 characters; a hash tells apart what they leave out."""
    named = "-".join([preset, *overrides.split()])
    short = re.sub(r"[^\w.=+-]+", "-", named, flags=re.ASCII).replace("=-", "=")[:48].strip("-")
    return short if short == named else f"{short}-{hashlib.sha256(overrides.encode()).hexdigest()[:6]}"


def note(**of_run: str) -> None:
    """Write what the run at work was asked for, and `build/runs.md`: the same of every run, the last first."""
    files.write_json(store.build_dir() / "run.json", {"began": f"{datetime.now():%Y-%m-%d %H:%M}", **of_run})
    runs = {path.parent.name: _noted(path) for path in (files.root() / "build").glob("*/run.json")}
    heads = ["began", "PRESET", "P", "notebooks"]
    rows = [[name, *(str(run.get(head, "")) for head in heads)] for name, run in runs.items()]
    rows.sort(key=lambda row: row[1], reverse=True)
    table = markdown.table(["folder", *heads], rows)
    files.write_bytes(files.root() / "build" / "runs.md", f"# Runs\n\n{table}\n".encode())


def _noted(path: Path) -> dict:
    """What a run or a stamp has noted; nothing where that is broken, which is logged: the next one writes it anew."""
    try:
        return files.read_json(path)
    except ValueError as error:
        log.warning("%s", error)
        return {}


def run_all(chosen: Mapping[str, Mapping[str, object]], *, jobs: int = 1) -> None:
    """Run these notebooks with these parameters, the scorecard last, unless they are up to date."""
    data = _data()
    keys = {stem: _key(stem, given, data) for stem, given in chosen.items()}
    print(_outlook({stem: _stamp(stem).get("seconds") for stem in chosen if not _is_fresh(stem, keys[stem])}, jobs))
    stems = [stem for stem in chosen if stem != _SCORECARD]
    if jobs > 1:
        stems.sort(key=lambda stem: _SIDE_BY_SIDE.index(stem) if stem in _SIDE_BY_SIDE else len(_SIDE_BY_SIDE))
    with futures.ThreadPoolExecutor(jobs) as pool:
        try:
            asked = [pool.submit(_refresh, stem, chosen[stem], keys[stem]) for stem in stems]
            for done in futures.as_completed(asked):
                done.result()
        finally:
            pool.shutdown(cancel_futures=True)
    if _SCORECARD in chosen:
        given = chosen[_SCORECARD]
        _refresh(_SCORECARD, given, _key(_SCORECARD, given, data))  # it reads what the others have just written


def _outlook(stale: Mapping[str, float | None], jobs: int) -> str:
    """What will run, and how long each took the last time: `2 to run: 01_x (3.0 min), 02_y (not timed yet)`."""
    listed = (f"{stem} ({f'{took / 60:.1f} min' if took else 'not timed yet'})" for stem, took in stale.items())
    known = [took / 60 for took in stale.values() if took]
    last = f"; {sum(known):.0f} min the last time, added up" if known else ""
    if jobs > 1 and len(known) > 1:
        last += f", {max(*known, sum(known) / jobs):.0f} at least with {jobs} side by side"
    return f"{len(stale)} to run: {', '.join(listed)}{last}" if stale else "all is up to date"


def _stamp(stem: str) -> dict:
    """Of a notebook's last run that ended well: its `key`, a hash of what it had `written`, the `seconds` it took."""
    path = store.build_dir() / "stamps" / stem
    return _noted(path) if path.is_file() else {}


def _written(stem: str) -> str:
    """A hash of what a notebook has written and nobody else does: its executed copy, its tables, its figures."""
    folders = (store.figure_dir(), *([] if stem == _BENCH else [store.table_dir()]))
    found = sorted(path for folder in folders for path in folder.glob(f"{stem}*"))
    executed = _executed(stem)
    return files.content_hash(executed, *found) if executed.is_file() else ""


def _is_fresh(stem: str, key: str) -> bool:
    """Whether nothing that a notebook depends on has changed since it ran, nor what it wrote."""
    last = _stamp(stem)
    return last.get("key") == key and last.get("written") == _written(stem)


def _refresh(stem: str, given: Mapping[str, object], key: str) -> None:
    """Run one notebook unless it is fresh."""
    stamp, lasted, began = store.build_dir() / "stamps" / stem, _stamp(stem).get("seconds"), time.monotonic()
    if _is_fresh(stem, key):
        return
    files.write_json(stamp, {"seconds": lasted})  # the outputs are no longer what it said
    _run(stem, given)
    written = [pattern.format(stem) for pattern in _WRITES.get(store.run_name(), ())]
    if written:
        verify.record(written[:1] if stem == _BENCH else written)  # `make bench` writes the tables of 07_cost
    files.write_json(stamp, {"key": key, "written": _written(stem), "seconds": time.monotonic() - began})


def _run(stem: str, given: Mapping[str, object]) -> None:
    source, executed = _source(stem), _executed(stem)
    # One write: of two notebooks at a time both would else write their names first and then two ends of line.
    print(f"{source.relative_to(files.root())} → {executed.relative_to(files.root())}\n", end="", flush=True)
    partial = executed.with_suffix(".partial.ipynb")  # written also when a cell fails
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        usual = tempfile.gettempdir()
        place = usual if len(usual) < _LONGEST else "/tmp"
        for left in files.orphans(Path(place), "srdyn-"):
            shutil.rmtree(left, ignore_errors=True)  # two runs may see one
        with tempfile.TemporaryDirectory(prefix=f"srdyn-{os.getpid()}-", dir=place) as folder:
            # Sockets that their user alone can open, of a short path; ports of kernels that start together collide.
            sockets = {"transport": "ipc", "ip": f"{folder}/kernel", "connection_file": f"{folder}/kernel.json"}
            kernel = Config({"KernelManager": sockets})
            options = {"kernel_name": "python3", "progress_bar": False, "config": kernel, "start_timeout": 300}
            options["extra_arguments"] = ["--log-level=CRITICAL"]  # of its shutdown it says that it was interrupted
            papermill.execute_notebook(str(source), str(partial), dict(given), **options)
    except (PapermillExecutionError, RuntimeError) as error:  # of the notebook, of its kernel
        raise _Stopped(f"{stem}, {_reason(error)}; as far as it came: {partial.relative_to(files.root())}") from error
    partial.replace(executed)


def _reason(error: PapermillExecutionError | RuntimeError) -> str:
    if isinstance(error, PapermillExecutionError):
        return f"In [{error.exec_count}]: {error.ename}: {' '.join(error.evalue.split())}"
    return "its kernel died; did memory run out?" if isinstance(error, DeadKernelError) else str(error)


def _every() -> list[str]:
    return sorted(path.stem for path in (files.root() / "notebooks").glob("[0-9]*.ipynb"))


def _key(stem: str, given: Mapping[str, object], data: str) -> str:
    """A hash of all that a notebook's outputs depend on."""
    source = _source(stem).read_bytes()
    cells = [cell for cell in json.loads(source)["cells"] if cell["cell_type"] == "code"]
    imports = code.imported("\n".join("".join(cell["source"]) for cell in cells))
    parts = [source.decode(), json.dumps(given), data, _claims(stem), code.hash_of(*imports)]
    parts += [*_places(given), *_tables(stem)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _data() -> str:
    """A hash of what every notebook depends on: pinned versions, and data but for tables and claims."""
    claims = registration.path()
    kept = [path for path in files.data_dir().iterdir() if path.is_dir() and path.name not in ("tables", "paper")]
    kept += [path for path in claims.parent.iterdir() if path != claims]
    return files.content_hash(*sorted(kept), files.root() / "constraints.txt")


def _claims(stem: str) -> str:
    """What is registered of the claims that a notebook decides; for the scorecard, all."""
    paper = registration.load()
    return repr(paper if stem == _SCORECARD else [claim for claim in paper.claims if claim.notebook == stem])


def _tables(stem: str) -> Iterator[str]:
    """Hashes of the tables of other notebooks that this one reads."""
    for run, pattern in _READS.get(stem, {}).items():
        yield from (files.content_hash(path) for path in sorted(store.table_dir(run).glob(pattern)))


def _places(value: object) -> Iterator[str]:
    """Folders and files that parameters name outside data/: names, sizes and times of what they hold."""
    if isinstance(value, Mapping | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _places(item)
    elif isinstance(value, str) and value:
        places = (Path(value).expanduser(), files.root() / value)
        place = next((place.resolve() for place in places if os.path.exists(place)), files.data_dir())  # a text is none
        if not place.is_relative_to(files.data_dir()):
            held = sorted(place.rglob("*")) if place.is_dir() else [place]
            yield from (f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in held)


def _source(stem: str) -> Path:
    return files.root() / "notebooks" / f"{stem}.ipynb"


def _executed(stem: str) -> Path:
    return store.build_dir() / "notebooks" / f"{stem}.ipynb"


if __name__ == "__main__":
    main()
