"""Verdicts follow from intervals, nulls and seeds alone, the scorecard from the saved tables alone."""

import itertools

import pandas as pd
import pytest
import yaml

from srdyn.study.claims import claims, registration
from srdyn.study.run import store

NAN = float("nan")
VALUES = {"pass": (0.96, 0.93, 0.98), "fail": (0.5, 0.4, 0.6), "undecided": (0.9, 0.8, 0.95), "undefined": (NAN,) * 3}
MEASURES = ("ranks", "norms")
RUN = "02_consistency"


def stated(claim_id, notebook=RUN, measures=MEASURES):
    rule = {"quantity": "cosine", "unit": "cosine", "rule": {"at_least": 0.9}, "taken": "t = 8"}
    return {
        "id": claim_id,
        "statement": f"Statement of {claim_id} | with a bar.",
        "paper": {"value": "> 0.9", "grade": "B", "place": "appendix"},
        "notebook": notebook,
        "measures": [{"name": name} | rule for name in measures],
    }


UNTESTED = {"untested": "needs a pair of models"}
CLAIMS = [stated("C1", "01_stratification"), stated("C4"), stated("C5"), stated("C6", measures=()) | UNTESTED]


@pytest.fixture
def clone(clone):
    """With four claims."""
    (clone / "data/paper").mkdir()
    state(clone, CLAIMS)
    return clone


def state(clone, entries):
    rest = {"paper": {"title": "Ranks", "reference": "arXiv:0"}, "thresholds": {"eps": 1e-4}}
    content = rest | {"primary": {"claim": "C4", "contrast": "x"}, "claims": entries}
    (clone / "data/paper/claims.yaml").write_text(yaml.safe_dump(content))


def rows(*outcomes, kind="hybrid", measures=MEASURES, **columns):
    """Rows of one kind: `outcomes` by seed, by measure within a seed."""
    table = [
        {"measure": measure, "model": f"{kind}-{seed}", "kind": kind, "seed": seed}
        | dict(zip(("estimate", "low", "high"), VALUES[outcome], strict=True))
        | {"n": 8, "over": "samples"}
        | columns
        for seed, by_measure in enumerate(outcomes)
        for measure, outcome in zip(measures, by_measure, strict=True)
    ]
    return pd.DataFrame(table)


PASS, FAIL, OPEN, NONE = ("pass",) * 2, ("fail",) * 2, ("undecided",) * 2, ("undefined",) * 2


def verdict(*measured):
    [judged] = claims.judge(record("C4", *measured)).to_dict("records")
    return judged


def record(claim_id, *measured):
    return claims.record(claim_id, pd.concat(measured, ignore_index=True), run=RUN)


def by_definition(outcomes):
    """The header of claims.yaml, written once more, for outcomes[seed][measure] of two seeds."""
    by_measure = list(zip(*outcomes, strict=True))
    if all(outcome == "pass" for seeds in by_measure for outcome in seeds):
        return "reproduced"
    if any(seeds == ("fail", "fail") for seeds in by_measure):
        return "not reproduced"
    if any("undefined" in seeds for seeds in by_measure):
        return "not testable here"
    return "inconclusive"


def test_every_combination_of_outcomes_in_two_seeds(clone):
    combinations = itertools.product(itertools.product(VALUES, repeat=2), repeat=2)
    measured, wanted = [], {}
    for i, outcomes in enumerate(combinations):
        measured.append(rows(*outcomes, kind=f"kind {i}"))
        wanted[f"kind {i}"] = by_definition(outcomes)
    judged = claims.judge(record("C4", *measured))
    assert len(wanted) == 256
    assert dict(zip(judged["kind"], judged["verdict"], strict=True)) == wanted


@pytest.mark.parametrize(
    ("outcomes", "wanted", "why", "measure"),
    [
        ((PASS, PASS), "reproduced", "", "ranks"),
        ((PASS, PASS, PASS), "reproduced", "", "ranks"),
        ((PASS, PASS, FAIL), "inconclusive", "seeds disagree on ranks", "ranks"),
        ((("pass", "fail"), ("undecided", "fail")), "not reproduced", "norms fails", "norms"),
        ((("fail", "pass"), ("pass", "fail")), "inconclusive", "seeds disagree on ranks", "ranks"),
        ((("pass", "undecided"), PASS), "inconclusive", "norms is undecided", "norms"),
        ((("pass", "undefined"), PASS), "not testable here", "norms is undefined", "norms"),
        ((("undefined", "fail"), ("undefined", "fail")), "not reproduced", "norms fails", "norms"),
        ((PASS,), "one seed: passes", "", "ranks"),
        ((("pass", "fail"),), "one seed: fails", "norms fails", "norms"),
        ((("undecided", "pass"),), "one seed: undecided", "ranks is undecided", "ranks"),
        ((NONE,), "not testable here", "ranks is undefined", "ranks"),
    ],
)
def test_a_verdict_says_what_decided(clone, outcomes, wanted, why, measure):
    judged = verdict(rows(*outcomes))
    assert (judged["verdict"], judged["why"], judged["measure"]) == (wanted, why, measure)


def test_the_control_is_called_so(clone):
    for outcome, word in ((PASS, "passes"), (FAIL, "fails"), (OPEN, "undecided")):
        assert verdict(rows(outcome, kind="uniform", source="model"))["verdict"] == f"control (one seed): {word}"


def test_a_reason_for_nan_is_passed_on(clone):
    measured = rows(PASS, ("undefined", "pass")).assign(why=["", "", "no low-rank head", ""])
    assert verdict(measured)["why"] == "ranks is undefined: no low-rank head"


def test_nulls_that_pass_are_named(clone):
    null = pd.concat(
        [
            rows(PASS, PASS, source="mechanism"),
            rows(PASS, source="untrained"),
            rows(("pass", "undecided"), source="common decay"),
            rows(PASS, ("pass", "fail"), source="one more"),
            rows(NONE, source="other"),
        ]
    )
    judged = verdict(rows(PASS, PASS), null)
    assert judged["verdict"] == "reproduced (null passes too: mechanism, untrained)"
    assert judged["nulls"] == "mechanism, untrained"
    judged = verdict(rows(FAIL, FAIL), null)
    assert judged["verdict"] == "not reproduced (null passes: mechanism, untrained)"
    assert verdict(rows(OPEN, OPEN), null)["verdict"] == "inconclusive (null passes: mechanism, untrained)"
    judged = verdict(rows(PASS, kind="uniform"), rows(PASS, kind="uniform", source="mechanism"))
    assert judged["verdict"] == "control (one seed): passes (null passes too: mechanism)"


def test_a_null_counts_for_its_own_kind_alone(clone):
    measured = pd.concat([rows(PASS, PASS, kind="pure"), rows(PASS, PASS)])
    table = record("C4", measured, rows(PASS, kind="pure", source="mechanism"))
    assert claims.judge(table)["verdict"].tolist() == ["reproduced (null passes too: mechanism)", "reproduced"]


def test_recorded_rows_say_what_they_are(clone):
    table = record("C4", rows(("fail", "pass"), PASS)[::-1])
    assert table["measure"].tolist() == ["ranks", "ranks", "norms", "norms"]
    assert table.loc[table["seed"] == 0, "outcome"].tolist() == ["fail", "pass"]
    first = table.iloc[0]
    wanted = {"claim": "C4", "source": "model", "paper": "> 0.9", "grade": "B", "rule": "≥ 0.9", "unit": "cosine"}
    assert {name: first[name] for name in wanted} == wanted
    pd.testing.assert_frame_equal(claims.judge(table), claims.judge(store.load_table(f"{RUN}_claims")))


def test_models_that_share_kind_and_seed_are_kinds_of_their_own_names():
    told = claims.told_apart(pd.concat([rows(PASS, FAIL).assign(seed=0), rows(PASS, kind="pure")]))
    assert told["kind"].unique().tolist() == ["hybrid-0", "hybrid-1", "pure"]
    assert claims.told_apart(rows(PASS, FAIL, kind="uniform").assign(seed=0))["kind"].unique() == ["uniform"]
    assert claims.told_apart(rows(PASS, FAIL))["kind"].unique() == ["hybrid"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"claim_id": "C99"}, "no claim 'C99'"),
        ({"claim_id": "C1"}, "C1 is decided in 01_stratification, not in 02_consistency"),
        ({"claim_id": "C6"}, "C6 has no measure"),
        ({"measured": rows(PASS, PASS)[:-1]}, "model of hybrid-1 has rows for ranks, but the claim wants one for each"),
        ({"measured": rows(PASS, measures=("ranks", "drift"))}, "has rows for drift, ranks"),
        ({"measured": pd.concat([rows(PASS)] * 2)}, "has rows for norms, norms, ranks, ranks"),
        ({"measured": rows(PASS).drop(columns=["n", "low"])}, "lack the columns low, n"),
        ({"measured": rows(PASS)[:0]}, "no model was measured"),
        ({"measured": rows(PASS).assign(low=0.99)}, "low ≤ high does not hold"),
        ({"measured": rows(PASS, PASS).assign(seed=[0, 1, 0, 1])}, "a model has one kind and seed"),
        ({"measured": rows(PASS, source="mechanism")}, "no model was measured"),
        ({"null": rows(PASS)}, "has rows for norms, norms, ranks, ranks"),
        ({"null": rows(PASS, source="mechanism")[:1]}, "mechanism of hybrid-0 has rows for ranks"),
        ({"null": rows(PASS, source="mechanism", kind="pure")}, r"not measured: \[\('pure-0', 'pure', 0\)\]"),
    ],
)
def test_what_cannot_be_recorded_is_refused_and_leaves_no_table(clone, arguments, message):
    given = {"claim_id": "C4", "measured": rows(PASS), "null": pd.DataFrame()} | arguments
    with pytest.raises(ValueError, match=message):
        record(*given.values())
    assert not (clone / "data/tables").exists()


@pytest.mark.parametrize(("estimate", "outside"), [(0.92, True), (0.93, False), (0.98, False), (0.99, True)])
def test_an_estimate_outside_its_interval_is_logged_and_the_interval_decides(clone, caplog, estimate, outside):
    table = record("C4", rows(PASS, PASS).assign(estimate=estimate))
    assert ("C4: resampling shifts these" in caplog.text) == outside
    assert set(table["outcome"]) == {"pass"}


def files(folder):
    found = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "compared"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def test_claims_of_a_run_lie_together_in_the_papers_order(clone):
    record("C5", rows(PASS, PASS), rows(FAIL, source="mechanism"))
    record("C4", rows(FAIL, FAIL))
    before = files(clone)
    record("C5", rows(PASS, PASS), rows(FAIL, source="mechanism"))
    nudged = rows(FAIL, FAIL)
    record("C4", nudged.assign(estimate=nudged["estimate"] * (1 + 5e-5)))
    assert files(clone) == before
    table = store.load_table(f"{RUN}_claims")
    assert table["claim"].tolist() == ["C4"] * 4 + ["C5"] * 6
    record("C4", rows(OPEN, OPEN, OPEN))
    again = store.load_table(f"{RUN}_claims")
    assert again["claim"].tolist() == ["C4"] * 6 + ["C5"] * 6
    pd.testing.assert_frame_equal(again[6:].reset_index(drop=True), table[4:].reset_index(drop=True))
    assert claims.judge(table[::-1])["claim"].tolist() == ["C5", "C4"]


def test_returned_rows_are_the_standing_ones(clone):
    record("C4", rows(PASS, PASS))
    table = record("C4", rows(PASS, PASS).assign(low=0.93 * (1 - 5e-5)))
    assert set(table["low"]) == {0.93}


def test_rows_of_a_claim_that_moved_are_dropped_aloud(clone, caplog):
    record("C4", rows(PASS, PASS))
    record("C5", rows(PASS, PASS))
    state(clone, [CLAIMS[0], stated("C4", "03_ablation"), *CLAIMS[2:]])
    record("C5", rows(PASS, PASS))
    assert "dropped C4" in caplog.text
    assert set(store.load_table(f"{RUN}_claims")["claim"]) == {"C5"}


def test_rows_of_a_claim_that_changed_its_measures_are_not_judged(clone):
    record("C4", rows(PASS, PASS))
    state(clone, [CLAIMS[0], stated("C4", measures=(*MEASURES, "third")), *CLAIMS[2:]])
    with pytest.raises(ValueError, match="one for each of ranks, norms, third"):
        claims.ledger()


def test_the_ledger_drops_nothing(clone):
    null = rows(("pass", "fail"), source="mechanism", n=2)
    measured = pd.concat(
        [rows(PASS, FAIL).assign(why=["1 of 3 pairs undefined", "", "", ""]), rows(PASS, kind="uniform")]
    )
    record("C4", measured, null)
    book = claims.ledger()
    assert book[["claim", "kind", "verdict", "why"]].to_numpy().tolist() == [
        ["C1", "", "not measured yet", "01_stratification has not run"],
        ["C4", "hybrid", "inconclusive", "seeds disagree on ranks: 1 of 3 pairs undefined"],
        ["C4", "uniform", "control (one seed): passes", ""],
        ["C5", "", "not measured yet", "02_consistency ran without it"],
        ["C6", "", "not testable here", "needs a pair of models"],
    ]
    line = book.iloc[1]
    assert line["ours"].splitlines() == [
        "ranks ≥ 0.9: 0.960 [0.930, 0.980] ✓ (1 of 3 pairs undefined), 0.500 [0.400, 0.600] ✗",
        "norms ≥ 0.9: 0.960 [0.930, 0.980] ✓, 0.500 [0.400, 0.600] ✗",
    ]
    assert line["nulls"].splitlines() == ["ranks: mechanism 0.960", "norms: mechanism 0.500"]
    assert line["over"].splitlines() == ["samples, n = 8", "nulls: samples, n = 2", "ranks: t = 8", "norms: t = 8"]
    assert book.iloc[2]["over"].splitlines()[0] == "samples, n = 8"
    assert line["leading"] == "ranks 0.960 / 0.500 (≥ 0.9)"
    assert (line["paper"], line["notebook"]) == ("> 0.9 (appendix; grade B)", RUN)


def test_a_claim_that_needs_more_is_not_testable_until_it_is_measured(clone):
    state(clone, [*CLAIMS[:3], stated("C6") | UNTESTED])
    line = claims.ledger().set_index("claim").loc["C6"]
    assert (line["kind"], line["verdict"], line["why"]) == ("", "not testable here", "needs a pair of models")
    record("C4", rows(PASS, PASS))
    assert claims.ledger().set_index("claim").at["C6", "verdict"] == "not testable here"
    record("C6", rows(PASS, kind="a / b"), rows(FAIL, kind="a / b", source="permuted heads"))
    line = claims.ledger().set_index("claim").loc["C6"]
    assert (line["kind"], line["verdict"]) == ("a / b", "one seed: passes")


def test_another_run_sees_its_own_tables_alone(clone, monkeypatch):
    record("C4", rows(PASS, PASS))
    monkeypatch.setenv("SRDYN_RUN", "smoke")
    assert set(claims.ledger()["verdict"]) == {"not measured yet", "not testable here"}
    record("C4", rows(FAIL, FAIL))
    assert claims.ledger().set_index("claim").at["C4", "verdict"] == "not reproduced"
    monkeypatch.setenv("SRDYN_RUN", "reference")
    assert claims.ledger().set_index("claim").at["C4", "verdict"] == "reproduced"


def test_the_main_pair_stands_beside_the_models_of_the_reference_run(clone, monkeypatch):
    state(clone, [*CLAIMS[:3], stated("C6") | UNTESTED])
    record("C4", rows(PASS, PASS), rows(FAIL, kind="uniform"))
    before = claims.ledger()
    monkeypatch.setenv("SRDYN_RUN", "main")
    record("C4", rows(FAIL, model="main-hybrid"), rows(PASS, kind="pure", model="main-pure"))
    record("C6", rows(PASS, model="main-hybrid"))
    assert claims.ledger().set_index(["claim", "kind"]).at[("C4", "hybrid"), "verdict"] == "one seed: fails"
    assert (clone / f"data/tables/main/{RUN}_claims.csv").is_file()
    monkeypatch.setenv("SRDYN_RUN", "reference")
    book = claims.ledger()
    told = book[book["kind"].map(claims.is_main)].set_index(["claim", "kind"])["verdict"]
    assert told.to_dict() == {
        ("C4", "main hybrid"): "one seed: fails",
        ("C4", "main pure"): "one seed: passes",
        ("C6", "main hybrid"): "one seed: passes",
    }
    rest = book[~book["kind"].map(claims.is_main)].reset_index(drop=True)
    pd.testing.assert_frame_equal(rest, before[before["claim"] != "C6"].reset_index(drop=True))
    monkeypatch.setenv("SRDYN_RUN", "smoke")
    assert set(claims.ledger()["kind"]) == {""}


def test_the_main_pair_is_not_said_to_agree_with_the_thorough_run(clone, monkeypatch):
    for run, found in (("thorough", FAIL), ("main", PASS), ("reference", PASS)):
        monkeypatch.setenv("SRDYN_RUN", run)
        measured = rows(found, found)
        record("C4", measured.assign(model=f"{run}-" + measured["model"]))
    told = claims.ledger().query("claim == 'C4'").set_index("kind")[["verdict", "beside"]]
    assert told.to_numpy().tolist() == [
        ["not reproduced", "thorough run; default run says: reproduced"], ["reproduced", ""]
    ]  # fmt: skip


def test_a_number_stays_on_its_side_of_the_threshold():
    wanted = {0.9: "0.900", 0.89996: "0.89996", 0.90004: "0.900", 1.0: "1.00", 0.0: "0.00", -3e-17: "0.00"}
    wanted |= {1.234e-5: "1.23e-05", 64.0: "64.0", 128.4: "128", NAN: "–"}
    measure = registration.Measure("m", "q", "u", {"at_least": 0.9})
    assert [claims._number(measure, value) for value in wanted] == [*wanted.values()]


def test_the_scorecard_has_a_cell_for_each_claim_and_kind(clone):
    record("C4", rows(PASS, PASS), rows(FAIL, kind="uniform"))
    record("C5", rows(NONE, PASS))
    card = claims.scorecard()
    lines = [line for line in card.splitlines() if line.startswith("|")]
    bars = [line.replace(r"\|", "").count("|") for line in lines]
    assert bars == [5] * 6 + [8] * 7
    assert lines[0] == "| claim | paper (place; grade) | hybrid | uniform |"
    assert "**reproduced**<br>ranks 0.960 / 0.960 (≥ 0.9) | **control (one seed): fails**<br>ranks 0.500" in lines[3]
    assert lines[4].endswith("| **not testable here**<br>ranks – / 0.960 (≥ 0.9) | – |")
    assert lines[5].count("**not testable here**") == 2


def test_a_scorecard_without_any_run_says_so(clone):
    card = claims.scorecard()
    assert "| claim | paper (place; grade) | verdict |" in card
    assert card.count("**not measured yet**") == 3


def secondly(*measures):
    """C4 with second rules as well."""
    rule = {"quantity": "x", "unit": "x", "rule": {"at_least": 0.9}}
    second = {"why": "unfair", "seen": "all of it", "measures": [rule | dict(measure) for measure in measures]}
    return [stated("C1", "01_stratification"), stated("C4") | {"second": second}, stated("C5")]


def test_both_verdicts_stand_side_by_side(clone):
    before = claims.scorecard()
    state(clone, secondly({"name": "ranks"}, {"name": "whole"}))
    record("C4", rows(FAIL, FAIL))
    assert "second:" not in claims.scorecard()
    found = claims.record("C4", rows(PASS, PASS, measures=("ranks", "whole")), run=RUN, registered="second")
    assert set(found["outcome"]) == {"pass"}
    assert claims.judge(found, registered="second")["verdict"].tolist() == ["reproduced"]
    by = {name: claims.ledger(registered=name).set_index("claim")["verdict"] for name in ("first", "second")}
    assert by["first"]["C4"] == "not reproduced"
    assert by["second"].to_dict() == {"C4": "reproduced"}
    card = claims.scorecard()
    assert "**not reproduced**" in card
    assert "second: **reproduced**" in card
    assert "- **C4**, second: unfair. Seen before: all of it." in card
    assert before != card
    with pytest.raises(ValueError, match="no claim 'C5'"):
        claims.record("C5", rows(PASS), run=RUN, registered="second")


def test_nothing_is_tested_where_a_gate_does_not_pass(clone):
    state(clone, secondly({"name": "ranks"}, {"name": "norms", "gate": True}))
    for by_seed, wanted in ((("pass", "pass"), "reproduced"), (("fail", "undecided"), "not testable here")):
        outcomes = [("pass", outcome) for outcome in by_seed]
        found = claims.record("C4", rows(*outcomes), run=RUN, registered="second")
        [judged] = claims.judge(found, registered="second").to_dict("records")
        assert judged["verdict"] == wanted
    assert judged["why"] == "norms does not pass, so that nothing was tested"


def test_a_measure_for_larger_layers_may_be_left_out(clone):
    state(clone, secondly({"name": "ranks"}, {"name": "norms", "heads_per_layer": 16}))
    few = rows(("pass",), ("pass",), measures=("ranks",))
    many = rows(FAIL, FAIL, kind="large")
    found = claims.record("C4", pd.concat([few, many]), run=RUN, registered="second")
    judged = claims.judge(found, registered="second").set_index("kind")["verdict"]
    assert judged.to_dict() == {"hybrid": "reproduced", "large": "not reproduced"}
    assert "second: **reproduced**" not in claims.scorecard()  # not before the first rules were
    with pytest.raises(ValueError, match="has rows for norms"):
        claims.record("C4", rows(("pass",), measures=("norms",)), run=RUN, registered="second")


def test_how_far_off_ranks_may_be_is_kept_where_it_is_said(clone):
    record("C4", rows(PASS).assign(uncertain=[0.01, 0.0]))
    assert store.load_table(f"{RUN}_claims")["uncertain"].tolist() == [0.01, 0.0]
    assert record("C4", rows(PASS)).shape[0] == 2
    assert "uncertain" not in store.load_table(f"{RUN}_claims")
