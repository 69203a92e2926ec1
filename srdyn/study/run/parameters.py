"""What a notebook would run with: its parameters cell, a preset over it, single values over that."""

import ast
import json
from collections.abc import Sequence

import yaml

from srdyn.loading import files


def of_run(stem: str, preset: str, overrides: Sequence[str] = ()) -> dict[str, object]:
    """The parameters of the notebook `stem` under a preset of notebooks/presets and overrides `key=value` (YAML).

    As in `make reproduce PRESET=… P="…"`, what a preset says of other notebooks is passed over. Raises ValueError for a
    preset that is not there, and for an override that is not of this form or that the notebook has no parameter for.
    """
    folder = files.root() / "notebooks"
    known = _of_notebook(json.loads((folder / f"{stem}.ipynb").read_text(encoding="utf-8")))
    path = folder / "presets" / f"{preset}.yaml"
    if not path.is_file():
        there = sorted(other.stem for other in path.parent.glob("*.yaml"))
        raise ValueError(f"there is no preset {preset!r} in {path.parent}; there are {', '.join(there)}")
    chosen = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    given = dict(_override(text) for text in overrides)
    if strange := given.keys() - known.keys():
        raise ValueError(f"{stem} has no parameter {', '.join(sorted(strange))}; it has {', '.join(known)}")
    return {name: given.get(name, chosen.get(name, value)) for name, value in known.items()}


def _of_notebook(notebook: dict) -> dict[str, object]:
    [cell] = [cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", [])]
    return {line.targets[0].id: ast.literal_eval(line.value) for line in ast.parse("".join(cell["source"])).body}


def _override(text: str) -> tuple[str, object]:
    name, sign, value = text.partition("=")
    if not sign or not name.isidentifier():
        raise ValueError(f"a parameter is given as name=value, not {text!r}")
    value = yaml.safe_load(value)
    return name, _real(value) if isinstance(value, str) else value


def _real(text: str) -> float | str:
    """The number where it is one: YAML takes 1e-3 for a string."""
    try:
        return float(text)
    except ValueError:
        return text
