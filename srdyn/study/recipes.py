"""How a part of each committed table is computed again from the shipped models, or from other committed tables.

Each of `PARTS` opens one model, drawn by chance, and yields tables with what computes some of their rows, or all, and
the columns whose values say which these are (none: all rows; alike ones are held against each other in order). Where a
notebook can be asked for less, its own cells are run (`cells`). What is kept lies in `store.kept_dir`. Parameters come
from a table's side file, and from presets/reference.yaml where that lacks them.
"""

import dataclasses
import functools
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from srdyn import export, pruning, scores
from srdyn.kernels import denormals
from srdyn.loading import files
from srdyn.study import cells
from srdyn.study.analysis import head_size, stages
from srdyn.study.run import opened, parameters, store
from srdyn.study.survey import survey
from srdyn.study.trials import battery, effects, frontier, retention, sets, single_heads, trials

ARM, HEAD = "model arm share cut", "model layer head"
ABOUT = f"{ARM} layers window truncated probe"


def stands(table: str, model: str = "") -> pd.DataFrame:
    """The committed table of this name, `thorough/…` for one of the thorough run; of one model alone, if named."""
    found = store.load_table(Path(table).name, run=Path(table).parent.name or store.REFERENCE)
    return found[found["model"] == model].reset_index(drop=True) if model else found


def given_to(table: str) -> dict:
    """What the side file says, over what the reference run gives to the notebook."""
    stem = "_".join(Path(table).name.split("_")[:2])
    side = files.read_json(files.data_dir() / "tables" / f"{table}.json")
    return parameters.of_run([stem], store.REFERENCE, {})[stem] | side.get("parameters", {})


def folder(name: str) -> Path:
    """The folder of a model that a side file names, seen from the notebooks."""
    return (files.root() / "notebooks" / name).resolve()


def _reading(draw: np.random.Generator) -> cells.Fresh:
    """Notebooks 01, 02, 05: one model's heads in all contexts, beside the null `mechanism`."""
    given = given_to("05_mechanism_heads")
    name, axes = folder(draw.choice(given["models"])), ("domains", "tasks", "attacks", "positions")
    of = {axis: tuple(given[axis]) for axis in axes} | {option: given[option] for option in ("n", "eps", "seed")}
    asked = {"models": [name], "heads": survey.heads([name], survey.Reading(**of), sources=["mechanism"])}
    pairs = [[*map(folder, pair)] for pair in given_to("02_consistency_checkpoints")["checkpoints"]]
    for stem, other in (
        ("01_stratification", {}),
        ("02_consistency", {"checkpoints": pairs, "beside": []}),
        ("05_mechanism", {"tags": ("ranks",)}),
    ):
        yield from cells.kept(stem, by="claim measure model source predictor", **asked, **other)


def _experiments(draw: np.random.Generator) -> cells.Fresh:
    """Notebooks 03 and 04, of all committed runs: one model's heads, and what it answers without some of them."""
    small = folder(draw.choice(given_to("04_pruning_composition")["models"]))
    main = folder(draw.choice(given_to("main/04_pruning_composition")["models"]))
    sized = folder(draw.choice(given_to("sizes/03_ablation_composition")["models"]))
    plan = _few(_plan(given_to("sizes/03_ablation_composition")["plan"]), tasks=(), domains=("prose",), copies=0)
    yield from _answers(draw, "sizes/03_ablation", sized, plan)
    for run, place in (("", small), ("thorough/", small), ("main/", main)):
        plan = _plan(given_to(f"{run}04_pruning_composition")["plan"])
        tasks = () if run else (str(draw.choice([task for task in plan.questions.tasks if task != "needle"])),)
        plan = _few(plan, tasks=tasks, domains=(str(draw.choice(plan.domains)),), copies=0)
        damages = stands(f"{run}03_ablation_heads", place.name)
        known = damages[["axis", "layer", "head", "probe", "damage", "intact"]]
        trials.Subject(place, plan, store.kept_dir() / "trials").kept.put("damage", known)
        heads = damages[[*effects.HEAD, "probe"]].merge(trials.profiles([place], plan))
        yield f"{run}03_ablation_heads", f"{HEAD} probe", heads.copy
        for stem in ("03_ablation", "04_pruning"):
            yield from _answers(draw, f"{run}{stem}", place, plan)
        arm = _arm(draw, stands(f"{run}03_ablation_elsewhere", place.name))
        arms = [arm, dataclasses.replace(arm, name="random", matched=False)]
        text = trials.answers([place], arms, plan).query("probe_kind == 'text'")
        elsewhere = functools.partial(effects.differences, text, versus="random")
        yield f"{run}03_ablation_elsewhere", f"{ABOUT} versus", elsewhere
        names = {"models": [place], "second_seeds": [], "every": [place], "plan": plan}
        domain = str(draw.choice(plan.domains))
        names |= {"others": {f"{domain} alone": dataclasses.replace(plan, domains=(domain,))}}
        by = "model variant how rule share rank probe"
        yield from cells.kept("04_pruning", of=run, tags=("calibration",), by=by, **names)
        if not run:
            names |= {"ways": [frontier.Way(frontier.WHOLE, share=0.0), _way(draw, place)]}
            yield from cells.kept("04_pruning", tags=("frontier", "oracle"), by=by, **names)
            yield "03_ablation_heads", f"{HEAD} probe", functools.partial(_damage, draw, place, plan)
            for table in ("03_ablation_sets", "04_pruning_sets"):
                yield table, f"{ARM} which draw probe", functools.partial(_sets, draw, table, place, plan)


def _answers(draw: np.random.Generator, table: str, place: Path, plan: trials.Plan) -> cells.Fresh:
    """An arm of one model beside random heads, of all its questions a few."""
    versus, composed = (stands(f"{table}_{name}", place.name) for name in ("differences", "composition"))
    if "/" in table:  # what the oracle takes has changed since the thorough run
        versus, composed = (rows[rows["arm"] != trials.ORACLE] for rows in (versus, composed))
    arm, other = _arm(draw, versus.query("versus == 'random'")), _arm(draw, composed)
    arms = [trials.Arm(trials.INTACT), dataclasses.replace(arm, name="random", matched=False), arm]
    answers = trials.answers([place], arms, plan)
    estimates = functools.partial(effects.with_state, effects.estimates(answers), trials.profiles([place], plan))
    yield f"{table}_estimates", ABOUT, estimates
    yield f"{table}_differences", f"{ABOUT} versus", lambda: effects.differences(answers, versus="random")
    yield f"{table}_composition", ARM, lambda: trials.compositions([place], [other], plan)


def _narrowed(draw: np.random.Generator) -> cells.Fresh:
    """Notebook 03, of all committed runs: heads that are missed in text where softmax sees little, and all."""
    for table in ("03_ablation", "thorough/03_ablation", "main/03_ablation", "sizes/03_ablation"):
        given, rows = given_to(f"{table}_window"), stands(f"{table}_window")
        arm, plan = _arm(draw, rows[rows["arm"] != "random"]), _plan(given["plan"])
        few = _few(plan, tasks=(), domains=(str(draw.choice(plan.domains)),), copies=0)
        [name] = [name for name in given["models"] if Path(name).name == rows["model"].iloc[0]]
        windows, arms = (0, int(draw.choice(rows["window"]))), (trials.Arm(trials.INTACT), arm)
        asked = [dataclasses.replace(arm, window=window) for window in windows for arm in arms]
        answers = trials.answers([folder(name)], asked, few)
        yield f"{table}_narrowed", ABOUT, functools.partial(effects.estimates, answers)
        yield f"{table}_window", f"{ABOUT} versus", functools.partial(effects.interactions, answers)


def _damage(draw: np.random.Generator, place: Path, plan: trials.Plan) -> pd.DataFrame:
    """What one head alone is worth to two probes."""
    model = opened.model(place)
    sheet, axis = battery.sheet(plan.calibration, model.tokenizer), int(draw.integers(len(model.layers)))
    asked = {name: sheet[name] for name in draw.choice([*sheet], 2, replace=False)}
    with denormals.flushed():
        found = single_heads.damage(model, asked, [(axis, int(draw.choice(model.layers[axis].heads)))])
    return found.assign(**opened.about(model))


def _sets(draw: np.random.Generator, table: str, place: Path, plan: trials.Plan) -> pd.DataFrame:
    """The sets of an arm's draws, and some of the random ones."""
    random, given = stands(table, place.name).query("which == 'random'"), given_to(table)
    tasks = given["tasks"] if "04" in table else ("needle",)
    questions = sets.questions(tasks, rows=given["set_rows"], seed=given["seed"])
    subject, asked = sets.Subject(place, plan, questions, store.kept_dir()), [("beside",)]
    if len(random):
        arm, n = _arm(draw, random), int(random["draw"].max()) + 1
        asked += [("chosen", arm), ("random", arm, n, int(draw.integers(n // sets.BLOCK)) * sets.BLOCK)]
    found = pd.concat([subject.ask(*one) for one in asked], ignore_index=True)
    return sets.with_kept(found) if "04" in table else found


def _way(draw: np.random.Generator, place: Path) -> frontier.Way:
    """One way to hold less, but random sets, all of which are one row."""
    taken = stands("04_pruning_frontier", place.name).query("rule != 'random' and share > 0")
    row = taken.sample(1, random_state=int(draw.integers(2**31))).fillna({"rule": ""}).iloc[0]
    return frontier.Way(row["how"], row["rule"], float(row["share"]), int(row["rank"]))


def _retention(draw: np.random.Generator) -> cells.Fresh:
    """Notebook 05: one half-life, text that comes twice, one task while states are cut to a rank; one head."""
    given = given_to("05_mechanism_retention")
    first, held = (folder(draw.choice(given["models"][:2] + more)) for more in ([], given["second_seeds"]))
    few = {name: [draw.choice(given[name]).item()] for name in ("loads", "truncated", "truncated_every")}
    few |= {"half_lives": [float(draw.choice(given["half_lives"]))]}
    few |= {"models": [first], "held": [held], "gaps": given["gaps"][:2], "heads": None, "text": None, "last": None}
    by = "model group half_life factor distance probe truncated every"
    damages = stands("05_mechanism_single")
    yield from cells.kept("05_mechanism", tags=("retention",), by=by, damages=damages, **few)
    options = {"rows": given["needle_rows"], "eps": given["eps"], "seed": given["seed"]}
    asked = retention.Questions(tuple(given["distances"]), tuple(given["domains"]), **options)
    subject = retention.Subject(held, asked, store.kept_dir() / "one head")
    one = subject.ask("heads").sample(1, random_state=int(draw.integers(2**31))).drop(columns=["model", "kind", "seed"])
    subject.kept.put("heads", one.reset_index(drop=True))
    yield "05_mechanism_single", f"{HEAD} changed distance", lambda: subject.ask("single")


def _training(draw: np.random.Generator) -> cells.Fresh:
    """Notebook 06: what follows from the spectra that training wrote down; one model without heads at all stages."""
    names = [folder(name) for name in given_to("06_emergence_heads")["models"]]
    yield from cells.kept("06_emergence", history=stages.histories(names), models=[draw.choice(names)])


def _rules(draw: np.random.Generator) -> cells.Fresh:
    """Notebook 10: one of the models."""
    yield from cells.kept("10_rules", models=[folder(draw.choice(given_to("10_rules_heads")["models"]))])


def _derived(draw: np.random.Generator) -> cells.Fresh:
    """Tables that follow from other committed tables."""
    known = ("estimates", "composition", "differences", "heads")
    for run in ("", "thorough/", "main/", "sizes/"):
        made = {name: stands(f"{run}03_ablation_{name}") for name in known}
        own = "" if run == "thorough/" else run  # which has no sets
        made |= {"alone": stands(f"{own}03_ablation_sets"), "versus": None}
        yield from cells.kept("03_ablation", of=run, tags=("derived",), **made)
    for run in ("", "thorough/", "main/"):
        own = "" if run == "thorough/" else run
        made = {name: stands(f"{run}04_pruning_{name}") for name in known[:2]}
        made |= {"alone": stands(f"{own}04_pruning_sets"), "doses": stands(f"{own}04_pruning_oracle")}
        made |= {"kept": pd.DataFrame()}
        yield from cells.kept("04_pruning", of=run, tags=("derived",), **made)
        yield f"{run}04_pruning_claims", "measure model", functools.partial(_against_random, run)
    yield "04_pruning_rivals", f"{ARM} probe", _rivals
    yield "04_pruning_engines", "", _engines
    heads = stands("05_mechanism_heads")
    heads = heads[heads["model"].isin(stands("05_mechanism_sizes")["model"])]
    yield "05_mechanism_sizes", "model quantity", lambda: head_size.shares(heads, head_size.registered())
    yield "05_mechanism_size_decays", "model", lambda: head_size.decays(heads)
    yield from cells.kept("08_scorecard", tags=("derived",), by="claim kind model arm share probe")


def _against_random(run: str) -> pd.DataFrame:
    """A measure of C9, of the first seeds: what the score keeps beyond random heads."""
    asked, table = given_to("04_pruning_composition"), stands(f"{run}04_pruning_differences")
    main = (table["arm"] == scores.joint_rule(asked["alpha"])) & (table["share"] == asked["paper_share"])
    main &= (table["cut"] == "overall") & (table["probe"] == effects.KEPT) & (table["versus"] == "random")
    return effects.measured(table[main], "against random").drop(columns="over")  # which names the tasks too


def _rivals() -> pd.DataFrame:
    """What the first seeds keep at the paper's share, which both tables say."""
    asked, found = given_to("04_pruning_composition"), stands("04_pruning_estimates")
    both = found["arm"].isin([scores.joint_rule(asked["alpha"]), *asked["rivals"]]) & (found["probe"] != effects.TEXT)
    return found[both & (found["share"] == asked["paper_share"]) & (found["cut"] == "overall")]


def _engines() -> pd.DataFrame:
    """What engines hold of the first model without a quarter of each layer's heads, whichever these are."""
    model = opened.model(folder(given_to("04_pruning_engines")["models"][0]))
    keep = pruning.select(torch.zeros(model.grid[:2]), 0.25, uniform=True, **export.choices(model))
    return export.realised(pruning.prune_heads(model, keep))


def _few(plan: trials.Plan, **asked: object) -> trials.Plan:
    """The plan with fewer questions; heads are chosen by as much text."""
    return dataclasses.replace(plan, questions=dataclasses.replace(plan.questions, **asked))


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


PARTS = (_reading, _experiments, _narrowed, _retention, _training, _rules, _derived)
