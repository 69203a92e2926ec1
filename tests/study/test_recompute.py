"""A table that was changed together with its hashes is still not what the models say."""

import functools
import json

import numpy as np
import pandas as pd
import pytest

from srdyn.loading import files
from srdyn.study import recipes, recompute, verify
from srdyn.study.analysis import writes
from srdyn.study.run import store
from srdyn.study.survey import survey
from srdyn.study.trials import retention

TABLE = "02_consistency_after_text"
PLACE = f"data/tables/{TABLE}.csv"


@functools.cache
def answered() -> pd.DataFrame:
    """One model's heads under one attack, as the table has them."""
    given = recipes.given_to(TABLE)
    axes = {name: tuple(given[name]) for name in ("domains", "positions")}
    options = {"n": given["n"], "seed": given["seed"], "eps": given["eps"]}
    reading = survey.Reading(**axes, tasks=(), attacks=("rare character",), **options)
    return writes.after_text(files.data_dir() / "models" / "hybrid", reading)


def one_model(draw):
    """One table: of one model."""
    yield TABLE, "model layer head attack", answered


def whole(draw):
    """One table: all of it, as it was."""
    yield TABLE, "", functools.partial(store.load_table, TABLE, run="untouched")


def replace(folder, text):
    """Another table, with its side file, recorded."""
    files.write_bytes(folder / PLACE, text.encode())
    side = folder / PLACE.replace(".csv", ".json")
    files.write_json(side, json.loads(side.read_bytes()) | {"table": files.file_hash(folder / PLACE)})
    verify.record(["*"])
    assert [*verify.bytes_changed(), *verify.tables()] == []


def test_a_changed_digit_is_found_when_its_hash_was_recorded_again(copy, monkeypatch, capsys):
    monkeypatch.setattr(recipes, "PARTS", [one_model])
    assert verify.computed_again() == []
    told = capsys.readouterr().out.splitlines()
    assert told[0] == f"{PLACE}: {answered().size} cells computed again, 0 of the tolerance off at most"
    assert "data/tables/thorough/03_ablation_claims.csv: hash only, not computed again" in told
    lines = (copy / PLACE).read_text().splitlines()
    assert lines[2].startswith("0,1,63.25,2,rare character")
    lines[2] = lines[2].replace("63.25", "63.35")
    replace(copy, "\n".join([*lines, ""]))
    [fault] = verify.computed_again()
    assert fault.startswith(f"{PLACE}: line 3, before: says 63.35, computed again it is 63.25; 1 of ")


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        (lambda lines: lines[:-1], "1 rows stand only here, or only there; the first is line "),
        (lambda lines: [*lines, lines[-1]], "1 rows stand only here, or only there; the first is line "),
        (lambda lines: [lines[0], "9" + lines[1], *lines[2:]], "line 2, layer: says 90, computed again it is 0; 1 of"),
    ],
)
def test_so_are_rows_and_names(copy, monkeypatch, changed, fault):
    monkeypatch.setattr(recipes, "PARTS", [whole])
    untouched = files.data_dir() / "tables"
    content = (untouched / f"{TABLE}.csv").read_text()
    kept = store.build_dir("untouched") / "tables" / f"{TABLE}.csv"
    files.write_bytes(kept, content.encode())
    replace(copy, "\n".join([*changed(content.splitlines()), ""]))
    [found] = verify.computed_again()
    assert found.startswith(f"{PLACE}: {fault}")


def test_a_table_without_the_columns_that_name_its_rows_is_said(copy, monkeypatch):
    monkeypatch.setattr(recipes, "PARTS", [one_model])
    replace(copy, (copy / PLACE).read_text().replace("attack", "attacked", 1))
    [fault] = verify.computed_again()
    assert fault.startswith(f"{PLACE}: cannot be computed again: KeyError")


@pytest.fixture(scope="module")
def follows():
    """What follows from the committed tables, by the table."""
    return {table: given for table, *given in recipes._derived(np.random.default_rng(0))}


def alter(path, column):
    """Other numbers in one column."""
    frame = pd.read_csv(path, keep_default_na=False, na_values=[""])
    frame[column] = 1.001 * frame[column] + 0.01
    files.write_bytes(path, frame.to_csv(index=False).encode())


@pytest.mark.parametrize(
    ("table", "column"),
    [
        *(
            (f"{run}{name}", "estimate")
            for run in ("", "thorough/")
            for name in ("03_ablation_claims", "04_pruning_claims")
        ),
        ("sizes/03_ablation_claims", "estimate"),
        ("03_ablation_claims_second", "low"),
        ("04_pruning_alphas", "estimate"),
        ("thorough/04_pruning_alphas", "low"),
        ("04_pruning_rivals", "estimate"),
        ("04_pruning_claims_second", "estimate"),
        ("04_pruning_engines", "after"),
        ("05_mechanism_sizes", "high_lo"),
        ("05_mechanism_size_decays", "half_life"),
    ],
)
def test_so_is_a_digit_of_what_follows_from_other_tables(copy, follows, table, column):
    assert recompute._checked(table, *follows[table]).fault == ""
    alter(copy / f"data/tables/{table}.csv", column)
    assert f"{column}: says" in recompute._checked(table, *follows[table]).fault


@pytest.mark.slow
def test_so_is_a_digit_of_what_truncated_states_answer(copy, monkeypatch):
    monkeypatch.setenv(store.KEPT, str(copy / "kept"))
    made = {table: given for table, *given in recipes._retention(np.random.default_rng(0))}
    table = "05_mechanism_truncation"
    keys, make = made[table]
    fresh = make()
    assert recompute._checked(table, keys, lambda: fresh).fault == ""
    alter(copy / f"data/tables/{table}.csv", "estimate")
    assert "computed again it is" in recompute._checked(table, keys, lambda: fresh).fault


def asked(monkeypatch, seed):
    """What the part on half-lives would ask under a seed, without its answers."""
    told = []

    class Told:
        def __init__(self, name, questions, kept):
            told.append(name.name)

        def ask(self, *details):
            told.append(details)
            if len(told) > 2:
                raise ValueError("that is all we want to know")

    monkeypatch.setattr(recipes, "PARTS", [recipes._retention])
    monkeypatch.setattr(retention, "Subject", Told)
    [stopped] = recompute.sample(seed)
    assert "that is all we want to know" in stopped.fault
    return told


def test_the_sample_is_the_same_for_the_same_seed(monkeypatch):
    first = [asked(monkeypatch, seed) for seed in range(8)]
    assert str(first) == str([asked(monkeypatch, seed) for seed in range(8)])
    assert len({str(each) for each in first}) > 4
    assert len({each[0] for each in first}) > 1
    assert {each[1][0] for each in first} == {"answered"}


def test_a_sample_draws_the_same_heads_whatever_came_before(monkeypatch):
    drawn = []

    def part(draw):
        """A part: that only draws."""
        drawn.append(draw.random())
        yield from ()

    for parts in ([part], [one_model, part]):
        monkeypatch.setattr(recipes, "PARTS", parts)
        assert np.isfinite([checked.farthest for checked in recompute.sample(3)]).all()
    assert drawn[0] == drawn[1]
