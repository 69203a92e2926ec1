"""How a part of each committed table is computed again from the shipped models, or from other committed tables.

Each of `PARTS` opens one model, drawn by chance, and yields tables with what computes some of their rows, or all, and
the columns whose values say which these are (none: all rows; alike ones are held against each other in order). What it
keeps lies in the folder that it is given. Parameters come from a table's side file, and from presets/reference.yaml
where that lacks them. What a notebook makes of spectra it makes here too: its own cells are run (`cells`).
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from srdyn import scores
from srdyn.kernels import denormals
from srdyn.study import cells, derived
from srdyn.study.analysis import damage, emergence, update_rules
from srdyn.study.run import opened
from srdyn.study.survey import survey
from srdyn.study.trials import battery, effects, frontier, retention, sets, single_heads, trials

ARM, HEAD = derived.ARM, "model layer head"
ABOUT = f"{ARM} layers window truncated probe"


def _reading(draw: np.random.Generator, kept: Path) -> cells.Fresh:
    """Notebooks 01, 02, 05: one model's heads in all contexts, beside two nulls."""
    reading = _read(derived.given("01_stratification_heads"))
    name = derived.place(draw.choice(derived.given("05_mechanism_heads")["models"]))
    heads = survey.heads([name], reading, sources=("untrained", "mechanism"), kept=kept / "survey")
    for stem in ("01_stratification", "02_consistency", "05_mechanism"):
        yield from cells.kept(stem, until="if sizes", models=[name], heads=heads)


def _experiments(draw: np.random.Generator, kept: Path) -> cells.Fresh:
    """Notebooks 03 and 04, of both committed runs: one model's heads, and what it answers without some of them."""
    place = derived.place(draw.choice(derived.given("04_pruning_composition")["models"]))
    for run in ("", "thorough/"):
        given = derived.given(f"{run}04_pruning_composition")
        plan = _plan(given["plan"])
        tasks = () if run else (str(draw.choice([task for task in plan.questions.tasks if task != "needle"])),)
        few = _few(plan, tasks=tasks, domains=(str(draw.choice(plan.domains)),), copies=0)
        subject = trials.Subject(place, few, kept / "trials")
        damages = derived.stands(f"{run}03_ablation_heads", subject.model.name)
        subject.kept.put("damage", damages[["axis", "layer", "head", "probe", "damage", "intact"]])
        heads = damages[[*effects.HEAD, "probe"]].merge(subject.ask("profile"))
        yield f"{run}03_ablation_heads", f"{HEAD} probe", heads.copy
        for stem in ("03_ablation", "04_pruning"):
            yield from _answers(draw, f"{run}{stem}", subject)
        yield from _elsewhere(draw, f"{run}03_ablation_elsewhere", subject)
        yield from _cut(draw, run, given, subject)
        if not run:
            yield "03_ablation_heads", f"{HEAD} probe", functools.partial(_damage, draw, subject)
            for table in ("03_ablation_sets", "04_pruning_sets"):
                yield table, f"{ARM} which draw probe", functools.partial(_sets, draw, table, subject, kept)
            yield "04_pruning_oracle", "model share", functools.partial(_oracle, draw, given, subject, kept)
            way = functools.partial(_way, draw, given, subject, kept)
            yield "04_pruning_frontier", "model how rule share rank probe", way


def _cut(draw: np.random.Generator, run: str, given: dict, subject: trials.Subject) -> cells.Fresh:
    """What removing the joint score's heads changes, and how many of them one domain alone would choose."""
    main = trials.Arm(scores.joint_rule(given["alpha"]), given["paper_share"], "overall")
    audit = functools.partial(subject.ask, "audit", main, 256)
    yield f"{run}04_pruning_audit", "model", lambda: audit().drop(columns="logits_differ")  # which is rounding
    domain = str(draw.choice(subject.plan.domains))
    alone = dataclasses.replace(subject.plan, domains=(domain,))
    other = functools.partial(subject.ask, "overlap", main, f"{domain} alone", alone)
    yield f"{run}04_pruning_calibration", "model variant", other


def _answers(draw: np.random.Generator, table: str, subject: trials.Subject) -> cells.Fresh:
    """An arm of one model beside random heads, of all its questions a few."""
    model = subject.model.name
    versus, composed = (derived.stands(f"{table}_{name}", model) for name in ("differences", "composition"))
    if "/" in table:  # what the oracle takes has changed since the thorough run
        versus, composed = (rows[rows["arm"] != trials.ORACLE] for rows in (versus, composed))
    arm, other = _arm(draw, versus.query("versus == 'random'")), _arm(draw, composed)
    answers = _asked(subject, [trials.Arm(trials.INTACT), _random(arm), arm])
    estimates = functools.partial(effects.with_state, effects.estimates(answers), subject.ask("profile"))
    yield f"{table}_estimates", ABOUT, estimates
    yield f"{table}_differences", f"{ABOUT} versus", lambda: effects.differences(answers, versus="random")
    yield f"{table}_composition", ARM, lambda: subject.ask("composition", other)


def _elsewhere(draw: np.random.Generator, table: str, subject: trials.Subject) -> cells.Fresh:
    """Heads of another cut beside random ones of the same cut, in text."""
    arm = _arm(draw, derived.stands(table, subject.model.name))
    text = _asked(subject, [arm, _random(arm)]).query("probe_kind == 'text'")
    yield table, f"{ABOUT} versus", lambda: effects.differences(text, versus="random")


def _narrowed(draw: np.random.Generator, kept: Path) -> cells.Fresh:
    """Notebook 03, of both committed runs: heads that are missed in text where softmax sees little, and all."""
    for table in ("03_ablation", "thorough/03_ablation"):
        given, rows = derived.given(f"{table}_window"), derived.stands(f"{table}_window")
        arm, plan = _arm(draw, rows[rows["arm"] != "random"]), _plan(given["plan"])
        few = _few(plan, tasks=(), domains=(str(draw.choice(plan.domains)),), copies=0)
        [name] = [name for name in given["models"] if Path(name).name == rows["model"].iloc[0]]
        windows, arms = (0, int(draw.choice(rows["window"]))), (trials.Arm(trials.INTACT), arm)
        asked = [dataclasses.replace(arm, window=window) for window in windows for arm in arms]
        answers = _asked(trials.Subject(derived.place(name), few, kept), asked)
        yield f"{table}_narrowed", ABOUT, functools.partial(effects.estimates, answers)
        yield f"{table}_window", f"{ABOUT} versus", functools.partial(effects.interactions, answers)


def _truncated(draw: np.random.Generator, kept: Path) -> cells.Fresh:
    """Notebook 05: one task and one domain while all states are cut to a rank."""
    given, rows = derived.given("05_mechanism_truncation"), derived.stands("05_mechanism_truncation")
    options = {"rows": given["load_rows"], "eps": given["eps"], "seed": given["seed"]}
    plan = trials.truncating(given["loads"], given["domains"], **options)
    few = _few(plan, tasks=(str(draw.choice(given["loads"])),), domains=(str(draw.choice(plan.domains)),))
    every, place = int(draw.choice(rows["every"])), derived.place(draw.choice(given["models"][:2]))
    asked = [trials.Arm(trials.INTACT), trials.Arm("high", 1.0, truncated=int(draw.choice(given["truncated"])))]
    answers = _asked(trials.Subject(place, dataclasses.replace(few, truncated_every=every), kept), asked)
    yield "05_mechanism_truncation", f"{ABOUT} every", lambda: effects.estimates(answers).assign(every=every)


def _damage(draw: np.random.Generator, subject: trials.Subject) -> pd.DataFrame:
    """What one head alone is worth to two probes."""
    model, sheet = subject.model, battery.sheet(subject.plan.calibration, subject.model.tokenizer)
    axis = int(draw.integers(len(model.layers)))
    asked = {name: sheet[name] for name in draw.choice([*sheet], 2, replace=False)}
    with denormals.flushed():
        found = single_heads.damage(model, asked, [(axis, int(draw.choice(model.layers[axis].heads)))])
    return found.assign(**opened.about(model))


def _sets(draw: np.random.Generator, table: str, subject: trials.Subject, kept: Path) -> pd.DataFrame:
    """The sets of an arm's draws, and some of the random ones."""
    random, given = derived.stands(table, subject.model.name).query("which == 'random'"), derived.given(table)
    tasks = given["tasks"] if "04" in table else ("needle",)
    questions = sets.questions(tasks, rows=given["set_rows"], seed=given["seed"])
    each, asked = sets.Subject(subject.name, subject.plan, questions, kept), [("beside",)]
    if len(random):
        arm, n = _arm(draw, random), int(random["draw"].max()) + 1
        asked += [("chosen", arm), ("random", arm, n, int(draw.integers(n // sets.BLOCK)) * sets.BLOCK)]
    found = pd.concat([each.ask(*one) for one in asked], ignore_index=True)
    return sets.with_kept(found) if "04" in table else found


def _oracle(draw: np.random.Generator, given: dict, subject: trials.Subject, kept: Path) -> pd.DataFrame:
    """What is kept without the oracle's heads at one dose, with the damages that are committed."""
    share = float(draw.choice(derived.stands("04_pruning_oracle", subject.model.name)["share"]))
    asked = sets.questions(given["tasks"], rows=5 * given["set_rows"], seed=given["seed"])
    each, arm = sets.Subject(subject.name, subject.plan, asked, kept), trials.Arm(trials.ORACLE, share, "overall")
    found = sets.with_kept(pd.concat([each.ask("beside"), each.ask("chosen", arm)], ignore_index=True))
    found = found[(found["arm"] == trials.ORACLE) & (found["probe"] == effects.KEPT)]
    return found.groupby(["model", "share"], as_index=False).agg(kept=("value", "mean"), n=("n", "first"))


def _way(draw: np.random.Generator, given: dict, subject: trials.Subject, kept: Path) -> pd.DataFrame:
    """One way to hold less, with the damages that are committed, but random sets, all of which are one row."""
    options = {"every": given["frontier_every"], "seed": given["seed"]}
    asked = frontier.Questions(tuple(given["tasks"]), subject.plan.domains, **options)
    taken = derived.stands("04_pruning_frontier", subject.model.name).query("rule != 'random' and share > 0")
    row = taken.sample(1, random_state=int(draw.integers(2**31))).fillna({"rule": ""}).iloc[0]
    each = frontier.Subject(subject.name, subject.plan, asked, kept)
    whole = frontier.Way(frontier.WHOLE, share=0.0)
    way = frontier.Way(row["how"], row["rule"], float(row["share"]), int(row["rank"]))
    return frontier.table(pd.concat([each.ask("under", x) for x in (whole, way)], ignore_index=True))


def _retention(draw: np.random.Generator, kept: Path) -> cells.Fresh:
    """Notebook 05: one setting of half-lives, one head, one group and distance of text that comes twice."""
    given = derived.given("05_mechanism_retention")
    name = derived.place(draw.choice([*given["models"][:2], *given["second_seeds"]]))
    options = {"rows": given["needle_rows"], "eps": given["eps"], "seed": given["seed"]}
    asked = retention.Questions(tuple(given["distances"]), tuple(given["domains"]), **options)
    subject, group = retention.Subject(name, asked, kept), str(draw.choice(retention.GROUPS))
    settings = [(retention.INTACT, np.nan), (group, float(draw.choice(given["half_lives"])))]
    table = pd.concat([subject.ask("answered", *each, np.nan) for each in settings], ignore_index=True)
    yield "05_mechanism_retention", "model group half_life distance factor", lambda: table
    one = retention.Subject(name, asked, kept / "one head")
    heads = subject.kept.get("heads").sample(1, random_state=int(draw.integers(2**31)))
    one.kept.put("heads", heads.reset_index(drop=True))
    yield "05_mechanism_single", f"{HEAD} changed distance", lambda: one.ask("single")
    near = retention.Subject(name, dataclasses.replace(asked, distances=tuple(given["gaps"][:2])), kept)
    twice = lambda: pd.concat([near.ask("repeated", each) for each in (retention.INTACT, group)], ignore_index=True)  # noqa: E731
    yield "05_mechanism_gaps", "model group distance quantity", lambda: damage.worth(twice())


def _training(draw: np.random.Generator, kept: Path) -> cells.Fresh:
    """Notebook 06: all that follows from the spectra that training wrote down."""
    given = derived.given("06_emergence_heads")
    history = emergence.histories([derived.place(name) for name in given["models"]])
    yield from cells.kept("06_emergence", history=history, removed=None)
    given = derived.given("06_emergence_ablation")
    place = derived.place(draw.choice(given["models"]))
    step, folder = [*emergence.stages(place).items()][-1 - int(draw.integers(2))]
    asked = [trials.Arm(trials.INTACT), *(trials.Arm(name, given["share"]) for name in emergence.REMOVED)]
    answers = _asked(trials.Subject(folder, _plan(given["plan"]), kept), asked).assign(model=place.name)
    yield "06_emergence_ablation", "model arm reference step", lambda: emergence.costs(answers).assign(step=step)


def _rules(draw: np.random.Generator, kept: Path) -> cells.Fresh:
    """Notebook 10: one model's heads, their measures, and what it answers without some of them."""
    given = derived.given("10_rules_heads")
    name, reading = derived.place(draw.choice(given["models"])), _read(given | {"tasks": (), "attacks": ()})
    text = survey.heads([name], reading, sources=update_rules.NULLS, kept=kept / "survey")
    yield from cells.kept("10_rules", until="trials.answers", models=[name], text=text, last=reading.positions[-1])
    plan = _plan(given["plan"])
    few = _few(plan, tasks=(str(draw.choice(plan.questions.tasks)),), domains=(), copies=0)
    asked = [trials.Arm(arm, given["share"]) for arm in ("random", str(draw.choice(["low", "high"])))]
    answers = _asked(trials.Subject(name, few, kept), [trials.Arm(trials.INTACT), *asked])
    yield "10_rules_removed", f"{ABOUT} reference", lambda: update_rules.removed(answers)


def _read(given: dict) -> survey.Reading:
    axes = {axis: tuple(given[axis]) for axis in ("domains", "tasks", "attacks", "positions")}
    options = {name: given[name] for name in ("n", "seed", "eps")}
    return survey.Reading(**axes, length=axes["positions"][-1], **options)


def _asked(subject: trials.Subject, arms: Sequence[trials.Arm]) -> pd.DataFrame:
    return pd.concat([subject.ask("answers", arm) for arm in arms], ignore_index=True)


def _few(plan: trials.Plan, **asked: object) -> trials.Plan:
    """The plan with fewer questions; heads are chosen by as much text."""
    return dataclasses.replace(plan, questions=dataclasses.replace(plan.questions, **asked))


def _random(arm: trials.Arm) -> trials.Arm:
    """Random heads at the arm's dose."""
    return dataclasses.replace(arm, name="random", matched=False)


def _arm(draw: np.random.Generator, rows: pd.DataFrame) -> trials.Arm:
    """One of the arms of a table's rows."""
    row = rows.drop_duplicates(["arm", "share", "cut"]).sample(1, random_state=int(draw.integers(2**31))).iloc[0]
    name, places = row["arm"].removeprefix("matched, "), row.get("layers", "all")
    layers = () if places == "all" else tuple(map(int, places.split("-")))
    return trials.Arm(name, float(row["share"]), row["cut"], layers, matched=name != row["arm"])


def _plan(given: dict) -> trials.Plan:
    """A plan as a side file holds it."""
    plain = lambda values: {name: tuple(x) if isinstance(x, list) else x for name, x in values.items()}  # noqa: E731
    parts = {part: battery.Battery(**plain(given[part])) for part in ("questions", "calibration")}
    return trials.Plan(**plain(given) | parts)


PARTS = (_reading, _experiments, _narrowed, _retention, _truncated, _training, _rules, derived.tables)
