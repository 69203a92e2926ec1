"""Folders that appear whole or not at all, and take the place of nothing but what srdyn wrote."""

import contextlib
import errno
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from srdyn.loading import files

LIST = "srdyn_files.json"
"""Lies in a folder that may be replaced: the SHA-256 of each other file, as it was written."""


@contextlib.contextmanager
def replacing(folder: str | Path, *, mark: str | None = None, wanted: int = 0) -> Iterator[Path]:
    """Where to write a new folder, which takes the place of `folder` when the block ends; after an error nothing has.

    `folder` may be absent or empty, or hold what its `LIST` says and nothing else. With `mark`, for folders without a
    list, it must have a file of this name and no file of a name that the new one lacks. Raises FileExistsError
    otherwise, OSError without room for `wanted` bytes. After a kill the old folder is whole, if hidden until the next.
    """
    target = Path(folder).resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    _recover(target)
    if mark is None:
        _require_listed(target)  # before the long writing, and once more after it
    if shutil.disk_usage(target.parent).free < wanted:
        raise OSError(errno.ENOSPC, f"no space left for {target}, which wants {wanted:,} bytes")
    new = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp"), "new")
    former = new.with_name("former")
    try:
        yield new
        if mark is None:
            hashes = {name: _hash(new / name) for name in _files(new)}
            (new / LIST).write_text(json.dumps(hashes, indent=2) + "\n")
            _require_listed(target)
        else:
            there, names = _files(target), {Path(name).name for name in _files(new)}
            _require_none(target, [name for name in there if mark not in there or Path(name).name not in names])
        if target.exists():
            target.rename(former)
        new.rename(target)
    finally:
        _recover(target)


def _recover(target: Path) -> None:
    """Bring back a folder that was moved away when nothing took its place, and remove what calls left beside it."""
    ours = re.compile(rf"\.{re.escape(target.name)}\.\w{{8}}\.tmp")
    for partial in [path for path in target.parent.iterdir() if ours.fullmatch(path.name)]:
        former = partial / "former"
        if former.exists():
            # Not removed under its name: half of it must never come back.
            former.rename(partial / "gone" if target.exists() else target)
        shutil.rmtree(partial)


def _require_listed(target: Path) -> None:
    try:
        known = files.read_json(target / LIST)
    except (ValueError, OSError):
        known = {}  # then nothing there is known, and all of it stays
    names = [name for name in _files(target) if name != LIST]
    _require_none(target, [name for name in names if _hash(target / name) != known.get(name, "")])


def _require_none(target: Path, strange: list[str]) -> None:
    if strange:
        named = ", ".join(strange[:3]) + (f" and {len(strange) - 3} more" if len(strange) > 3 else "")
        advice = "It stays as it is: give another folder, or move this one away"
        raise FileExistsError(f"{target} holds what was not written here, or was changed since: {named}. {advice}")


def _files(folder: Path) -> list[str]:
    """All that is in the folder but folders; `.` for a file in its place."""
    if folder.exists() and not folder.is_dir():
        return ["."]
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _hash(path: Path) -> str | None:
    """What the file holds; None for a link, or for no file."""
    return files.file_hash(path) if path.is_file() and not path.is_symlink() else None
