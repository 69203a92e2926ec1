"""Whether the choice of heads still matters after a short training: `python -m srdyn.training.healing`.

A quarter of every layer's heads goes, in whole keys, so that an ordinary checkpoint can say it: those that a rule
takes, or random ones, several times. What is left of each reads the same rows of the stream that the model was trained
on, behind where that stopped. Writes data/tables/thorough/04_pruning_healed.csv, in a quarter of an hour of one core;
an interrupted call goes on.
"""

import logging
import os
from collections.abc import Iterator

import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from srdyn import contexts, export, models, prune, pruning, scores
from srdyn.kernels import denormals
from srdyn.loading import files
from srdyn.study import verify
from srdyn.study.run import opened, store
from srdyn.study.trials import battery, effects, single_heads, trials
from srdyn.training import mixture, recipes

TABLE, MODEL, SEED = "04_pruning_healed", "pure", 0
TASKS = ("needle", "recall8", "chain", "sum")
LENGTH, BATCH = 512, 4
"""Tokens of a row, rows of a step: batches of other lengths are passed over, so that all steps are alike."""
STEPS, RATE = 64, 1e-3
RANDOM, DRAWS = "random", 5
RULES = ("joint, α = 0.5", trials.ORACLE, *[RANDOM] * DRAWS)
SHARE = 0.25
"""Of every layer's heads, that goes."""
ASKED = {"items": 40, "windows": 4, "rows": 10}
"""Of each task and domain, after cut and healing."""


def stream(settings: recipes.Settings, *, steps: int) -> Int[Tensor, "N T"]:
    """Rows of the model's own stream that it has not read, `BATCH` a step."""
    of, found, i = recipes.stream(settings), [], settings.steps
    while len(found) < steps:
        tokens, _, _ = mixture.batch(i, **of)
        found += [torch.from_numpy(tokens)] if tokens.shape[1] == LENGTH else []
        i += 1
    return torch.cat(found)


def choices(model: models.Model) -> Iterator[tuple[str, int, Bool[Tensor, "L H"]]]:
    """Rule, draw and the heads that stay, calibrated on text and tasks that evaluate nothing."""
    profile = scores.profile(model, scores.calibration(model, n=4, length=LENGTH, seed=SEED))
    for i, rule in enumerate(RULES):
        draw = i - RULES.index(rule)
        if rule == trials.ORACLE:
            sheet = battery.sheet(_asked("calibration", items=5, windows=1, rows=2), model.tokenizer)
            score = single_heads.oracle(single_heads.damage(model, sheet), model)
        else:
            score = scores.under(rule, profile, torch.Generator().manual_seed(SEED + draw))
        yield rule, draw, pruning.select(score, SHARE, uniform=True, **export.choices(model))


def answers() -> pd.DataFrame:
    """What the whole model and every cut one answer, before (`pruned`) and after healing, the same questions.

    Columns: those of `battery.answers`, arm, share, draw, removed, cut (`pruned`, `healed`), model, kind, seed.
    """
    model = opened.model(files.data_dir() / "models" / MODEL)
    sheet = battery.sheet(_asked("evaluation", **ASKED), model.tokenizer)
    rows = stream(recipes.named(MODEL), steps=STEPS)
    found = [battery.answers(model, sheet).assign(**trials.Arm(trials.INTACT).about, draw=0, removed=0)]
    for rule, draw, keep in choices(model):
        smaller, arm = pruning.prune_heads(model, keep), trials.Arm(rule, SHARE).about
        arm |= {"draw": draw, "removed": int((~keep).sum())}
        found.append(battery.answers(smaller, sheet).assign(**arm | {"cut": "pruned"}))
        place = files.root() / "build" / "healing" / f"{MODEL}-{rule}-{draw}-{SHARE}-{STEPS}"
        prune.heal(smaller, rows, steps=STEPS, rate=RATE, batch=BATCH, folder=place)
        found.append(battery.answers(smaller, sheet).assign(**arm | {"cut": "healed"}))
        logging.info("%s, draw %d", rule, draw)
    return pd.concat(found, ignore_index=True).assign(**opened.about(model))


def table(answers: pd.DataFrame) -> pd.DataFrame:
    """A row for every arm, before and after healing, and probe, beside the random arm.

    Columns: model, kind, seed, arm, share, when (`whole`, `pruned`, `healed`), tokens, probe, estimate, low, high, n
    (answers), rows, draws, removed (heads); over_random with its ends (NaN for the whole model and the random arm
    itself). Of several draws intervals speak of new rows and draws.
    """
    asked = effects.with_kept(effects.with_text(answers))
    found, over = effects.estimates(asked), effects.differences(asked, versus=RANDOM)
    over = over.rename(columns={"difference": "over_random", "low": "over_low", "high": "over_high"})
    key, ends = ["model", "arm", "cut", "probe"], ["over_random", "over_low", "over_high"]
    found = found.merge(over[key + ends], on=key, how="left")
    when = found["cut"].where(found["arm"] != trials.INTACT, "whole")
    found = found.assign(when=when, tokens=found["cut"].eq("healed") * STEPS * BATCH * LENGTH)
    columns = "model kind seed arm share when tokens probe estimate low high n rows draws removed testable".split()  # noqa: SIM905
    return found[columns + ends]


def _asked(part: str, **size: int) -> battery.Battery:
    return battery.Battery(TASKS, tuple(contexts.domains()), length=LENGTH, **size, copies=0, part=part, seed=SEED)


def main() -> None:
    """Cut, heal, compare, write."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    os.environ["SRDYN_RUN"] = store.THOROUGH
    with denormals.flushed():
        found = table(answers())
    plan = {"model": MODEL, "share": SHARE, "rules": RULES, "steps": STEPS, "rate": RATE, "seed": SEED, **ASKED}
    store.save_table(found, TABLE, meta={"parameters": plan})
    verify.record([f"data/tables/{store.THOROUGH}/{TABLE}*"])


if __name__ == "__main__":
    main()
