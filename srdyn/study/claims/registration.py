"""What the paper says: `claims.yaml`, checked, as objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from srdyn.loading import files

GRADES = {
    "A": "abstract or figure caption",
    "B": "quoted with its place by a reader of the paper",
    "C": "second hand",
    "D": "derived by us, not the paper's",
}
OPTIONAL = ("taken", "heads_per_layer", "gate")
"""What a measure may say besides."""


@dataclass(frozen=True)
class Measure:
    """One quantity of a claim, in `unit`, with the rule that it must satisfy: at least, at most or below `threshold`.

    `taken` says where it is measured: after how many tokens, in which contexts, and what its interval is over. Models
    with fewer than `heads_per_layer` heads a layer go without it. Where a `gate` does not pass, nothing was tested.
    """

    name: str
    quantity: str
    unit: str
    at_least: bool
    threshold: float
    taken: str = ""
    strict: bool = False
    heads_per_layer: int = 0
    gate: bool = False

    @property
    def rule(self) -> str:
        """The rule as text."""
        return f"{'≥' if self.at_least else '<' if self.strict else '≤'} {self.threshold:g}"

    def satisfied(self, value: float) -> bool:
        """Whether one value satisfies the rule."""
        if self.strict and value == self.threshold:
            return False
        return value >= self.threshold if self.at_least else value <= self.threshold

    def outcome(self, estimate: float, low: float, high: float) -> str:
        """`pass` when the whole interval satisfies the rule, `fail` when none of it does; `undefined` is NaN."""
        if np.isnan(estimate):
            return "undefined"
        if np.isnan(low) or np.isnan(high):
            return "undecided"
        ends = {self.satisfied(low), self.satisfied(high)}
        return "undecided" if len(ends) == 2 else "pass" if True in ends else "fail"


@dataclass(frozen=True)
class Second:
    """What decides a claim by the second registration: why the first was left, what had been seen before it was."""

    why: str
    seen: str
    measures: tuple[Measure, ...]


@dataclass(frozen=True)
class Claim:
    """One claim of the paper, its value there with grade and place, and the notebook that decides it.

    `untested` may say why nothing was measured: the claim has no measures, or needs what the reference run has not.
    `second` is None where the second registration left the rules as they were.
    """

    id: str
    statement: str
    value: str
    grade: str
    place: str
    notebook: str
    measures: tuple[Measure, ...]
    untested: str = ""
    second: Second | None = None

    @property
    def paper(self) -> str:
        """The paper's value as text: value, place, grade."""
        return f"{self.value} ({self.place}; grade {self.grade})"


@dataclass(frozen=True)
class Paper:
    """The paper's claims in order, and what is fixed beside them."""

    title: str
    reference: str
    thresholds: Mapping[str, float]
    primary: Mapping[str, str]
    claims: tuple[Claim, ...]

    def claim(self, claim_id: str) -> Claim:
        """The claim called `claim_id`. Raises ValueError for one that the paper does not make."""
        for claim in self.claims:
            if claim.id == claim_id:
                return claim
        raise ValueError(f"claims.yaml has no claim {claim_id!r}; there are {', '.join(c.id for c in self.claims)}")


def path() -> Path:
    """Where the claims are stated."""
    return files.data_dir() / "paper" / "claims.yaml"


def load() -> Paper:
    """What `data/paper/claims.yaml` says. Raises ValueError where it departs from its form, saying where."""
    content = yaml.safe_load(path().read_text(encoding="utf-8"))
    _require_keys(content, ("paper", "thresholds", "primary", "claims"), "claims.yaml")
    _require_keys(content["paper"], ("title", "reference"), "paper")
    _require_keys(content["primary"], ("claim", "contrast"), "primary")
    made = tuple(_claim(entry) for entry in content["claims"])
    _require_unique([claim.id for claim in made], "claims")
    found = Paper(**content["paper"], thresholds=content["thresholds"], primary=content["primary"], claims=made)
    found.claim(found.primary["claim"])
    return found


def rules() -> pd.DataFrame:
    """Every measure's rule: columns claim, measure, at_least, at_most, of which one is NaN."""
    measures = [(claim.id, measure) for claim in load().claims for measure in claim.measures]
    rows = [(claim, m.name, *((m.threshold, np.nan) if m.at_least else (np.nan, m.threshold))) for claim, m in measures]
    return pd.DataFrame(rows, columns=["claim", "measure", "at_least", "at_most"])


def _claim(entry: Mapping[str, object]) -> Claim:
    _require_keys(
        entry, ("id", "statement", "paper", "notebook", "measures"), "a claim", optional=["untested", "second"]
    )
    where, cited = f"claim {entry['id']}", entry["paper"]
    _require_keys(cited, ("value", "grade", "place"), f"{where}: paper")
    if cited["grade"] not in GRADES:
        raise ValueError(f"{where}: a grade is one of {', '.join(GRADES)}, not {cited['grade']!r}")
    named = {"notebook": entry["notebook"], "untested": entry.get("untested", "")}
    measures, second = _measures(entry["measures"], where), _second(entry.get("second"), where)
    return Claim(entry["id"], entry["statement"], **cited, **named, measures=measures, second=second)


def _second(entry: Mapping[str, object] | None, where: str) -> Second | None:
    if entry is None:
        return None
    _require_keys(entry, ("why", "seen", "measures"), f"{where}: second")
    return Second(entry["why"], entry["seen"], _measures(entry["measures"], f"{where}: second"))


def _measures(entries: Sequence[Mapping[str, object]], where: str) -> tuple[Measure, ...]:
    measures = tuple(_measure(entry, where) for entry in entries)
    _require_unique([measure.name for measure in measures], f"{where}: measures")
    return measures


def _measure(entry: Mapping[str, object], where: str) -> Measure:
    _require_keys(entry, ("name", "quantity", "unit", "rule"), f"{where}: a measure", optional=OPTIONAL)
    rule, where = entry["rule"], f"{where}: {entry['name']}"
    if not isinstance(rule, dict) or len(rule) != 1 or not set(rule) <= {"at_least", "at_most", "below"}:
        raise ValueError(f"{where}: a rule is exactly one of at_least, at_most and below, not {rule!r}")
    [(bound, threshold)] = rule.items()
    if isinstance(threshold, bool) or not isinstance(threshold, int | float):
        raise ValueError(f"{where}: a threshold is a number (YAML wants 1.0e-3 for 1e-3), not {threshold!r}")
    named = entry["name"], entry["quantity"], entry["unit"]
    said = {name: entry[name] for name in OPTIONAL if name in entry}
    return Measure(*named, bound == "at_least", float(threshold), strict=bound == "below", **said)


def _require_keys(entry: object, keys: Sequence[str], where: str, *, optional: Sequence[str] = ()) -> None:
    found = sorted(entry.keys() - set(optional), key=str) if isinstance(entry, dict) else entry
    if found != sorted(keys):
        raise ValueError(f"{where}: claims.yaml wants exactly the keys {', '.join(sorted(keys))}, not {found}")


def _require_unique(names: Sequence[str], where: str) -> None:
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise ValueError(f"{where}: a name stands for one thing, but these come twice: {', '.join(sorted(repeated))}")
