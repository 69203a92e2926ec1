"""The parameters of a run are those that papermill would hand to the notebook."""

import json

import pytest

from srdyn.study.run import parameters, store


@pytest.fixture
def clone(tmp_path, monkeypatch):
    cell = {"metadata": {"tags": ["parameters"]}, "source": ["models = ['a']  # why\n", "n = 8\n", "eps = 1.0e-4"]}
    notebook = {"cells": [{"metadata": {}, "source": ["# Title"]}, cell]}
    (tmp_path / "data").mkdir()
    (tmp_path / "notebooks/presets").mkdir(parents=True)
    (tmp_path / "notebooks/01_first.ipynb").write_text(json.dumps(notebook))
    (tmp_path / "notebooks/presets/small.yaml").write_text("n: 2\nitems: 20  # of another notebook\n")
    (tmp_path / "notebooks/presets/empty.yaml").write_text("# nothing\n")
    monkeypatch.setenv("SRDYN_ROOT", str(tmp_path))
    return tmp_path


def test_a_preset_lies_over_the_notebook_and_values_over_both(clone):
    assert parameters.of_run("01_first", "empty") == {"models": ["a"], "n": 8, "eps": 1e-4}
    assert parameters.of_run("01_first", "small") == {"models": ["a"], "n": 2, "eps": 1e-4}
    given = parameters.of_run("01_first", "small", ["n=3", 'models=["b=c", d]', "eps=1e-3"])
    assert given == {"models": ["b=c", "d"], "n": 3, "eps": 1e-3}


@pytest.mark.parametrize(
    ("preset", "override", "message"),
    [
        ("large", "n=1", "no preset 'large' in .*; there are empty, small"),
        ("small", "items=1", "01_first has no parameter items; it has models, n, eps"),
        ("small", "n", "given as name=value, not 'n'"),
    ],
)
def test_slips_are_named(preset, override, message, clone):
    with pytest.raises(ValueError, match=message):
        parameters.of_run("01_first", preset, [override])


def test_the_committed_notebook_is_read(monkeypatch):
    monkeypatch.delenv("SRDYN_ROOT", raising=False)
    given = parameters.of_run("01_stratification", store.REFERENCE)
    assert {"models", "domains", "tasks", "attacks", "positions", "n", "eps", "seed"} == given.keys()
    assert given["positions"][-1] == 2048
