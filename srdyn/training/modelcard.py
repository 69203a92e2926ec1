"""Measures the reference models for the card that stands beside them: `python -m srdyn.training.modelcard`."""

import argparse
import json
import logging
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float64
from tqdm.auto import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from srdyn import contexts, evals, models
from srdyn.kernels import denormals
from srdyn.loading import files
from srdyn.study.analysis import intervals
from srdyn.study.run import store, workers
from srdyn.text import episodes
from srdyn.training import baselines, card_tables, recipes

_PART = "evaluation"
_BITS = "bits per byte"
_TEXT_LENGTH = 512
_SEED = 0  # of the tasks' draws
_ARITHMETIC = {"chain": 0.95, "sum": 0.95}
_TARGETS = {
    "hybrid": {"needle": 0.98, "recall8": 0.98, **_ARITHMETIC},
    "pure": {"needle": 0.95, "recall8": 0.90, **_ARITHMETIC},
}
"""Share of items a kind of model should get right at `_TEXT_LENGTH` tokens; its text should be below every baseline."""


class Plan(NamedTuple):
    """How much is measured: items of each task at each length, windows of text in each domain."""

    items: dict[tuple[str, int], int]
    windows: int | None


_PLAN = Plan(
    items={(task, _TEXT_LENGTH): 400 for task in evals.TASKS if task not in episodes.NEEDLES_AT}
    | {("needle4", 2048): 200, ("recall8", 2048): 400},
    windows=48,
)


def folders(root: Path) -> list[Path]:
    """The models in `root`: folders that training wrote. Raises `FileNotFoundError` where there is none."""
    found = sorted(path.parent for path in root.glob("*/training.json") if (path.parent / "config.json").exists())
    if not found:
        raise FileNotFoundError(f"{root} holds no trained model; `python -m srdyn.training.train` makes one")
    return found


def baseline_rows(tokenizer: PreTrainedTokenizerBase, *, plan: Plan = _PLAN) -> pd.DataFrame:
    """Bits per byte of the baselines in each domain: n-gram models on the bytes of the models' windows, xz on all."""
    names, rows = contexts.domains(), []
    everything = baselines.KneserNey(baselines.training_bytes(names))
    for name in names:
        chosen = _windows(name, tokenizer, plan)
        alone = baselines.KneserNey(baselines.training_bytes([name]))
        for which, ngrams in (("all domains", everything), ("that domain alone", alone)):
            found = _text_row(name, chosen, _ngram_bits(ngrams, name, chosen))
            rows.append(found | {"model": f"{baselines.ORDER}-gram, {which}"})
        rows.append({"model": "xz -9", "of": name, "value": baselines.xz_bits_per_byte(name, part=_PART)})
    return pd.DataFrame(rows).assign(kind="baseline", quantity=_BITS, length=_TEXT_LENGTH)


@denormals.flushed()
def model_rows(folder: Path, *, plan: Plan = _PLAN, device: str = "auto") -> pd.DataFrame:
    """Bits per byte in each domain and accuracy on each task of one model, without targets."""
    model = models.load(folder, device=device)
    training = json.loads((folder / "training.json").read_text())
    curriculum = recipes.TIERS[training["settings"].get("tier", "small")].curriculum
    about = {"model": folder.name, "parameters": model.hf.num_parameters()}
    about |= {name: training["settings"][name] for name in ("kind", "seed")}
    about["tokens"] = training["step"] * curriculum.tokens_per_batch
    longest = curriculum.longest(about["tokens"])
    windows = {name: _windows(name, model.tokenizer, plan) for name in contexts.domains()}
    text = [_text_row(name, chosen, evals.window_bits(model, chosen.tokens)) for name, chosen in windows.items()]
    rows = pd.DataFrame([*text, *_task_rows(model, plan)])
    return rows.assign(**about, extrapolated=rows["length"] > longest)


def with_targets(rows: pd.DataFrame) -> pd.DataFrame:
    """Add the target of each row that has one, and whether it is met: accuracy from it on, text below it."""
    best = dict(rows[rows["kind"] == "baseline"].groupby("of")["value"].min())
    by_kind = {kind: best | shares for kind, shares in _TARGETS.items()}
    targets = [by_kind.get(kind, {}).get(of) for kind, of in zip(rows["kind"], rows["of"], strict=True)]
    rows = rows.assign(target=pd.Series(targets, rows.index, float).where(rows["length"] == _TEXT_LENGTH))
    below, is_text = rows["value"] < rows["target"], rows["quantity"] == _BITS
    return rows.assign(met=(below == is_text).astype(object).where(rows["target"].notna(), None))


def measure(root: Path, *, plan: Plan = _PLAN) -> pd.DataFrame:
    """One row for every model, or baseline, and quantity; models are measured side by side, one a core."""
    found = folders(root)
    tokenizer = AutoTokenizer.from_pretrained(found[0])
    measured = workers.deal(partial(model_rows, plan=plan), [(folder,) for folder in found])
    tables = [baseline_rows(tokenizer, plan=plan), *tqdm(measured, total=len(found), desc="models")]
    rows = with_targets(pd.concat(tables, ignore_index=True).assign(task_seed=_SEED))
    rows = rows.assign(unit=rows["quantity"].replace("accuracy", "share of items"))
    return rows.astype(card_tables.COUNTS)[list(card_tables.COLUMNS)]


def write(root: Path, rows: pd.DataFrame) -> None:
    """Write `evaluation.csv`, then the tables of `README.md` from what the CSV holds."""
    path = root / "evaluation.csv"
    files.write_bytes(path, rows.to_csv(index=False, float_format=store.SIGNIFICANT, lineterminator="\n").encode())
    readme = root / "README.md"
    files.write_bytes(readme, card_tables.fill(readme.read_text(encoding="utf-8"), card_tables.read(path)).encode())


def _text_row(name: str, chosen: evals.ByteWindows, bits: Float64[np.ndarray, " N"]) -> dict:
    """Bits per byte of a domain, given the bits of each window."""
    both = np.stack([bits, chosen.stop - chosen.start], 1)
    per_byte = intervals.ratio(both)
    return {"quantity": _BITS, "of": name, "length": _TEXT_LENGTH, **_ends(per_byte), "n": len(bits)}


def _task_rows(model: models.Model, plan: Plan) -> Iterator[dict]:
    text = evals.held_out_text(model.tokenizer, _PART)
    for (task, length), n in plan.items.items():
        rng = evals.draws(task, part=_PART, seed=_SEED)
        rows = evals.task_rows(task, tokenizer=model.tokenizer, text=text, n=n, length=length, rng=rng)
        frame = evals.outcomes(model, *rows)
        # Items of one row share their text, needles even their question.
        by_row = frame.groupby("row")["right"].agg(["sum", "count"]).to_numpy(dtype=float)
        over_rows = intervals.ratio(by_row)
        share = intervals.wilson(int(frame["right"].sum()), len(frame))
        ends = _ends(share) | {"low_over_rows": over_rows.low, "high_over_rows": over_rows.high}
        yield {"quantity": "accuracy", "of": task, "length": length, **ends, "n": len(frame)}


def _windows(name: str, tokenizer: PreTrainedTokenizerBase, plan: Plan) -> evals.ByteWindows:
    return evals.windows(name, tokenizer, length=_TEXT_LENGTH, part=_PART, n=plan.windows)


def _ngram_bits(ngrams: baselines.KneserNey, name: str, chosen: evals.ByteWindows):
    """What the n-gram model needs for the bytes of each window, given all that precedes them in their document."""
    documents = contexts.held_out_documents(name, part=_PART)
    bits = {i: ngrams.bits(documents[i].encode()) for i in {*chosen.document}}
    spans = zip(chosen.document, chosen.start, chosen.stop, strict=True)
    return np.array([bits[i][start:stop].sum() for i, start, stop in spans])


def _ends(interval: intervals.Interval) -> dict[str, float]:
    return {"value": interval.estimate, "low": interval.low, "high": interval.high}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every model in data/models, then write evaluation.csv and the tables of README.md there."""
    parser = argparse.ArgumentParser(prog="python -m srdyn.training.modelcard", description=__doc__)
    parser.add_argument("--root", type=Path, default=files.data_dir() / "models", help="folder of model folders")
    root = parser.parse_args(arguments).root
    logging.basicConfig(level=logging.INFO)
    write(root, measure(root))
    logging.info("wrote %s and %s", root / "evaluation.csv", root / "README.md")


if __name__ == "__main__":
    main()
