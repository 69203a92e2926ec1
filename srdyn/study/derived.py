"""How committed tables are computed again from other committed tables, and what these and their side files say."""

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from srdyn import export, pruning, scores
from srdyn.loading import files
from srdyn.study.analysis import damage, head_size
from srdyn.study.claims import claims
from srdyn.study.run import opened, parameters, store
from srdyn.study.trials import effects, sets

ARM = "model arm share cut"
Fresh = Iterator[tuple[str, str, Callable[[], pd.DataFrame]]]


def stands(table: str) -> pd.DataFrame:
    """The committed table of this name, `thorough/…` for one of the thorough run."""
    return store.load_table(Path(table).name, run=store.THOROUGH if "/" in table else store.REFERENCE)


def given(table: str) -> dict:
    """What the side file says, over what the reference run gives to the notebook."""
    stem = "_".join(Path(table).name.split("_")[:2])
    side = json.loads((files.data_dir() / "tables" / f"{table}.json").read_bytes())
    return parameters.of_run([stem], store.REFERENCE, {})[stem] | side.get("parameters", {})


def place(name: str) -> Path:
    """The folder of a model that a side file names, seen from the notebooks."""
    return (files.root() / "notebooks" / name).resolve()


def tables(draw: np.random.Generator, kept: Path) -> Fresh:
    """Tables that follow from other committed tables."""
    yield "03_ablation_places", "", lambda: sets.places(stands("03_ablation_sets"))
    yield "04_pruning_places", "", lambda: sets.places(stands("04_pruning_sets"))
    yield "03_ablation_regression", "", lambda: effects.regression(stands("03_ablation_heads"))
    yield "thorough/03_ablation_regression", "", lambda: effects.regression(stands("thorough/03_ablation_heads"))
    yield "05_mechanism_damage", "", lambda: damage.predicted(stands("05_mechanism_single"))
    contrasts = [("high against random", "high", "random", 1), ("low against random", "low", "random", 1)]
    contrasts.append(("loss without high", "high", "intact", -1))
    for run in ("", "thorough/"):
        yield f"{run}03_ablation_claims", "measure model", functools.partial(_lost, run, contrasts)
        yield f"{run}04_pruning_claims", "measure model", functools.partial(_against_random, run)
        yield f"{run}04_pruning_alphas", "", functools.partial(_alphas, run)
    yield "04_pruning_rivals", f"{ARM} probe", _rivals
    joint = stands("04_pruning_places").query(f"probe == '{effects.KEPT}'")
    placed = {"place of the joint score": sets.measured(joint, "place of the joint score")}
    doses = stands("04_pruning_oracle")
    yield "04_pruning_claims_second", "measure model", lambda: sets.with_doses(doses, placed)
    yield "04_pruning_engines", "", _engines
    heads = stands("05_mechanism_heads")
    heads = heads[heads["model"].isin(stands("05_mechanism_sizes")["model"])]
    yield "05_mechanism_sizes", "model quantity", lambda: head_size.shares(heads, head_size.registered())
    yield "05_mechanism_size_decays", "model", lambda: head_size.decays(heads)
    later, gate = "03_ablation_claims_second", {"probe": "needle", "name": "needles without state"}
    low = stands("03_ablation_places").query("arm == 'tied low'")
    yield later, "measure model", lambda: _lost("", [("loss without high", "tied high", "intact", -1)])
    yield later, "measure model", lambda: sets.measured(low, "place of low")
    yield later, "measure model", lambda: sets.gate(stands("03_ablation_sets"), **gate)
    yield "08_scorecard", "", claims.both


def _lost(run: str, asked: list[tuple[str, str, str, int]]) -> pd.DataFrame:
    """Measures of C8: the needles that an arm costs beside another, with a sign, and the heads behind them."""
    share, rows = given("03_ablation_composition")["primary_share"], []
    needle, composition = stands(f"{run}03_ablation_differences"), stands(f"{run}03_ablation_composition")
    needle = needle[(needle["probe"] == "needle") & (needle["share"] == share)]
    for name, arm, versus, sign in asked:
        found = needle[(needle["arm"] == arm) & (needle["versus"] == versus)]
        rows.append(effects.described(effects.measured(found, name, sign=sign), composition, arm, share=share))
    return pd.concat(rows, ignore_index=True)


def _against_random(run: str) -> pd.DataFrame:
    """A measure of C9, of the first seeds: what the score keeps beyond random heads."""
    asked, table = given("04_pruning_composition"), stands(f"{run}04_pruning_differences")
    main = (table["arm"] == scores.joint_rule(asked["alpha"])) & (table["share"] == asked["paper_share"])
    main &= (table["cut"] == "overall") & (table["probe"] == effects.KEPT) & (table["versus"] == "random")
    return effects.measured(table[main], "against random").drop(columns="over")  # which names the tasks too


def _alphas(run: str) -> pd.DataFrame:
    """What the joint score keeps by α, from the estimates and the heads chosen, as notebook 04 takes them."""
    asked, about = given(f"{run}04_pruning_composition"), ARM.split()
    chosen = stands(f"{run}04_pruning_composition")[[*about, "chosen"]]
    found = stands(f"{run}04_pruning_estimates").merge(chosen, on=about)
    names = {scores.joint_rule(alpha): alpha for alpha in asked["alphas"]}
    found = found.assign(alpha=found["arm"].map(names), panel=found["probe"])
    found = found[(found["alpha"].notna() | (found["arm"] == "random")) & (found["cut"] == "overall")]
    found = found[(found["share"] == asked["paper_share"]) & found["probe"].isin([effects.KEPT, effects.TEXT])]
    return found[["model", "panel", "alpha", "estimate", "low", "high", "n", "chosen"]]


def _rivals() -> pd.DataFrame:
    """What the first seeds keep at the paper's share, which both tables say."""
    asked, found = given("04_pruning_composition"), stands("04_pruning_estimates")
    both = found["arm"].isin([scores.joint_rule(asked["alpha"]), *asked["rivals"]]) & (found["probe"] != effects.TEXT)
    return found[both & (found["share"] == asked["paper_share"]) & (found["cut"] == "overall")]


def _engines() -> pd.DataFrame:
    """What engines hold of the first model without a quarter of each layer's heads, whichever these are."""
    model = opened.model(place(given("04_pruning_engines")["models"][0]))
    keep = pruning.select(torch.zeros(model.grid[:2]), 0.25, uniform=True, **export.choices(model))
    return export.realised(pruning.prune_heads(model, keep))
