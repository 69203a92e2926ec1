"""A model at the stages of its training: what is read and what is removed, against the files and the answers."""

import json

import pandas as pd
import pytest
import saved
import torch

from srdyn import contexts, models
from srdyn.loading import files
from srdyn.study.analysis import stages
from srdyn.study.run import opened
from srdyn.study.survey import null_tables
from srdyn.study.trials import battery, trials


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A repository with two tiny trained models."""
    root = tmp_path_factory.mktemp("root")
    (root / "data").symlink_to(files.data_dir())
    for seed, folder in ((0, "main-hybrid"), (1, "hybrid-seed1")):
        target = saved.tiny(root / "trained" / folder, seed=seed, head=16, times=2)
        settings = {"kind": "hybrid", "seed": seed, "options": {}}
        (target / "training.json").write_text(json.dumps({"settings": settings, "step": 9}))
    return root


@pytest.fixture
def here(repository, monkeypatch):
    monkeypatch.setenv("SRDYN_ROOT", str(repository))
    return repository / "trained"


def test_histories_are_what_training_wrote(here):
    written = pd.DataFrame({"model": "main-hybrid", "seed": 0, "step": [0, 9], "rank": [1.0, 2.5]})
    written.to_parquet(here / "main-hybrid" / "spectra.parquet")
    pd.testing.assert_frame_equal(stages.histories([here / "main-hybrid"]), written.assign(kind="hybrid"))
    with pytest.raises(FileNotFoundError, match=r"holds no spectra\.parquet"):
        stages.histories([here / "hybrid-seed1"])


def test_stages_go_from_the_untrained_model_to_the_final_one(here):
    found = stages.of(here / "main-hybrid")
    assert list(found) == [0, 9]
    start = models.load(found[0])
    wanted = null_tables.untrained(models.load(here / "main-hybrid")).hf.state_dict()
    assert all(torch.equal(weight, wanted[name]) for name, weight in start.hf.state_dict().items())
    assert (start.seed, opened.kind(start)) == (0, "hybrid")
    before = files.content_hash(found[0])
    stages.of(here / "main-hybrid")
    assert files.content_hash(found[0]) == before


@pytest.fixture
def plan():
    domains = tuple(contexts.domains()[:2])
    questions = battery.Battery((), domains, length=64, windows=4, copies=2)
    calibration = battery.Battery((), domains, length=64, windows=2, copies=0, part="calibration")
    return trials.Plan(questions, calibration, domains, sequences=2, length=64, draws=2)


def test_removals_cost_what_each_stage_loses(here, plan, tmp_path, monkeypatch):
    """In one process and from one sheet, beside sums over the answers themselves."""
    asked = {}
    sheet = battery.sheet(plan.questions, models.load(here / "main-hybrid").tokenizer)
    monkeypatch.setattr(battery, "sheet", lambda questions, tokenizer: sheet)

    def answers(names, arms, plan):
        for name in names:
            subject = trials.Subject(name, plan, tmp_path)
            asked[name] = {arm.name: subject.ask("answers", arm) for arm in arms}
        return pd.concat([frame for arms in asked.values() for frame in arms.values()], ignore_index=True)

    monkeypatch.setattr(trials, "answers", answers)
    found = stages.removals([here / "main-hybrid", here / "hybrid-seed1"], plan, share=0.25)
    stages_of_each = {(name, step) for name in ("main-hybrid", "hybrid-seed1") for step in (0, 9)}
    assert set(zip(found["model"], found["step"], strict=True)) == stages_of_each
    for (model, step), rows in found.groupby(["model", "step"]):
        given = asked[stages.of(here / model)[step]]
        text = {name: frame[frame["probe"].str.startswith("bits")] for name, frame in given.items()}
        bits = {name: frame["value"].sum() / frame["weight"].sum() for name, frame in text.items()} | {"": 0.0}
        assert len(rows) == 4 + 3 + 2 + 2
        for row in rows.itertuples():
            assert row.estimate == pytest.approx(bits[row.arm] - bits[row.reference], abs=1e-9)
            assert row.low <= row.estimate <= row.high
            assert (row.removed, row.n) == (0 if row.arm == "intact" else 2 * 3, 8)
    at_end = found[(found["reference"] == "intact") & (found["step"] == 9)]
    assert (at_end["estimate"].abs() > 1e-4).any()
