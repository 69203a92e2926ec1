"""Measures the reference models for the card that stands beside them: `python -m srdyn.training.modelcard [model …]`.

Text is that held out of what a model was trained on; tasks are written into data/contexts for all.
"""

import argparse
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from srdyn import contexts, evals, models
from srdyn.kernels import denormals
from srdyn.loading import files
from srdyn.study.analysis import intervals
from srdyn.study.run import store, workers
from srdyn.text import documents, episodes
from srdyn.training import baselines, card_tables, recipes

_PART = "evaluation"
_BITS = "bits per byte"
_TEXT_LENGTH = 512
_TASKS_IN = "contexts"
"""The folder, below data/, of the text that tasks are written into."""
_SEED = 0  # of the tasks' draws
_ARITHMETIC = {"chain": 0.95, "sum": 0.95}
_TARGETS = {
    "hybrid": {"needle": 0.98, "recall8": 0.98, **_ARITHMETIC},
    "pure": {"needle": 0.95, "recall8": 0.90, **_ARITHMETIC},
}
"""Share of items a kind of model should get right at `_TEXT_LENGTH` tokens; its text should be below every baseline."""
_ITEMS = {(task, _TEXT_LENGTH): 400 for task in evals.TASKS if task not in episodes.NEEDLES_AT}
_ITEMS |= {("needle4", 2048): 200, ("recall8", 2048): 400}
_WINDOWS = 48
"""How much is measured: items of each task at each length, windows of text in each domain."""
_READ_ON = "unseen"
"""The folder of texts that are read as a whole, too, as xz reads them."""


def folders(root: Path, names: Sequence[str] = ()) -> list[Path]:
    """The models in `root`, or those of them that are named: folders that training wrote.

    Raises `FileNotFoundError` where there is none, or none of a name.
    """
    found = {path.parent.name: path.parent for path in sorted(root.glob("*/training.json"))}
    missing = {*names} - found.keys()
    if missing or not found:
        wanted = ", ".join(missing) or "model"
        raise FileNotFoundError(f"{root} holds no trained {wanted}; `python -m srdyn.training.train` makes one")
    return [path for name, path in found.items() if name in names or not names]


def baseline_rows(tier: recipes.Tier) -> pd.DataFrame:
    """Bits per byte of the baselines in each text that is held out of what a tier reads.

    N-gram models, trained on all that the tier reads and, where there is such, on the text's own domain, are scored on
    the bytes of its models' windows; xz on all.
    """
    tokenizer, rows = recipes.tokenizer(tier), []
    read = {name: [text.encode() for text in texts] for name, texts in recipes.training_documents(tier).items()}
    everything = baselines.KneserNey(text for texts in read.values() for text in texts)
    for place in recipes.held_out(tier):
        texts = [text.encode() for text in contexts.held_out_documents(place, part=_PART)]
        chosen, trained = _windows(place, tokenizer), {"all domains": everything}
        if (name := documents.short_name(place)) in read:
            trained["that domain alone"] = baselines.KneserNey(read[name])
        for which, ngrams in trained.items():
            found = _text_row(place, chosen, _ngram_bits(ngrams, texts, chosen))
            rows.append(found | {"model": f"{baselines.ORDER}-gram, {which}"})
        rows.append({"model": "xz -9", **_about(place), "value": baselines.xz_bits_per_byte(texts)})
    return pd.DataFrame(rows).assign(kind="baseline", quantity=_BITS, length=_TEXT_LENGTH)


@denormals.flushed()
def model_rows(folder: Path) -> pd.DataFrame:
    """Bits per byte in each domain and accuracy on each task of one model, without targets."""
    model = models.load(folder)
    training, tier = files.read_json(folder / "training.json"), _tier(folder)
    about = {"model": folder.name, "parameters": model.hf.num_parameters()}
    about |= {name: training["settings"][name] for name in ("kind", "seed")}
    about["tokens"] = training["step"] * tier.curriculum.tokens_per_batch
    longest = tier.curriculum.longest(about["tokens"])
    windows = {place: _windows(place, model.tokenizer) for place in recipes.held_out(tier)}
    text = [_text_row(place, chosen, evals.window_bits(model, chosen.tokens)) for place, chosen in windows.items()]
    text += [_read_on(model, place, longest) for place in windows if place.parent.name == _READ_ON]
    rows = pd.DataFrame([*text, *_task_rows(model)])
    return rows.assign(**about, extrapolated=rows["length"] > longest)


def with_targets(rows: pd.DataFrame) -> pd.DataFrame:
    """Add the target of each row that has one, and whether it is met: accuracy from it on, text below it."""
    best = dict(rows[rows["kind"] == "baseline"].groupby(["texts", "of"])["value"].min())
    by_kind = {kind: best | {(_TASKS_IN, of): x for of, x in shares.items()} for kind, shares in _TARGETS.items()}
    asked = zip(rows["kind"], zip(rows["texts"], rows["of"], strict=True), strict=True)
    targets = [by_kind.get(kind, {}).get(of) for kind, of in asked]
    rows = rows.assign(target=pd.Series(targets, rows.index, float).where(rows["length"] == _TEXT_LENGTH))
    below, is_text = rows["value"] < rows["target"], rows["quantity"] == _BITS
    return rows.assign(met=(below == is_text).astype(object).where(rows["target"].notna(), None))


def measure(root: Path, names: Sequence[str] = ()) -> pd.DataFrame:
    """One row for every model, or baseline, and quantity; models are measured side by side, one a core.

    Where some are named, all else that `evaluation.csv` has of baselines and of models in `root` stays.
    """
    found, tables = folders(root, names), [_standing(root, names)] if names else []
    known = {texts for table in tables for texts in table.loc[table["kind"] == "baseline", "texts"]}
    tiers = {tier.corpus: tier for tier in map(_tier, found)}.values()
    missing = [tier for tier in tiers if _about(recipes.held_out(tier)[0])["texts"] not in known]
    tables += [baseline_rows(tier) for tier in missing]
    measured = workers.deal(model_rows, [(folder,) for folder in found])
    rows = pd.concat([*tables, *tqdm(measured, total=len(found), desc="models")], ignore_index=True)
    rows = rows.iloc[rows["model"].where(rows["kind"] != "baseline", "").argsort(kind="stable")]  # baselines first
    rows = rows.assign(task_seed=_SEED, unit=rows["quantity"].replace("accuracy", "share of items"))
    return with_targets(rows.reset_index(drop=True)).astype(card_tables.COUNTS)[list(card_tables.COLUMNS)]


def write(root: Path, rows: pd.DataFrame) -> None:
    """Write `evaluation.csv`, then the tables of `README.md` from what the CSV holds."""
    path = root / "evaluation.csv"
    files.write_bytes(path, rows.to_csv(index=False, float_format=store.SIGNIFICANT, lineterminator="\n").encode())
    readme = root / "README.md"
    files.write_bytes(readme, card_tables.fill(readme.read_text(encoding="utf-8"), card_tables.read(path)).encode())


def _standing(root: Path, names: Sequence[str]) -> pd.DataFrame:
    """What `evaluation.csv` has of baselines and of models in `root` that are not named."""
    rows, others = card_tables.read(root / "evaluation.csv"), {path.name for path in folders(root)} - {*names}
    return rows[(rows["kind"] == "baseline") | rows["model"].isin(others)]


def _tier(folder: Path) -> recipes.Tier:
    return recipes.TIERS[files.read_json(folder / "training.json")["settings"].get("tier", "small")]


def _about(place: Path) -> dict[str, str]:
    return {"texts": str(place.parent.relative_to(files.data_dir())), "of": documents.short_name(place)}


def _text_row(place: Path, chosen: evals.ByteWindows, bits: Float64[np.ndarray, " N"]) -> dict:
    """Bits per byte of a text, given the bits of each window."""
    both = np.stack([bits, chosen.stop - chosen.start], 1)
    per_byte = intervals.ratio(both)
    return {"quantity": _BITS, **_about(place), "length": _TEXT_LENGTH, **_ends(per_byte), "n": len(bits)}


def _read_on(model: models.Model, place: Path, length: int) -> dict:
    """Bits per byte of a whole text, document after document, with `length` / 2 to `length` tokens before each token.

    The first tokens have fewer; an end-of-text token before every document is paid for, too.
    """
    texts, half, bits = contexts.held_out_documents(place, part=_PART), length // 2, 0.0
    tokens = torch.tensor([[token for text in texts for token in evals.spelled(text, model.tokenizer)[0]]])
    for start in range(0, tokens.shape[1] - 1, half):
        window = tokens[:, max(0, start - half) : start + half + 1]
        bits += evals.window_bits(model, window, last=min(half, tokens.shape[1] - 1 - start)).sum()
    spelled = sum(len(text.encode()) for text in texts)
    return {"quantity": _BITS, **_about(place), "length": length, "value": bits / spelled, "n": len(texts)}


def _task_rows(model: models.Model) -> Iterator[dict]:
    text = evals.held_out_text(model.tokenizer, _PART)
    for (task, length), n in _ITEMS.items():
        rng = evals.draws(task, part=_PART, seed=_SEED)
        rows = evals.task_rows(task, tokenizer=model.tokenizer, text=text, n=n, length=length, rng=rng)
        frame = evals.outcomes(model, *rows)
        # Items of one row share their text, needles even their question.
        by_row = frame.groupby("row")["right"].agg(["sum", "count"]).to_numpy(dtype=float)
        over_rows = intervals.ratio(by_row)
        share = intervals.wilson(int(frame["right"].sum()), len(frame))
        ends = _ends(share) | {"low_over_rows": over_rows.low, "high_over_rows": over_rows.high}
        yield {"quantity": "accuracy", "texts": _TASKS_IN, "of": task, "length": length, **ends, "n": len(frame)}


def _windows(place: Path, tokenizer: PreTrainedTokenizerBase) -> evals.ByteWindows:
    """`_WINDOWS` of a text, evenly spaced, or all that it has."""
    found = evals.windows(str(place), tokenizer, length=_TEXT_LENGTH, part=_PART)
    chosen = np.linspace(0, len(found.tokens) - 1, min(_WINDOWS, len(found.tokens))).round().astype(int)
    return evals.ByteWindows(*(x[chosen] for x in found))


def _ngram_bits(ngrams: baselines.KneserNey, texts: list[bytes], chosen: evals.ByteWindows):
    """What the n-gram model needs for the bytes of each window, given all that precedes them in their document."""
    bits = {i: ngrams.bits(texts[i]) for i in {*chosen.document}}
    spans = zip(chosen.document, chosen.start, chosen.stop, strict=True)
    return np.array([bits[i][start:stop].sum() for i, start, stop in spans])


def _ends(interval: intervals.Interval) -> dict[str, float]:
    return {"value": interval.estimate, "low": interval.low, "high": interval.high}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the models of data/models that are named, or all; write evaluation.csv and README.md's tables there."""
    parser = argparse.ArgumentParser(prog="python -m srdyn.training.modelcard", description=__doc__)
    parser.add_argument("names", nargs="*", help="of models; what was measured of others stays; default: all")
    given, root = parser.parse_args(arguments), files.data_dir() / "models"
    logging.basicConfig(level=logging.INFO)
    write(root, measure(root, given.names))
    logging.info("wrote %s and %s", root / "evaluation.csv", root / "README.md")


if __name__ == "__main__":
    main()
