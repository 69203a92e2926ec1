"""A chosen set of heads among random sets of as many: inference over sets, not over rows alone.

Damage sits in one or two heads, so that almost any set differs from the mean of random ones. What says that a choice is
special is its place: the share of random sets that do worse on the same rows, ties counted half. Under "a set like any
other" the set and the random ones are exchangeable, so that the place is its own p-value, whatever the model and the
rows. It compares sets, not heads: where a quarter of a layer goes, a quarter of the random sets lack its one critical
head too, and no set that lacks no more than that is called worse. A set is a mask, and what it answers is kept under
it: sets that several choices share are asked once.

More rows sharpen what is ranked, more sets the place; a thorough run has more of both.

References
----------
Davison & Hinkley, Bootstrap Methods and their Application, 1997, §4.2 (Monte Carlo tests).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from srdyn import ablation
from srdyn.study.analysis import intervals, observations
from srdyn.study.run import opened, store
from srdyn.study.trials import battery, effects, trials

LEVEL = 0.05
"""Of the two-sided test whether a set is like any other."""
CHOSEN, RANDOM, ALL_OFF = "chosen", "random", "all off"
RESAMPLES = 2000
"""Of a choice's draws, for the interval of its place."""
BLOCK = 20
"""Random sets that a process answers in one go."""


class Place(NamedTuple):
    """Where a chosen set stands among n random ones.

    `place` is the share of these that do worse, ties counted half, with the ends of its 95 % interval for so many
    random sets (Wilson) or, where that is wider, for so many draws of the choice (bootstrap). `p` is the two-sided
    p-value of "a set like any other".
    """

    place: float
    low: float
    high: float
    p: float
    n: int

    @property
    def verdict(self) -> str:
        """`worse` or `better` than random sets, at `LEVEL`, else `undecided`."""
        return "undecided" if self.p > LEVEL else "worse" if self.place < 0.5 else "better"


def drawn(
    chosen: Bool[Tensor, "L H"],
    held: Bool[Tensor, "L H"],
    *,
    n: int,
    per_layer: bool = True,
    generator: torch.Generator,
) -> Bool[Tensor, "n L H"]:
    """`n` random sets of as many heads as `chosen` has, of every layer or, not `per_layer`, of all; out of those held.

    Which of its heads a layer's share falls on does not depend on the choice, so that equally large sets of several
    choices have the same random ones. Raises ValueError where a chosen head is not held.
    """
    if (chosen & ~held).any():
        raise ValueError("random sets are drawn among the heads that the model holds, but some of the chosen are gone")
    order = torch.rand(n, *held.shape, generator=generator, dtype=torch.float64).masked_fill(~held, 2.0)
    counts = chosen.sum(1, keepdim=True) if per_layer else chosen.sum()[None]
    order = order if per_layer else order.flatten(1)
    return (order.argsort(-1).argsort(-1) < counts).view(n, *held.shape)


def place(chosen: float | Float[np.ndarray, " draws"], random: Float[np.ndarray, " n"]) -> Place:
    """The place of a set's value (more is better) among those of random sets; of several draws of a choice, the mean.

    p is the share of random sets whose own place among them is as far from the middle or farther, equally far ones and
    the set itself counted half: where half of all sets answer nothing, what stands out can only be better, and 5 % of
    sets still do. The mean place of several draws is held against single sets as well: draws of one choice share most
    of their heads, so that their mean varies nearly as much as one set, and never more. Raises ValueError without
    random sets and for NaN.
    """
    chosen, random = np.atleast_1d(np.asarray(chosen, dtype=np.float64)), np.asarray(random, dtype=np.float64)
    if not len(random) or not len(chosen) or np.isnan(random).any() or np.isnan(chosen).any():
        raise ValueError(f"a place wants the values of a set and of at least one random set, got {chosen}, {random}")
    n, k, ordered = len(random), len(chosen), np.sort(random)
    own, alike, draw = _among(ordered, chosen), _among(ordered, random), np.random.default_rng(0)
    found = own.mean()
    farther = (np.abs(alike - 0.5) - abs(found - 0.5)).round(9)
    p = ((farther > 0).sum() + ((farther == 0).sum() + 1) / 2) / (n + 1)
    by_sets = intervals.wilson(found * n, n)
    by_draws = intervals.of_resamples(found, own[draw.integers(k, size=(RESAMPLES, k))].mean(1))
    return Place(float(found), min(by_sets.low, by_draws.low), max(by_sets.high, by_draws.high), float(p), n)


def questions(tasks: Sequence[str] = ("needle",), *, rows: int, seed: int = 0) -> battery.Battery:
    """So many rows of each task, which every set answers."""
    return battery.Battery(tuple(tasks), (), items=1, windows=0, copies=0, rows=rows, seed=seed)


def answers(
    names: Sequence[str | Path], arms: Sequence[trials.Arm], plan: trials.Plan, *, asked: battery.Battery, sets: int
) -> pd.DataFrame:
    """What every model answers without each arm's heads, each of its draws, and without each of the random sets.

    The same rows in all: those `asked`, such as `questions()`. One row for every arm, probe and set. Columns: arm,
    share, cut, set (the mask as a short hash), which (`chosen`, `random`), draw, removed, probe, probe_kind, value
    (share right, or bits per byte), bits, n (answers), model, kind, seed. `intact` and `all off` are answered beside,
    as arms of one set. Kept by mask in build/sets.
    """
    trials.prepare(names, plan, [arm.name for arm in arms])
    blocks = [("beside",), *(("chosen", arm) for arm in arms)]
    blocks += [("random", arm, sets, first) for arm in arms for first in range(0, sets, BLOCK)]
    return opened.table(Subject, names, (plan, asked, store.kept_dir()), blocks, desc="sets")


def places(table: pd.DataFrame) -> pd.DataFrame:
    """The place of every arm of `answers` among its random sets, by model and probe: by fewer bits, or accuracy kept.

    Bits, since of few answers many sets get equally many right, or none. Draws that chose the same heads are one.
    Columns: model, kind, seed, arm, share, cut, probe, place, low, high, p, verdict, n (random sets), draws (different
    sets), chosen (their mean value), random (median), least and greatest place over the seeds of its kind: what is
    worse in every seed has its greatest place there.
    """
    by, rows = ["model", "kind", "seed", "arm", "share", "cut", "probe"], []
    for names, part in observations.groups(table[~table["arm"].isin((trials.INTACT, ALL_OFF))], by):
        kept = part["probe_kind"].iloc[0] == effects.KEPT
        goodness, mine = part["value"] if kept else -part["bits"], part["which"] == CHOSEN
        mine, random = part[mine & ~part.duplicated(["set", "which"])].index, part[part["which"] == RANDOM].index
        found = place(goodness[mine].to_numpy(), goodness[random].to_numpy())
        mine, random = part.loc[mine, "value"], part.loc[random, "value"]
        about = names | found._asdict() | {"verdict": found.verdict, "draws": len(mine)}
        rows.append(about | {"chosen": float(mine.mean()), "random": float(random.median())})
    found = pd.DataFrame(rows, columns=[*by, *Place._fields, "verdict", "draws", "chosen", "random"])
    seeds = found.groupby(["kind", "arm", "share", "cut", "probe"], sort=False)["place"]
    return found.assign(least=seeds.transform("min"), greatest=seeds.transform("max"))


def with_kept(table: pd.DataFrame) -> pd.DataFrame:
    """The table of `answers` with a probe more: accuracy over the intact one, mean over the tasks that are solved."""
    tasks = table[table["probe_kind"] == "task"]
    intact = tasks[tasks["arm"] == trials.INTACT].set_index(["model", "probe"])["value"].rename("intact")
    tasks = tasks.merge(intact, on=["model", "probe"])
    tasks = tasks[tasks["intact"] >= effects.SOLVED].assign(value=lambda frame: frame["value"] / frame["intact"])
    by = ["model", "kind", "seed", "arm", "share", "cut", "set", "which", "draw", "removed"]
    means = tasks.groupby(by, as_index=False, sort=False).agg(value=("value", "mean"), n=("n", "sum"))
    return pd.concat([table, means.assign(probe=effects.KEPT, probe_kind=effects.KEPT)], ignore_index=True)


def measured(found: pd.DataFrame, name: str) -> pd.DataFrame:
    """Rows of `places`, of one arm and probe, as `claims.record` takes them."""
    over = [f"{row.n} random sets, {row.draws} of the choice; rows as they are" for row in found.itertuples()]
    why = [f"p = {row.p:.3f}: {row.verdict}" for row in found.itertuples()]
    rows = found[["model", "kind", "seed", "low", "high", "n"]]
    return rows.assign(measure=name, estimate=found["place"], over=over, why=why).reset_index(drop=True)


def gate(table: pd.DataFrame, *, probe: str, name: str) -> pd.DataFrame:
    """Accuracy with every state off, as `claims.record` takes it; its interval is Wilson's, of the items."""
    rows = table[(table["arm"] == ALL_OFF) & (table["probe"] == probe)].reset_index(drop=True)
    ends = [intervals.wilson(round(row.value * row.n), row.n) for row in rows.itertuples()]
    found = rows[["model", "kind", "seed", "n"]].assign(measure=name, over="items", why="")
    return found.assign(estimate=rows["value"], low=[end.low for end in ends], high=[end.high for end in ends])


class Subject(trials.Subject):
    """One model whose answers without a set of heads are kept under the set, whatever it was chosen for, in `kept`."""

    def __init__(self, name: str | Path, plan: trials.Plan, asked: battery.Battery, kept: Path) -> None:
        super().__init__(name, plan, kept / "trials")
        made_by = opened.made_by(name) | {"questions": dataclasses.asdict(asked), "code": trials.CODE}
        self.sets, self._asked = store.RunStore(kept / "sets", made_by=made_by), asked

    def beside(self) -> pd.DataFrame:
        """The intact model, and the one with every state off."""
        arms = {trials.INTACT: torch.zeros_like(self.model.held), ALL_OFF: self.model.held}
        about = {"share": 0.0, "cut": "", "which": CHOSEN}
        tables = [self._of([heads]).assign(arm=name, **about) for name, heads in arms.items()]
        return pd.concat(tables, ignore_index=True)

    def chosen(self, arm: trials.Arm) -> pd.DataFrame:
        """The sets of an arm's draws."""
        heads = [self.heads(arm, draw) for draw in range(self.plan.draws)]
        return self._of(heads).assign(arm=arm.label, share=arm.share, cut=arm.cut, which=CHOSEN)

    def random(self, arm: trials.Arm, n: int, first: int) -> pd.DataFrame:
        """`BLOCK` of the n random sets beside an arm, from number `first` on."""
        options = {"n": n, "per_layer": arm.cut == "per layer"}
        options["generator"] = self.drawing(self.model.name, "random sets")
        among = drawn(self.heads(arm, 0), self.model.held, **options)[first : first + BLOCK]
        return self._of(among, first).assign(arm=arm.label, share=arm.share, cut=arm.cut, which=RANDOM)

    def _of(self, sets: Iterable[Bool[Tensor, "L H"]], first: int = 0) -> pd.DataFrame:
        tables = [self._answered(heads).assign(draw=first + i) for i, heads in enumerate(sets)]
        return pd.concat(tables, ignore_index=True)

    def _answered(self, heads: Bool[Tensor, "L H"]) -> pd.DataFrame:
        """What is answered without these heads, a row for each probe."""
        key = np.packbits(heads.numpy()).tobytes().hex()
        with ablation.ablate_heads(self.model, heads):
            given = self.sets.once(key, lambda: battery.answers(self.model, self._sheet(self._asked)))
        given = given.groupby(["probe", "probe_kind"], as_index=False, sort=False)
        sums = given.agg(value=("value", "sum"), bits=("bits", "sum"), weight=("weight", "sum"), n=("value", "size"))
        sums = sums.assign(value=sums["value"] / sums["weight"], bits=sums["bits"] / sums["weight"])
        name = hashlib.sha256(key.encode()).hexdigest()[:8]
        return sums.drop(columns="weight").assign(set=name, removed=int(heads.sum()))


def _among(ordered: Float[np.ndarray, " n"], values: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    """The share of the ordered values that lie below each of these, equal ones counted half."""
    return (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")) / 2 / len(ordered)
