"""What the paper says: `claims.yaml`, checked, as objects."""

import dataclasses
import functools
import math
import operator
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from srdyn.loading import files, presets

GRADES = {
    "A": "abstract or figure caption",
    "B": "quoted with its place by a reader of the paper",
    "C": "second hand",
    "D": "derived by us, not the paper's",
}
FIRST, SECOND = "first", "second"
_RULES = {"at_least": ("≥", operator.ge), "at_most": ("≤", operator.le), "below": ("<", operator.lt)}


@dataclass(frozen=True)
class Measure:
    """One quantity of a claim, in `unit`, with the rule that it must satisfy, such as `{"at_least": 0.9}`.

    `taken` says where it is measured: after how many tokens, in which contexts, and what its interval is over. Models
    with fewer than `heads_per_layer` heads a layer go without it. Where a `gate` does not pass, nothing was tested.
    """

    name: str
    quantity: str
    unit: str
    rule: Mapping
    taken: str = ""
    heads_per_layer: int = 0
    gate: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.rule, dict) or len(self.rule) != 1 or not self.rule.keys() <= _RULES.keys():
            raise ValueError(f"{self.name}: a rule is exactly one of {', '.join(_RULES)}, not {self.rule!r}")
        [threshold] = self.rule.values()
        if type(threshold) not in (int, float) or not math.isfinite(threshold):
            wanted = "a threshold is a finite number (YAML wants 1.0e-3 for 1e-3)"
            raise ValueError(f"{self.name}: {wanted}, not {threshold!r}")

    @property
    def wanted(self) -> str:
        """The rule as text."""
        [(bound, threshold)] = self.rule.items()
        return f"{_RULES[bound][0]} {threshold:g}"

    def satisfied(self, value: float) -> bool:
        """Whether one value satisfies the rule."""
        [(bound, threshold)] = self.rule.items()
        return bool(_RULES[bound][1](value, threshold))

    def outcome(self, estimate: float, low: float, high: float) -> str:
        """`pass` when the whole interval satisfies the rule, `fail` when none of it does; `undefined` is NaN."""
        if np.isnan(estimate):
            return "undefined"
        ends = {self.satisfied(low), self.satisfied(high)}
        if np.isnan(low) or np.isnan(high) or len(ends) == 2:
            return "undecided"
        return "pass" if True in ends else "fail"


@dataclass(frozen=True)
class Second:
    """What decides a claim by the second registration: why the first was left, what had been seen before it was."""

    why: str
    seen: str
    measures: tuple[Measure, ...]


@dataclass(frozen=True)
class Claim:
    """One claim of the paper, its value there with grade and place, and the notebook that decides it.

    `untested` says why nothing was measured; `second` is None where the second registration left the rules as they
    were.
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

    def __post_init__(self) -> None:
        if self.grade not in GRADES:
            raise ValueError(f"claim {self.id}: a grade is one of {', '.join(GRADES)}, not {self.grade!r}")

    @property
    def paper(self) -> str:
        """The paper's value as text: value, place, grade."""
        return f"{self.value} ({self.place}; grade {self.grade})"


@dataclass(frozen=True)
class Paper:
    """The paper's claims in order, and what is fixed beside them; `registered` says when each registration was made."""

    title: str
    reference: str
    thresholds: Mapping
    primary: Mapping
    claims: tuple[Claim, ...]
    registered: Mapping | None = None

    def claim(self, claim_id: str) -> Claim:
        """The claim called `claim_id`. Raises ValueError for one that the paper does not make."""
        found = {claim.id: claim for claim in self.claims}
        if claim_id not in found:
            raise ValueError(f"claims.yaml has no claim {claim_id!r}; there are {', '.join(found)}")
        return found[claim_id]


_PARTS = {"claims": Claim, "measures": Measure, "second": Second}
"""What stands under these keys, or in a list there."""


def path() -> Path:
    """Where the claims are stated."""
    return files.data_dir() / "paper" / "claims.yaml"


def load(registered: str = FIRST) -> Paper:
    """What `data/paper/claims.yaml` says; of the `second` registration, the claims that it changes.

    Raises ValueError where the file departs from its form, saying where.
    """
    return _read(path().read_bytes(), registered)


@functools.lru_cache(maxsize=2)  # a ledger asks once for every claim and kind of model
def _read(text: bytes, registered: str) -> Paper:
    content = presets.value(text, "claims.yaml", loader=yaml.SafeLoader)  # as whoever checks it reads it
    found = _made(Paper, content, "claims.yaml")
    found.claim(found.primary.get("claim"))
    if not all(type(x) in (int, float) and math.isfinite(x) for x in found.thresholds.values()):
        raise ValueError(f"claims.yaml: thresholds are finite numbers, not {found.thresholds}")
    if registered == FIRST:
        return found
    if registered != SECOND:
        raise ValueError(f"claims.yaml has no registration called {registered!r}; there are {FIRST} and {SECOND}")
    changed = [claim for claim in found.claims if claim.second is not None]
    again = [dataclasses.replace(claim, measures=claim.second.measures) for claim in changed]
    return dataclasses.replace(found, claims=tuple(again))


def rules() -> pd.DataFrame:
    """Every measure's rule: columns claim, measure, at_least, at_most (or below), of which one is NaN."""
    rows = [(claim.id, measure.name, measure.rule) for claim in load().claims for measure in claim.measures]
    ends = [(rule.get("at_least"), rule.get("at_most", rule.get("below"))) for *_, rule in rows]
    table = pd.DataFrame(rows, columns=["claim", "measure", "rule"]).drop(columns="rule")
    return table.assign(**pd.DataFrame(ends, columns=["at_least", "at_most"], dtype=float))


def _made(kind: type, entry: object, where: str) -> object:
    """The entry as such an object: its keys, and those of its part `paper`, are the fields."""
    given = dict(entry) if isinstance(entry, dict) else {}
    paper = given.pop("paper", {})
    given |= paper if isinstance(paper, dict) else {"paper": paper}
    where = f"claim {given['id']}" if "id" in given else where
    needed = {field.name: field.default is dataclasses.MISSING for field in dataclasses.fields(kind)}
    if not {name for name in needed if needed[name]} <= given.keys() <= needed.keys():
        raise ValueError(f"{where}: claims.yaml wants the keys {', '.join(needed)}, not {entry}")
    for name, wanted in typing.get_type_hints(kind).items():
        if name in given and name not in _PARTS and not isinstance(given[name], wanted):
            raise ValueError(f"{where}: {name} cannot be {given[name]!r:.60}")
    return kind(**given | {name: _part(name, given[name], f"{where}: {name}") for name in _PARTS.keys() & given.keys()})


def _part(name: str, content: object, where: str) -> object:
    if isinstance(content, list) != (name != "second"):
        raise ValueError(f"{where} must be {'an object' if name == 'second' else 'a list'}, not {content!r:.60}")
    if name == "second":
        return _made(_PARTS[name], content, where)
    made = tuple(_made(_PARTS[name], entry, where) for entry in content)
    names = [part.id if name == "claims" else part.name for part in made]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"{where}: a name stands for one thing, but these come twice: {', '.join(sorted(repeated))}")
    return made
