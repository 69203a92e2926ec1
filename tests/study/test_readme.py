"""The README's blocks: titles from the notebooks, captions from their tables, the layers from the code."""

import json

import pandas as pd
import pytest

from srdyn.loading import files
from srdyn.study.claims import readme
from srdyn.study.run import store


def test_captions_say_what_the_ledger_says(monkeypatch):
    monkeypatch.setenv("SRDYN_RUN", store.REFERENCE)
    table = readme.captions().set_index("notebook")
    assert table.loc["03_ablation", "title"] == "Ablation: which heads does the model need?"
    assert table.loc["03_ablation", "caption"].startswith("C8: ")
    assert table.loc["05_mechanism", "caption"] == ""
    assert set(table.index) == {path.stem for path in store.figures_dir().glob("[0-9]?_*.png")} & set(table.index)


def test_the_readme_shows_the_gallery_of_the_committed_tables(monkeypatch):
    monkeypatch.setenv("SRDYN_RUN", store.REFERENCE)
    assert readme.gallery().strip() in (files.root() / "README.md").read_text()


def test_the_readme_lists_every_layer_that_is_known():
    assert readme.families().strip() in (files.root() / "README.md").read_text()


def test_another_run_leaves_the_readme_alone(monkeypatch):
    monkeypatch.setenv("SRDYN_RUN", "interactive")
    monkeypatch.setattr(files, "write_bytes", pytest.fail)
    readme.publish()


def test_a_notebook_without_a_heading_is_named(tmp_path):
    path = tmp_path / "01_x.ipynb"
    path.write_text(json.dumps({"cells": [{"source": ["no heading"]}]}))
    with pytest.raises(ValueError, match="not with a heading"):
        readme._title(path)


def test_families_have_their_measured_speeds(tmp_path, monkeypatch):
    columns = {"layer": ["Mamba2Mixer", "BambaMixer", "Zamba2MambaMixer"], "per_second": [123.4, 216.5, 336.9]}
    monkeypatch.setattr(readme.bench, "load", lambda part: pd.DataFrame(columns).assign(tokens=512))
    monkeypatch.setattr(store, "table_dir", lambda run: tmp_path)
    (tmp_path / "07_cost_families.json").write_text(json.dumps({"machine": {"processor": "X", "threads": 2}}))
    block = readme.families()
    lines = {line.split("|")[1].strip(): line.split("|")[-2].strip() for line in block.splitlines() if "|" in line}
    assert lines["models"] == "tokens/s on a CPU"
    assert lines["mamba2"] == "120"
    assert lines["bamba, granitemoehybrid, nemotron_h, zamba2"] == "220–340"
    assert lines["qwen3_next"] == "not measured"
    assert "one sequence of 512" in block
    assert "(X, 2 threads;" in block
