"""What removing heads does, as tables: every arm with its interval, beside the intact model and beside random heads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from srdyn.study.analysis import intervals, observations
from srdyn.study.trials import contrasts, trials

ARM = ["model", "kind", "seed", "arm", "share", "cut", "layers", "window", "truncated"]
HEAD = ["model", "kind", "seed", "layer", "axis", "head"]
SOLVED = 0.9
"""Accuracy of the intact model from which a task decides anything."""
TEXT, KEPT = "bits per byte", "accuracy kept"
PREDICTORS = {"effective rank": "rank", "log-decay": "decay", "output norm": "output"}


def with_text(answers: pd.DataFrame) -> pd.DataFrame:
    """The answers with a probe more: bits per byte over the windows of all domains."""
    return pd.concat([answers, _joined(answers[answers["probe_kind"] == "text"], TEXT)], ignore_index=True)


def with_kept(answers: pd.DataFrame) -> pd.DataFrame:
    """The answers with a probe more: accuracy over that of the intact model, mean over the tasks that it solves.

    Its value is 1 for the intact model. A model that solves none of the tasks has no such row.
    """
    parts, accuracy = [], _intact_accuracy(answers)
    solved = accuracy[accuracy["intact"] >= SOLVED]
    for model, tasks in solved.groupby("model", sort=False):
        tasks = tasks.droplevel("model")
        rows = answers[(answers["model"] == model) & answers["probe"].isin(tasks.index)]
        intact, size = (rows["probe"].map(tasks[name]) for name in ("intact", "items"))
        rows = rows.assign(value=rows["value"] / intact / size, weight=1 / size, probe_kind=KEPT)
        parts.append(_joined(rows, KEPT))
    return pd.concat([answers, *parts], ignore_index=True)


def estimates(answers: pd.DataFrame) -> pd.DataFrame:
    """One row for every model, arm and probe: estimate, low, high, n (answers), rows, draws, removed, testable.

    `testable` is False for a task on which the intact model is below `SOLVED`. Intervals as in `contrasts`.
    """
    rows = [
        about | contrasts.estimate(frame)._asdict() | _sizes(frame)
        for about, frame in observations.groups(answers, [*ARM, "probe"])
    ]
    return _with_testable(pd.DataFrame(rows), answers)


def differences(answers: pd.DataFrame, *, versus: str) -> pd.DataFrame:
    """One row for every model, arm and probe: the arm minus `versus`, paired, all else alike.

    `versus` is `intact` or another arm. Columns: difference, low, high, p, n, rows, draws, removed, intact (accuracy
    without ablation, of a task), testable. An arm without its counterpart is left out.
    """
    rows = []
    for about, frame, beside in _beside(answers, versus):
        reference = beside(versus, about["window"])
        if reference is None:
            continue
        found = contrasts.difference(frame, reference)
        p = contrasts.p_value(frame, reference)
        ends = {"versus": versus, "difference": found.estimate, "low": found.low, "high": found.high, "p": p}
        rows.append(about | ends | _sizes(frame))
    return _with_testable(pd.DataFrame(rows), answers)


def costs(answers: pd.DataFrame, references: Sequence[str]) -> pd.DataFrame:
    """`estimates`, and `differences` from each of these arms: `reference` names it, and is empty for the former."""
    tables = [estimates(answers).assign(reference="")]
    for arm in references:
        found = differences(answers, versus=arm)
        tables.append(found.rename(columns={"difference": "estimate", "versus": "reference"}))
    return pd.concat(tables, ignore_index=True)


def interactions(answers: pd.DataFrame, *, versus: str = trials.INTACT) -> pd.DataFrame:
    """How much more an arm costs than `versus` does under a softmax window than under none, in nats per unit of weight.

    Columns: model, …, versus, interaction, low, high, n. Positive: the missing heads are missed more when softmax
    cannot look back; against `random` instead of the intact model: these heads more than any others.
    """
    rows, nats = [], answers.assign(value=answers["bits"] * np.log(2))
    for about, frame, beside in _beside(nats, versus):
        if not about["window"]:
            continue
        four = [beside(arm, window) for window in (about["window"], 0) for arm in (about["arm"], versus)]
        found = contrasts.interaction(*four)
        ends = {"versus": versus, "interaction": found.estimate, "low": found.low, "high": found.high}
        rows.append(about | ends | _sizes(frame))
    return pd.DataFrame(rows)


def adjusted(differences: pd.DataFrame, *, share: float) -> pd.DataFrame:
    """Holm's adjustment of p over all testable contrasts but the primary ones, which keep theirs (column `adjusted`).

    What is not testable has none.
    Primary (claims.yaml): `share` of the heads of highest rank against random ones, needle retrieval, in the hybrid.
    """
    named = {"arm": "high", "versus": "random", "probe": "needle", "kind": "hybrid", "share": share}
    named |= {"layers": "all", "cut": "per layer"}
    primary = (differences[list(named)] == pd.Series(named)).all(axis=1)
    table = differences.assign(adjusted=differences["p"].where(differences["testable"]), primary=primary)
    others = ~primary & table["testable"]
    table.loc[others, "adjusted"] = contrasts.holm(table.loc[others, "p"])
    return table


def regression(heads: pd.DataFrame) -> pd.DataFrame:
    """Single-head damage regressed on effective rank, log-decay and output norm, within layers, all as ranks.

    `heads` are the rows of `trials.damages` beside those of `trials.profiles`. Columns: model, kind, seed, probe,
    predictor, coefficient (standardised), low, high (heads resampled), explained (R² of the predictor given the others:
    near 1 the data cannot tell them apart), n (heads). Damage and predictors are replaced by their ranks over the
    model's heads, the layers' means taken out.
    """
    tables = []
    for names, table in observations.groups(heads, [*observations.OF_A_MODEL, "probe"]):
        x = np.stack([_within(table[name], table["layer"]) for name in PREDICTORS.values()], 1)
        y, rng = _within(table["damage"], table["layer"]), np.random.default_rng(0)
        draws = [rng.integers(0, len(y), len(y)) for _ in range(intervals.RESAMPLES)]
        low, high = np.quantile([_coefficients(x[draw], y[draw]) for draw in draws], [0.025, 0.975], axis=0)
        names |= {"n": len(table), "predictor": list(PREDICTORS), "coefficient": _coefficients(x, y)}
        tables.append(pd.DataFrame(names | {"low": low, "high": high, "explained": _explained(x)}))
    return pd.concat(tables, ignore_index=True)


def with_state(table: pd.DataFrame, profiles: pd.DataFrame) -> pd.DataFrame:
    """The table with `state`, the share of the state's bytes that is left: all heads of a model are equally large."""
    heads = profiles.groupby("model")["rank"].count()
    return table.assign(state=1 - table["removed"] / table["model"].map(heads))


def kept(differences: pd.DataFrame) -> pd.DataFrame:
    """Differences of `KEPT` to the intact model, whose own value is 1, as the share that is kept."""
    table = differences[differences["probe"] == KEPT]
    return table.assign(**{name: table[name] + 1 for name in ("difference", "low", "high")})


def described(measured: pd.DataFrame, composition: pd.DataFrame, arm: str, *, share: float) -> pd.DataFrame:
    """Rows of `measured` that also say, from `trials.compositions`, which strata the arm's heads are from."""
    own = composition[(composition["arm"] == arm) & (composition["share"] == share)].set_index("model")
    text = "{high:.0%} of the removed heads high-rank, {low:.0%} low-rank"
    told = measured["model"].map({model: text.format(**row) for model, row in own[["high", "low"]].iterrows()})
    return measured.assign(why=measured["why"].where(measured["why"] != "", told))


def over_solved(measured: pd.DataFrame, answers: pd.DataFrame) -> pd.DataFrame:
    """Rows about `KEPT` with the tasks behind them named, and a row that says why for a model that solves none."""
    accuracy = _intact_accuracy(answers)["intact"].reset_index()
    solved = accuracy[accuracy["intact"] >= SOLVED].groupby("model", sort=False)["probe"].agg(", ".join)
    about = answers[["model", "kind", "seed"]].drop_duplicates()
    named = measured.assign(over=measured["over"] + "; " + measured["model"].map(solved))
    none, why = about[~about["model"].isin(solved.index)], f"the intact model solves no task at {SOLVED:.0%}"
    return named if none.empty else with_undefined(named, none, measured["measure"].unique(), why)


def with_undefined(measured: pd.DataFrame, models: pd.DataFrame, measures: Iterable[str], why: str) -> pd.DataFrame:
    """Rows as `claims.record` takes them, and for each of these models and measures one that says why it has none."""
    none = models.assign(n=0, estimate=np.nan, low=np.nan, high=np.nan, over="", why=why)
    return pd.concat([measured, *(none.assign(measure=name) for name in measures)], ignore_index=True)


def measured(table: pd.DataFrame, name: str, *, sign: int = 1) -> pd.DataFrame:
    """Rows of `differences` as `claims.record` takes them, `sign` −1 turning them round.

    A row that is not testable has no estimate, and says why.
    """
    found = table[["difference", "low", "high"]].where(table["testable"]).to_numpy() * sign + 0.0
    ends = np.sort(found[:, 1:], 1)
    over = [f"{row.rows} rows in {row.draws} draws" for row in table.itertuples()]
    why = [f"the intact model is right in {share:.1%} of the items only" for share in table["intact"]]
    rows = table[["model", "kind", "seed", "n"]].assign(measure=name, over=over, estimate=found[:, 0])
    rows = rows.assign(low=ends[:, 0], high=ends[:, 1], why=np.where(table["testable"], "", why))
    return rows.reset_index(drop=True)


def _beside(answers: pd.DataFrame, versus: str) -> Iterator[tuple[dict, pd.DataFrame, Callable]]:
    """The frames of all arms but `versus` and `intact`, each with what finds another arm's frame, all else alike."""
    frames = list(observations.groups(answers, [*ARM, "probe"]))
    known = {_key(about, about["arm"], about["window"]): frame for about, frame in frames}
    for about, frame in frames:
        if about["arm"] not in (versus, trials.INTACT):
            yield about, frame, lambda arm, window, about=about: known.get(_key(about, arm, window))


def _key(about: dict, arm: str, window: int) -> tuple:
    """What finds an arm's counterpart; the intact model knows neither share nor cut nor layers."""
    own = ["model", "probe"] + ([] if arm == trials.INTACT else ["share", "cut", "layers", "truncated"])
    return arm, window, *(about[name] for name in own)


def _intact_accuracy(answers: pd.DataFrame) -> pd.DataFrame:
    """`intact`, the share of items that the intact model has right, and how many `items`, by model and task."""
    asked = answers[(answers["arm"] == trials.INTACT) & (answers["window"] == 0) & (answers["probe_kind"] == "task")]
    return asked.groupby(["model", "probe"], sort=False)["value"].agg(intact="mean", items="size")


def _joined(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """Several probes as one, their rows apart."""
    number = pd.factorize(rows["probe"], sort=True)[0]
    return rows.assign(row=rows["row"] + number * (rows["row"].max() + 1), probe=name)


def _sizes(frame: pd.DataFrame) -> dict[str, int | float]:
    draws = frame["draw"].nunique()
    return {"n": len(frame), "rows": frame["row"].nunique(), "draws": draws, "removed": float(frame["removed"].mean())}


def _with_testable(table: pd.DataFrame, answers: pd.DataFrame) -> pd.DataFrame:
    table = table.merge(_intact_accuracy(answers)["intact"], on=["model", "probe"], how="left")
    tasks = answers.loc[answers["probe_kind"] == "task", "probe"].unique()
    return table.assign(testable=(table["intact"] >= SOLVED) | ~table["probe"].isin(tasks))


def _within(values: pd.Series, layer: pd.Series) -> Float[np.ndarray, " heads"]:
    """Standardised ranks without the layers' means."""
    ranks = pd.Series(stats.rankdata(values), index=values.index)
    inside = (ranks - ranks.groupby(layer).transform("mean")).to_numpy()
    return inside / (inside.std() or 1.0)


def _coefficients(x: Float[np.ndarray, "heads p"], y: Float[np.ndarray, " heads"]) -> Float[np.ndarray, " p"]:
    return np.linalg.lstsq(x, y, rcond=None)[0]


def _explained(x: Float[np.ndarray, "heads p"]) -> list[float]:
    """R² of each column given the others."""
    others = [(x[:, i], np.delete(x, i, 1)) for i in range(x.shape[1])]
    return [float(1 - np.var(y - rest @ _coefficients(rest, y)) / (np.var(y) or 1.0)) for y, rest in others]
