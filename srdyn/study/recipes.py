"""How a part of each committed table is computed again from the shipped models, or from other committed tables.

Each of `PARTS` opens one model, drawn by chance, and yields tables with the columns that tell their rows apart (none:
all rows in order) and what computes some of their rows, or all. What it keeps lies in the folder that it is given.
Parameters come from a table's side file, and from presets/reference.yaml where that lacks them.
"""

import dataclasses
import functools
from pathlib import Path

import numpy as np
import pandas as pd

from srdyn import scores
from srdyn.kernels import denormals
from srdyn.loading import memory
from srdyn.study import derived
from srdyn.study.analysis import (
    damage,
    emergence,
    mechanism,
    observations,
    summaries,
    update_rules,
    writes,
)
from srdyn.study.run import opened, store
from srdyn.study.survey import null_tables, survey
from srdyn.study.trials import battery, effects, frontier, retention, sets, single_heads, trials

ARM, HEAD = derived.ARM, "model layer head"
ABOUT = f"{ARM} layers window truncated probe"


def _of(table: str, model: str) -> pd.DataFrame:
    found = derived.stands(table)
    return found[found["model"] == model].reset_index(drop=True)


def _reading(draw: np.random.Generator, kept: Path) -> derived.Fresh:
    """Notebooks 01, 02, 05: one model's heads in all contexts, those of the null `mechanism` in text."""
    given = derived.given("05_mechanism_heads") | derived.given("02_consistency_steps")
    name = derived.place(draw.choice(derived.given("05_mechanism_heads")["models"]))
    reading, at = _read(given), {"at": given["positions"][-1]}
    tables = null_tables.Tables(opened.model(name), reading, store.RunStore(kept / "survey", made_by={}))
    asked = [(null_tables.MODEL, context) for context in reading.names()]
    asked += [("mechanism", context) for context in reading.texts]
    heads = pd.concat([tables.table(*each) for each in asked], ignore_index=True)
    text, eps = heads[heads["context"].isin(reading.texts)], {"eps": given["eps"]}
    own = text[text["source"] == null_tables.MODEL]
    yield "01_stratification_heads", f"{HEAD} source", lambda: summaries.final_ranks(text, **at)
    paths = functools.partial(summaries.trajectories, text, [null_tables.MODEL, "mechanism"])
    yield "01_stratification_trajectories", f"{HEAD} source position", paths
    yield "01_stratification_shares", "model source split", lambda: summaries.shares(own, **at, **eps)
    yield "01_stratification_modes", "model quantity", lambda: mechanism.modes(own, **at, **eps)
    yield "02_consistency_time", "model source position", lambda: summaries.time_order(own)
    yield "02_consistency_pairs", "model a b", lambda: summaries.context_pairs(heads, **at)
    attacked = functools.partial(summaries.under_attack, heads, reading.attacks, reading.texts, **at)
    yield "02_consistency_attacks", f"{HEAD} context", lambda: summaries.first_layer_bound(attacked(), [name])
    yield "02_consistency_after_text", f"{HEAD} attack", lambda: writes.after_text(name, reading)
    steps = functools.partial(summaries.consecutive_cosines, name, reading, given["cosine_at"])
    each = max(1, 4 // len(reading.texts))
    yield "02_consistency_steps", "model layer context sample position", lambda: steps(n=each)
    by_head = mechanism.heads(text, **at, **eps)
    yield "05_mechanism_heads", HEAD, lambda: by_head
    yield "05_mechanism_explained", "model predictor quantity", lambda: mechanism.explained(text, **at, **eps)
    yield "05_mechanism_sweep", "model ranks_of eps", lambda: mechanism.sweep(text, **at, **eps)
    yield "05_mechanism_splits", "model split", lambda: mechanism.splits(text, **at, **eps)
    yield "05_mechanism_shuffled", HEAD, lambda: writes.shuffled(name, reading)
    rounded = functools.cache(functools.partial(mechanism.precision, name, reading))
    yield "05_mechanism_precision", f"{HEAD} precision", lambda: mechanism.rounded_heads(rounded())
    yield "05_mechanism_fork", "measure model precision", lambda: mechanism.rounded_fork(rounded())
    yield from _claims(text, heads, reading, at)


def _claims(text: pd.DataFrame, heads: pd.DataFrame, reading: survey.Reading, at: dict[str, int]) -> derived.Fresh:
    """The measures of both registrations that one model's head tables decide, of the model alone."""
    text, heads = (table[table["source"] == null_tables.MODEL] for table in (text, heads))
    of = observations
    read, attacked = (heads[heads["context"].isin(reading.attacks) == under] for under in (False, True))
    anew, times, norm = {"over_heads": True}, {"first": 128, "second": 2048}, {"value": "nuclear_norm"}
    pooled = {"low-rank heads": "low", "high-rank heads": "high", "middle of all heads": "middle"}
    between = [("cosine of ranks", at), ("cosine of norms", at | norm)]
    between = [(text, name, of.cosine_between, options) for name, options in between]
    asked = {
        "01_stratification_claims": [
            (text, "smaller group", of.smaller_group, at),
            (text, "middle", of.stratum_share, at | {"stratum": "middle"}),
            (text, "high heads follow", of.follow, {}),
            (text, "low heads drift", of.drift, {}),
        ],
        "01_stratification_claims_second": [
            *((text, name, of.share_of_all, anew | at | {"stratum": stratum}) for name, stratum in pooled.items()),
            (text, "high heads hold", of.hold, anew),
            (text, "high heads settle", of.settle, anew),
            (text, "low heads drift", of.drift, anew),
        ],
        "02_consistency_claims": [
            (text, "spearman 128 to 2048", of.order_in_time, times),
            (text, "spearman d to 16d", of.order_from_d, {}),
            *between,
            (read, "kappa between contexts", of.kappa_between, at),
            (read, "spearman between contexts", of.spearman_between, at),
            (attacked, "smaller group under attack", of.least_group, at),
        ],
        "02_consistency_claims_second": [
            *between,
            (text, "cosine of ranks in time", of.cosine_in_time, times),
            (text, "cosine of norms in time", of.cosine_in_time, times | norm),
            (text, "kappa between domains", of.kappa_between, at),
            (text, "spearman between domains", of.spearman_between, at),
        ],
    }
    for table, measures in asked.items():
        rows = [of.measure(rows, name, statistic, **options) for rows, name, statistic, options in measures]
        yield table, "measure model source", functools.partial(pd.concat, rows, ignore_index=True)


def _experiments(draw: np.random.Generator, kept: Path) -> derived.Fresh:
    """Notebooks 03 and 04, of both committed runs: one model's heads, and what it answers without some of them."""
    place, profiles = derived.place(draw.choice(derived.given("04_pruning_composition")["models"])), {}
    for table in ("03_ablation", "04_pruning", "thorough/03_ablation", "thorough/04_pruning"):
        given, thorough = derived.given(f"{table}_composition"), "thorough/" * ("/" in table)
        plan = _plan(given["plan"])
        tasks = () if thorough else (str(draw.choice([task for task in plan.questions.tasks if task != "needle"])),)
        few = dataclasses.replace(plan.questions, tasks=tasks, domains=(str(draw.choice(plan.domains)),), copies=0)
        rows = 1 if "04" in table else given["set_rows"]
        asked = sets.questions(plan.questions.tasks if "04" in table else ("needle",), rows=rows, seed=given["seed"])
        subject = sets.Subject(place, dataclasses.replace(plan, questions=few), asked, kept)
        if plan.sequences not in profiles:  # the thorough run chooses heads by more text
            profiles[plan.sequences] = subject.ask("profile")
        profile = profiles[plan.sequences]
        damages = _of(f"{thorough}03_ablation_heads", subject.model.name)
        known = ["axis", "layer", "head", "probe", "damage", "intact"]
        subject.kept.put("profile", profile)
        subject.kept.put("damage", damages[known])
        if "03" in table:
            yield f"{table}_heads", HEAD, lambda profile=profile: profile
        yield from _answers(draw, table, subject)
        if not thorough:
            yield from _sets(draw, table, subject)
        if "03" in table:
            yield from _elsewhere(draw, table, subject, kept)
        if table == "03_ablation":
            yield "03_ablation_heads", f"{HEAD} probe", functools.partial(_damage, draw, subject)
        if "04" in table:
            yield from _cut(draw, table, given, subject)
        if table == "04_pruning":
            yield from _pruning(draw, given, subject, kept)


def _cut(draw: np.random.Generator, table: str, given: dict, subject: trials.Subject) -> derived.Fresh:
    """What removing the joint score's heads changes, and how many of them one domain alone would choose."""
    main = trials.Arm(scores.joint_rule(given["alpha"]), given["paper_share"], "overall")
    audit = functools.partial(subject.ask, "audit", main, 256)
    yield f"{table}_audit", "model", lambda: audit().drop(columns="logits_differ")  # which is rounding
    domain = str(draw.choice(subject.plan.domains))
    alone = dataclasses.replace(subject.plan, domains=(domain,))
    yield f"{table}_calibration", "model variant", lambda: subject.ask("overlap", main, f"{domain} alone", alone)


def _answers(draw: np.random.Generator, table: str, subject: trials.Subject) -> derived.Fresh:
    """An arm of one model beside random heads, of all its questions a few."""
    versus, composed = (_of(f"{table}_{name}", subject.model.name) for name in ("differences", "composition"))
    if "/" in table:  # what the oracle takes has changed since the thorough run
        versus, composed = (rows[rows["arm"] != trials.ORACLE] for rows in (versus, composed))
    arm, other = _arm(draw, versus.query("versus == 'random'")), _arm(draw, composed)
    asked = [trials.Arm(trials.INTACT), dataclasses.replace(arm, name="random", matched=False), arm]
    answers = pd.concat([subject.ask("answers", each) for each in asked], ignore_index=True)
    estimates = functools.partial(effects.with_state, effects.estimates(answers), subject.ask("profile"))
    yield f"{table}_estimates", ABOUT, estimates
    yield f"{table}_differences", f"{ABOUT} versus", lambda: effects.differences(answers, versus="random")
    yield f"{table}_composition", ARM, lambda: subject.ask("composition", other)


def _elsewhere(draw: np.random.Generator, table: str, subject: trials.Subject, kept: Path) -> derived.Fresh:
    """Heads of another cut beside random ones of the same cut, in text."""
    text = dataclasses.replace(subject.plan, questions=dataclasses.replace(subject.plan.questions, tasks=()))
    each, arm = trials.Subject(subject.name, text, kept), _arm(draw, _of(f"{table}_elsewhere", subject.model.name))
    each.kept.put("profile", subject.ask("profile"))
    asked = [arm, dataclasses.replace(arm, name="random", matched=False)]
    answers = pd.concat([each.ask("answers", x) for x in asked], ignore_index=True)
    yield f"{table}_elsewhere", f"{ABOUT} versus", lambda: effects.differences(answers, versus="random")


def _narrowed(draw: np.random.Generator, kept: Path) -> derived.Fresh:
    """Notebook 03, of both committed runs: heads that are missed in text where softmax sees little, and all."""
    for table in ("03_ablation", "thorough/03_ablation"):
        given, rows = derived.given(f"{table}_window"), derived.stands(f"{table}_window")
        arm, plan = _arm(draw, rows[rows["arm"] != "random"]), _plan(given["plan"])
        few = dataclasses.replace(plan.questions, tasks=(), domains=(str(draw.choice(plan.domains)),), copies=0)
        [name] = [name for name in given["models"] if Path(name).name == rows["model"].iloc[0]]
        subject = trials.Subject(derived.place(name), dataclasses.replace(plan, questions=few), kept)
        windows, arms = (0, int(draw.choice(rows["window"]))), (trials.Arm(trials.INTACT), arm)
        asked = [dataclasses.replace(arm, window=window) for window in windows for arm in arms]
        answers = pd.concat([subject.ask("answers", each) for each in asked], ignore_index=True)
        yield f"{table}_narrowed", ABOUT, functools.partial(effects.estimates, answers)
        yield f"{table}_window", f"{ABOUT} versus", functools.partial(effects.interactions, answers)


def _truncated(draw: np.random.Generator, kept: Path) -> derived.Fresh:
    """Notebook 05: one task and one domain while all states are cut to a rank."""
    given, rows = derived.given("05_mechanism_truncation"), derived.stands("05_mechanism_truncation")
    options = {"rows": given["load_rows"], "eps": given["eps"], "seed": given["seed"]}
    plan = trials.truncating(given["loads"], given["domains"], **options)
    one = {"tasks": (str(draw.choice(given["loads"])),), "domains": (str(draw.choice(plan.domains)),)}
    every, place = int(draw.choice(rows["every"])), derived.place(draw.choice(given["models"][:2]))
    few = dataclasses.replace(plan, questions=dataclasses.replace(plan.questions, **one), truncated_every=every)
    subject = trials.Subject(place, few, kept)
    asked = [trials.Arm(trials.INTACT), trials.Arm("high", 1.0, truncated=int(draw.choice(given["truncated"])))]
    answers = pd.concat([subject.ask("answers", each) for each in asked], ignore_index=True)
    yield "05_mechanism_truncation", f"{ABOUT} every", lambda: effects.estimates(answers).assign(every=every)


def _sets(draw: np.random.Generator, table: str, subject: sets.Subject) -> derived.Fresh:
    """The sets of an arm's draws, and some of the random ones."""
    random = _of(f"{table}_sets", subject.model.name).query("which == 'random'")
    asked = [("beside",)]
    if len(random):
        arm, n = _arm(draw, random), int(random["draw"].max()) + 1
        asked += [("chosen", arm), ("random", arm, n, int(draw.integers(n // sets.BLOCK)) * sets.BLOCK)]
    found = pd.concat([subject.ask(*each) for each in asked], ignore_index=True)
    yield f"{table}_sets", f"{ARM} which draw probe", lambda: sets.with_kept(found) if "04" in table else found


def _damage(draw: np.random.Generator, subject: trials.Subject) -> pd.DataFrame:
    """What one head alone is worth to two probes."""
    model, sheet = subject.model, battery.sheet(subject.plan.calibration, subject.model.tokenizer)
    axis = int(draw.integers(len(model.layers)))
    asked = {name: sheet[name] for name in draw.choice([*sheet], 2, replace=False)}
    with denormals.flushed():
        found = single_heads.damage(model, asked, [(axis, int(draw.choice(model.layers[axis].heads)))])
    return found.assign(**opened.about(model))


def _pruning(draw: np.random.Generator, given: dict, subject: sets.Subject, kept: Path) -> derived.Fresh:
    """The oracle at one dose and one way to hold less, with the damages that are committed; what caches hold."""
    model = subject.model.name
    share = float(draw.choice(_of("04_pruning_oracle", model)["share"]))
    asked = sets.questions(given["tasks"], rows=5 * given["set_rows"], seed=given["seed"])
    each = sets.Subject(subject.name, subject.plan, asked, kept)

    def oracle() -> pd.DataFrame:
        arm = trials.Arm(trials.ORACLE, share, "overall")
        found = sets.with_kept(pd.concat([each.ask("beside"), each.ask("chosen", arm)], ignore_index=True))
        found = found[(found["arm"] == trials.ORACLE) & (found["probe"] == effects.KEPT)]
        return pd.DataFrame([{"model": model, "share": share, "kept": found["value"].mean(), "n": found["n"].iloc[0]}])

    yield "04_pruning_oracle", "model share", oracle
    yield "04_pruning_frontier", "model how rule share rank probe", functools.partial(_way, draw, given, subject, kept)
    ledger = memory.ledger(given["tokens"], removed=given["paper_share"])
    for table in ("04_pruning_memory", "thorough/04_pruning_memory"):
        yield table, "", lambda: ledger


def _way(draw: np.random.Generator, given: dict, subject: sets.Subject, kept: Path) -> pd.DataFrame:
    """One way to hold less, with the damages that are committed, but random sets, all of which are one row."""
    options = {"every": given["frontier_every"], "seed": given["seed"]}
    asked = frontier.Questions(tuple(given["tasks"]), subject.plan.domains, **options)
    taken = _of("04_pruning_frontier", subject.model.name).query("rule != 'random' and share > 0")
    row = taken.sample(1, random_state=int(draw.integers(2**31))).fillna({"rule": ""}).iloc[0]
    each = frontier.Subject(subject.name, subject.plan, asked, kept)
    whole = frontier.Way(frontier.WHOLE, share=0.0)
    way = frontier.Way(row["how"], row["rule"], float(row["share"]), int(row["rank"]))
    return frontier.table(pd.concat([each.ask("under", x) for x in (whole, way)], ignore_index=True))


def _retention(draw: np.random.Generator, kept: Path) -> derived.Fresh:
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


def _training(draw: np.random.Generator, kept: Path) -> derived.Fresh:
    """Notebook 06: all that follows from the spectra that training wrote down."""
    given = derived.given("06_emergence_heads")
    history, at = emergence.histories([derived.place(name) for name in given["models"]]), given["positions"]
    first = {"at": at[0]}
    of_each = lambda make, **options: pd.concat([make(history, at=t, **options) for t in at], ignore_index=True)  # noqa: E731
    yield "06_emergence_heads", "", lambda: emergence.trajectories(history, **first)
    yield "06_emergence_distribution", "", lambda: of_each(emergence.distribution)
    ranks = emergence.identity(history, **first)
    yield "06_emergence_identity", "model measure step reference value position", lambda: ranks
    yield "06_emergence_origin", "", lambda: of_each(emergence.origin)
    yield "06_emergence_moved", "", lambda: emergence.moved(history, **first)
    yield "06_emergence_kept", "", lambda: emergence.kept(history, **first)
    yield "06_emergence_claims", "", lambda: emergence.measured(ranks)
    halves = emergence.measured(ranks).query("measure == 'identity in training'")
    again = lambda: pd.concat([emergence.relative_identity(history, **first), halves], ignore_index=True)  # noqa: E731
    yield "06_emergence_claims_second", "measure model", again
    yield "06_emergence_ablation", "model arm reference step", functools.partial(_removed, draw, kept)


def _removed(draw: np.random.Generator, kept: Path) -> pd.DataFrame:
    """What removing heads costs one model at one stage of its training."""
    given = derived.given("06_emergence_ablation")
    place = derived.place(draw.choice(given["models"]))
    step, folder = [*emergence.stages(place).items()][-1 - int(draw.integers(2))]
    subject = trials.Subject(folder, _plan(given["plan"]), kept)
    asked = [trials.Arm(trials.INTACT), *(trials.Arm(name, given["share"]) for name in emergence.REMOVED)]
    answers = pd.concat([subject.ask("answers", each) for each in asked], ignore_index=True)
    return emergence.costs(answers.assign(model=place.name)).assign(step=step)


def _rules(draw: np.random.Generator, kept: Path) -> derived.Fresh:
    """Notebook 10: one model's heads, their measures, and what it answers without some of them."""
    given = derived.given("10_rules_heads")
    name, positions = derived.place(draw.choice(given["models"])), given["positions"]
    reading = _read(given | {"tasks": (), "attacks": ()})
    text, eps = survey.heads([name], reading, sources=update_rules.NULLS, kept=kept / "survey"), {"eps": given["eps"]}
    yield "10_rules_heads", HEAD, lambda: update_rules.heads(text, positions[-1], **eps)
    yield "10_rules_measures", "measure model source", lambda: update_rules.measures(text, positions, **eps)
    plan = _plan(given["plan"])
    few = dataclasses.replace(plan.questions, tasks=(str(draw.choice(plan.questions.tasks)),), domains=(), copies=0)
    subject = trials.Subject(name, dataclasses.replace(plan, questions=few), kept)
    asked = [trials.Arm(trials.INTACT), trials.Arm("random", given["share"])]
    asked.append(trials.Arm(str(draw.choice(["low", "high"])), given["share"]))
    answers = pd.concat([subject.ask("answers", each) for each in asked], ignore_index=True)
    yield "10_rules_removed", f"{ABOUT} reference", lambda: update_rules.removed(answers)


def _read(given: dict) -> survey.Reading:
    axes = {axis: tuple(given[axis]) for axis in ("domains", "tasks", "attacks", "positions")}
    return survey.Reading(**axes, n=given["n"], seed=given["seed"], eps=given["eps"])


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
