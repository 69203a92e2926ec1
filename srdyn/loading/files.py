"""The repository's place, files written whole or not at all, hashes of what files hold."""

import contextlib
import errno
import glob
import hashlib
import json
import logging
import os
import socket
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import filelock

from srdyn.loading import refusals

log = logging.getLogger(__name__)


def root() -> Path:
    """The repository. Raises `FileNotFoundError` if srdyn was installed without it."""
    path = Path(os.environ.get("SRDYN_ROOT") or Path(__file__).parents[2]).resolve()
    if not (path / "data").is_dir():
        advice = "Install it with `pip install -e .` from a clone, or set SRDYN_ROOT to the clone"
        raise FileNotFoundError(f"{path} has no data/: srdyn needs its repository. {advice}")
    return path


def data_dir() -> Path:
    """The committed data, the same for every run."""
    return root() / "data"


def write_bytes(path: Path, content: bytes) -> None:
    """Put `content` at `path` whole or not at all; a file that holds it is left alone. OSError tells of a full disk."""
    if path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    start = f".{path.name}.{socket.gethostname()}-"  # machines may share a folder, and numbers of processes
    for left in orphans(path.parent, start):
        left.unlink(missing_ok=True)
    partial = path.with_name(f"{start}{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(error.errno, f"no space left for {path}, which wants {len(content):,} bytes") from error
        raise
    finally:
        partial.unlink(missing_ok=True)


def orphans(folder: Path, start: str) -> Iterator[Path]:
    """What lies in a folder under a name of this start, the number of a process that is gone, and `-…`."""
    for path in folder.glob(f"{glob.escape(start)}*-*"):
        number = path.name.removeprefix(start).partition("-")[0]
        try:
            os.kill(int(number), 0)
        except ProcessLookupError:
            yield path
        except (ValueError, OverflowError, PermissionError):
            continue  # none of ours; somebody else's


def keep(path: Path, content: bytes) -> None:
    """`write_bytes` with the hash of the content in front of it, for `kept`."""
    write_bytes(path, hashlib.sha256(content).digest() + content)


def kept(path: Path) -> bytes | None:
    """What `keep` wrote there; None where nothing is, or where it is broken, which is logged."""
    try:
        found = path.read_bytes()
    except FileNotFoundError:
        return None
    size = hashlib.sha256().digest_size
    if hashlib.sha256(found[size:]).digest() == found[:size]:
        return found[size:]
    log.warning("%s is broken and made again", path)
    return None


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """While this is open, no other process of this machine has the same lock; who comes second waits, and says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        log.warning("another process is at work behind %s: waiting for it", path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def write_json(path: Path, record: Mapping[str, object]) -> None:
    """`write_bytes` of `record` as JSON that diffs well."""
    write_bytes(path, (json.dumps(record, indent=2, sort_keys=True) + "\n").encode())


def read_json(path: Path) -> dict:
    """The object that a file of JSON holds. Raises ValueError where it holds none, OSError where it is no file."""
    require_regular(path)
    with refusals.within(f"{path} is no JSON"):
        found = json.loads(path.read_bytes())
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a JSON object, not a {type(found).__name__}")
    return found


def require_regular(path: Path) -> None:
    """Raises OSError for what is no file, such as a pipe or a device, which may never end."""
    if not path.is_file():
        what = "no regular file, and what is none may never end" if os.path.lexists(path) else "not there"
        raise OSError(f"{path} is {what}: give a file")


def content_hash(*paths: Path | str) -> str:
    """SHA-256 over the files, and over the files in the folders, with their names. Times and places do not matter."""
    digest = hashlib.sha256()
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"cannot hash {path}: there is no such file or folder")
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            require_regular(file)
            name = file.relative_to(path.parent).as_posix()
            if "__pycache__" not in name and not name.endswith(".tmp"):
                digest.update(f"{file_hash(file)} {name}\n".encode())
    return digest.hexdigest()


def record_hash(record: object) -> str:
    """SHA-256 of what JSON can say, whatever the order of its names."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of what a file holds."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
