"""What runs write into README and pages: verdicts from the tables, the layers from the code."""

import json
import types

import pandas as pd

from srdyn.loading import files
from srdyn.study.claims import claims, readme, registration
from srdyn.study.run import store


def test_a_claim_has_a_word_for_every_kind_of_model_and_leads_to_its_notebook(monkeypatch):
    monkeypatch.setenv("SRDYN_RUN", store.REFERENCE)
    heads, _, *rows = [line.strip("| ").split(" | ") for line in readme.verdicts().split("\n\n")[0].splitlines()]
    book = claims.ledger()
    kinds = [kind for kind in book["kind"].unique() if kind and kind not in claims.CONTROLS]
    assert kinds == ["hybrid", "pure", "main hybrid", "main pure"]
    assert heads == ["claim", "paper", *kinds[:2], *(f"{kind} (one seed)" for kind in kinds[2:])]
    assert len(rows) == book["claim"].nunique()
    said = {row[0].split("]")[0].strip("["): row for row in rows}
    assert said["C8"][0].startswith("[C8](notebooks/03_ablation.ipynb) Low-rank heads are")
    for line in book[book["kind"].isin(kinds)].itertuples():
        cell = said[line.claim][2 + kinds.index(line.kind)].split("<br>")[0]
        verdict = line.verdict.removeprefix("one seed: ") if claims.is_main(line.kind) else line.verdict
        assert verdict.startswith(cell.removesuffix(" ○"))
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
        ("C1", "hybrid", "not reproduced"),
        ("C1", "pure", "not reproduced (null passes: mechanism)"),
        ("C2", "hybrid", "not reproduced"),
        ("C2", "pure", "not reproduced"),
        ("D", "hybrid", "not reproduced"),
        ("D", "pure", "inconclusive"),
        ("E", "", "not testable here"),
    ]
    again = [("C1", "hybrid", "not reproduced"), ("C2", "hybrid", "not reproduced"), ("C2", "pure", "inconclusive")]
    books = {registration.FIRST: rows, registration.SECOND: again}
    named = ["claim", "kind", "verdict"]
    monkeypatch.setattr(claims, "ledger", lambda registered: pd.DataFrame(books[registered], columns=named))
    ids = dict.fromkeys(claim for claim, *_ in rows)
    paper = types.SimpleNamespace(claims=[types.SimpleNamespace(id=claim) for claim in ids])
    monkeypatch.setattr(registration, "load", lambda: paper)
    assert readme.headline() == (
        "**Of 6 claims: reproduced 2 (A ○, B); not reproduced 1 (C1); not reproduced by the first rules, open by the "
        "second 1 (C2); open, or not alike in both kinds of model 2 (D, E).** ○ Random writes or an untrained model "
        "pass, too.\n"
    )


def test_the_headline_says_of_the_main_pair_what_the_later_rules_say(monkeypatch):
    rows = [
        ("A", "hybrid", "reproduced"),
        ("A", "main hybrid", "one seed: fails"),
        ("A", "main pure", "one seed: fails"),
    ]
    null = "one seed: passes (null passes too: x)"
    rows += [("B", "main hybrid", null), ("B", "main pure", null)]
    rows += [("C", "main hybrid", "one seed: passes"), ("C", "main pure", "not testable here")]
    rows += [("D", "main hybrid", "one seed: passes"), ("D", "main pure", "one seed: undecided")]
    again = [("A", "main hybrid", "one seed: passes"), ("A", "main pure", "one seed: passes")]
    again += [("D", "main hybrid", "one seed: fails"), ("D", "main pure", "one seed: fails")]
    books = {registration.FIRST: rows, registration.SECOND: again}
    named = ["claim", "kind", "verdict"]
    monkeypatch.setattr(claims, "ledger", lambda registered: pd.DataFrame(books[registered], columns=named))
    paper = types.SimpleNamespace(claims=[types.SimpleNamespace(id=claim) for claim in "ABCD"])
    monkeypatch.setattr(registration, "load", lambda: paper)
    first, main = readme.headline().split(" In the main pair")
    assert first.startswith("**Of 4 claims: reproduced 1 (A); open")
    assert main.endswith("where there are such: 2 pass (A, B ○); 1 fail (D); 1 open, or not alike in both (C).\n")


def test_publishing_fills_the_pages_once(copy):
    paths = [copy / "figures/scorecard.md", *(copy / name for name in readme.pages())]
    for path, blocks in readme.pages().items():
        marked = "".join(f"<!-- {name}:begin -->\r\n<!-- {name}:end -->\n" for name in blocks)
        files.write_bytes(copy / path, f"# Title\r\n{marked}tail\n".encode())
    readme.publish()
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in paths]
    card, page, families = (path.read_bytes().decode() for path in paths)
    many = len(registration.load().claims)
    assert page.startswith(f"# Title\r\n<!-- headline:begin -->\n\n**Of {many} claims")
    assert "<!-- scorecard:begin -->\n\n| claim | paper |" in page
    assert page.endswith("\n<!-- scorecard:end -->\ntail\n")
    assert "Claims of *State Rank" in card
    assert "| qwen3_next |" in families
    readme.publish()
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in paths] == before


def test_only_the_reference_run_touches_the_readme(copy, monkeypatch):
    paths = copy / "README.md", copy / "figures/scorecard.md"
    before = [path.read_bytes() for path in paths]
    monkeypatch.setenv("SRDYN_RUN", "smoke")
    readme.publish()
    assert [path.read_bytes() for path in paths] == before
    assert (copy / "build/smoke/figures/scorecard.md").exists()


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
