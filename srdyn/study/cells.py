"""Cells of a notebook, run in this process for the tables that they keep."""

import ast
import json
from unittest import mock

import pandas as pd

from srdyn.loading import files
from srdyn.study import derived
from srdyn.study.claims import registration
from srdyn.study.run import parameters, store

_NAMES = ("claim", "measure", "model", "source")


class _Run:
    """In the place of `notebook.Run`: tables, and what was measured for claims, are held until they are taken."""

    def __init__(self, stem: str) -> None:
        self.stem, self.held = stem, []

    def table(self, name: str, frame: pd.DataFrame) -> pd.DataFrame:
        self.held.append((f"{self.stem}_{name}", frame))
        return frame

    def claim(self, claim_id: str, *measured: pd.DataFrame, registered: str = registration.FIRST) -> pd.DataFrame:
        rows = pd.concat([frame.assign(source=frame.get("source", "model")) for frame in measured], ignore_index=True)
        second = "" if registered == registration.FIRST else f"_{registered}"
        return self.table(f"claims{second}", rows.assign(claim=claim_id))

    def figure(self, name: str, figure: object) -> None:
        """Nothing is drawn."""

    def verdicts(self) -> None:
        """They need all models."""


def kept(stem: str, *, until: str = "", **names: object) -> derived.Fresh:
    """The tables that a notebook's cells keep, from the one that opens its run to one that says `until`.

    `names` are what the opening and the cells before it make; parameters are the reference run's. The columns that come
    with each table say which of its rows these are: all those of one model, say.
    """
    content = json.loads((files.root() / "notebooks" / f"{stem}.ipynb").read_text(encoding="utf-8"))
    sources = ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]
    nodes = ast.walk(ast.parse("\n".join(sources)))
    imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    run, space = _Run(stem), parameters.of_run([stem], store.REFERENCE, {})[stem]
    exec(compile(ast.Module(imports, []), stem, "exec"), space)
    space |= {"run": run, "figures": mock.Mock(), "display": lambda *shown: None} | names
    opening = next(i for i, source in enumerate(sources) if "notebook.Run(" in source)
    for source in sources[opening + 1 :]:
        if until and until in source:
            return
        if "run." in source:
            exec(compile(source, stem, "exec"), space)
        for table, frame in run.held:
            yield table, " ".join(name for name in _NAMES if name in frame), frame.copy
        run.held.clear()
