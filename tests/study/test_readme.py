"""What runs write into README and pages: verdicts from the tables, the layers from the code."""

import json

import pandas as pd
import pytest

from srdyn.loading import files
from srdyn.study.claims import claims, readme, registration
from srdyn.study.run import store

DATA = files.data_dir()


def test_a_claim_has_a_word_for_every_kind_of_model_and_leads_to_its_notebook(monkeypatch):
    monkeypatch.setenv("SRDYN_RUN", store.REFERENCE)
    heads, _, *rows = [line.strip("| ").split(" | ") for line in readme.verdicts().split("\n\n")[0].splitlines()]
    book = claims.ledger()
    assert heads == ["claim", "paper", "hybrid", "pure"]
    assert len(rows) == book["claim"].nunique()
    said = {row[0].split("]")[0].strip("["): row for row in rows}
    assert said["C8"][0].startswith("[C8](notebooks/03_ablation.ipynb) Low-rank heads are")
    for line in book[book["kind"].isin(heads)].itertuples():
        cell = said[line.claim][heads.index(line.kind)].split("<br>")[0]
        assert line.verdict.startswith(cell.removesuffix(" ○"))
        assert cell.endswith(" ○") == bool(line.nulls and "null passes" in line.verdict)


def test_second_rules_stand_below_the_first():
    columns = ["claim", "kind", "verdict"]
    second = pd.DataFrame([("C1", "hybrid", "reproduced (null passes too: x)"), ("C2", "", "-")], columns=columns)
    first = [("C1", "hybrid", "not reproduced"), ("C1", "pure", "not reproduced"), ("C2", "", "not measured yet")]
    first = pd.DataFrame(first, columns=columns)
    assert claims.by_kind(readme._words, first, second, ["hybrid", "pure"]).to_dict("list") == {
        "C1": ["not reproduced\nsecond: reproduced ○", "not reproduced"],
        "C2": ["not measured yet"] * 2,
    }


def test_the_headline_counts_the_claims_by_their_verdicts(monkeypatch):
    rows = [
        ("A", "hybrid", "reproduced (null passes too: untrained)"),
        ("A", "pure", "reproduced (null passes too: mechanism)"),
        ("A", "uniform", "control (one seed): fails"),
        ("B", "hybrid", "reproduced"),
        ("B", "pure", "reproduced (null passes too: mechanism)"),
        ("C", "hybrid", "not reproduced"),
        ("C", "pure", "not reproduced (null passes: mechanism)"),
        ("D", "hybrid", "not reproduced"),
        ("D", "pure", "inconclusive"),
        ("E", "", "not testable here"),
    ]
    monkeypatch.setattr(claims, "ledger", lambda: pd.DataFrame(rows, columns=["claim", "kind", "verdict"]))
    assert readme.headline() == (
        "**Of 5 claims, by the rules fixed before the results: 2 reproduced in every kind of model, 1 in none, 1 "
        "not testable here, 1 not alike in all, or undecided in some.** Null models pass 1 of those reproduced, "
        "too.\n"
    )


@pytest.fixture
def clone(clone):
    """With claims and pages, but no table."""
    (clone / "data/paper").symlink_to(DATA / "paper")
    for path, blocks in readme.pages().items():
        marked = "".join(f"<!-- {name}:begin -->\r\n<!-- {name}:end -->\n" for name in blocks)
        files.write_bytes(clone / path, f"# Title\r\n{marked}tail\n".encode())
    return clone


def test_publishing_twice_changes_no_byte(clone):
    paths = clone / "README.md", clone / "figures/scorecard.md"
    readme.publish()
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in paths]
    page = before[0][0].decode()
    many = len(registration.load().claims)
    assert page.startswith(f"# Title\r\n<!-- headline:begin -->\n\n**Of {many} claims")
    assert "<!-- scorecard:begin -->\n\n| claim | paper |" in page
    assert page.endswith("\n<!-- scorecard:end -->\ntail\n")
    assert "Claims of *State Rank" in paths[1].read_text()
    assert "| qwen3_next |" in (clone / "notebooks/site/families.md").read_text()
    readme.publish()
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in paths] == before


def test_only_the_reference_run_touches_the_readme(clone, monkeypatch):
    before = (clone / "README.md").read_bytes()
    monkeypatch.setenv("SRDYN_RUN", "smoke")
    readme.publish()
    assert (clone / "README.md").read_bytes() == before
    assert (clone / "build/smoke/figures/scorecard.md").exists()
    assert not (clone / "figures").exists()


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
