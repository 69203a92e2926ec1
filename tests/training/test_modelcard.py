import json

import numpy as np
import pandas as pd
import pytest
import torch

from srdyn import contexts, evals, models
from srdyn.loading import files, reference
from srdyn.study.run import workers
from srdyn.training import card_tables, mixture, modelcard, recipes

SMALL = recipes.TIERS["small"]
SHELL = "# Models\n\n<!-- evaluation:begin -->\nold\n<!-- evaluation:end -->\n\nEnd.\n"


@pytest.fixture
def root(tmp_path, monkeypatch, tokenizer):
    """Two small untrained models that say they have been trained for 400 steps, and little text for the baselines."""
    training = contexts.training_documents
    monkeypatch.setattr(contexts, "training_documents", lambda name: [d[:3000] for d in training(name)[:2]])
    for seed, (name, kind) in enumerate({"hybrid": "hybrid", "uniform": "uniform"}.items()):
        reference.initialise(kind, seed=seed, layers=4, hidden=32, head=8).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        files.write_json(tmp_path / name / "training.json", {"settings": {"kind": kind, "seed": seed}, "step": 400})
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "README.md").write_text(SHELL)
    monkeypatch.setattr(modelcard, "_TEXT_LENGTH", 128)
    monkeypatch.setattr(modelcard, "_ITEMS", {("needle", 128): 4, ("sum", 128): 6, ("sum", 512): 24})
    monkeypatch.setattr(modelcard, "_WINDOWS", 2)
    monkeypatch.setattr(workers, "deal", lambda function, work: (function(*item) for item in work))
    return tmp_path


def row(**changes):
    known = {"model": "pure", "kind": "pure", "seed": 0, "parameters": 1234, "tokens": 5678, "n": 400, "task_seed": 0}
    known |= {"texts": "contexts", "quantity": "accuracy", "of": "sum", "length": 512, "unit": "share of items"}
    return known | {"value": 0.9, "low": 0.87, "high": 0.92, "extrapolated": False} | changes


def text(**changes):
    return row(**({"quantity": "bits per byte", "of": "prose", "unit": "bits per byte", "n": 48} | changes))


def table(*rows):
    frame = modelcard.with_targets(pd.DataFrame(rows))
    frame = frame.reindex(columns=list(card_tables.COLUMNS))
    return frame.astype(dict.fromkeys(("seed", "parameters", "tokens", "n"), "Int64"))


def test_the_card_is_measured_and_written_from_the_table(root):
    rows = modelcard.measure(root)
    modelcard.write(root, rows)
    written = card_tables.read(root / "evaluation.csv")
    baselines = ["5-gram, all domains", "5-gram, that domain alone", "xz -9"]
    assert list(written["model"].unique()) == [*baselines, "hybrid", "uniform"]
    assert np.allclose(written["value"], rows["value"], rtol=1e-8)
    hybrid = written[written["model"] == "hybrid"]
    assert list(hybrid["of"]) == [*contexts.domains(), "needle", "sum", "sum"]
    assert set(hybrid["tokens"]) == {400 * mixture.SMALL.tokens_per_batch}
    assert list(hybrid["extrapolated"].astype(str)) == ["False"] * 6 + ["True"]  # 0.8 million tokens: up to 256
    assert (hybrid[hybrid["quantity"] == "accuracy"]["n"] >= [4, 6, 24]).all()
    assert hybrid["value"].between(hybrid["low"], hybrid["high"]).all()
    assert written[written["kind"] == "uniform"]["target"].isna().all()
    best = written[written["kind"] == "baseline"].groupby("of")["value"].min()
    assert list(hybrid["target"][:4]) == list(best[contexts.domains()])
    readme = (root / "README.md").read_text()
    assert readme.startswith("# Models\n")
    assert readme.endswith("End.\n")
    assert "old" not in readme
    for value in hybrid["value"][:4]:
        assert f"{value:.3f} (" in readme
    assert card_tables.fill(SHELL, written) == readme


def test_baselines_are_scored_on_the_bytes_of_the_models_windows(root, tokenizer):
    rows = modelcard.baseline_rows(SMALL).set_index(["model", "of"])
    chosen = evals.windows("code", tokenizer, length=128, n=2)
    documents = [d.encode() for d in contexts.held_out_documents("code", part="evaluation")]
    ngrams = modelcard.baselines.KneserNey(text.encode() for text in contexts.training_documents("code"))
    bits = 0.0
    for i, start, stop in zip(chosen.document, chosen.start, chosen.stop, strict=True):
        bits += ngrams.bits(documents[i][:stop])[start:].sum()
    ours = rows.loc[("5-gram, that domain alone", "code"), "value"]
    assert ours == pytest.approx(bits / (chosen.stop - chosen.start).sum())
    assert 1 < ours < 8


def test_targets_are_met_from_them_on_and_text_below_the_best_baseline():
    rows = table(
        text(model="5-gram, all domains", kind="baseline", value=2.0),
        text(model="xz -9", kind="baseline", value=1.5),
        text(value=1.5),
        text(kind="hybrid", model="hybrid", value=1.4),
        text(kind="uniform", model="uniform", value=1.0),
        row(of="recall8", value=0.9),
        row(of="recall8", value=0.9, kind="hybrid", model="hybrid"),
        row(of="needle4", value=0.2),
        row(value=0.99, length=2048),
    )
    assert rows["target"].tolist()[2:4] == [1.5, 1.5]
    assert rows["met"].tolist()[2:] == [False, True, None, True, False, None, None]
    assert rows["target"].tolist()[5:7] == [0.90, 0.98]
    assert rows["target"].isna().tolist() == [True, True, False, False, True, False, False, True, True]


def test_the_card_names_misses_weak_tasks_and_extrapolation():
    filled = card_tables.fill(
        SHELL,
        table(
            text(model="xz -9", kind="baseline", value=1.5, low=None, high=None, n=None),
            text(value=1.625),
            row(value=0.91),
            row(of="chain", value=0.97),
            row(of="recall8", value=0.62, length=2048, extrapolated=True),
        ),
    )
    assert "| xz -9 | 1.500 |" in filled
    assert "| pure | bits per byte, prose | < 1.500 | 1.625 | missed by 0.125 |" in filled
    assert "| pure | accuracy, sum | ≥ 95.0% | 91.0% | missed by 4.0 points |" in filled
    assert "| pure | accuracy, chain | ≥ 95.0% | 97.0% | met |" in filled
    assert "used for no verdict: pure: recall8 at 2048 tokens (62.0%)." in filled
    assert "62.0\\* (87.0–92.0)" in filled
    assert "extrapolation" in filled
    assert "| pure | pure | 0 | 1,234 | 5,678 |" in filled
    clean = card_tables.fill(SHELL, table(text(model="xz -9", kind="baseline"), text(), row(value=0.95)))
    assert "used for no verdict: no model on any task." in clean
    assert "extrapolation" not in clean


def test_texts_beside_the_wide_corpus_have_a_table_and_targets_of_their_own():
    unseen = {"texts": "wide/unseen", "of": "plays"}
    rows = table(
        text(model="xz -9", kind="baseline", value=2.0, low=None, high=None, n=None),
        text(model="xz -9", kind="baseline", value=3.0, low=None, high=None, n=None, **unseen),
        text(value=2.5),
        text(value=2.5, model="main-pure", **unseen),
    )
    assert rows["met"].tolist()[2:] == [False, True]
    filled = card_tables.fill(SHELL, pd.concat([rows, table(row())], ignore_index=True))
    assert "|  | main-pure | xz -9 |" in filled
    assert "| unseen: plays | 2.500 (0.870–0.920) | 3.000 |" in filled
    assert "| main-pure | bits per byte, unseen: plays | < 3.000 | 2.500 | met |" in filled
    assert "| xz -9 | 2.000 |" in filled
    whole = text(value=2.25, low=None, high=None, n=3, model="main-pure", length=4096, **unseen)
    filled = card_tables.fill(SHELL, pd.concat([rows, table(whole, row())], ignore_index=True))
    assert "with 2048 to 4096 tokens before each token:" in filled
    assert "| plays, n = 3 | 2.250 | 3.000 |" in filled
    assert table(whole)["target"].isna().all()


def test_a_whole_text_is_read_on_with_half_a_length_to_a_length_before_each_token(monkeypatch, tokenizer):
    texts, half = ["A man came in, and spoke to them.", "Nobody heard him; it was late."], 8
    monkeypatch.setattr(modelcard.contexts, "held_out_documents", lambda place, part: texts)
    monkeypatch.setattr(modelcard.evals, "spelled", lambda text, tokenizer: ([0, *tokenizer(text).input_ids], None))
    model = models.from_hf(reference.initialise("hybrid", seed=0), tokenizer, name="untrained", seed=0)
    read = modelcard._read_on(model, files.data_dir() / "wide/unseen/plays.jsonl.xz", 2 * half)
    tokens = torch.tensor([x for text in texts for x in (0, *tokenizer(text).input_ids)])
    bits = 0.0
    for t in range(1, len(tokens)):
        first = max(0, (t - 1) // half * half - half)
        bits -= model.logits(tokens[None, first:t])[0, -1].log_softmax(-1)[tokens[t]].item() / np.log(2)
    assert len(tokens) > 3 * half
    assert read["value"] == pytest.approx(bits / sum(map(len, texts)), rel=1e-5)
    assert (read["length"], read["n"], read["of"]) == (2 * half, 2, "plays")


def test_models_that_are_named_are_measured_alone(root, monkeypatch):
    modelcard.write(root, modelcard.measure(root))
    before, measured = (root / "evaluation.csv").read_bytes(), []
    model_rows = modelcard.model_rows
    monkeypatch.setattr(modelcard, "model_rows", lambda folder: measured.append(folder) or model_rows(folder))
    monkeypatch.setattr(modelcard, "baseline_rows", None)  # those of contexts/ are known
    modelcard.write(root, modelcard.measure(root, ["uniform"]))
    assert [folder.name for folder in measured] == ["uniform"]
    assert (root / "evaluation.csv").read_bytes() == before
    with pytest.raises(FileNotFoundError, match="no trained purer"):
        modelcard.measure(root, ["purer", "uniform"])
    (root / "hybrid" / "training.json").unlink()
    left = modelcard.measure(root, ["uniform"])
    assert set(left["kind"]) == {"baseline", "uniform"}


def test_a_folder_without_models_and_another_table_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no trained model"):
        modelcard.folders(tmp_path)
    (tmp_path / "evaluation.csv").write_text("model,value\nhybrid,1\n")
    with pytest.raises(ValueError, match="write it anew"):
        card_tables.read(tmp_path / "evaluation.csv")


def test_the_committed_card_is_that_of_the_committed_table():
    root = files.data_dir() / "models"
    if not (root / "evaluation.csv").exists():
        pytest.skip("no model has been measured yet")
    readme = (root / "README.md").read_text(encoding="utf-8")
    assert card_tables.fill(readme, card_tables.read(root / "evaluation.csv")) == readme
    about = {path.parent.name: json.loads(path.read_text()) for path in root.glob("*/training.json")}
    measured = card_tables.read(root / "evaluation.csv").dropna(subset=["tokens"]).groupby("model")["tokens"].first()
    curricula = {name: recipes.TIERS[x["settings"].get("tier", "small")].curriculum for name, x in about.items()}
    assert dict(measured) == {name: x["step"] * curricula[name].tokens_per_batch for name, x in about.items()}
