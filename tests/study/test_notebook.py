"""What a notebook keeps lies under its own name, in the place of the run at work."""

import json

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from srdyn.loading import files
from srdyn.study import notebook
from srdyn.study.run import store

STEM, PAPER = "06_emergence", files.data_dir() / "paper"
ROW = {"model": "pure", "kind": "pure", "seed": 0, "estimate": 0.3, "low": 0.2, "high": 0.4, "n": 8}


@pytest.fixture
def run(clone, monkeypatch):
    (clone / "data/paper").symlink_to(PAPER)
    monkeypatch.delenv("SRDYN_RUN")
    return notebook.Run(STEM, models=["a"], positions=(1, 2))


def test_tables_figures_and_the_record_have_the_stem_and_the_parameters(run):
    read = run.table("heads", pd.DataFrame({"rank": [1, 2]}))
    assert read["rank"].tolist() == [1, 2]
    figure, _ = plt.subplots()
    plt.close(figure)
    assert run.figure("", figure) is figure
    place = store.build_dir(store.INTERACTIVE)
    found = {path.relative_to(place).as_posix() for path in place.rglob("*.*")}
    names = {f"tables/{STEM}_heads.csv", f"tables/{STEM}_heads.json", f"figures/{STEM}.png", f"figures/{STEM}.pdf"}
    assert found == names | {f"records/{STEM}.json"}
    for path in place.rglob("*.json"):
        assert json.loads(path.read_text())["parameters"] == {"models": ["a"], "positions": [1, 2]}


def test_claims_are_judged_by_models_and_their_nulls(run):
    names = ("identity with untrained", "identity in training")
    first, second = (pd.DataFrame([ROW | {"measure": name}]) for name in names)
    null = second.assign(source="mechanism", estimate=0.9, low=0.85, high=0.95)
    rows = run.claim("C10", null, first, second, first.assign(source="mechanism"))
    assert rows[["measure", "source", "outcome"]].values.tolist() == [
        ["identity with untrained", "model", "pass"],
        ["identity with untrained", "mechanism", "pass"],
        ["identity in training", "model", "fail"],
        ["identity in training", "mechanism", "pass"],
    ]
    [verdict] = run.verdicts().to_dict("records")
    assert verdict["verdict"] == "one seed: fails (null passes: mechanism)"
    assert verdict["leading"] == "identity in training 0.300 (≥ 0.8)"
    assert len(notebook.Run(run.stem).verdicts()) == 0  # what an earlier run recorded is not this one's


def test_a_first_look_says_what_it_reads(capsys):
    notebook.first_look(models=["a"], n=2)
    said = capsys.readouterr().out
    assert said.startswith("quick = True: less is read than")
    assert said.endswith("\n  models = ['a']\n  n = 2\n")
