"""A reference model in its training: the spectra written down then, what is lost without heads before it and after.

Spectra are those of `train.Run.spectra`.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from srdyn.loading import files
from srdyn.study.analysis.observations import OF_A_MODEL
from srdyn.study.run import opened
from srdyn.study.survey import null_tables
from srdyn.study.trials import effects, trials


def histories(names: Sequence[str | Path]) -> pd.DataFrame:
    """The spectra over training of these models and their kind; FileNotFoundError for a model that keeps none."""
    tables = []
    for name in names:
        folder = Path(opened.found(name))
        if not (folder / "spectra.parquet").is_file():
            raise FileNotFoundError(f"{folder} holds no spectra.parquet, which only srdyn's own training writes")
        kind = files.read_json(folder / "training.json")["settings"]["kind"]
        tables.append(pd.read_parquet(folder / "spectra.parquet").assign(kind=kind))
    return pd.concat(tables, ignore_index=True)


def of(name: str | Path) -> dict[int, Path]:
    """A reference model's folders by training step: untrained (in build/untrained) and final."""
    folder = Path(opened.found(name))
    return {0: _untrained(folder), files.read_json(folder / "training.json")["step"]: folder}


def removals(names: Sequence[str | Path], plan: trials.Plan, *, share: float) -> pd.DataFrame:
    """Bits per byte of the plan's text before and after training, with this share of each layer's heads removed.

    Heads are chosen by the ranks that the model then has in the plan's calibration text. `arm`: `intact`,
    `low`, `high`, `random`. `reference`: empty for the bits per byte themselves, otherwise the arm (`intact`, `random`,
    `high`) whose bits per byte are subtracted, window by window. Intervals as in `contrasts`.
    """
    rows, folders = [], []
    for model, step, folder in ((name, *item) for name in names for item in of(name).items()):
        about = {name: files.read_json(folder / "training.json")["settings"][name] for name in ("kind", "seed")}
        rows.append({"stage": folder.name, "model": Path(opened.found(model)).name, **about, "step": step})
        folders.append(folder)
    arms = [trials.Arm(trials.INTACT), *(trials.Arm(arm, share) for arm in ("low", "high", "random"))]
    given = trials.answers(folders, arms, plan).rename(columns={"model": "stage"})
    given = given.merge(pd.DataFrame(rows), on=["stage", "kind", "seed"], validate="many_to_one")
    tables, columns = [], [*OF_A_MODEL, "arm", "reference", "share", "removed", "estimate", "low", "high", "n", "draws"]
    for step, part in given.groupby("step"):
        text = effects.with_text(part)
        found = effects.costs(text[text["probe"] == effects.TEXT], [trials.INTACT, "random", "high"])
        tables.append(found[columns].assign(step=step))
    return pd.concat(tables, ignore_index=True)


def _untrained(folder: Path) -> Path:
    """The folder of the model as it was before its first step, written anew."""
    trained = opened.model(folder)
    start, target = null_tables.untrained(trained), files.root() / "build" / "untrained" / folder.name / "step-000000"
    start.hf.config.srdyn_seed, start.hf.config.srdyn_kind = trained.seed, opened.kind(trained)
    start.hf.save_pretrained(target)
    start.tokenizer.save_pretrained(target)
    files.write_json(target / "training.json", files.read_json(folder / "training.json") | {"step": 0})
    return target
