"""A seeded sample of the cells of every committed table, computed again and compared: for `make verify`.

Nothing that is kept in build/ is read. A cell is held against the tolerance of `comparison`, as a rerun's would be.
"""

import io
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import pandas as pd

from srdyn.loading import files
from srdyn.study import recipes
from srdyn.study.run import comparison, store

_ALONE = {"SRDYN_PROCESSES": "1"}
_LINE, _PLACE = "line", "line of the file"
_BROKEN = (KeyError, NameError, ValueError, OSError)
"""What a table or a side file raises that is not what it was."""


class Checked(NamedTuple):
    """How many cells of a table were computed again, how far off the farthest is (in units of its tolerance), a fault.

    The fault names the first cell that is too far off.
    """

    table: str
    cells: int
    farthest: float
    fault: str = ""

    def __str__(self) -> str:
        """One line that begins with the place."""
        far = f"{self.cells} cells computed again, {self.farthest:.2g} of the tolerance off at most"
        return f"{self.table}: {self.fault or far}"


def sample(seed: int) -> Iterator[Checked]:
    """A line for every table that is computed again, as soon as it is; the same cells for the same seed."""
    with tempfile.TemporaryDirectory(prefix="srdyn-") as kept, mock.patch.dict(os.environ, {store.KEPT: kept} | _ALONE):
        for part in recipes.PARTS:
            draw = np.random.default_rng([seed, zlib.crc32(part.__name__.encode())])
            try:
                for table, keys, make in part(draw):
                    if _path(table).exists():
                        yield _checked(table, keys, make)
            except _BROKEN as error:
                yield Checked(part.__doc__.split(":")[0], 0, np.inf, f"cannot be computed again: {error!r}")


def others(done: Sequence[str]) -> list[str]:
    """The tables that are not among those, of which nothing but the bytes is compared."""
    tables = files.data_dir() / "tables"
    names = (path.relative_to(tables).with_suffix("").as_posix() for path in sorted(tables.rglob("*.json")))
    return [name for name in map(_name, names) if name not in done]


def _checked(table: str, keys: str, make: Callable[[], pd.DataFrame]) -> Checked:
    by = keys.split()
    try:
        fresh, standing = (_numbered(frame, by) for frame in _alike(make(), recipes.stands(table)))
        standing = standing.assign(**{_PLACE: range(2, len(standing) + 2)})  # the first is the header
        standing = standing.merge(fresh[by].drop_duplicates()) if by else standing
        beside = fresh[[*by, _LINE]].merge(standing, how="outer", on=[*by, _LINE], indicator="found in")
        fresh = beside[[*by, _LINE]].merge(fresh[[name for name in fresh if name in standing]], how="left")
    except _BROKEN as error:
        return Checked(_name(table), 0, np.inf, f"cannot be computed again: {error!r}")
    if len(apart := beside[beside["found in"] != "both"]):
        first = ", ".join(f"{name} {apart.iloc[0][name]}" for name in by or [_LINE])
        told = f"{len(apart)} rows stand only here, or only there; the first is {first}"
        return Checked(_name(table), 0, np.inf, told)
    return _compared(table, fresh.drop(columns=_LINE), beside)


def _compared(table: str, fresh: pd.DataFrame, standing: pd.DataFrame) -> Checked:
    units = comparison.units(fresh, standing[fresh.columns])
    rows, places = np.nonzero(units.to_numpy() > 1)
    found = Checked(_name(table), units.size, float(units.to_numpy().max(initial=0.0)))
    if not len(rows):
        return found
    row, name = rows[0], fresh.columns[places[0]]
    says = f"says {standing.loc[row, name]}, computed again it is {fresh.loc[row, name]}"
    told = f"line {standing.loc[row, _PLACE]}, {name}: {says}; {len(rows)} of {units.size} cells differ"
    return found._replace(fault=told)


def _numbered(frame: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """The frame with a column that counts from 0 the rows that `by` does not tell apart."""
    return frame.assign(**{_LINE: frame.groupby(by or (lambda row: 0), dropna=False).cumcount()})


def _alike(*frames: pd.DataFrame) -> list[pd.DataFrame]:
    """The frames as a CSV holds them, with numbers where both have them."""
    texts = {name: str for frame in frames for name, x in frame.items() if not pd.api.types.is_numeric_dtype(x)}
    written = [io.StringIO(frame.to_csv(index=False, float_format=store.SIGNIFICANT)) for frame in frames]
    return [pd.read_csv(text, keep_default_na=False, na_values=[""], dtype=texts) for text in written]


def _path(table: str) -> Path:
    return files.data_dir() / "tables" / f"{table}.json"


def _name(table: str) -> str:
    """The place of a table, seen from the repository."""
    csv = _path(table).with_suffix(".csv")
    return (csv if csv.exists() else csv.with_suffix(".parquet")).relative_to(files.root()).as_posix()
