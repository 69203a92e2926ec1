"""Puts finished reference models where the repository keeps them: `python -m srdyn.training.publish`."""

import argparse
import io
import shutil
from pathlib import Path

import pandas as pd

from srdyn.loading import files, folders


def publish(run: Path, target: Path) -> None:
    """Copy a finished training run to `target`: the last weights, log, spectra as one table, run record.

    One published there before is replaced; FileExistsError for anything else, FileNotFoundError for an unfinished run.
    """
    if not (run / "final").is_dir():
        raise FileNotFoundError(
            f"{run} holds no finished model; `python -m srdyn.training.train {run.name}` goes on with it"
        )
    with folders.replacing(target, mark="record.json") as new:
        shutil.copytree(run / "final", new)
        shutil.copy(run / "log.csv", new / "log.csv")
        shutil.copy(run / "record.json", new / "record.json")
        files.write_bytes(new / "spectra.parquet", _spectra(run))


def _spectra(run: Path) -> bytes:
    """The tables of all observed steps as one; numbers that need no more digits are float32, stored byte by byte."""
    tables = []
    for path in sorted((run / "spectra").glob("*.unit")):
        if (content := files.kept(path)) is None:
            raise ValueError(f"{path} is broken, and only a training from the start measures that step again")
        tables.append(pd.read_parquet(io.BytesIO(content)))
    table, buffer = pd.concat(tables, ignore_index=True), io.BytesIO()
    reals = list(table.select_dtypes("float64"))
    small = {"use_dictionary": list(table.columns.difference(reals)), "use_byte_stream_split": reals}
    table.astype(dict.fromkeys(reals, "float32")).to_parquet(buffer, index=False, compression="zstd", **small)
    return buffer.getvalue()


def main() -> None:
    """Publish the runs named on the command line, by default all finished ones, to data/models."""
    runs = files.root() / "build" / "train"
    parser = argparse.ArgumentParser(prog="python -m srdyn.training.publish", description=__doc__)
    parser.add_argument("names", nargs="*", default=sorted(path.parent.name for path in runs.glob("*/final")))
    for name in parser.parse_args().names:
        publish(runs / name, files.data_dir() / "models" / name)


if __name__ == "__main__":
    main()
