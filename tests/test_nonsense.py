"""Malformed inputs get one line of ours: no library's traceback, nothing that hangs, nothing written elsewhere."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nonsense
import pytest
import saved

from srdyn.loading import files
from srdyn.study.run import code

SEED = 0
WRONG = ("raw", "hangs", "accepted nonsense")


@pytest.fixture(scope="module", params=[4, pytest.param(1, marks=pytest.mark.slow)])
def found(request, tmp_path_factory):
    """What came of every so many inputs, in a process of its own; nothing was written but where it may be."""
    every, place = request.param, tmp_path_factory.mktemp("nonsense")
    saved.tiny(place / "tiny", times=1.5)
    clone, here = place / "clone", place / "here"
    here.mkdir()
    for name in ("data", "figures", "notebooks"):
        shutil.copytree(files.root() / name, clone / name, copy_function=os.symlink)
    for name in ("README.md", "constraints.txt"):
        shutil.copy(files.root() / name, clone)
    before = listing(place)
    asked = [sys.executable, nonsense.__file__, place, str(SEED), str(every)]
    env = os.environ | {"PYTHONPATH": str(code.PACKAGE.parent), "SRDYN_ROOT": str(clone), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(asked, env=env, cwd=here, capture_output=True, text=True, timeout=900)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr[-500:]
    assert len(found) >= 500 / every
    made = {path for path in listing(place) - before if path.parts[0] != "inputs"}
    presets = Path("clone/notebooks/presets")  # those that the inputs are written to
    assert {path for path in made if path.parent != presets and path.parts[:2] != ("clone", "build")} == set()
    return found


@pytest.mark.parametrize("kind", nonsense.KINDS)  # so many that xdist, by their number, does not begin them last
def test_malformed_inputs_are_refused_in_one_line(kind, found):
    outcomes = [item for item in found if item["kind"] == kind]
    assert outcomes != []
    assert [item for item in outcomes if item["outcome"] in WRONG] == []


def test_nearly_all_are_refused(found):
    refused = sum(item["outcome"] == "refused" for item in found)
    assert refused >= 0.9 * len(found)  # what was drawn may be harmless, most is not


def listing(folder):
    return {path.relative_to(folder) for path in folder.rglob("*")}
