"""Notebooks run when something that they depend on has changed, and say in one line what stopped them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from nbformat import v4

from srdyn.loading import files
from srdyn.study import reproduce
from srdyn.study.claims import registration
from srdyn.study.run import code, store

WAITS = """
import os, time
end = time.time() + 60
while not os.path.exists("there"):  # the second notebook is at work beside this one
    assert time.time() < end
"""
FIRST = """
import pandas as pd
from srdyn.study.run import store
print("ran with", n, models)
store.save_table(pd.DataFrame({"n": [n]}), "01_first_claims")
"""
SECOND = "open('there', 'w').close()\nif items == 4:\n    raise ValueError('four is\\ntoo many')"
SCORECARD = "print('read')"
PAPER = files.data_dir() / "paper"
PRESET = "01_first: {n: 8, models: [x]}\n02_second: {items: 3}\n08_scorecard: {kinds: []}\n"


def notebook(*sources):
    cells = [v4.new_code_cell(source) for source in sources]
    cells[0].metadata["tags"] = ["parameters"]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return v4.writes(v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}))


@pytest.fixture
def clone(clone):
    """A clone with three small notebooks."""
    (clone / "notebooks/presets").mkdir(parents=True)
    (clone / "data/texts").mkdir(parents=True)
    (clone / "data/paper").symlink_to(PAPER)
    (clone / "constraints.txt").touch()
    (clone / "README.md").write_text("untouched")
    (clone / "notebooks/01_first.ipynb").write_text(notebook("n = 1\nmodels = []", WAITS + FIRST))
    (clone / "notebooks/02_second.ipynb").write_text(notebook("items = 1", SECOND))
    (clone / "notebooks/08_scorecard.ipynb").write_text(notebook("kinds = []", SCORECARD))
    (clone / "notebooks/presets/reference.yaml").write_text(PRESET)
    (clone / "notebooks/presets/small.yaml").write_text("n: 2\n")
    return clone


DRIVER = """
import contextlib, io, json, sys
from srdyn.study import reproduce
for line in sys.stdin:
    failure, told = "", io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            reproduce.main(json.loads(line))
    except SystemExit as error:
        failure = told.getvalue().strip() or error.code
    else:
        print("told:" * bool(told.getvalue()), told.getvalue(), sep="", end="", file=sys.stderr)
    print("ended:", failure, flush=True)
"""


@pytest.fixture
def made(clone):
    """Runs notebooks in another process; returns (those that ran, what was said of a failure)."""
    env = os.environ | {"PYTHONPATH": str(code.PACKAGE.parent)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", DRIVER], env=env, text=True, **pipes) as process:

        def make(*arguments):
            print(json.dumps(arguments), file=process.stdin, flush=True)
            said = []
            while not said or not said[-1].startswith("ended:"):
                said.append(process.stdout.readline())
                assert said[-1], process.stderr.read()
            ran = sorted(Path(line.split(" → ")[0]).stem for line in said if " → " in line)
            return ran, said[-1].removeprefix("ended:").strip()

        yield make
        said = process.communicate()[1]
        assert "told:" not in said
        assert not said or "non-socket" in said  # a kernel that ends may find its own socket closed


def test_two_run_at_a_time_then_what_has_changed_and_a_failure_is_one_line(clone, made):
    small = "--preset", "small", "--set", 'models=["a b", "n=3"]'
    name = reproduce.run_name("small", small[-1])
    assert made(*small, "--jobs", "2") == (["01_first", "02_second", "08_scorecard"], "")
    place = clone / "build" / name
    executed = json.loads((place / "notebooks/01_first.ipynb").read_text())
    assert executed["cells"][-1]["outputs"][0]["text"] == ["ran with 2 ['a b', 'n=3']\n"]
    assert (place / "figures/scorecard.md").is_file()
    assert f"| {name} | 2" in (clone / "build/runs.md").read_text()
    assert (clone / "README.md").read_text() == "untouched"

    (clone / "data/README.md").write_text("a text about the data")
    assert made(*small) == ([], "")
    path = clone / "notebooks/02_second.ipynb"
    path.write_text(path.read_text().replace("too many", "too few"))
    assert made(*small) == (["02_second"], "")
    (place / "tables/01_first_claims.csv").write_text("n\n5\n")
    assert made(*small) == (["01_first"], "")  # which wrote another
    (clone / "data/texts/new").write_text("text")
    assert made(*small, "01_first") == (["01_first"], "")

    assert made("--set", "items=4", "02_second")[1] == (
        "stopped: 02_second, In [3]: ValueError: four is too few; "
        "as far as it came: build/reference-items=4/notebooks/02_second.partial.ipynb"
    )
    assert "no parameter itmes" in made("--set", "itmes=4")[1]


def test_what_will_run_is_said_with_the_time_it_took():
    two = {"01_first": 1200.0, "02_second": 600.0, "03_third": None}
    each = "01_first (20.0 min), 02_second (10.0 min), 03_third (not timed yet)"
    said = f"3 to run: {each}; 30 min the last time, added up"
    assert reproduce._outlook(two, 1) == said
    assert reproduce._outlook(two, 2) == said + ", 20 at least with 2 side by side"
    assert reproduce._outlook({"01_first": None}, 2) == "1 to run: 01_first (not timed yet)"
    assert reproduce._outlook({}, 2) == "all is up to date"


def test_a_committed_run_ends_with_a_line_and_no_other(clone, monkeypatch, capsys):
    for name in ("SRDYN_RUN", "PYTHONHASHSEED"):
        monkeypatch.setenv(name, "0")  # which the run sets, and the test takes back
    saved = lambda chosen, jobs: store.save_table(pd.DataFrame({"n": [1]}), "01_first_n")  # noqa: E731
    monkeypatch.setattr(reproduce, "run_all", saved)
    monkeypatch.setattr(reproduce.readme, "publish", lambda: None)
    said = []
    for arguments in ([], [], ["--preset", "small"]):
        reproduce.main(arguments)
        said.append(capsys.readouterr().out)
    new = "1 of 1 tables and figures are not as committed: 01_first_n.csv: was not there\n"
    same = "1 tables and figures are the same as committed, within 0 of their tolerances\n"
    assert said == [new, same, ""]


def test_a_run_of_one_s_own_ends_with_where_its_figures_lie(clone, monkeypatch):
    monkeypatch.setenv("SRDYN_RUN", "mine")
    assert reproduce._left(["01_first"]) == ""
    (clone / "build/mine/figures").mkdir(parents=True)
    for name in ("01_first.png", "01_first_map.png", "01_first_map.pdf", "02_second.png"):
        (clone / "build/mine/figures" / name).touch()
    assert reproduce._left(["01_first"]) == (
        "build/mine/figures: 01_first.png, 01_first_map.png; build/mine/tables: what they draw"
    )
    assert "and 2 more;" in reproduce._left(["01_first"] * 3)


def test_code_and_named_places_count_as_they_are(clone, monkeypatch):
    monkeypatch.chdir(clone / "notebooks")
    texts = clone / "texts"
    texts.mkdir()
    given = {"domains": ["../texts", "prose"], "n": 4, "text": "no path but words, " * 99}
    before = reproduce._key("01_first", given, "data")
    assert reproduce._key("01_first", given, "data") == before
    assert reproduce._key("01_first", given | {"n": 5}, "data") != before
    assert reproduce._key("01_first", given, "other data") != before
    (texts / "a.txt").write_text("a")
    assert reproduce._key("01_first", given, "data") != before
    asked = []
    monkeypatch.setattr(code, "hash_of", lambda *modules: asked.append(modules) or "hash")
    reproduce._key("01_first", given, "data")
    assert {"srdyn.study.run.store"} <= set(asked[0]) <= {"srdyn.study.run.store", "srdyn.study.run"}


def test_a_claim_concerns_its_notebook_and_the_scorecard(clone):
    text = registration.path().read_text()
    (clone / "data/paper").unlink()
    stems = ("01_stratification", "06_emergence", "08_scorecard")
    found = []
    for written in (text, text.replace("id: C10", "id: C11")):
        files.write_bytes(registration.path(), written.encode())
        found.append((reproduce._data(), *(reproduce._claims(stem) for stem in stems)))
    assert [before == after for before, after in zip(*found, strict=True)] == [True, True, False, False]


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (("reference", ""), "reference"),
        (("reference", "eps=1e-3 n=4"), "reference-eps=1e-3-n=4"),
        (("smoke", 'models=["a b/c"]'), "smoke-models=a-b-c-"),
    ],
)
def test_a_run_is_named_after_its_parameters(given, name):
    assert reproduce.run_name(*given).startswith(name)
    assert len(reproduce.run_name("smoke", "models=" + 99 * "a")) <= 55
    assert reproduce.run_name("smoke", 'models=["a"]') != reproduce.run_name("smoke", "models=['a']")
