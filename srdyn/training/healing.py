"""Whether the choice of heads still matters after a short training: `python -m srdyn.training.healing`.

A quarter of every layer's heads goes, in whole keys, so that an ordinary checkpoint can say it: those that a rule
takes, or random ones, several times. What is left of each reads the same rows of the stream that the model was trained
on, behind where that stopped. Writes data/tables/thorough/04_pruning_healed.csv, in a quarter of an hour of one core;
an interrupted call goes on.
"""

import argparse
import logging
import os
from collections.abc import Callable, Iterator, Sequence

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
from srdyn.text import tasks
from srdyn.training import mixture, recipes

TABLE = "04_pruning_healed"
TASKS = ("needle", "recall8", "chain", "sum")
LENGTH, BATCH = 512, 4
"""Tokens of a row, rows of a step: batches of other lengths are passed over, so that all steps are alike."""
RANDOM = "random"


def stream(settings: recipes.Settings, *, steps: int) -> Int[Tensor, "N T"]:
    """Rows of the model's own stream that it has not read, `BATCH` a step."""
    reads, found, i = settings.reads, [], settings.steps
    alphabet = tasks.Alphabet.of(recipes.tokenizer(reads), more=reads.symbols)
    made = {"alphabet": alphabet, "text": recipes.text(reads), "curriculum": reads.curriculum}
    while len(found) < steps:
        tokens, _, _ = mixture.batch(i, seed=settings.seed, **made)
        found += [torch.from_numpy(tokens)] if tokens.shape[1] == LENGTH else []
        i += 1
    return torch.cat(found)


def choices(
    model: models.Model, rules: Sequence[str], *, share: float, draws: int, seed: int
) -> Iterator[tuple[str, int, Bool[Tensor, "L H"]]]:
    """Rule, draw and the heads that stay, calibrated on text and tasks that evaluate nothing."""
    profile = scores.profile(model, scores.calibration(model, n=4, length=LENGTH, seed=seed))
    for rule in (*rules, RANDOM):
        for draw in range(draws if rule == RANDOM else 1):
            if rule == trials.ORACLE:
                asked = _asked("calibration", items=5, windows=1, rows=2, seed=seed)
                score = single_heads.oracle(single_heads.damage(model, battery.sheet(asked, model.tokenizer)), model)
            else:
                score = scores.under(rule, profile, torch.Generator().manual_seed(seed + draw))
            yield rule, draw, pruning.select(score, share, uniform=True, **export.choices(model))


def answers(given: argparse.Namespace) -> pd.DataFrame:
    """What the whole model and every cut one answer, before (`pruned`) and after healing, the same questions.

    Columns: those of `battery.answers`, arm, share, draw, removed, cut (`pruned`, `healed`), model, kind, seed.
    """
    model = opened.model(files.data_dir() / "models" / given.model)
    questions = _asked("evaluation", items=given.items, windows=given.windows, rows=given.rows, seed=given.seed)
    sheet = battery.sheet(questions, model.tokenizer)
    rows = stream(recipes.named(given.model), steps=given.steps)
    found = [battery.answers(model, sheet).assign(**trials.Arm(trials.INTACT).about, draw=0, removed=0)]
    options = {"share": given.share, "draws": given.draws, "seed": given.seed}
    for rule, draw, keep in choices(model, given.rules, **options):
        smaller, arm = pruning.prune_heads(model, keep), trials.Arm(rule, given.share).about
        arm |= {"draw": draw, "removed": int((~keep).sum())}
        found.append(battery.answers(smaller, sheet).assign(**arm | {"cut": "pruned"}))
        place = files.root() / "build" / "healing" / f"{given.model}-{rule}-{draw}-{given.share}-{given.steps}"
        prune.heal(smaller, rows, steps=given.steps, rate=given.rate, batch=BATCH, folder=place)
        found.append(battery.answers(smaller, sheet).assign(**arm | {"cut": "healed"}))
        logging.info("%s, draw %d", rule, draw)
    return pd.concat(found, ignore_index=True).assign(**opened.about(model))


def table(answers: pd.DataFrame, *, tokens: int) -> pd.DataFrame:
    """A row for every arm, before and after healing on so many `tokens`, and probe, beside the random arm.

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
    found = found.assign(when=when, tokens=found["cut"].eq("healed") * tokens)
    columns = "model kind seed arm share when tokens probe estimate low high n rows draws removed testable".split()  # noqa: SIM905
    return found[columns + ends]


def _asked(part: str, *, items: int, windows: int, rows: int, seed: int) -> battery.Battery:
    size = {"length": LENGTH, "items": items, "windows": windows, "rows": rows, "copies": 0}
    return battery.Battery(TASKS, tuple(contexts.domains()), **size, part=part, seed=seed)


def main(words: Sequence[str] | None = None) -> None:
    """Cut, heal, compare, write."""
    parser = argparse.ArgumentParser(prog="python -m srdyn.training.healing", description=__doc__.splitlines()[0])
    option: Callable = parser.add_argument
    option("--model", default="pure", help="one of data/models")
    option("--share", type=float, default=0.25, help="of every layer's heads, that goes")
    option("--rules", nargs="+", default=["joint, α = 0.5", trials.ORACLE], help="beside random heads")
    option("--draws", type=int, default=5, help="of random heads")
    option("--steps", type=int, default=64, help=f"of {BATCH} rows of {LENGTH} tokens")
    option("--rate", type=float, default=1e-3, help="of learning, at first")
    option("--items", type=int, default=40, help="of each task, at least")
    option("--rows", type=int, default=10, help="of each task, at least")
    option("--windows", type=int, default=4, help="of each domain")
    option("--seed", type=int, default=0)
    given = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    os.environ["SRDYN_RUN"] = store.THOROUGH
    with denormals.flushed():
        found = table(answers(given), tokens=given.steps * BATCH * LENGTH)
    store.save_table(found, TABLE, meta={"parameters": vars(given)})
    verify.record([f"data/tables/{store.THOROUGH}/{TABLE}*"])


if __name__ == "__main__":
    main()
