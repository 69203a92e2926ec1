"""The README's blocks: titles from the notebooks, captions from their tables, the layers from the code."""

import json

import pandas as pd
import pytest

from srdyn.loading import files
from srdyn.study.claims import claims, readme
from srdyn.study.run import store


def test_captions_say_what_the_ledger_says(monkeypatch):
    monkeypatch.setenv("SRDYN_RUN", store.REFERENCE)
    cells = [cell.strip() for line in readme.gallery().splitlines()[2:] for cell in line.strip("| ").split(" | ")]
    shown = {cell.split("](figures/")[1].split(".png")[0]: cell for cell in cells if cell}
    assert shown["03_ablation"].startswith("![Ablation: which heads does the model need?](figures/03_ablation.png)<br>")
    assert "](notebooks/03_ablation.ipynb) C8: " in shown["03_ablation"]
    assert shown["05_mechanism"].endswith("](notebooks/05_mechanism.ipynb)")


def test_the_committed_readme_and_scorecard_are_those_of_the_committed_tables(monkeypatch):
    monkeypatch.setenv("SRDYN_RUN", store.REFERENCE)
    text = (files.root() / "README.md").read_bytes().decode()
    assert readme.page(text) == text, "they are made by `make scorecard`"
    assert claims.scorecard() == (store.figure_dir() / "scorecard.md").read_text(encoding="utf-8")


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A clone without any table, in which the reference run is at work."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/paper").symlink_to(files.data_dir() / "paper")
    blocks = "".join(f"<!-- {name}:begin -->\r\n<!-- {name}:end -->\n" for name in ("scorecard", "gallery", "families"))
    (tmp_path / "README.md").write_bytes(f"# Title\r\n{blocks}tail\n".encode())
    monkeypatch.setenv("SRDYN_ROOT", str(tmp_path))
    monkeypatch.setenv("SRDYN_RUN", store.REFERENCE)
    return tmp_path


def test_publishing_twice_changes_no_byte(clone):
    paths = clone / "README.md", clone / "figures/scorecard.md"
    readme.publish()
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in paths]
    page = before[0][0].decode()
    assert page.startswith("# Title\r\n<!-- scorecard:begin -->\n\nClaims of *State Rank")
    assert page.endswith("\n<!-- families:end -->\ntail\n")
    assert paths[1].read_text().strip() in page
    readme.publish()
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in paths] == before


def test_only_the_reference_run_touches_the_readme(clone, monkeypatch):
    before = (clone / "README.md").read_bytes()
    monkeypatch.setenv("SRDYN_RUN", "smoke")
    readme.publish()
    assert (clone / "README.md").read_bytes() == before
    assert (clone / "build/smoke/figures/scorecard.md").exists()
    assert not (clone / "figures").exists()


def test_a_readme_without_markers_is_refused():
    with pytest.raises(ValueError, match=r"<!-- scorecard:begin -->"):
        readme.page("# Title\n")


def test_a_notebook_without_a_heading_is_named(tmp_path):
    path = tmp_path / "01_x.ipynb"
    path.write_text(json.dumps({"cells": [{"source": ["no heading"]}]}))
    with pytest.raises(ValueError, match="not with a heading"):
        readme._title(path)


def test_families_have_their_measured_speeds(tmp_path, monkeypatch):
    columns = {"layer": ["Mamba2Mixer", "BambaMixer", "Zamba2MambaMixer"], "per_second": [123.4, 216.5, 336.9]}
    monkeypatch.setattr(store, "load_table", lambda stem, run: pd.DataFrame(columns).assign(tokens=512))
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
