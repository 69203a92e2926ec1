"""What runs and code write into README and pages: the verdicts, a word each; the layers that srdyn knows.

`python -m srdyn.study.claims.readme` writes what the committed tables say.
"""

import os
from collections.abc import Callable

import pandas as pd

from srdyn.loading import files, markdown
from srdyn.study.claims import claims, registration
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


def verdicts() -> str:
    """Every claim in Markdown: its place in the paper, then one word a kind of model but for the controls.

    The claim links to the notebook that decides it. `○` marks a verdict where a null model passes. Where the claim was
    measured by the second registration too, what that says stands below.
    """
    book, second = claims.ledger(), claims.ledger(registered=registration.SECOND)
    kinds = [kind for kind in book["kind"].unique() if kind and kind not in claims.CONTROLS] or [""]
    cells, rows = claims.by_kind(_words, book, second, kinds), []
    for claim in registration.load().claims:
        name = f"[{claim.id}](notebooks/{claim.notebook}.ipynb) {claim.statement}"
        rows.append([name, f"{claim.place} ({claim.grade})", *cells[claim.id]])
    grades = " · ".join(f"{grade} {meaning}" for grade, meaning in registration.GRADES.items())
    table = markdown.table(["claim", "paper", *(kind or "verdict" for kind in kinds)], rows)
    return f"{table}\n\n○ a null model passes. Grades of the paper's claims: {grades}.\n"


def headline() -> str:
    """In one sentence how many claims have which verdict by the first rules, in every kind of model but controls."""
    book = claims.ledger()
    book = book[~book["kind"].isin(claims.CONTROLS)]
    by_claim = book["verdict"].str.split(" (", regex=False).str[0].groupby(book["claim"])
    same = by_claim.first()[by_claim.nunique() == 1]
    words = {"reproduced": "reproduced in every kind of model", "not reproduced": "in none"}
    counts = {words.get(verdict, verdict): int((same == verdict).sum()) for verdict in {**words, **same.value_counts()}}
    counts["not alike in all, or undecided in some"] = by_claim.ngroups - len(same)
    told = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    passed = book["verdict"].str.contains("null pass").groupby(book["claim"]).all()
    also = int(passed[same[same == "reproduced"].index].sum())
    nulls = f" Null models pass {also} of those reproduced, too." if also else ""
    return f"**Of {by_claim.ngroups} claims, by the rules fixed before the results: {told}.**{nulls}\n"


def families() -> str:
    """`architectures.supported()` in Markdown, a line a recipe, with speeds once `make bench` has measured them."""
    from srdyn import architectures  # heavy, and verdicts do not need it

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
    machine = files.read_json(store.table_dir(store.REFERENCE) / f"{_SPEEDS}.json")["machine"]
    tokens = table["tokens"].iloc[0]
    note = (
        f"\ntokens/s: one sequence of {tokens} through one layer alone, of the size that its configuration has by "
        f"default, in float32 ({machine['processor']}, {machine['threads']} threads; `make bench` measures yours).\n"
    )
    return table.groupby("layer")["per_second"].first(), note


def pages() -> dict[str, dict[str, Callable[[], str]]]:
    """The files with blocks that a run writes, from the root, and what writes each block."""
    return {
        "README.md": {"headline": headline, "scorecard": verdicts},
        "notebooks/site/families.md": {"families": families},
    }


def page(name: str, text: str) -> str:
    """`text` of one of `pages`, with its blocks for the run at work between their markers.

    A marker looks like `<!-- scorecard:begin -->`. Raises ValueError where one is missing.
    """
    for block, written in pages()[name].items():
        text = markdown.replace_block(text, block, written())
    return text


def scorecard() -> str:
    """What `scorecard.md` holds: the verdicts with all that they rest on."""
    return f"# Every measure behind the verdicts\n\n{claims.scorecard()}"


def publish() -> None:
    """Write `scorecard.md` beside the figures of the run at work; the reference run also fills in the `pages`."""
    files.write_bytes(store.figure_dir() / "scorecard.md", scorecard().encode())
    if store.run_name() == store.REFERENCE:
        for name in pages():
            path = files.root() / name
            files.write_bytes(path, page(name, path.read_bytes().decode()).encode())


def _words(book: pd.DataFrame) -> pd.Series:
    """The verdicts without numbers."""
    return book["verdict"].str.replace(r" \(null pass.*", " ○", regex=True)


if __name__ == "__main__":
    os.environ.setdefault("SRDYN_RUN", store.REFERENCE)
    publish()
