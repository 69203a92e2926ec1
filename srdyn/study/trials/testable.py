"""The dose at which claim C9 can be tested, and what a rule keeps there.

At the paper's, 38.9 % of all heads, nothing is left to be told apart where even the ablation oracle keeps little; the
dose is then the largest at which that keeps enough.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from srdyn.study.trials import battery, effects, sets, trials

SHARES = (0.389, 0.35, 0.30, 0.25, 0.20, 0.15, 0.10, 0.05)
"""The paper's dose of claim C9, then those that are tried where it leaves nothing to be told apart."""
KEPT = 0.95
"""Share of the intact accuracy that the ablation oracle must keep for a dose to be testable."""


def doses(names: Sequence[str | Path], plan: trials.Plan, *, asked: battery.Battery) -> pd.DataFrame:
    """What the ablation oracle keeps of the accuracy without each of `SHARES` of all heads, over the rows `asked`.

    Columns: model, kind, seed, share, kept, n (answers), testable (the dose of claim C9, `share`, if any).
    """
    arms = [trials.Arm(trials.ORACLE, dose, "overall") for dose in SHARES]
    table = sets.with_kept(sets.answers(names, arms, plan, asked=asked, sets=0))
    table = table[(table["arm"] == trials.ORACLE) & (table["probe"] == effects.KEPT)]
    by = ["model", "kind", "seed", "share"]
    table = table.groupby(by, as_index=False, sort=False).agg(kept=("value", "mean"), n=("n", "first"))
    shares = {model: share(part.set_index("share")["kept"]) for model, part in table.groupby("model")}
    return table.assign(testable=table["share"] == table["model"].map(shares))


def share(kept: pd.Series | dict[float, float]) -> float:
    """The dose of claim C9: 38.9 % of all heads where the ablation oracle keeps `KEPT` there, else the largest it does.

    `kept` has by share of heads what the oracle keeps of the accuracy. NaN: there is no such dose.
    """
    kept = dict(kept)
    return next((dose for dose in SHARES if kept.get(dose, -np.inf) >= KEPT), np.nan)


def answers(
    names: Sequence[str | Path],
    rule: str,
    doses: pd.DataFrame,
    plan: trials.Plan,
    *,
    asked: battery.Battery,
    among: int,
) -> pd.DataFrame:
    """`sets.answers` without the rule's heads at each model's testable dose, with what is kept; else what is beside."""
    at = _at_doses(names, rule, doses)
    tables = [sets.answers([name], arms, plan, asked=asked, sets=among) for name, arms in at]
    return sets.with_kept(pd.concat(tables, ignore_index=True))


def kept(names: Sequence[str | Path], rule: str, doses: pd.DataFrame, plan: trials.Plan) -> pd.DataFrame:
    """What the rule keeps of the accuracy at each model's testable dose, on the questions of the plan.

    Rows as `claims.record` takes them; those of `sets.measured` are beside.
    """
    intact, at = trials.Arm(trials.INTACT), _at_doses(names, rule, doses)
    given = [trials.answers([name], [intact, *arms], plan) for name, arms in at if arms]
    if not given:
        return pd.DataFrame(columns=["measure", "model", "kind", "seed", "estimate", "low", "high", "n", "over", "why"])
    given = effects.with_kept(pd.concat(given, ignore_index=True))
    found = effects.measured(effects.kept(effects.differences(given, versus=trials.INTACT)), effects.KEPT)
    return effects.over_solved(found, given)


def rows(doses: pd.DataFrame, found: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Rows of these measures for `claims.record`, the dose in `why`; undefined for models without a testable dose."""
    table, about = pd.concat(found.values(), ignore_index=True), doses[["model", "kind", "seed"]].drop_duplicates()
    shares = doses[doses["testable"]].set_index("model")["share"]
    dose = "at " + table["model"].map(shares).map("{:.1%}".format) + " of all heads"
    table = table.assign(why=dose + table["why"].map(lambda why: f", {why}" if why else ""))
    none, why = about[~about["model"].isin(shares.index)], f"the oracle keeps {KEPT:.0%} at none of the shares tried"
    return effects.with_undefined(table, none, found, why)


def _at_doses(
    names: Sequence[str | Path], rule: str, doses: pd.DataFrame
) -> Iterator[tuple[str | Path, list[trials.Arm]]]:
    """Each model with the arm of the rule, where it has a testable dose."""
    shares = doses[doses["testable"]].groupby("model")["share"].first()
    for name, model in zip(names, doses["model"].unique(), strict=True):
        yield name, [trials.Arm(rule, shares[model], "overall")] if model in shares else []
