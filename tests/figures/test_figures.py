"""Every figure is drawn and saved the same again, and refuses another table."""

import inspect
import os
import pickle
import re
import subprocess
import sys

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from committed import CASES, drawn, foot
from matplotlib import image

from srdyn import figures
from srdyn.figures import style
from srdyn.study.run import figure_files

(TABLE,) = CASES["calibrations"].given()  # before the root is another


def told(name):
    """For each table that a figure looks at: the columns that it says it needs, and those of them that are its key."""
    found = re.findall(r"of `\w+`: `(.*?) \| (.*?)`", inspect.getdoc(CASES[name].draw))
    return [(f"{key} {values}".split(), key.split()) for key, values in found]


def pdf(figure):
    return figure_files._drawn(figure, format="pdf", metadata=figure_files._UNDATED).getvalue()


def test_every_figure_is_tried():
    offered = {name for name, thing in vars(figures).items() if inspect.isfunction(thing)}
    assert offered == set(CASES)


QUICK = ("context_matrix", "frontier")


@pytest.mark.parametrize("name", [x if x in QUICK else pytest.param(x, marks=pytest.mark.slow) for x in CASES])
def test_saving_again_gives_the_same_bytes(name):
    assert pdf(drawn(name)) == pdf(drawn(name))


def test_another_process_draws_the_same_bytes():
    """Drawing itself has other processes beside it in test_redrawn."""
    code = """
import pickle, sys
import matplotlib as mpl
figure, how, metadata = pickle.load(sys.stdin.buffer)
with mpl.rc_context(how):
    figure.savefig(sys.stdout.buffer, format="pdf", metadata=metadata)
"""
    with style.style():
        sent = pickle.dumps((drawn("context_matrix"), dict(mpl.rcParams), figure_files._UNDATED))
    env = os.environ | {"PYTHONHASHSEED": "7"}
    again = subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, env=env, input=sent, stdout=-1)
    assert again.stdout == pdf(drawn("context_matrix"))


@pytest.mark.parametrize("name", CASES)
def test_what_is_missing_repeated_or_empty_is_refused(name):
    given = CASES[name].given()
    assert len(told(name)) == 1 + (name in ("measures", "rank_formation", "decay_formation"))
    for place, (columns, key) in enumerate(told(name)):
        before, table, after = given[:place], given[place], given[place + 1 :]
        assert set(key) <= set(columns)
        for column in columns:
            with pytest.raises(ValueError, match=rf"lacks the columns {column}\b"):
                CASES[name].figure(*before, table.drop(columns=column), *after)
        with pytest.raises(ValueError, match="no rows"):
            CASES[name].figure(*before, table.iloc[:0], *after)
        with pytest.raises(ValueError, match=f"one row for every {', '.join(key)}"):
            CASES[name].figure(*before, pd.concat([table, table.head(1)]), *after)


@pytest.mark.parametrize("name", CASES)
def test_columns_beyond_those_told_are_not_needed(name):
    first, *others = CASES[name].given()
    columns = told(name)[0][0]
    by = next((column for column in ("model", "kind") if column in columns), columns[0])
    few = first[first[by] == first[by].iloc[0]] if name not in ("tracing_cost", "training_rates") else first
    CASES[name].figure(few[columns], *others)


@pytest.mark.parametrize(("name", "column"), [("time_order", "source"), ("trajectories", "stratum")])
def test_an_unknown_name_is_refused(name, column):
    (table,) = CASES[name].given()
    with pytest.raises(ValueError, match=f"no {column} is called 'tall'"):
        CASES[name].figure(table.assign(**{column: "tall"}))


def test_drawing_leaves_pyplot_as_it_was(monkeypatch):
    monkeypatch.setitem(mpl.rcParams, "font.size", 17)
    before = dict(mpl.rcParams)
    figure = CASES["time_order"].figure()
    assert dict(mpl.rcParams) == before
    assert plt.get_fignums() == []
    assert {axes.title.get_fontsize() for axes in figure.axes} == {8}


def test_n_is_told_by_source_where_it_differs():
    table = pd.DataFrame({"source": ["model", "untrained", "mechanism"], "n": [8, 2, np.nan]})
    assert style.counted(table.iloc[:1]) == "n = 8 samples"
    assert style.counted(table) == "n = 8 (model), 2 (untrained) samples"
    assert style.counted(table.assign(n=[8, 2, 2])) == "n = 8 (model), 2 (nulls) samples"
    assert style.counted(table.assign(n=np.nan)) == style.counted(table[["source"]]) == ""


@pytest.mark.parametrize("name", ["trajectories", "head_map", "measures"])
def test_a_single_model_by_any_name_gets_a_text_column(name):
    table, *others = CASES[name].given()
    table = table[table["model"] == "pure"].assign(model="Qwen3-Next", kind="Qwen3-Next")
    assert CASES[name].figure(table, *others).get_figwidth() == style.NARROW


def test_a_seed_alone_is_not_called_the_second():
    for name in ("identity_formation", "contrast_formation"):
        (table,) = CASES[name].given()
        assert "second seed" not in foot(CASES[name].figure(table[table["seed"] == 0]))


@pytest.fixture
def clone(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("SRDYN_ROOT", str(tmp_path))
    monkeypatch.setenv("SRDYN_RUN", "test")
    return tmp_path / "build" / "test" / "figures"


def figure(moved):
    return CASES["calibrations"].figure(TABLE.assign(overlap=TABLE["overlap"] + moved))


def test_saving_again_writes_only_what_differs_by_more_than_rounding(clone):
    def saved(moved):
        path = figure_files.save(figure(moved), "02_time")
        assert sorted(clone.iterdir()) == [path.with_suffix(".pdf"), path]
        return path, [each.read_bytes() for each in (path, path.with_suffix(".pdf"))]

    path, first = saved(0.0)
    assert image.imread(path).shape[1] == pytest.approx(300 * figure(0.0).get_figwidth(), abs=1)
    assert saved(1e-9)[1] == first
    path.with_suffix(".pdf").unlink()
    before = (path.stat().st_mtime_ns, path.stat().st_ino)
    assert saved(0.0)[1] == first
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before
    assert all(new != old for new, old in zip(saved(0.05)[1], first, strict=True))


@pytest.mark.parametrize("stem", ["", "../x", "a b", "x.png"])
def test_a_stem_is_a_plain_name(clone, stem):
    with pytest.raises(ValueError, match="plain name"):
        figure_files.save(figure(0.0), stem)
