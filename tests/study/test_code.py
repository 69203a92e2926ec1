"""A key of code changes with what a module reaches, and with nothing else, not even the files under a live process."""

import shutil
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

from srdyn.study.run import code

SURVEY = "srdyn.study.survey.survey"
ASKED = "from srdyn.study.run import code; print(code.hash_of('srdyn.study.survey.survey'))"


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    place = tmp_path_factory.mktemp("clone")
    shutil.copytree(code.PACKAGE, place / "srdyn", ignore=shutil.ignore_patterns("__pycache__"))
    return place


def asked(place, script=ASKED):
    return subprocess.run([sys.executable, "-c", script], cwd=place, check=True, capture_output=True, text=True).stdout


def edited(path: Path, change):
    before = path.read_text()
    path.write_text(change(before))
    assert path.read_text() != before
    return before


@pytest.mark.parametrize(
    ("file", "change", "same"),
    [
        ("figures/style.py", lambda text: text.replace("#111111", "#222222"), True),
        ("study/analysis/summaries.py", lambda text: text + "\nX = 1\n", True),
        ("study/survey/survey.py", lambda text: '"""Another docstring."""  # remark\n' + text.split("\n", 1)[1], True),
        ("spectra.py", lambda text: text.replace("eps", "threshold"), False),
        ("kernels/scan_loops.py", lambda text: text + "\nX = 1\n", False),
        ("kernels/singular_values_triton.py", lambda text: text + "\nX = 1\n", False),  # imported inside a function
        ("architectures/__init__.py", lambda text: text + "\nX = 1\n", False),
    ],
)
def test_the_key_of_the_survey_follows_its_own_floor(copied, file, change, same):
    path = copied / "srdyn" / file
    before = edited(path, change)
    assert (asked(copied) == code.hash_of(SURVEY) + "\n") == same
    path.write_text(before)


LIVE = """
import pathlib
from srdyn import one
from srdyn.study.run import code
before, one, two = code.hash_of("srdyn.one"), *(pathlib.Path("srdyn", name) for name in ("one.py", "two.py"))
one.write_text("X = 2")
import srdyn.two
print(before == code.hash_of("srdyn.one"), before != code.hash_of("srdyn.two"), code.reached("srdyn.two"))
two.write_text("X = 3")
"""
BEFORE = """
import pathlib, time
from srdyn import two
time.sleep(0.1)  # file systems keep time in steps
pathlib.Path("srdyn/two.py").write_text("X = 2\\n")
from srdyn.study.run import code
print(code.hash_of("srdyn.study.survey.survey") != "")
"""
REFUSED = """
try:
    code.hash_of("srdyn.two")
except RuntimeError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("script", "first"), [(LIVE, "True True ['srdyn', 'srdyn.one', 'srdyn.two']"), (BEFORE, "True")]
)
def test_an_edit_under_a_live_process_is_not_seen_and_one_before_an_import_is_refused(copied, script, first):
    """Though the sources be read after it, between two imports."""
    (copied / "srdyn/one.py").write_text("X = 1\n")
    (copied / "srdyn/two.py").write_text("from srdyn import one\n")
    said = asked(copied, script + REFUSED).splitlines()
    assert said[0] == first
    assert said[1].startswith("srdyn.two changed after this process began: start it")


def test_imports_are_found_as_import_linter_finds_them():
    graph = grimp.build_graph("srdyn")
    for module in (SURVEY, "srdyn.study.trials.trials", "srdyn.figures"):
        assert graph.find_upstream_modules(module) <= set(code.reached(module))
