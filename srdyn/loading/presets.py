"""Parameters in YAML: the files of notebooks/presets, checked against what the parameters are by default."""

import math
import re
from collections.abc import Mapping
from pathlib import Path

import yaml

from srdyn.loading import files, refusals

_MOST = 100_000  # values that a file may hold, those that it repeats by name each time: few lines can name billions


class Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number."""


_REAL = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
Loader.add_implicit_resolver("tag:yaml.org,2002:float", _REAL, [*"-+.0123456789"])


def path(name: str) -> Path | None:
    """The file of a preset; None where there is none, or where the name is no plain one."""
    found = files.root() / "notebooks" / "presets" / f"{name}.yaml"
    return found if re.fullmatch(r"\w[\w.-]*", name) and found.is_file() else None


def read(name: str) -> dict:
    """What a preset says, but for names with a dot in front. Raises ValueError where it is not there or no mapping."""
    found = path(name)
    if found is None:
        there = ", ".join(sorted(other.stem for other in (files.root() / "notebooks" / "presets").glob("*.yaml")))
        raise ValueError(f"there is no preset {name!r} in notebooks/presets; there are {there}")
    content = value(found.read_bytes(), f"preset {name}")
    content = {} if content is None else content
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ValueError(f"preset {name}: it must map names of parameters to values, not be {content!r:.60}")
    return {key: given for key, given in content.items() if not key.startswith(".")}


def value(text: str | bytes, where: str, *, loader: type = Loader) -> object:
    """The value that YAML holds. Raises ValueError where it is none, or holds itself or more than a person wrote."""
    with refusals.within(f"{where} is no YAML"):
        found = yaml.load(text, loader)
    left, seen = [found], 0
    while left:
        item = left.pop()
        seen += 1
        left += [*item, *item.values()] if isinstance(item, dict) else item if isinstance(item, list) else []
        if seen > _MOST:
            raise ValueError(f"{where} holds more than {_MOST:,} values, or itself: write out what is meant")
    return found


def over(defaults: Mapping[str, object], given: Mapping[str, object], where: str) -> dict[str, object]:
    """The defaults with what is given over them. Raises ValueError for a value of another kind than its default."""
    for name in defaults.keys() & given.keys():
        if not _alike(given[name], defaults[name]):
            wanted = f"{type(defaults[name]).__name__} such as {defaults[name]!r:.60}"
            raise ValueError(f"{where}: {name} must be a {wanted}, not {given[name]!r:.60}")
    return {name: given.get(name, default) for name, default in defaults.items()}


def _alike(given: object, default: object) -> bool:
    if isinstance(default, list):
        kinds = {type(item) for item in default}
        return isinstance(given, list) and (not kinds or all(any(_alike(x, y) for y in default) for x in given))
    if isinstance(default, float):
        return type(given) in (int, float) and math.isfinite(given)
    return type(given) is type(default)
