"""The ledger of what the paper claims, fixed beforehand, against what the runs found."""

import logging
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd

from srdyn.loading import files, markdown
from srdyn.study.claims import registration
from srdyn.study.run import store

_MODEL = "model"
"""The `source` of what was measured in the model itself; every other source is a null."""
CONTROLS = ("uniform",)
"""Kinds of model that are trained as a control, with one seed."""
_VERDICTS = {
    "passes": "reproduced",
    "fails": "not reproduced",
    "undecided": "inconclusive",
    "undefined": "not testable here",
}
_MARKS = {"pass": "✓", "fail": "✗", "undecided": "~", "undefined": "–"}
_TABLES = {registration.FIRST: "claims", registration.SECOND: "claims_second"}
_TEXTS = ["claim", "measure", "source", "model", "kind", "over", "why"]
_DOUBT = "uncertain"
"""Of numbers that are made of ranks alone."""
_COLUMNS = [*_TEXTS[:5], "seed", "estimate", "low", "high", _DOUBT, "n", "over", "why"]
_OVER = "over (contexts and positions: as fixed for the reference run)"
_SHOWN = ["measure", "source", "model", "estimate", "low", "high"]

log = logging.getLogger(__name__)


def record(claim_id: str, measured: pd.DataFrame, *, run: str, registered: str = registration.FIRST) -> pd.DataFrame:
    """Save what the notebook `run` measured for a claim, in place of its former rows; return them, judged one by one.

    `measured` has columns measure, model, kind, seed, estimate, low, high, n; optionally uncertain (how far off another
    machine may find ranks' statistics), over (what was resampled), why (what a reader must know) and source, which
    tells the rows of the model from those of its nulls. Every source of a model has one row for every measure of the
    registration, but for one that asks more heads a layer than the model has. Of models that share kind and seed each
    is a kind of its own name. Columns added: unit, rule, paper, grade, outcome (pass, fail, undecided, undefined).
    Raises ValueError for a claim of another notebook, measures that are not the claim's, missing columns, or crossed
    ends. An estimate outside its interval is logged: resampling may shift a statistic, and the interval decides.
    """
    paper, stem = registration.load(registered), f"{run}_{_TABLES[registered]}"
    claim = paper.claim(claim_id)
    if claim.notebook != run:
        raise ValueError(f"{claim_id} is decided in {claim.notebook}, not in {run}")
    rows = _rows(claim, measured)
    outside = rows[(rows["estimate"] < rows["low"]) | (rows["estimate"] > rows["high"])]
    if len(outside):
        log.warning("%s: resampling shifts these, their intervals exclude them:\n%s", claim_id, outside[_SHOWN])
    parts = dict(list(_standing(run, registered).groupby("claim"))) | {claim_id: rows}
    table = pd.concat([parts.pop(c.id) for c in paper.claims if c.notebook == run and c.id in parts])
    if parts:
        log.warning("%s: dropped %s, which claims.yaml gives to no or another notebook", stem, ", ".join(parts))
    meta = {"claims": files.content_hash(registration.path())}
    said = table if table[_DOUBT].notna().any() else table.drop(columns=_DOUBT)
    store.save_table(said.reset_index(drop=True), stem, meta=meta)
    saved = _standing(run, registered)
    return _with_outcomes(saved[saved["claim"] == claim_id].reset_index(drop=True), registered)


def judge(rows: pd.DataFrame, *, registered: str = registration.FIRST) -> pd.DataFrame:
    """One verdict for every claim and kind of model in `rows`, which are rows that `record` saved or returned.

    Columns: claim, kind, verdict, why, measure (the one that decides), nulls (the sources that pass every measure in
    every model). A measure that fails in every seed decides before one that is undefined, a gate that does not pass in
    every seed before all. Raises ValueError for rows that are not those of the claims as claims.yaml has them now.
    """
    judged = []
    for claim_id, of_claim in _plain(rows).groupby("claim", sort=False):
        claim = registration.load(registered).claim(claim_id)
        _require_rows(claim, of_claim)
        gates = [measure.name for measure in claim.measures if measure.gate]
        for kind, group in _with_outcomes(of_claim, registered).groupby("kind", sort=False):
            judged.append({"claim": claim_id, "kind": kind, **_verdict(kind, group, gates)})
    return pd.DataFrame(judged, columns=["claim", "kind", "verdict", "why", "measure", "nulls"])


def ledger(*, registered: str = registration.FIRST) -> pd.DataFrame:
    """Every claim of the registration beside what the run at work found, one row for every claim and kind of model.

    Columns: claim, statement, paper, kind, verdict, why, leading (the value that decides), ours (all values), nulls
    (theirs), over, notebook, beside. A claim that was not measured has one row, with an empty kind, that says why. The
    reference run leaves the verdict to the committed thorough run where that measured the claim; `beside` then tells
    whether its own agrees. Beside its models stand those of the committed run `main`, of kinds called so.
    """
    told = ["verdict", "why", "leading", "ours", "nulls", "over", "notebook", "beside"]
    blank = dict.fromkeys(["claim", "statement", "paper", "kind", *told], "")
    entries = [entry for claim in registration.load(registered).claims for entry in _entries(claim, registered)]
    return pd.DataFrame([blank | entry for entry in entries], columns=list(blank))


def both() -> pd.DataFrame:
    """The ledger beside what the second rules say: second, second_leading, second_why; NaN where there are none."""
    later = ledger(registered=registration.SECOND).query("kind != ''")[["claim", "kind", "verdict", "leading", "why"]]
    later.columns = ["claim", "kind", "second", "second_leading", "second_why"]
    return ledger().merge(later, on=["claim", "kind"], how="left")


def is_main(kind: str) -> bool:
    """Whether a kind of the ledger is of the run `main`."""
    return kind.startswith(f"{store.MAIN} ")


def scorecard() -> str:
    """The ledger in Markdown: verdicts by both registrations, then every measure with its interval and its nulls."""
    book, paper, second = ledger(), registration.load(), ledger(registered=registration.SECOND)
    second = second[second["kind"] != ""]
    kinds = [kind for kind in book["kind"].unique() if kind] or [""]
    fixed = " · ".join(f"{name}: {when}" for name, when in (paper.registered or {}).items())
    grades = " · ".join(f"{grade} {meaning}" for grade, meaning in registration.GRADES.items())
    cells = by_kind(_in_full, book, second, kinds)
    verdicts = [[f"**{each.id}** {each.statement}", each.paper, *cells[each.id]] for each in paper.claims]
    why = "- **{}**, second: {}. Seen before: {}."
    again = [claim for claim in paper.claims if claim.id in set(second["claim"])]
    reasons = [why.format(claim.id, claim.second.why.strip(), claim.second.seen.strip()) for claim in again]
    both = pd.concat([book, second.assign(claim=second["claim"] + ", second")]) if len(second) else book
    details = both[["claim", "kind", "ours", "nulls", "why", "over", "notebook"]].to_numpy().tolist()
    heads = ["claim", "model", "measure, rule: estimate [95 % interval] by seed", "nulls", "why", _OVER, "notebook"]
    parts = [
        f"Claims of *{paper.title}* ({paper.reference}) beside what was found here. Grades: {grades}.",
        f"Rules fixed: {fixed}." if len(second) else "",
        markdown.table(["claim", "paper (place; grade)", *(kind or "verdict" for kind in kinds)], verdicts),
        "<details><summary>Every measure, with its interval and its nulls</summary>",
        markdown.table(heads, details),
        " · ".join(f"{mark} {outcome}" for outcome, mark in _MARKS.items()),
        "\n".join(reasons),
        "</details>",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def by_kind(
    told: Callable[[pd.DataFrame], pd.Series], book: pd.DataFrame, second: pd.DataFrame, kinds: Sequence[str]
) -> pd.DataFrame:
    """What `told` makes of the ledger, below it of that by the second rules: a column a claim, a row a kind.

    A claim that was not measured says so for every kind.
    """
    first, later = (told(table.set_index(["kind", "claim"])) for table in (book, second[second["kind"] != ""]))
    words = first + ("\nsecond: " + later).reindex(first.index).fillna("")
    table = words.unstack()
    unmeasured = table.reindex([""]).iloc[0]
    return table.reindex(kinds).fillna(unmeasured).fillna("–")


def _in_full(book: pd.DataFrame) -> pd.Series:
    """Verdicts with the values that decide them, in lines."""
    lines = "**" + book["verdict"] + "**\n" + book["leading"] + "\n" + book["beside"]
    return lines.str.replace(r"\n+", "\n", regex=True).str.rstrip()


def _rows(claim: registration.Claim, measured: pd.DataFrame) -> pd.DataFrame:
    """`measured` as rows of the table of claims: by measure, the model's before those of its nulls."""
    given = measured.reindex(columns=measured.columns.union(["source", "over", "why"], sort=False))
    rows = _plain(given.assign(claim=claim.id, source=given["source"].astype(object).fillna(_MODEL)))
    rows = told_apart(rows)
    _require_rows(claim, rows)
    order = [measure.name for measure in claim.measures]
    rows = rows.assign(_null=rows["source"] != _MODEL, _measure=rows["measure"].map(order.index))
    return rows.sort_values(["_measure", "_null"], kind="stable", ignore_index=True)[_COLUMNS]


def _plain(frame: pd.DataFrame) -> pd.DataFrame:
    frame = frame.assign(**{_DOUBT: frame.get(_DOUBT, np.nan)})
    if missing := [column for column in _COLUMNS if column not in frame]:
        raise ValueError(f"rows of a claim lack the columns {', '.join(missing)}")
    texts = {name: frame[name].astype(object).where(frame[name].notna(), "").astype(str) for name in _TEXTS}
    return frame.assign(**texts)[_COLUMNS]


def _standing(run: str, registered: str, *, of: str | None = None) -> pd.DataFrame:
    """The rows that a notebook saved in the run at work, or in the run `of`; none where it has not run."""
    try:
        return _plain(store.load_table(f"{run}_{_TABLES[registered]}", run=of))
    except FileNotFoundError:
        return pd.DataFrame(columns=_COLUMNS)


def told_apart(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows, where models that share their kind and seed, as those of other sizes do, have their names as kinds.

    Controls, and a model of two kinds or seeds, are left as they are, for `record` to refuse.
    """
    models = rows.loc[~rows["kind"].isin(CONTROLS), ["model", "kind", "seed"]].drop_duplicates()
    alike = models[models.duplicated(["kind", "seed"], keep=False)].drop_duplicates("model", keep=False)
    return rows.assign(kind=rows["kind"].mask(rows["model"].isin(alike["model"]), rows["model"]))


def _require_rows(claim: registration.Claim, rows: pd.DataFrame) -> None:
    """One row for each measure of the claim in every source and model, every null beside its model, ordered ends."""
    names = [measure.name for measure in claim.measures]
    if not names:
        raise ValueError(f"{claim.id} has no measure in claims.yaml: define one before measuring")
    needed = {measure.name for measure in claim.measures if not measure.heads_per_layer}
    for (source, model), group in rows.groupby(["source", "model"], sort=False):
        given = set(group["measure"])
        if group["measure"].duplicated().any() or not needed <= given <= set(names):
            found = f"{source} of {model} has rows for {', '.join(sorted(group['measure']))}"
            raise ValueError(f"{claim.id}: {found}, but the claim wants one for each of {', '.join(names)}")
    named = rows[["source", "model", "kind", "seed"]].drop_duplicates()
    models = named[named["source"] == _MODEL]
    if models.empty:
        raise ValueError(f"{claim.id}: no model was measured: give a row for each measure and model")
    if models["model"].duplicated().any() or models.duplicated(["kind", "seed"]).any():
        raise ValueError(f"{claim.id}: a model has one kind and seed, which no other has, not\n{models}")
    known, strange = (set(part.iloc[:, 1:].itertuples(index=False, name=None)) for part in (models, named))
    if strange := strange - known:
        raise ValueError(f"{claim.id}: nulls of models that were not measured: {sorted(strange)}")
    crossed = rows[rows["low"] > rows["high"]]
    if len(crossed):
        raise ValueError(f"{claim.id}: low ≤ high does not hold in\n{crossed[_SHOWN]}")


def _with_outcomes(rows: pd.DataFrame, registered: str) -> pd.DataFrame:
    paper, found = registration.load(registered), []
    for row in rows.astype(dict.fromkeys(["estimate", "low", "high"], float)).itertuples():
        claim = paper.claim(row.claim)
        measure = next(measure for measure in claim.measures if measure.name == row.measure)
        outcome = measure.outcome(row.estimate, row.low, row.high)
        found.append((measure.unit, measure.wanted, claim.value, claim.grade, outcome))
    columns = ["unit", "rule", "paper", "grade", "outcome"]
    return rows.assign(**pd.DataFrame(found, index=rows.index, columns=columns))


def _verdict(kind: str, rows: pd.DataFrame, gates: Sequence[str]) -> dict[str, str]:
    ours, others = rows[rows["source"] == _MODEL], rows[rows["source"] != _MODEL]
    outcomes = ours.pivot(index="measure", columns="seed", values="outcome").reindex(ours["measure"].unique())
    closed = [name for name in gates if not outcomes.loc[name].eq("pass").all()]
    state, measure = ("undefined", closed[0]) if closed else _decide(outcomes)
    all_passed = others["outcome"].eq("pass").groupby(others["source"], sort=False).all()
    nulls = ", ".join(all_passed.index[all_passed])
    verdict, why = _VERDICTS[state], ""
    if outcomes.shape[1] == 1 and state != "undefined":
        verdict = f"{'control (one seed)' if kind in CONTROLS else 'one seed'}: {state}"
    if nulls:
        verdict += f" (null passes{' too' if state == 'passes' else ''}: {nulls})"
    if state != "passes":
        disagree = state == "undecided" and {"pass", "fail"} <= set(outcomes.loc[measure])
        said = f"{measure} {'fails' if state == 'fails' else f'is {state}'}"
        said = f"{measure} does not pass, so that nothing was tested" if closed else said
        reasons = ours.loc[(ours["measure"] == measure) & (ours["why"] != ""), "why"].unique()
        why = ": ".join([f"seeds disagree on {measure}" if disagree else said, *reasons])
    return {"verdict": verdict, "why": why, "measure": measure, "nulls": nulls}


def _decide(outcomes: pd.DataFrame) -> tuple[str, str]:
    """What the outcomes [measure, seed] come to, with the measure that decides."""
    failed, passed = outcomes.eq("fail").all(axis=1), outcomes.eq("pass").all(axis=1)
    undefined = outcomes.eq("undefined").any(axis=1)
    for state, deciding in (("fails", failed), ("undefined", undefined), ("undecided", ~passed)):
        if deciding.any():
            return state, str(deciding.idxmax())
    return "passes", str(outcomes.index[0])


def _entries(claim: registration.Claim, registered: str) -> Iterator[dict[str, str]]:
    """The lines of the ledger for one claim; what a line leaves out is empty."""
    line = {"claim": claim.id, "statement": claim.statement, "paper": claim.paper, "notebook": claim.notebook}
    table = _standing(claim.notebook, registered)
    own = found = every = table[table["claim"] == claim.id]
    if store.run_name() == store.REFERENCE:
        runs = (_standing(claim.notebook, registered, of=run) for run in (store.THOROUGH, store.MAIN))
        thorough, main = (rows[rows["claim"] == claim.id] for rows in runs)
        found = own if thorough.empty else thorough
        every = pd.concat([found, main.assign(kind=f"{store.MAIN} " + main["kind"])])
    if not claim.measures or (claim.untested and every.empty):
        yield line | {"verdict": _VERDICTS["undefined"], "why": claim.untested or "no measure is defined"}
    elif every.empty:
        why = f"{claim.notebook} {'has not run' if table.empty else 'ran without it'}"
        yield line | {"verdict": "not measured yet", "why": why}
    else:
        others = {} if found is own else judge(own, registered=registered).set_index("kind")["verdict"]
        for judged in judge(every, registered=registered).to_dict("records"):
            rows = _with_outcomes(every[every["kind"] == judged["kind"]], registered)
            texts = _texts(claim, rows, judged["measure"])
            if found is not own and not is_main(judged["kind"]):
                verdict = others.get(judged["kind"], "nothing")
                agrees = "agrees" if verdict == judged["verdict"] else f"says: {verdict}"
                texts["beside"] = f"thorough run; default run {agrees}"
            yield line | judged | texts


def _texts(claim: registration.Claim, rows: pd.DataFrame, deciding: str) -> dict[str, str]:
    """The values of one claim and kind as text, a line for each measure."""
    ours, nulls, leading = [], [], ""
    measured = [measure for measure in claim.measures if measure.name in set(rows["measure"])]
    for measure in measured:
        of_measure = rows[rows["measure"] == measure.name].sort_values("seed", kind="stable")
        mine = of_measure[of_measure["source"] == _MODEL]
        values = ", ".join(_interval(measure, row) for row in mine.itertuples())
        ours.append(f"{measure.name} {measure.wanted}: {values}")
        others = of_measure[of_measure["source"] != _MODEL].groupby("source", sort=False)["estimate"]
        values = [f"{source} {_values(measure, estimates)}" for source, estimates in others]
        nulls += [f"{measure.name}: {', '.join(values)}"] if values else []
        if measure.name == deciding:
            leading = f"{measure.name} {_values(measure, mine['estimate'])} ({measure.wanted})"
    drawn = [f"{f'{row.over}, ' if row.over else ''}n = {row.n:g}" for row in rows.itertuples()]
    own = list(dict.fromkeys(text for text, source in zip(drawn, rows["source"], strict=True) if source == _MODEL))
    over = own + [f"nulls: {text}" for text in dict.fromkeys(drawn) if text not in own]
    over += [f"{measure.name}: {measure.taken}" for measure in measured if measure.taken]
    return {"leading": leading, "ours": "\n".join(ours), "nulls": "\n".join(nulls), "over": "\n".join(over)}


def _values(measure: registration.Measure, estimates: pd.Series) -> str:
    return " / ".join(_number(measure, value) for value in estimates)


def _interval(measure: registration.Measure, row: tuple) -> str:
    estimate, low, high = (_number(measure, value) for value in (row.estimate, row.low, row.high))
    return f"{estimate} [{low}, {high}] {_MARKS[row.outcome]}{f' ({row.why})' if row.why else ''}"


def _number(measure: registration.Measure, value: float) -> str:
    """Three significant digits, or as many as it takes to stay on the same side of the threshold."""
    if pd.isna(value):
        return "–"
    value = 0.0 if abs(value) < 1e-9 else float(value)
    texts = [f"{value:#.{digits}g}".rstrip(".") for digits in range(3, 10)]
    return next((text for text in texts if measure.satisfied(float(text)) == measure.satisfied(value)), texts[-1])
