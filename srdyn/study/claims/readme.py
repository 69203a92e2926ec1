"""What the README shows that code and runs write: the figures with their captions, the layers that srdyn knows."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from srdyn import architectures
from srdyn.loading import files, markdown
from srdyn.study.claims import claims
from srdyn.study.run import store

_SPEEDS = "07_cost_families"
"""The table that `make bench` writes of every family."""
_HEADS = {
    "model_types": "models",
    "mixer": "layers",
    "gating": "decay",
    "slicing": "what can be removed",
    "state": "state",
    "speed": "tokens/s on a CPU",
}


def gallery() -> str:
    """The figures of the run at work in Markdown, two in a row, with their notebooks' headings and verdicts."""
    book, cells = claims.ledger(), []
    for path in sorted((files.root() / "notebooks").glob("[0-9]*.ipynb")):
        stem, title = path.stem, _title(path)
        if (store.figure_dir() / f"{stem}.png").exists():
            caption = _sentence(book[(book["notebook"] == stem) & ~book["kind"].isin(["", *claims.CONTROLS])])
            cells.append(f"![{title}](figures/{stem}.png)<br>[{title}](notebooks/{stem}.ipynb) {caption}")
    cells += [""] * (len(cells) % 2)
    return markdown.table(["", ""], [*zip(cells[::2], cells[1::2], strict=True)]) + "\n"


def families() -> str:
    """`architectures.supported()` in Markdown, a line a recipe, with speeds once `make bench` has measured them."""
    table, rows = architectures.supported(), []
    table["mixer"] = table["mixer"].str.rsplit(".", n=1).str[-1]
    speeds, note = _speeds()
    heads = [name for name in _HEADS if note or name != "speed"]
    others = [name for name in table if name != "mixer"]
    for cells, part in table.groupby(others, sort=False):
        measured = speeds.reindex(part["mixer"]).dropna()
        ends = dict.fromkeys(f"{float(f'{end:.2g}'):,.0f}" for end in (measured.min(), measured.max()) if len(measured))
        row = dict(zip(others, cells, strict=True)) | {"mixer": ", ".join(part["mixer"])}
        row["speed"] = "–".join(ends) or "not measured"  # the least and the most, to two digits
        rows.append([row[name] for name in heads])
    return markdown.table([_HEADS[name] for name in heads], rows) + "\n" + note


def _speeds() -> tuple[pd.Series, str]:
    """Tokens per second by class of layer, and how they were measured; nothing before `make bench` has run."""
    try:
        table = store.load_table(_SPEEDS, run=store.REFERENCE)
    except FileNotFoundError:
        return pd.Series(dtype=float), ""
    side = (store.table_dir(store.REFERENCE) / f"{_SPEEDS}.json").read_text(encoding="utf-8")
    machine, tokens = json.loads(side)["machine"], table["tokens"].iloc[0]
    note = (
        f"\ntokens/s: one sequence of {tokens} through one layer alone, of the size that its configuration has by "
        f"default, in float32 ({machine['processor']}, {machine['threads']} threads; `make bench` measures yours).\n"
    )
    return table.groupby("layer")["per_second"].first(), note


def page(text: str) -> str:
    """`text`, the README, with the scorecard, `gallery` and `families` of the run at work between their markers.

    A marker looks like `<!-- gallery:begin -->`. Raises ValueError where one is missing.
    """
    for name, block in (("scorecard", claims.scorecard()), ("gallery", gallery()), ("families", families())):
        text = markdown.replace_block(text, name, block)
    return text


def publish() -> None:
    """Write `scorecard.md` beside the figures of the run at work; the reference run also fills in the README."""
    files.write_bytes(store.figure_dir() / "scorecard.md", claims.scorecard().encode())
    if store.run_name() == store.REFERENCE:
        path = files.root() / "README.md"
        files.write_bytes(path, page(path.read_bytes().decode()).encode())


def _title(notebook: Path) -> str:
    """The heading of a notebook. Raises ValueError where the first cell begins with none."""
    first = json.loads(notebook.read_text(encoding="utf-8"))["cells"][0]["source"][0].strip()
    if not first.startswith("# "):
        raise ValueError(f"{notebook} begins with {first!r}, not with a heading")
    return first.removeprefix("# ")


def _sentence(decided: pd.DataFrame) -> str:
    """`C8: not reproduced in hybrid, inconclusive in pure; ….` for these lines of the ledger."""
    found = []
    for claim, rows in decided.groupby("claim", sort=False):
        plain = rows["verdict"].str.split(" (null", regex=False).str[0]
        kinds = rows["kind"].groupby(plain, sort=False).agg(" and ".join)
        found.append(f"{claim}: " + ", ".join(f"{verdict} in {names}" for verdict, names in kinds.items()))
    return "; ".join(found) + "." if found else ""
