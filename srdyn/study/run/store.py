"""Files that outlive a run: their places, their exact bytes, their origin.

`SRDYN_RUN` names the run. Only the run `reference` (make sets it, for the committed defaults alone) writes to the
committed `data/tables` and `figures`, `thorough` and `main` to folders of `data/tables`; any other to `build/<run>/`.
"""

import hashlib
import importlib.metadata
import io
import json
import logging
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import urllib.parse
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from srdyn.loading import files
from srdyn.study.run import code, comparison

REFERENCE = "reference"
THOROUGH = "thorough"
MAIN = "main"
SIZES = "sizes"
BESIDE = (MAIN, THOROUGH, SIZES)
COMMITTED = {REFERENCE: ""} | {run: run for run in BESIDE}
"""The runs whose tables are committed, and their folders below `data/tables`."""
INTERACTIVE = "interactive"
KEPT = "SRDYN_KEPT"
"""Names a folder in place of build/ for what is kept of surveys and trials."""
PYTHON = "py{}{}".format(*sys.version_info)
"""The version, as other ones hash code otherwise."""
_CSV_ROWS = 2_000
"""A table of more rows is parquet: nobody reads its diff."""
SIGNIFICANT = "%.9g"
"""Digits of a real in a CSV: four more than the tolerance sees, few enough for a readable diff."""

log = logging.getLogger(__name__)


def run_name() -> str:
    """The run at work, from `SRDYN_RUN`; `interactive` without it."""
    name = os.environ.get("SRDYN_RUN", INTERACTIVE)
    if not re.fullmatch(r"\w[\w.=+-]*", name):
        raise ValueError(f"SRDYN_RUN names a folder of build/: letters, digits and .=+- are allowed, not {name!r}")
    return name


def build_dir(run: str | None = None) -> Path:
    """The ignored folder of `run`, by default of the run at work."""
    return files.root() / "build" / (run or run_name())


def kept_dir() -> Path:
    """Where surveys and trials keep what they found, whatever the run: build/, unless `KEPT` says another folder."""
    return Path(os.environ.get(KEPT) or files.root() / "build")


def table_dir(run: str | None = None) -> Path:
    """Where the tables of `run` lie: in `data/tables` those of the committed runs, else in `build/<run>/tables`."""
    run = run or run_name()
    return files.data_dir() / "tables" / COMMITTED[run] if run in COMMITTED else build_dir(run) / "tables"


def code_dir() -> Path:
    """Where lists of the code that made committed tables lie, by version of Python, named after their own hashes."""
    return files.data_dir() / "tables" / "code"


def figure_dir() -> Path:
    """Where figures of the run at work lie: `figures` for the reference run, `build/<run>/figures` for any other."""
    return (files.root() if run_name() == REFERENCE else build_dir()) / "figures"


def save_table(frame: pd.DataFrame, stem: str, *, meta: Mapping[str, object] | None = None) -> Path:
    """Write `frame` as `<stem>.csv`, or `.parquet` when it is long, with `<stem>.json` beside it saying what made it.

    `meta` (JSON, no times) goes into the side file beside the hashes of code and table. Where a table stands that
    `comparison` finds within tolerance, made from the same `meta["parameters"]`, both files keep their bytes. Otherwise
    both are replaced; for a committed table a log line says how far off. Raises `ValueError` for an index that would
    be lost or a stem that is not a plain name.
    """
    _require_plain(frame, stem)
    folder = table_dir()
    path = folder / (stem + (".csv" if len(frame) <= _CSV_ROWS else ".parquet"))
    content = _encode(frame, path.suffix)
    made_by = code.loaded().encode()
    side = {"rows": len(frame), "columns": list(frame.columns), "code": hashlib.sha256(made_by).hexdigest()}
    side |= {"table": hashlib.sha256(content).hexdigest(), **(meta or {})}
    for other in {".csv", ".parquet"} - {path.suffix}:
        path.with_suffix(other).unlink(missing_ok=True)  # first: who is killed now leaves one table or none
    farthest, faults = math.inf, ["was not there"]
    if path.exists():
        farthest, faults = comparison.compared(_decode(content, path.suffix), _decode(path.read_bytes(), path.suffix))
        faults = faults or ([] if _describes(path, side) else ["its side file does not belong to it"])
    note_compared(path, farthest, "; ".join(faults))
    if not faults:
        return path
    if run_name() in COMMITTED:
        files.write_bytes(code_dir() / PYTHON / f"{side['code']}.txt", made_by)
    files.write_bytes(path, content)
    files.write_json(path.with_suffix(".json"), side)
    return path


def note_compared(path: Path, farthest: float, fault: str) -> None:
    """Keep, of a committed run, how far what it made is from what stands at `path`, and why that is replaced, if it is.

    `farthest` is in units of the tolerance.
    """
    if run_name() not in COMMITTED:
        return
    if fault:
        log.warning("%s is replaced: %s", path.name, fault)
    noted = {"farthest": None if math.isinf(farthest) else farthest, "fault": fault}
    files.write_json(_noted() / f"{path.name}.json", noted)


def forget_compared() -> None:
    """Begin a run: nothing has been compared."""
    if _noted().exists():
        shutil.rmtree(_noted())


def as_committed() -> str:
    """What the tables and figures of a committed run, since `forget_compared`, are beside those that stood, in a line.

    Empty where none was made.
    """
    noted = {path.stem: files.read_json(path) for path in sorted(_noted().glob("*.json"))}
    faults = [f"{name}: {found['fault']}" for name, found in noted.items() if found["fault"]]
    if faults:
        return f"{len(faults)} of {len(noted)} tables and figures are not as committed: {' | '.join(faults)}"
    most = max((found["farthest"] for found in noted.values()), default=0.0)
    same = f"{len(noted)} tables and figures are the same as committed, within {most:.2g} of their tolerances"
    return same if noted else ""


def load_table(stem: str, *, run: str | None = None) -> pd.DataFrame:
    """The table `stem` of `run`, by default of the run at work; `run="reference"` reads the committed one."""
    for suffix in (".csv", ".parquet"):
        path = table_dir(run) / (stem + suffix)
        if path.exists():
            return _decode(path.read_bytes(), suffix)
    wanted = 'run the notebook that writes it first, or read the committed one with run="reference"'
    raise FileNotFoundError(f"the run {run or run_name()!r} has no table {stem!r} in {table_dir(run)}: {wanted}")


def run_record(**extra: object) -> dict[str, object]:
    """What ran, where and when: run, commit, versions, device, time. For build/ only: no two are alike."""
    import torch  # heavy, and nothing else here needs it

    cpu = f"{processor()}, {os.cpu_count()} cores"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu
    versions = {package.name: package.version for package in importlib.metadata.distributions()}
    machine = {"device": device, "platform": platform.platform()}
    made = {"run": run_name(), "commit": _commit(), "time": datetime.now(UTC).isoformat(timespec="seconds")}
    return made | machine | {"versions": versions | {"python": platform.python_version()}} | extra


def processor() -> str:
    """The name of this machine's processor, or its make where the system tells no name."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def save_record(stem: str, record: Mapping[str, object]) -> None:
    """Write `record` to `build/<run>/records/<stem>.json`."""
    files.write_json(build_dir() / "records" / f"{stem}.json", record)


class RunStore:
    """A long run's finished items, a file each, in a folder for what it was `made_by`: a killed run goes on.

    Each file begins with the hash of the rest; one that is broken is said in a line, and counts as not finished.
    """

    def __init__(self, path: Path, *, made_by: Mapping[str, object]) -> None:
        self.folder = Path(path) / files.record_hash(made_by)[:16]
        files.write_json(self.folder / "made_by.json", made_by)

    def has(self, key: str) -> bool:
        """Whether the item `key` is finished, and whole."""
        return files.kept(self._path(key)) is not None

    def put(self, key: str, frame: pd.DataFrame) -> None:
        """Keep `frame` as the finished item `key`."""
        _require_plain(frame, "item")
        files.keep(self._path(key), _encode(frame, ".parquet"))

    def once(self, key: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """The item `key`, made and kept where it is not finished."""
        if not self.has(key):
            self.put(key, make())
        return self.get(key)

    def get(self, key: str) -> pd.DataFrame:
        """The finished item `key`. Raises `FileNotFoundError` if it is not finished."""
        content = files.kept(self._path(key))
        if content is None:
            raise FileNotFoundError(f"{self._path(key)} is not finished, or no longer what was written")
        return _decode(content, ".parquet")

    def _path(self, key: str) -> Path:
        name = urllib.parse.quote(key, safe="")
        if not key or len(name) > 200:
            raise ValueError(f"an item's key names a file: 1 to 200 characters once quoted, not {key!r}")
        return self.folder / f"{name}.unit"


def _noted() -> Path:
    return build_dir() / "compared"


def _require_plain(frame: pd.DataFrame, stem: str) -> None:
    if not re.fullmatch(r"\w[\w-]*", stem):
        raise ValueError(f"a table's stem is a plain name of letters, digits, _ and -, not {stem!r}")
    if not frame.index.equals(pd.RangeIndex(len(frame))) or not frame.columns.is_unique:
        raise ValueError(f"table {stem!r} needs unique columns and a plain index: call reset_index() first")


def _encode(frame: pd.DataFrame, suffix: str) -> bytes:
    if suffix == ".csv":
        return frame.to_csv(index=False, float_format=SIGNIFICANT, lineterminator="\n").encode()
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False, compression="zstd")
    return buffer.getvalue()


def _decode(content: bytes, suffix: str) -> pd.DataFrame:
    if suffix == ".parquet":
        return pd.read_parquet(io.BytesIO(content))
    # Only the empty cell is missing: "NA" and "None" may be names.
    return pd.read_csv(io.BytesIO(content), keep_default_na=False, na_values=[""])


def _describes(path: Path, side: Mapping[str, object]) -> bool:
    """Whether the side file belongs to the bytes at `path` and to the parameters of `side`."""
    beside = path.with_suffix(".json")
    standing = json.loads(beside.read_bytes()) if beside.exists() else {}
    same = standing.get("parameters") == json.loads(json.dumps(side.get("parameters")))
    return same and standing.get("table") == files.file_hash(path)


def _commit() -> str:
    """The commit of this clone, or "unknown" where it is no clone or git is not installed."""
    if not (files.root() / ".git").exists() or not shutil.which("git"):
        return "unknown"
    asked = subprocess.run(["git", "rev-parse", "HEAD"], cwd=files.root(), capture_output=True, text=True, check=False)
    return asked.stdout.strip() or "unknown"
