"""What runs and code write into README and pages: the verdicts, a word each; the layers that srdyn knows.

`python -m srdyn.study.claims.readme` writes what the committed tables say.
"""

import os
from collections.abc import Callable

import numpy as np
import pandas as pd

from srdyn.loading import files, markdown
from srdyn.study.claims import claims, registration
from srdyn.study.run import store

_ONE = "one seed: "
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
    single = _single(book.set_index("kind")["verdict"])
    heads = [f"{kind} (one seed)" if kind in single else kind or "verdict" for kind in kinds]
    table = markdown.table(["claim", "paper", *heads], rows)
    return f"{table}\n\n○ a null model passes. Grades of the paper's claims: {grades}.\n"


def headline() -> str:
    """In a sentence which claims have which verdict in every kind of model but controls, by both registrations.

    In another, what the later rules say of the main pair, once that is measured.
    """
    books = [_studied(claims.ledger(registered=which)) for which in (registration.FIRST, registration.SECOND)]
    first, second = (book[~book["kind"].map(claims.is_main)] for book in books)
    given, again = (book["word"].groupby(book["claim"]).agg(set).to_dict() for book in (first, second))
    passed = first["verdict"].str.contains("null pass").groupby(first["claim"]).all()
    told = {
        "reproduced": [],
        "not reproduced": [],
        "not reproduced by the first rules, open by the second": [],
        "open, or not alike in both kinds of model": [],
    }
    alike, by_first, by_second, otherwise = told.values()
    for claim in registration.load().claims:
        found, seconds = given.get(claim.id, set()), again.get(claim.id, set())
        if found == {"reproduced"} and seconds <= found:
            alike.append(f"{claim.id}{' ○' * int(passed[claim.id])}")
        elif found == {"not reproduced"}:
            (by_first if seconds <= found else by_second).append(claim.id)
        else:
            otherwise.append(claim.id)
    counts = "; ".join(f"{what} {len(names)} ({', '.join(names)})" for what, names in told.items() if names)
    counts = f"**Of {len(registration.load().claims)} claims: {counts}.**"
    return f"{counts} ○ Random writes or an untrained model pass, too.{_of_main(pd.concat(books))}\n"


def _of_main(books: pd.DataFrame) -> str:
    """Which claims pass, fail or stay open in the main pair; of two rows of a claim and kind the last decides."""
    main = books[books["kind"].map(claims.is_main)].drop_duplicates(["claim", "kind"], keep="last")
    if main.empty:
        return ""
    words = main["word"].str.split(": ").str[-1].groupby(main["claim"]).agg(set)
    words = words.reindex(claim.id for claim in registration.load().claims if claim.id in words)
    told = {"pass": words == {"passes"}, "fail": words == {"fails"}}
    told["open, or not alike in both"] = ~(told["pass"] | told["fail"])
    null = main["verdict"].str.contains("null passes too").groupby(main["claim"]).all()
    names = words.index + np.where(null[words.index], " ○", "")
    counts = "; ".join(f"{of.sum()} {what} ({', '.join(names[of])})" for what, of in told.items() if of.any())
    seeds = ", of one seed" if _single(main.set_index("kind")["verdict"]) == {*main["kind"]} else ""
    return f" In the main pair, larger{seeds}, by the later rules where there are such: {counts}."


def _studied(book: pd.DataFrame) -> pd.DataFrame:
    """A ledger without its controls, and the bare `word` of each verdict."""
    return book[~book["kind"].isin(claims.CONTROLS)].assign(
        word=lambda x: x["verdict"].str.split(" (", regex=False).str[0]
    )


def families() -> str:
    """`architectures.supported()` in Markdown, a line a recipe, with the speeds that `make bench` has measured."""
    from srdyn import architectures  # heavy, and verdicts do not need it

    table, rows = architectures.supported(), []
    table["mixer"] = table["mixer"].str.rsplit(".", n=1).str[-1]
    speeds, note = _speeds()
    others = [name for name in table if name != "mixer"]
    for cells, part in table.groupby(others, sort=False):
        measured = speeds.reindex(part["mixer"]).dropna()
        ends = dict.fromkeys(f"{float(f'{end:.2g}'):,.0f}" for end in (measured.min(), measured.max()) if len(measured))
        row = dict(zip(others, cells, strict=True)) | {"mixer": ", ".join(part["mixer"])}
        row["speed"] = "–".join(ends) or "not measured"  # the least and the most, to two digits
        rows.append([row[name] for name in _HEADS])
    return markdown.table([*_HEADS.values()], rows) + "\n" + note


def _speeds() -> tuple[pd.Series, str]:
    """Tokens per second by class of layer, and how they were measured."""
    table = store.load_table(_SPEEDS, run=store.REFERENCE)
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
    """The verdicts without numbers; of a kind of one seed alone its head says that."""
    words = book["verdict"].str.replace(r" \(null pass.*", " ○", regex=True)
    return words.mask(book.index.get_level_values("kind").isin(_single(words)), words.str.removeprefix(_ONE))


def _single(verdicts: pd.Series) -> set[str]:
    """The kinds (first level of the index) of which every verdict that was tested is of one seed."""
    tested = verdicts[~verdicts.str.startswith("not testable")]
    alone = tested.str.startswith(_ONE).groupby(level="kind").all()
    return {*alone.index[alone]}


if __name__ == "__main__":
    os.environ.setdefault("SRDYN_RUN", store.REFERENCE)
    publish()
