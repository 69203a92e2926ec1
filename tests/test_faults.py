"""Work that is killed, kept files that break, disks that are full, two runs at once: nothing false comes of it."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import saved
import torch
from study import test_reproduce

from srdyn import export, models, prune, pruning
from srdyn.loading import files, folders
from srdyn.study.run import code, store
from srdyn.study.survey import survey
from srdyn.training import recipes, train

pytestmark = pytest.mark.faults
SEED = 0
KILLS = {"survey": 12, "trials": 12, "save": 10, "store": 8, "heal": 4, "make": 4}
PACKAGE = str(code.PACKAGE.parent)


def small_clone(place):
    """A clone with the data of this one and three notebooks that take no time."""
    (place / "notebooks/presets").mkdir(parents=True)
    (place / "data").mkdir()
    for name in ("contexts", "corpus", "tokenizer", "paper"):
        (place / "data" / name).symlink_to(files.data_dir() / name)
    for name in ("constraints.txt", "README.md"):
        (place / name).touch()
    for stem, source in (("01_first", test_reproduce.FIRST), ("02_second", "1"), ("08_scorecard", "1")):
        (place / f"notebooks/{stem}.ipynb").write_text(test_reproduce.notebook("n = 1\nmodels = []", source))
    names = ("01_first", "02_second", "08_scorecard")
    (place / "notebooks/presets/reference.yaml").write_text("".join(f"{x}: {{n: 8, models: [x]}}\n" for x in names))
    (place / "notebooks/presets/small.yaml").write_text("n: 2\n")
    return place


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return saved.tiny(tmp_path_factory.mktemp("models") / "tiny", times=1.5)


@pytest.mark.parametrize("work", KILLS)
def test_killed_work_goes_on_to_the_same_bytes_and_leaves_nothing(work, tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "tiny")
    for name in ("warm", "whole", *(f"killed{i}" for i in range(KILLS[work]))):
        small_clone(tmp_path / "clones" / name)
    asked = [sys.executable, Path(__file__).parent / "faulty.py", tmp_path, str(SEED), work, str(KILLS[work])]
    done = subprocess.run(asked, env=os.environ | {"PYTHONPATH": PACKAGE}, capture_output=True, text=True, timeout=1500)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    print(*found, sep="\n")
    assert done.returncode == 0, done.stderr[-800:]
    assert len(found) == KILLS[work]
    assert sum(item["killed"] for item in found) >= len(found) / 2  # the others were done before
    right = {"again": 0, "differs": [], "left": [], "processes": 0}
    assert [item for item in found if item | right != item] == []


def flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-9])


def surveyed(place, folder):
    reading = survey.Reading(("code",), (), (), (1, 16), n=2)
    with mock.patch.dict(os.environ, {store.KEPT: str(folder)}):
        return survey.heads([place], reading)


def healed(place, folder, *, steps=4):
    tokens = torch.randint(0, 500, (4, 16), generator=torch.Generator().manual_seed(0))
    model = models.load(place)
    losses = prune.heal(model, tokens, steps=steps, batch=2, folder=folder)
    return pd.DataFrame({"loss": losses})


@pytest.mark.parametrize("damage", [flipped, cut_off])
@pytest.mark.parametrize("work", [surveyed, healed])
def test_a_kept_file_that_broke_is_said_and_made_again(work, damage, tiny, tmp_path, caplog):
    wanted = work(tiny, tmp_path)
    broken = sorted(path for path in tmp_path.rglob("*") if path.suffix in {".unit", ".pt"})
    whole = {path: path.read_bytes() for path in broken}
    assert broken
    for path in broken:
        damage(path)
    pd.testing.assert_frame_equal(work(tiny, tmp_path), wanted)
    for path in broken:
        assert f"{path} is broken and made again" in caplog.text
        assert path.suffix == ".pt" or path.read_bytes() == whole[path]
    caplog.clear()
    pd.testing.assert_frame_equal(work(tiny, tmp_path), wanted)
    assert "broken" not in caplog.text


@pytest.mark.parametrize("damage", [flipped, cut_off])
def test_a_saved_folder_that_broke_stays_and_is_said(damage, tmp_path):
    def write(text):
        with folders.replacing(tmp_path / "it") as new:
            new.mkdir()
            (new / "a.txt").write_text(text * 20)

    for name in ("a.txt", folders.LIST):
        write("one")
        damage(tmp_path / "it" / name)
        with pytest.raises(FileExistsError, match=r"a\.txt"):
            write("two")
        shutil.rmtree(tmp_path / "it")


def reproduced(clone, *arguments):
    env = os.environ | {"PYTHONPATH": PACKAGE, "SRDYN_ROOT": str(clone), "TMPDIR": str(clone / "tmp")}
    (clone / "tmp").mkdir(exist_ok=True)
    asked = [sys.executable, "-m", "srdyn.study.reproduce", "--preset", "small", *arguments]
    return subprocess.Popen(asked, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ran(process):
    told, error = process.communicate(timeout=600)
    assert process.returncode == 0, error
    return sorted(line.split("/")[1].split(".")[0] for line in told.splitlines() if " → " in line)


def test_two_runs_in_one_clone_do_each_notebook_once(tmp_path):
    clone = small_clone(tmp_path / "clone")
    both = [reproduced(clone, "--jobs", "2") for _ in range(2)]
    assert sorted(ran(both[0]) + ran(both[1])) == ["01_first", "02_second", "08_scorecard"]
    assert list((clone / "tmp").iterdir()) == []
    assert list((clone / "build").rglob("*.partial*")) == []


def test_outputs_that_are_gone_or_edited_and_records_that_broke_are_made_again(tmp_path):
    clone = small_clone(tmp_path / "clone")
    place = clone / "build/small"
    assert ran(reproduced(clone)) == ["01_first", "02_second", "08_scorecard"]
    assert ran(reproduced(clone)) == []
    table, wanted = place / "tables/01_first_claims.csv", (place / "tables/01_first_claims.csv").read_bytes()
    table.unlink()
    assert ran(reproduced(clone)) == ["01_first"]
    flipped(table)
    assert "01_first" in ran(reproduced(clone))
    assert table.read_bytes() == wanted
    (place / "notebooks/02_second.ipynb").unlink()
    for path in (place / "stamps/01_first", place / "run.json", clone / "build/runs.md"):
        flipped(path)
        cut_off(path)
    assert ran(reproduced(clone)) == ["01_first", "02_second"]
    assert json.loads((place / "run.json").read_bytes())["PRESET"] == "small"


@pytest.fixture
def full_disk(tmp_path):
    """A folder on a disk of its own with a megabyte of room."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_is_named_with_what_it_lacks_and_nothing_is_left(full_disk):
    kept = store.RunStore(full_disk, made_by={"a": 1})
    kept.put("small", pd.DataFrame({"x": np.arange(10.0)}))
    before = sorted(full_disk.rglob("*"))
    large = pd.DataFrame({"x": np.random.default_rng(0).normal(size=400_000)})
    with pytest.raises(OSError, match=r"no space left for .*large\.unit, which wants [\d,]+ bytes") as refused:
        kept.put("large", large)
    assert refused.value.errno == errno.ENOSPC
    assert sorted(full_disk.rglob("*")) == before
    assert kept.has("small")
    assert not kept.has("large")


def test_a_folder_on_a_full_disk_leaves_the_old_one(full_disk):
    with folders.replacing(full_disk / "it") as new:
        new.mkdir()
        (new / "a").write_bytes(b"old")
    with pytest.raises(OSError, match="No space left"), folders.replacing(full_disk / "it") as new:  # noqa: PT012
        new.mkdir()
        (new / "a").write_bytes(bytes(2**22))
    assert (full_disk / "it/a").read_bytes() == b"old"
    assert [path.name for path in full_disk.iterdir()] == ["it"]


@pytest.mark.parametrize("save", [pruning.save, export.save])
def test_a_model_that_a_full_disk_cannot_hold_is_told_how_much_it_wants(save, full_disk):
    model = models.load(files.data_dir() / "models" / "pure")
    with pytest.raises(OSError, match=r"no space left for .*disk/it, which wants [\d,]+ bytes") as refused:
        save(model, full_disk / "it")
    assert refused.value.errno == errno.ENOSPC
    assert list(full_disk.iterdir()) == []


def test_so_is_a_training_before_it_writes_weights(full_disk):
    run = train.Run(recipes.named("pure"), full_disk / "it", device="cpu")
    with pytest.raises(OSError, match=r"no space left for .*it/final, which wants [\d,]+ bytes") as refused:
        run._write_model()
    assert refused.value.errno == errno.ENOSPC
    assert [path for path in full_disk.rglob("*") if path.is_file()] == []


def test_what_a_dead_process_was_writing_goes_and_what_a_live_one_writes_stays(tmp_path):
    with subprocess.Popen(["sleep", "600"]) as alive:
        gone = subprocess.Popen(["true"])
        gone.wait()
        names = [f".a.json.{os.uname().nodename}-{x.pid}-12345678.tmp" for x in (alive, gone)]
        for name in names:
            (tmp_path / name).touch()
        files.write_bytes(tmp_path / "a.json", b"x")
        alive.kill()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([names[0], "a.json"])


def test_who_comes_second_waits_for_the_lock(tmp_path):
    held = "import sys, time; from srdyn.loading import files\nfrom pathlib import Path\n"
    held += "with files.locked(Path(sys.argv[1])): print('in', flush=True); time.sleep(2); print(time.time())"
    asked, pipe = [sys.executable, "-c", held, str(tmp_path / "lock")], {"stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(asked, env=os.environ | {"PYTHONPATH": PACKAGE}, **pipe) as first:
        first.stdout.readline()
        with files.locked(tmp_path / "lock"):
            assert time.time() >= float(first.stdout.readline())
