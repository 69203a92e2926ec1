"""One process's share of a survey: `python -m srdyn.study.survey [preset] [parameter=value …]`."""

import contextlib
import logging
import sys
from collections.abc import Sequence

import transformers

from srdyn.loading import files, processes, refusals
from srdyn.study.run import parameters, store
from srdyn.study.survey import survey


@refusals.door()
def main(arguments: Sequence[str]) -> None:
    """Survey what notebooks 01, 02 and 05 will ask for: `[preset] [parameter=value …]`, as in `make reproduce`.

    Every process that torchrun or accelerate launch started takes its share; the first one says what there is then.
    """
    first = processes.is_first()
    if not first:
        logging.disable(logging.WARNING)
        transformers.utils.logging.disable_progress_bar()
    overrides = [text for text in arguments if "=" in text]
    preset = [text for text in arguments if "=" not in text] or [store.REFERENCE]
    if len(preset) > 1:
        raise ValueError(f"give one preset, then parameter=value …, not {' '.join(arguments)}")
    with contextlib.chdir(files.root() / "notebooks"):  # where the paths among the parameters are seen from
        [given] = parameters.of_run(["01_stratification"], preset[0], parameters.parsed(" ".join(overrides))).values()
        axes = {name: tuple(given[name]) for name in ("domains", "tasks", "attacks", "positions")}
        reading = survey.Reading(**axes, n=given["n"], seed=given["seed"], eps=given["eps"])
        table = survey.heads(given["models"], reading)
    for model, rows in table.groupby("model", sort=False) if first else ():
        print(f"{model}: {rows['context'].nunique()} contexts of {rows['source'].nunique()} sources, {len(rows)} rows")


if __name__ == "__main__":
    main(sys.argv[1:])
