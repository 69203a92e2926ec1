"""How committed tables are computed again from other committed tables, and what these and their side files say."""

import functools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from srdyn import export, pruning, scores
from srdyn.loading import files
from srdyn.study import cells
from srdyn.study.analysis import head_size
from srdyn.study.claims import claims
from srdyn.study.run import opened, parameters, store
from srdyn.study.trials import effects

ARM = "model arm share cut"


def stands(table: str, model: str = "") -> pd.DataFrame:
    """The committed table of this name, `thorough/…` for one of the thorough run; of one model alone, if named."""
    found = store.load_table(Path(table).name, run=store.THOROUGH if "/" in table else store.REFERENCE)
    return found[found["model"] == model].reset_index(drop=True) if model else found


def given(table: str) -> dict:
    """What the side file says, over what the reference run gives to the notebook."""
    stem = "_".join(Path(table).name.split("_")[:2])
    side = json.loads((files.data_dir() / "tables" / f"{table}.json").read_bytes())
    return parameters.of_run([stem], store.REFERENCE, {})[stem] | side.get("parameters", {})


def place(name: str) -> Path:
    """The folder of a model that a side file names, seen from the notebooks."""
    return (files.root() / "notebooks" / name).resolve()


def tables(draw: np.random.Generator) -> cells.Fresh:
    """Tables that follow from other committed tables."""
    known = ("estimates", "composition", "differences", "heads")
    for run in ("", "thorough/"):
        made = {name: stands(f"{run}03_ablation_{name}") for name in known}
        made |= {"alone": stands("03_ablation_sets"), "versus": None}
        yield from cells.kept("03_ablation", of=run, tags=("derived",), **made)
        made = {name: stands(f"{run}04_pruning_{name}") for name in known[:2]}
        made |= {"alone": stands("04_pruning_sets"), "doses": stands("04_pruning_oracle"), "kept": pd.DataFrame()}
        yield from cells.kept("04_pruning", of=run, tags=("derived",), **made)
        yield f"{run}04_pruning_claims", "measure model", functools.partial(_against_random, run)
    yield "04_pruning_rivals", f"{ARM} probe", _rivals
    yield "04_pruning_engines", "", _engines
    heads = stands("05_mechanism_heads")
    heads = heads[heads["model"].isin(stands("05_mechanism_sizes")["model"])]
    yield "05_mechanism_sizes", "model quantity", lambda: head_size.shares(heads, head_size.registered())
    yield "05_mechanism_size_decays", "model", lambda: head_size.decays(heads)
    yield "08_scorecard", "", claims.both


def _against_random(run: str) -> pd.DataFrame:
    """A measure of C9, of the first seeds: what the score keeps beyond random heads."""
    asked, table = given("04_pruning_composition"), stands(f"{run}04_pruning_differences")
    main = (table["arm"] == scores.joint_rule(asked["alpha"])) & (table["share"] == asked["paper_share"])
    main &= (table["cut"] == "overall") & (table["probe"] == effects.KEPT) & (table["versus"] == "random")
    return effects.measured(table[main], "against random").drop(columns="over")  # which names the tasks too


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
