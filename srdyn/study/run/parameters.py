"""What a notebook runs with: presets/reference.yaml, a preset over it, single values over that.

What stands in a notebook's own parameters cell is for the person at the keyboard and decides nothing here.
"""

import ast
import json
import re
from collections.abc import Mapping, Sequence

from srdyn.loading import files, presets
from srdyn.study.run import store

QUICK = "quick"
"""The parameter that makes a first look of an interactive run: true in the cells, false in every other run."""


def of_run(stems: Sequence[str], preset: str, overrides: Mapping[str, object]) -> dict[str, dict[str, object]]:
    """The parameters of every notebook of a run, by its stem; what a preset says of other notebooks is passed over.

    What a preset says under the stem of a notebook is for that one alone.
    Raises ValueError for a notebook or preset that is not there, for a parameter that no notebook has, for a value of
    another kind than the reference run's, and for an override that none of these notebooks has.
    """
    reference = presets.read(store.REFERENCE)
    if strange := [stem for stem in stems if stem not in reference]:
        raise ValueError(f"there is no notebook {', '.join(strange)}; there are {', '.join(reference)}")
    chosen = {} if preset == store.REFERENCE else presets.read(preset)
    own, where = {stem: chosen.pop(stem) for stem in reference if stem in chosen}, f"preset {preset}"
    _require_known(chosen, reference, where)
    for stem, given in own.items():
        if not isinstance(given, dict):
            raise ValueError(f"{where}: {stem} must map names of parameters to values, not be {given!r:.60}")
        _require_known(given, {stem: reference[stem]}, where)
    _require_known(overrides, {stem: reference[stem] for stem in stems}, "parameters given")
    over = {stem: presets.over(reference[stem], chosen | own.get(stem, {}), where) for stem in stems}
    return {stem: presets.over(over[stem], overrides, "parameters given") for stem in stems}


def parsed(text: str) -> dict[str, object]:
    """The overrides in `name=value name=value …`, values in YAML, in which spaces may stand in quotes and brackets."""
    given, left = {}, re.split(r"(\s+)(?=[A-Za-z_]\w*=)", text.strip())
    while left and left != [""]:
        name, sign, value = left.pop(0).partition("=")
        if not sign or not name.isidentifier():
            raise ValueError(f"a parameter is given as name=value, not {name!r}")
        given[name] = _value(name, value, left)
        del left[:1]
    return given


def departures() -> list[str]:
    """Where parameters cells and presets/reference.yaml differ, in words, but for `QUICK`; empty where nowhere."""
    reference, faults = presets.read(store.REFERENCE), []
    for path in sorted((files.root() / "notebooks").glob("[0-9]*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        [given] = [cell["source"] for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
        cell = {line.targets[0].id: ast.literal_eval(line.value) for line in ast.parse("".join(given)).body}
        ours = reference.pop(path.stem, {})
        cell |= {QUICK: False} if QUICK in cell else {}
        for name in cell | ours:
            here, there = (json.dumps(values.get(name, "missing")) for values in (cell, ours))
            faults += [f"{path.stem}: {name} is {here}, in reference.yaml {there}"] if here != there else []
    return faults + [f"{stem} stands in reference.yaml, but is no notebook" for stem in reference]


def _value(name: str, text: str, left: list[str]) -> object:
    """The value that begins with `text`; what follows an open quote or bracket is taken from `left`."""
    while True:
        try:
            return presets.value(text, f"{name}={text:.60}")
        except ValueError:
            if not left:
                raise
            text += left.pop(0) + left.pop(0)


def _require_known(given: Mapping[str, object], notebooks: Mapping[str, Mapping[str, object]], where: str) -> None:
    known = dict.fromkeys(name for parameters in notebooks.values() for name in parameters)
    if strange := [name for name in given if name not in known]:
        which = f"{', '.join(notebooks)} has no" if len(notebooks) < 4 else "no notebook has a"
        raise ValueError(f"{where}: {which} parameter {', '.join(strange)}; there are {', '.join(known)}")


if __name__ == "__main__":
    raise SystemExit("\n".join(departures()) or None)
