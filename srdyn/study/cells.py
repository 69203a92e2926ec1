"""Cells of a notebook, run in this process for the tables that they keep, with some of their names given."""

import ast
import json
import types
from collections.abc import Callable, Collection, Iterator, Mapping

import pandas as pd

from srdyn.loading import files
from srdyn.study.claims import claims, registration
from srdyn.study.run import parameters, store

Fresh = Iterator[tuple[str, str, Callable[[], pd.DataFrame]]]
"""Tables, columns whose values say which of their rows are computed again (none: all of them), what computes these."""
_NAMES = "claim measure model source"


class _Unseen:
    """In the place of what draws and shows: whatever is asked of it does nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *given, **options: None

    def __call__(self, *given: object, **options: object) -> None:
        pass


class _Run:
    """In the place of `notebook.Run`: tables, and what is measured for claims, are held until they are taken."""

    def __init__(self, stem: str) -> None:
        self.stem, self.held = stem, []

    def table(self, name: str, frame: pd.DataFrame) -> pd.DataFrame:
        self.held.append((f"{self.stem}_{name}".removesuffix("_"), frame))
        return frame

    def claim(self, claim_id: str, *measured: pd.DataFrame, registered: str = registration.FIRST) -> pd.DataFrame:
        rows = pd.concat([frame.assign(source=frame.get("source", "model")) for frame in measured], ignore_index=True)
        second = "" if registered == registration.FIRST else f"_{registered}"
        return self.table(f"claims{second}", claims.told_apart(rows).assign(claim=claim_id, outcome=""))

    def figure(self, name: str, figure: object) -> None:
        """Nothing is drawn."""

    def verdicts(self) -> None:
        """They need all models."""


def kept(stem: str, *, of: str = "", tags: Collection[str] = (), by: str = _NAMES, **given: object) -> Fresh:
    """The tables of the cells that bear one of the tags, by default of all cells after that of the run.

    That of the run, which calls `notebook.Run`, comes before them. They are run in their order, with the reference
    run's parameters; what would be assigned to names that are `given` is passed over. `of` is put before the names of
    the tables, and `by` are the columns that tell which of their rows are made. Raises ValueError for a tag that no
    cell bears.
    """
    content = json.loads((files.root() / "notebooks" / f"{stem}.ipynb").read_text(encoding="utf-8"))
    written = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    cells = [ast.parse("".join(cell["source"])).body for cell in written]
    borne = [cell["metadata"].get("tags", []) for cell in written]
    if unknown := set(tags).difference(*borne):
        raise ValueError(f"no cell of {stem} bears the tag {' or '.join(sorted(unknown))}")
    opening = next(i for i, cell in enumerate(cells) if "notebook.Run(" in ast.unparse(cell))
    asked = [i for i in range(opening + 1, len(cells)) if not tags or set(tags) & set(borne[i])]
    imports = [line for cell in cells for line in cell if isinstance(line, ast.Import | ast.ImportFrom)]
    run, space = _Run(of + stem), parameters.of_run([stem], store.REFERENCE, {})[stem]
    exec(compile(ast.Module(imports, []), stem, "exec"), space)
    opened = types.SimpleNamespace(Run=lambda stem, **parameters: run)
    space |= {"notebook": opened, "figures": _Unseen(), "display": _Unseen()} | given
    for i in [opening, *asked]:
        lines = [line for line in cells[i] if line not in imports and not _is_given(line, given)]
        exec(compile(ast.Module(lines, []), stem, "exec"), space)
        for table, frame in run.held:
            if not any(frame is other for other in given.values()):
                yield table, " ".join(name for name in by.split() if name in frame), frame.copy
        run.held.clear()


def _is_given(line: ast.stmt, given: Mapping[str, object]) -> bool:
    """Whether a line assigns to nothing but names that are given."""
    if not isinstance(line, ast.Assign | ast.AugAssign):
        return False
    targets = line.targets if isinstance(line, ast.Assign) else [line.target]
    names = {node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)}
    return names <= given.keys()
