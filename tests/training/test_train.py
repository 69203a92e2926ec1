import csv
import dataclasses
import io
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from srdyn import contexts, models
from srdyn.loading import files
from srdyn.training import mixture, recipes, train
from srdyn.training.recipes import Settings

SMALL = {"layers": 4, "hidden": 32, "head": 16}
PER_STEP = 512


class Killed(Exception):
    pass


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Little text, short batches, few windows, saves and log lines at odd steps."""
    training = contexts.training_documents
    monkeypatch.setattr(contexts, "training_documents", lambda name: [d[:9000] for d in training(name)[:2]])
    short = dataclasses.replace(mixture.SMALL, tokens_per_batch=PER_STEP, lengths=((0.0, (128,)),))
    monkeypatch.setitem(recipes.TIERS, "small", recipes.TIERS["small"]._replace(curriculum=short))
    monkeypatch.setattr(train, "_SPECTRA_WINDOWS", 1)
    monkeypatch.setattr(train, "_SAVE_EVERY", 3)
    monkeypatch.setattr(train, "_LOG_EVERY", 2)


def settings(kind="hybrid", *, steps=7, **changes):
    return Settings(kind, tokens=steps * PER_STEP, checkpoints=(2, 5), options=SMALL, warmup_steps=3, **changes)


def finished(folder, *, killed_at=None, monkeypatch=None):
    """A training to its end; where it is killed, a new process goes on from what the folder holds."""
    if killed_at is not None:
        run = train.Run(settings(), folder, device="cpu")
        advance = run._advance

        def advance_until_killed():
            if run.step == killed_at:
                raise Killed
            advance()

        monkeypatch.setattr(run, "_advance", advance_until_killed)
        with pytest.raises(Killed):
            run.train()
    run = train.Run(settings(), folder, device="cpu")
    run.resume()
    resumed_from = run.step
    run.train()
    return run, resumed_from


def log(folder):
    with (folder / "log.csv").open() as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def test_a_training_goes_on_from_another_model(tmp_path, monkeypatch):
    finished(tmp_path / "first")
    monkeypatch.setattr(Settings, "start", property(lambda self: tmp_path / "first/final" if self.base else None))
    start = models.load(tmp_path / "first/final", device="cpu").hf.state_dict()
    run = train.Run(settings(base="hybrid", tier="chains"), tmp_path / "second", device="cpu")
    assert all(torch.equal(weight, start[name]) for name, weight in run.model.hf.state_dict().items())
    run.train(until=1)
    assert any((weight != start[name]).any() for name, weight in run.model.hf.state_dict().items())
    assert run.settings.record()["base"] == "hybrid"
    assert "base" not in settings().record()


def test_a_killed_training_goes_on_to_the_same_result(tmp_path, monkeypatch):
    unbroken, _ = finished(tmp_path / "unbroken")
    resumed, start = finished(tmp_path / "killed", killed_at=5, monkeypatch=monkeypatch)
    assert start == 3
    theirs = resumed.model.hf.state_dict()
    assert all(torch.equal(weight, theirs[name]) for name, weight in unbroken.model.hf.state_dict().items())
    rows = log(tmp_path / "unbroken")
    assert rows == log(tmp_path / "killed")
    assert [int(row["step"]) for row in rows] == [2, 4, 6, 7]
    assert_files_are_whole(tmp_path / "unbroken", unbroken)
    for path in (tmp_path / "unbroken" / "spectra").iterdir():
        assert path.read_bytes() == (tmp_path / "killed" / "spectra" / path.name).read_bytes()


def assert_files_are_whole(folder, run):
    steps = [int(path.stem.removeprefix("step-")) for path in sorted((folder / "spectra").iterdir())]
    assert steps == run.settings.spectra_steps() == [0, 2, 4, 5, 7]
    frame = pd.read_parquet(io.BytesIO(files.kept(folder / "spectra/step-000004.unit")))
    heads = len(contexts.domains()) * len(train.SPECTRA_POSITIONS) * 3 * 8
    assert len(frame) == heads
    assert set(frame["step"]) == {4}
    assert set(frame["context"]) == set(contexts.domains())
    assert (frame["log_decay"] < 0).all()
    assert (frame["rank"] <= 16).all()
    said = json.loads((folder / "final/training.json").read_text())
    assert said["step"] == 7
    assert said["settings"]["kind"] == "hybrid"
    model = models.load(folder / "final", device="cpu")
    assert model.seed == 0
    assert model.tokenizer is not None
    half = {name: weight.half().float() for name, weight in run.model.hf.state_dict().items()}
    assert all(torch.equal(weight, half[name]) for name, weight in model.hf.state_dict().items())
    assert not (folder / "partial").exists()


def test_the_decay_beside_the_spectra_is_the_mean_over_the_context(tmp_path):
    run = train.Run(settings(), tmp_path, device="cpu")
    frame = run.spectra()
    g = train.states.gates(run.model, run.followed)[0].double().mean(2)
    place = {name: i for i, name in enumerate(contexts.domains())}
    layer = {known.index: i for i, known in enumerate(run.model.layers)}
    expected = [float(g[layer[x.layer], place[x.context] + x.sample, x.head]) for x in frame.itertuples()]
    assert np.allclose(frame["log_decay"], expected, rtol=1e-6)


def test_every_kind_reads_the_same_batches(tmp_path, monkeypatch):
    seen, batch = [], mixture.batch

    def stopped(i, **of):
        seen.append(batch(i, **of))
        raise Killed

    monkeypatch.setattr(mixture, "batch", stopped)
    for kind in ("hybrid", "pure"):
        with pytest.raises(Killed):
            train.Run(settings(kind, seed=2), tmp_path, device="cpu")._advance()
    expected = batch(0, **recipes.stream(settings(seed=2)))
    assert all(np.array_equal(a, c) and np.array_equal(b, c) for a, b, c in zip(*seen, expected, strict=True))


def test_the_rate_rises_stays_and_falls_to_zero():
    plan = Settings("pure", tokens=1000 * PER_STEP, learning_rate=4e-3)
    assert plan.steps == 1000
    assert plan.rate(0) == pytest.approx(4e-3 / 50)
    assert plan.rate(49) == plan.rate(400) == plan.rate(700) == 4e-3
    assert plan.rate(850) == pytest.approx(2e-3)
    assert plan.rate(999) == pytest.approx(4e-3 / 300)
    assert all(plan.rate(i) >= plan.rate(i + 1) for i in range(50, 999))


def test_spectra_are_followed_at_twelve_steps_or_more_of_every_model():
    for name in recipes.RECIPES:
        steps = recipes.named(name).spectra_steps()
        assert len(steps) >= (10 if recipes.named(name).base else 12)
        assert steps == sorted(set(steps))
        assert steps[0] == 0


def test_names_say_recipe_and_seed():
    wanted = [recipes.named(name) for name in ("hybrid", "main-pure-seed1")]
    assert [(x.kind, x.tier, x.seed, x.name) for x in wanted] == [
        ("hybrid", "small", 0, "hybrid"),
        ("pure", "main", 1, "main-pure-seed1"),
    ]
    with pytest.raises(ValueError, match="'mixed' is no recipe; there are hybrid, pure,"):
        recipes.named("mixed-seed1")


def test_a_corpus_is_read_once_and_kept_as_tokens(tmp_path, monkeypatch, caplog):
    shutil.copytree(files.data_dir() / "tokenizer", tmp_path / "tokenizer")
    monkeypatch.setattr(recipes.files, "root", lambda: tmp_path)
    (tmp_path / "corpus").mkdir()
    lines = [json.dumps({"id": str(i), "text": text}) + "\n" for i, text in enumerate(("one fox", "two dogs"))]
    (tmp_path / "corpus/animals.jsonl").write_text("".join(lines))
    tier = recipes.TIERS["main"]._replace(tokenizer="tokenizer", corpus="corpus", weights={})
    first = recipes.text(tier).ids["animals"]
    tokenizer = recipes.tokenizer(tier)
    assert tokenizer.decode(first) == "<|endoftext|>one fox<|endoftext|>two dogs"
    [kept] = (tmp_path / "corpus").glob("*.tokens")
    whole = kept.read_bytes()
    for broken in (whole[:40] + bytes([whole[40] ^ 1]) + whole[41:], whole[:-2]):
        kept.write_bytes(broken)
        assert np.array_equal(recipes.text(tier).ids["animals"], first)
        assert f"{kept} is broken and made again" in caplog.text
        caplog.clear()
    monkeypatch.setattr(recipes, "_encoded", None)
    assert np.array_equal(recipes.text(tier).ids["animals"], first)
    with pytest.raises(FileNotFoundError, match=r"build_wide\.py makes them"):
        recipes.text(tier._replace(corpus="tokenizer"))


def test_a_state_that_broke_is_said_and_the_training_begins_anew(tmp_path, caplog):
    run, state = train.Run(settings(), tmp_path, device="cpu"), tmp_path / "state.pt"
    run.step = 1
    run.save()
    whole, run.step = state.read_bytes(), 0
    for broken in (whole[:99] + bytes([whole[99] ^ 1]) + whole[100:], whole[:-9]):
        state.write_bytes(broken)
        run.resume()
        assert run.step == 0
        assert f"{state} is broken and made again" in caplog.text
        caplog.clear()
    state.write_bytes(whole)
    run.resume()
    assert run.step == 1


def test_another_training_in_the_same_folder_is_refused(tmp_path):
    train.Run(settings(steps=1), tmp_path, device="cpu").save()
    with pytest.raises(ValueError, match="not to these settings"):
        train.Run(settings(steps=2), tmp_path, device="cpu").resume()


def test_a_training_does_not_go_on_in_other_precision(tmp_path):
    train.Run(settings(), tmp_path, device="cpu").save()
    train.Run(settings(), tmp_path, device="cpu").resume()
    with pytest.raises(ValueError, match="without products in bfloat16, unlike this call"):
        train.Run(settings(), tmp_path, device="cpu", bfloat16=True).resume()


def test_a_gradient_that_is_not_finite_stops_the_training(tmp_path):
    run = train.Run(settings(), tmp_path, device="cpu")
    run.model.hf.get_input_embeddings().weight.data[:] = float("nan")
    with pytest.raises(FloatingPointError, match="hybrid: gradient norm nan at step 0"):
        run._advance()
