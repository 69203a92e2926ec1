"""The tables of the reference models' card, made from `evaluation.csv`."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from srdyn.loading import markdown

COLUMNS = (
    "model", "kind", "seed", "parameters", "tokens", "quantity", "texts", "of", "length", "value", "low", "high",
    "low_over_rows", "high_over_rows", "n", "unit", "target", "met", "extrapolated", "task_seed",
)  # fmt: skip
"""One row for every model, or baseline, and quantity. `texts` is the folder, below data/, of what was read. `low` …
`high` is the 95 % interval: Wilson's for a share of items, resampled over windows for bits per byte; `…_over_rows` is
resampled over the rows that items lie in."""
COUNTS = dict.fromkeys(("seed", "parameters", "tokens", "n"), "Int64")
_VERDICTS_FROM = 0.90
"""A task on which a model is below this is used for no verdict."""


def read(path: Path) -> pd.DataFrame:
    """An `evaluation.csv`. Raises ValueError where its columns are not `COLUMNS`."""
    rows = pd.read_csv(path, dtype=COUNTS)
    if list(rows.columns) != list(COLUMNS):
        raise ValueError(f"{path} has the columns {list(rows.columns)}, not {list(COLUMNS)}; write it anew")
    return rows


def fill(text: str, rows: pd.DataFrame) -> str:
    """`text` with everything measured between its markers `evaluation:begin` and `evaluation:end`."""
    parts = [_models(rows), *_text(rows), _tasks(rows), *_remarks(rows), _targets(rows)]
    return markdown.replace_block(text, "evaluation", "\n\n".join(parts))


def _models(rows: pd.DataFrame) -> str:
    trained = _trained(rows).drop_duplicates("model").itertuples()
    cells = [[x.model, x.kind, str(x.seed), f"{x.parameters:,}", f"{x.tokens:,}"] for x in trained]
    return markdown.table(["model", "kind", "seed", "parameters", "tokens seen"], cells)


def _text(rows: pd.DataFrame) -> Iterator[str]:
    """A table for models of data/corpus, one for those of the wide corpus, one of texts that these read as a whole."""
    text = rows[rows["quantity"] == "bits per byte"]
    text = text.assign(cell=[_bits(row) for _, row in text.iterrows()])
    whole, text = text[text["length"] > text["length"].min()], text[text["length"] == text["length"].min()]
    wide = text["texts"] != "contexts"
    yield f"Held-out bits per byte{_over(text[~wide])} in each domain:\n\n{_crossed(text[~wide], 'model', 'of')}"
    if wide.any():
        kinds = text["texts"].str.removeprefix("wide/") + ": " + text["of"]
        said = f"The same of the wide corpus{_over(text[wide])}, in its domains (held-out) and in other kinds (unseen):"
        yield f"{said}\n\n{_crossed(text[wide].assign(kind_of_text=kinds), 'kind_of_text', 'model')}"
    if len(whole):
        shown = pd.concat([whole, text[wide & (text["model"] == "xz -9") & text["of"].isin(whole["of"])]])
        counts, length = whole.drop_duplicates("of").set_index("of")["n"], whole["length"].iloc[0]
        shown = shown.assign(of=shown["of"] + shown["of"].map(counts).map(", n = {}".format))
        context = f"with {length // 2} to {length} tokens before each token"
        said = f"The other kinds as wholes of n documents, as xz reads them, {context}:"
        yield f"{said}\n\n{_crossed(shown, 'of', 'model')}"


def _over(text: pd.DataFrame) -> str:
    windows = " to ".join(dict.fromkeys(f"{text['n'].agg(end):g}" for end in ("min", "max")))
    return f", with 95 % intervals over {windows} windows of {text['length'].iloc[0]} tokens"


def _crossed(text: pd.DataFrame, down: str, across: str) -> str:
    """Cells by two columns, models before baselines, all else in order."""
    models = pd.concat([_trained(text), text])["model"].unique()
    cells = text.pivot(index=down, columns=across, values="cell").fillna("–")
    cells = cells.reindex(models, axis="index" if down == "model" else "columns")
    return markdown.table(["", *cells.columns], cells.reset_index().to_numpy().tolist())


def _tasks(rows: pd.DataFrame) -> str:
    tasks = rows[rows["quantity"] == "accuracy"]
    names = list(tasks["model"].unique())
    cells = []
    for (task, length), group in tasks.groupby(["of", "length"], sort=False):
        own = group.set_index("model")
        shares = [_share(own.loc[name]) for name in names]
        cells.append([task, str(length), ", ".join(sorted({str(n) for n in own["n"]})), *shares])
    caption = "Share of items that are right, in %, with 95 % intervals (Wilson):"
    return f"{caption}\n\n{markdown.table(['task', 'tokens', 'items', *names], cells)}"


def _remarks(rows: pd.DataFrame) -> Iterator[str]:
    tasks = rows[rows["quantity"] == "accuracy"]
    if tasks["extrapolated"].astype(bool).any():
        yield "\\* longer than any sequence that the model was trained on: extrapolation, used for no verdict."
    weak = tasks[tasks["value"] < _VERDICTS_FROM]
    told = [f"{row.of} at {row.length} tokens ({row.value:.1%})" for row in weak.itertuples()]
    by_model = pd.Series(told, weak.index, dtype=str).groupby(weak["model"], sort=False).agg(", ".join)
    below = "; ".join(f"{model}: {tasks}" for model, tasks in by_model.items()) or "no model on any task"
    yield f"Below {_VERDICTS_FROM:.0%} right, hence shown but used for no verdict: {below}."


def _targets(rows: pd.DataFrame) -> str:
    """Every target with what was reached; a miss says by how much."""
    cells = []
    for row in rows[rows["target"].notna()].itertuples():
        is_text = row.quantity == "bits per byte"
        number = "{:.3f}".format if is_text else "{:.1%}".format
        gap = f"{abs(row.value - row.target):.3f}" if is_text else f"{100 * abs(row.value - row.target):.1f} points"
        reached = "met" if row.met else f"missed by {gap}"
        wanted = ("< " if is_text else "≥ ") + number(row.target)
        of = row.of if row.texts == "contexts" else f"{row.texts.removeprefix('wide/')}: {row.of}"
        cells.append([row.model, f"{row.quantity}, {of}", wanted, number(row.value), reached])
    caption = "Targets (bits per byte: the best baseline of the domain):"
    return f"{caption}\n\n{markdown.table(['model', 'quantity', 'target', 'reached', ''], cells)}"


def _trained(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["kind"] != "baseline"]


def _bits(row: pd.Series) -> str:
    return f"{row['value']:.3f}" + ("" if pd.isna(row["low"]) else f" ({row['low']:.3f}–{row['high']:.3f})")


def _share(row: pd.Series) -> str:
    star = "\\*" if row["extrapolated"] else ""
    return f"{100 * row['value']:.1f}{star} ({100 * row['low']:.1f}–{100 * row['high']:.1f})"
