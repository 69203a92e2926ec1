"""A notebook's own cells make the tables that it keeps, from what is given to them."""

import json

import pandas as pd
import pytest

from srdyn.study import cells
from srdyn.study.run import parameters

OPENING = """
from srdyn import figures
from srdyn.study import notebook

run = notebook.Run("01_first", n=n)
heads, last = asked_of_a_model(n), 2 * n
"""
CELLS = {  # and their tags
    "import pandas as pd\nby_hand = asked_of_a_model(1)": ["parameters"],
    OPENING: [],
    "heads = run.table('heads', asked_of_a_model(n))\ndisplay(heads)": ["judged"],
    "run.figure('map', figures.head_map(run.table('twice', heads.assign(x=heads['x'] * last))))": ["judged"],
    "found = run.claim('C1', heads.assign(measure='m').drop(columns='x'))\nfound[['measure', 'outcome']]": ["judged"],
    "run.claim('C1', heads.assign(measure='m', source='null')[:1], registered='second')\nrun.verdicts()": [
        "judged",
        "last",
    ],
    "run.table('late', asked_of_a_model(n))": [],
}


@pytest.fixture(autouse=True)
def clone(clone, monkeypatch):
    written = [{"cell_type": "code", "source": [x], "metadata": {"tags": tags}} for x, tags in CELLS.items()]
    content = {"cells": [{"cell_type": "markdown", "source": ["# A title"]}, *written]}
    (clone / "notebooks").mkdir()
    (clone / "notebooks/01_first.ipynb").write_text(json.dumps(content))
    monkeypatch.setattr(parameters, "of_run", lambda stems, preset, over: {stem: {"n": 3} for stem in stems})


HEADS = pd.DataFrame({"model": "a", "kind": "pure", "seed": 0, "x": [1, 2]})


def test_cells_keep_what_they_make_of_what_is_given():
    found = list(cells.kept("01_first", tags=["judged"], heads=HEADS, last=10))
    assert [(table, keys) for table, keys, _ in found] == [
        ("01_first_twice", "model"),
        ("01_first_claims", "claim measure model source"),
        ("01_first_claims_second", "claim measure model source"),
    ]
    twice, first, second = (make() for _, _, make in found)
    assert twice["x"].tolist() == [10, 20]
    assert first["source"].tolist() == ["model", "model"]
    assert second[["claim", "source"]].to_numpy().tolist() == [["C1", "null"]]


def test_only_the_cells_that_are_asked_for_are_run():
    given = {"of": "thorough/", "tags": ["last"]}
    assert [table for table, *_ in cells.kept("01_first", **given, heads=HEADS, last=1)] == [
        "thorough/01_first_claims_second"
    ]
    with pytest.raises(NameError, match="asked_of_a_model"):
        list(cells.kept("01_first", heads=HEADS, last=1))
    with pytest.raises(ValueError, match="no cell of 01_first bears the tag lost"):
        list(cells.kept("01_first", tags=["judged", "lost"], heads=HEADS, last=1))
