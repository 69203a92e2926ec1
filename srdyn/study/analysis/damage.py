"""What foretells a head's damage in a model that nothing was fitted on; how far back a group of heads is of use."""

import numpy as np
import pandas as pd
from jaxtyping import Float, Float64
from scipy import stats

from srdyn import strata
from srdyn.study.analysis import intervals
from srdyn.study.analysis.observations import OF_A_MODEL, groups

LEFT = "retained at distance"
PREDICTORS = {
    "effective rank": ["rank"],
    "rank, ties within strata": ["stratum"],
    "nuclear norm": ["norm"],
    "half-life": ["half_life"],
    LEFT: ["left"],
    "write strength": ["write"],
    "layer": ["layer"],
    "distance": ["distance"],
    "all of them": ["rank", "stratum", "norm", "half_life", "left", "write", "layer", "distance"],
}
RHO, CAUGHT = "Spearman ρ", "share of the damage in the worst tenth"
TENTH = 0.1
LOCAL, RECALL, BALANCE = "local prediction", "recall", "recall minus local prediction"


def worth(passages: pd.DataFrame) -> pd.DataFrame:
    """What each group of heads is worth by distance, bits a token: how much is lost without it.

    `passages` are the rows of `retention.repeated`. Of `local prediction` is lost what the passage costs more when it
    is new; `recall` is what a passage costs less when it comes again, and what of that is lost. Columns: model, kind,
    seed, group, heads, distance, quantity, estimate, low, high (passages drawn again), n (passages). For the intact
    model, the quantities themselves: bits a token of new text, bits saved by recall.
    """
    rows, key = [], [*OF_A_MODEL, "distance", "row"]
    whole = passages[passages["group"] == "intact"].set_index(key)[["new", "again"]]
    for about, part in groups(passages, [*OF_A_MODEL, "group", "distance"]):
        mine, theirs = part.set_index(key), whole.loc[part.set_index(key).index]
        local, recall = mine["new"], mine["new"] - mine["again"]
        if about["group"] != "intact":
            local, recall = local - theirs["new"], theirs["new"] - theirs["again"] - recall
        distance, heads = about.pop("distance"), part["heads"].iloc[0]
        for quantity, values in ((LOCAL, local), (RECALL, recall), (BALANCE, recall - local)):
            found = intervals.bootstrap(values.to_numpy(), np.mean)._asdict()
            rows.append(about | {"heads": heads, "distance": distance, "quantity": quantity, **found, "n": len(values)})
    return pd.DataFrame(rows)


def predicted(damages: pd.DataFrame) -> pd.DataFrame:
    """Each predictor fitted on all models but one, against the damage of every head and distance in that one.

    `damages` are the rows of `retention.single`. Damage and predictors are taken as places within their model, 0 to 1,
    and regressed linearly. `left` is the share of a write that decay alone leaves after the distance, 2^(−distance /
    half-life). Columns: model (left out), kind, seed, changed, predictor, quantity, estimate, low, high (heads drawn
    again), n (heads). Quantities: Spearman ρ of prediction and damage, and the share of all damage (where positive) in
    the tenth that is predicted to be worst: a tenth where nothing is foretold.
    """
    rows = []
    for changed, table in damages.groupby("changed", sort=False):
        table = _placed(table)
        for names, part in groups(table, OF_A_MODEL):
            others = table[table["model"] != names["model"]]
            for predictor, columns in PREDICTORS.items():
                weights = np.linalg.lstsq(_design(others, columns), others["place"].to_numpy(), rcond=None)[0]
                found = _scored(part.assign(foretold=_design(part, columns) @ weights))
                rows += [names | {"changed": changed, "predictor": predictor} | row for row in found]
    return pd.DataFrame(rows)


def _placed(table: pd.DataFrame) -> pd.DataFrame:
    """Places within the model; the damage itself stays beside."""
    share = table["rank"] / table["D"]
    stratum = (share > strata.LOW).astype(int) + (share >= strata.HIGH)
    table = table.assign(left=2.0 ** (-table["distance"] / table["half_life"]), stratum=stratum, place=table["damage"])
    names = [*PREDICTORS["all of them"], "place"]
    return table.assign(**{name: table.groupby("model")[name].rank(pct=True) for name in names})


def _design(table: pd.DataFrame, columns: list[str]) -> Float64[np.ndarray, "n p"]:
    return np.column_stack([np.ones(len(table)), table[columns]])


def _scored(table: pd.DataFrame) -> list[dict]:
    """Both quantities with their intervals: heads, each with all its distances, are drawn again."""
    table, shape = table.sort_values(["layer", "head", "distance"]), (-1, table["distance"].nunique())
    both, rows = [table[name].to_numpy().reshape(shape) for name in ("foretold", "damage")], []
    heads = len(both[0])
    draw = intervals.drawn(heads, intervals.generator())
    for name, quantity in ((RHO, strata.spearman), (CAUGHT, caught)):
        estimate = float(quantity(*(values.reshape(1, -1) for values in both))[0])
        resampled = quantity(*(values[draw].reshape(len(draw), -1) for values in both))
        rows.append({"quantity": name, **intervals.of_resamples(estimate, resampled)._asdict(), "n": heads})
    return rows


def caught(foretold: Float[np.ndarray, "rows m"], damage: Float[np.ndarray, "rows m"]) -> Float64[np.ndarray, " rows"]:
    """The share of all positive damage in the tenth that is foretold to be worst, ties in proportion."""
    size, harm = TENTH * damage.shape[1], np.maximum(damage, 0)
    above = damage.shape[1] - stats.rankdata(foretold, "max", axis=1)  # how many are foretold to be worse
    alike = stats.rankdata(foretold, "max", axis=1) - stats.rankdata(foretold, "min", axis=1) + 1
    inside = np.clip((size - above) / alike, 0, 1)
    return strata.ratio((harm * inside).sum(1), harm.sum(1))
