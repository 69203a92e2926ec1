"""The committed claims are in order; a departure from their form is named."""

import copy
import itertools

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from srdyn.study.claims import registration

CONTENT = {
    "paper": {"title": "T", "reference": "arXiv:0"},
    "thresholds": {"eps": 1e-4},
    "primary": {"claim": "C1", "contrast": "x"},
    "claims": [
        {
            "id": "C1",
            "statement": "Heads fork.",
            "paper": {"value": "half", "grade": "C", "place": "Fig. 1"},
            "notebook": "01_stratification",
            "measures": [{"name": "middle", "quantity": "share", "unit": "share", "rule": {"at_most": 0.2}}],
        }
    ],
}


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Loads claims.yaml of a clone that holds the given content."""
    (tmp_path / "data/paper").mkdir(parents=True)
    monkeypatch.setenv("SRDYN_ROOT", str(tmp_path))

    def write_and_load(content):
        (tmp_path / "data/paper/claims.yaml").write_text(yaml.safe_dump(content))
        return registration.load()

    return write_and_load


def test_the_committed_claims_are_in_order(monkeypatch):
    monkeypatch.delenv("SRDYN_ROOT", raising=False)
    paper = registration.load()
    assert paper.reference == "arXiv:2602.02195v1"
    assert [claim.id for claim in paper.claims if claim.notebook == "01_stratification"] == ["Thm 3.1", "C1", "C2"]
    assert {f"C{i}" for i in range(1, 11)} <= {claim.id for claim in paper.claims}
    smaller, middle = paper.claim("C1").measures
    assert (smaller.wanted, middle.wanted) == ("≥ 0.2", "≤ 0.2")
    assert paper.claim("C3").paper.endswith("(§3.2; grade B)")
    with pytest.raises(ValueError, match=r"no claim 'C11'; there are Thm 3\.1, C1"):
        paper.claim("C11")


def test_content_becomes_objects(load):
    [claim] = load(CONTENT).claims
    assert claim.measures == (registration.Measure("middle", "share", "share", {"at_most": 0.2}),)
    assert claim.paper == "half (Fig. 1; grade C)"


def test_what_may_be_left_out_is_empty(load):
    for untested, measures in itertools.product(({}, {"untested": "needs two models"}), ({}, {"measures": []})):
        [claim] = load(claim_with(**untested, **measures)).claims
        assert (claim.untested, len(claim.measures)) == (untested.get("untested", ""), 0 if measures else 1)
    [claim] = load(measure_with(taken="t = 8")).claims
    assert claim.measures[0].taken == "t = 8"


def claim_with(**changes):
    content = copy.deepcopy(CONTENT)
    content["claims"][0] |= changes
    return content


def measure_with(**changes):
    return claim_with(measures=[CONTENT["claims"][0]["measures"][0] | changes])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (CONTENT | {"claims": CONTENT["claims"] * 2}, r"claims\.yaml: claims: .* come twice: C1"),
        (CONTENT | {"primary": {"claim": "C8", "contrast": "x"}}, "no claim 'C8'"),
        ({key: CONTENT[key] for key in ("paper", "primary", "claims")}, r"claims\.yaml wants the keys title, "),
        (CONTENT | {"thresholds": {"eps": float("nan")}}, "thresholds are finite numbers, not"),
        (claim_with(statement=3), "claim C1: statement cannot be 3"),
        (claim_with(measures={"name": "middle"}), "claim C1: measures must be a list, not"),
        (claim_with(second=[]), "claim C1: second must be an object, not"),
        (claim_with(paper={"value": "half", "grade": "E", "place": "?"}), "claim C1: a grade is one of A, B, C, D"),
        (claim_with(paper={"value": "half"}), "claim C1: .* grade, place"),
        (claim_with(extra=1), "claim C1: .* not .*'extra'"),
        (claim_with(measures=CONTENT["claims"][0]["measures"] * 2), "claim C1: measures: .* come twice: middle"),
        (measure_with(rule={"at_least": 0.1, "at_most": 0.2}), "middle: a rule is exactly one of"),
        (measure_with(rule={}), "exactly one of"),
        (measure_with(rule={"above": 0.2}), "exactly one of"),
        (measure_with(rule={"at_most": "1e-3"}), "a threshold is a finite number"),
        (measure_with(rule={"at_most": True}), "a threshold is a finite number"),
        (measure_with(unit="x", bound=1), "C1: measures: .* not .*'bound'"),
    ],
)
def test_a_departure_is_named(load, content, message):
    with pytest.raises(ValueError, match=message):
        load(content)


NAN = float("nan")


@pytest.mark.parametrize(
    ("at_least", "interval", "outcome"),
    [
        (True, (0.95, 0.9, 1.0), "pass"),
        (True, (0.95, 0.899, 1.0), "undecided"),
        (True, (0.8, 0.7, 0.9), "undecided"),
        (True, (0.8, 0.7, 0.899), "fail"),
        (False, (0.85, 0.8, 0.9), "pass"),
        (False, (0.95, 0.9, 1.0), "undecided"),
        (False, (0.95, 0.901, 1.0), "fail"),
        (True, (NAN, NAN, NAN), "undefined"),
        (True, (0.95, NAN, NAN), "undecided"),
        (True, (0.5, NAN, 0.6), "undecided"),
        (True, (0.5, 0.4, NAN), "undecided"),
    ],
)
def test_the_whole_interval_decides(at_least, interval, outcome):
    measure = registration.Measure("m", "q", "u", {"at_least" if at_least else "at_most": 0.9})
    assert measure.outcome(*interval) == outcome


reals = st.floats(-1e6, 1e6)


@given(threshold=reals, ends=st.tuples(reals, reals).map(sorted), inside=st.floats(0, 1))
def test_what_the_whole_interval_obeys_each_of_its_values_does_and_the_mirrored_rule_says_the_same(
    threshold, ends, inside
):
    low, high = ends
    value = min(max(low + inside * (high - low), low), high)
    measure, mirrored = (
        registration.Measure("m", "q", "u", {rule: x}) for rule, x in (("at_least", threshold), ("at_most", -threshold))
    )
    said = measure.outcome(value, low, high)
    assert said == mirrored.outcome(-value, -high, -low)
    assert {"pass": [True], "fail": [False], "undecided": [True, False]}[said].count(measure.satisfied(value)) == 1


def test_rules_have_one_side_each():
    rules = registration.rules()
    assert (rules[["at_least", "at_most"]].notna().sum(axis=1) == 1).all()
    measures = [(claim.id, measure.name) for claim in registration.load().claims for measure in claim.measures]
    assert list(zip(rules["claim"], rules["measure"], strict=True)) == measures


def test_the_second_registration_stands_beside_the_first(load, monkeypatch):
    again = CONTENT["claims"][0]["measures"][0] | {"rule": {"below": 0.1}, "heads_per_layer": 16, "gate": True}
    [claim] = load(claim_with(second={"why": "unfair", "seen": "all", "measures": [again]})).claims
    assert (claim.second.why, claim.measures[0].wanted, claim.second.measures[0].wanted) == ("unfair", "≤ 0.2", "< 0.1")
    assert (claim.second.measures[0].heads_per_layer, claim.second.measures[0].gate) == (16, True)
    assert registration.load("second").claims[0].measures == claim.second.measures
    with pytest.raises(ValueError, match="no registration called 'third'; there are first and second"):
        registration.load("third")
    with pytest.raises(ValueError, match=r"claim C1: second: claims\.yaml wants the keys why, seen, measures"):
        load(claim_with(second={"measures": [again]}))
    monkeypatch.delenv("SRDYN_ROOT")
    changed = [claim.id for claim in registration.load().claims if claim.second]
    assert changed == ["C1", "C2", "C4", "C5", "C8", "C9", "C10"]
