"""What is committed changes only by a reference run, only whole, only beyond tolerance."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from srdyn.loading import files
from srdyn.study.run import store

STEM = "02_consistency_agreement"


@pytest.fixture
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(1)
    return pd.DataFrame(
        {
            "context": ["prose", "NA", "None", "code"],
            "uncertain": [True, False, False, False],
            "rank": [3, 40, 64, 64],
            "spearman": rng.uniform(0, 1, 4) / 3,
            "kappa": [np.nan, 1e-30, -0.5, np.inf],
        }
    )


def contents(folder) -> dict[str, bytes]:
    """All files but the notes of what was compared."""
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {name: content for name, content in found.items() if "/compared/" not in name}


@pytest.mark.parametrize("copies", [1, 501])
def test_a_table_is_read_as_it_was_saved(clone, frame, copies):
    frame = pd.concat([frame] * copies, ignore_index=True)
    path = store.save_table(frame, STEM)
    assert path.suffix == (".csv" if copies == 1 else ".parquet")
    # nine significant digits: half a unit of the ninth at most
    pd.testing.assert_frame_equal(store.load_table(STEM), frame, check_dtype=False, rtol=5e-9, atol=0)


def test_saving_twice_gives_the_same_bytes(clone, frame):
    store.save_table(frame, STEM, meta={"parameters": {"eps": 1e-4, "lengths": (1, 2)}, "seed": 3})
    before = contents(clone)
    store.save_table(frame, STEM, meta={"parameters": {"eps": 1e-4, "lengths": (1, 2)}, "seed": 3})
    assert contents(clone) == before
    side = json.loads(before[f"data/tables/{STEM}.json"])
    made_by = f"data/tables/code/{store.PYTHON}/{side['code']}.txt"
    assert set(before) == {f"data/tables/{STEM}.csv", f"data/tables/{STEM}.json", made_by}
    assert hashlib.sha256(before[made_by]).hexdigest() == side["code"]
    assert b"srdyn.study.run.store " in before[made_by]


def test_within_tolerance_the_committed_bytes_stay_and_beyond_it_they_are_replaced(clone, frame, caplog):
    store.save_table(frame, STEM)
    before = contents(clone)
    caplog.clear()  # that it was not there
    store.save_table(frame.assign(spearman=frame["spearman"] * (1 + 5e-5)), STEM)
    assert contents(clone) == before
    assert not caplog.messages
    store.save_table(frame.assign(spearman=frame["spearman"] * 1.01), STEM)
    after = contents(clone)
    assert all(after[name] != before[name] for name in before if "/code/" not in name)
    assert "spearman: 4 of 4 reals differ" in caplog.text
    assert "0.0099 relative" in caplog.text


def test_a_run_is_told_in_a_line(clone, frame, monkeypatch):
    assert store.as_committed() == ""
    store.save_table(frame, STEM)
    store.save_table(frame, "other")
    assert store.as_committed() == (
        f"2 of 2 tables and figures are not as committed: {STEM}.csv: was not there | other.csv: was not there"
    )
    store.forget_compared()
    store.save_table(frame.assign(spearman=frame["spearman"] * (1 + 5e-5)), STEM)
    store.save_table(frame, "other")
    told = "2 tables and figures are the same as committed, within 0.5 of their tolerances"
    assert store.as_committed() == told
    store.save_table(frame.assign(rank=0), STEM)
    assert store.as_committed() == (
        f"1 of 2 tables and figures are not as committed: {STEM}.csv: "
        "rank: 4 of 4 ranks differ, 4 by more than their band allows"
    )
    monkeypatch.setenv("SRDYN_RUN", "smoke")
    store.save_table(frame, STEM)
    assert store.as_committed() == ""


def test_a_table_of_another_run_is_replaced_in_silence(clone, frame, monkeypatch, caplog):
    monkeypatch.setenv("SRDYN_RUN", "interactive")
    store.save_table(frame, STEM)
    store.save_table(frame.assign(spearman=0.0), STEM)
    assert store.load_table(STEM)["spearman"].eq(0).all()
    assert not caplog.messages


def test_other_parameters_are_recorded_even_if_the_table_stays(clone, frame):
    store.save_table(frame, STEM, meta={"parameters": {"draws": 10}})
    path = store.save_table(frame, STEM, meta={"parameters": {"draws": 20}})
    assert json.loads(path.with_suffix(".json").read_bytes())["parameters"] == {"draws": 20}


def test_a_side_file_that_does_not_belong_to_its_table_is_mended(clone, frame):
    path = store.save_table(frame, STEM)
    good = contents(clone)
    path.with_suffix(".json").write_text('{"table": "of another run"}')
    store.save_table(frame, STEM)
    assert contents(clone) == good


@pytest.mark.parametrize("run", [None, "smoke", "reference-eps=1e-3"])
def test_only_the_reference_run_writes_to_committed_places(clone, frame, monkeypatch, run):
    store.save_table(frame, STEM)
    before = contents(clone)
    monkeypatch.setenv("SRDYN_RUN", run) if run else monkeypatch.delenv("SRDYN_RUN")
    store.save_table(frame.assign(spearman=0.0), STEM)
    files.write_bytes(store.figure_dir() / "02.png", b"figure")
    name = run or "interactive"
    added = {n: b for n, b in contents(clone).items() if n not in before}
    assert set(added) == {f"build/{name}/{p}" for p in (f"tables/{STEM}.csv", f"tables/{STEM}.json", "figures/02.png")}
    assert {n: b for n, b in contents(clone).items() if n in before} == before
    assert store.load_table(STEM, run="reference")["spearman"].ne(0).all()


KILLED = """
import os, signal
import pandas as pd
from srdyn.study.run import store
def kill(*args): os.kill(os.getpid(), signal.SIGKILL)
os.{call} = kill
store.save_table(pd.DataFrame({{"spearman": [0.0] * 4}}), "{stem}")
"""


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_killed_write_leaves_the_old_table_whole(clone, frame, call):
    path = store.save_table(frame, STEM)
    before = path.read_bytes()
    code = KILLED.format(call=call, stem=STEM)
    assert subprocess.run([sys.executable, "-c", code], env=os.environ).returncode == -signal.SIGKILL
    assert path.read_bytes() == before
    store.save_table(frame.assign(spearman=1.0), STEM)
    assert store.load_table(STEM)["spearman"].eq(1).all()


def test_clear_errors(clone, frame, monkeypatch):
    with pytest.raises(FileNotFoundError, match="'reference' has no table '07_cost'"):
        store.load_table("07_cost")
    with pytest.raises(ValueError, match="plain name"):
        store.save_table(frame, "../escape")
    with pytest.raises(ValueError, match="reset_index"):
        store.save_table(frame.set_index("context"), STEM)
    with pytest.raises(FileNotFoundError, match="cannot hash"):
        files.content_hash(clone / "absent")
    monkeypatch.setenv("SRDYN_RUN", "../data")
    with pytest.raises(ValueError, match="SRDYN_RUN"):
        store.run_name()
    monkeypatch.setenv("SRDYN_ROOT", str(clone / "data"))
    with pytest.raises(FileNotFoundError, match="SRDYN_ROOT"):
        files.root()


def test_a_hash_sees_content_and_names_but_no_times(tmp_path):
    for folder in ("a/model", "b/model"):
        (tmp_path / folder / "sub").mkdir(parents=True)
        (tmp_path / folder / "sub/weights").write_bytes(b"1")
    a, b = tmp_path / "a/model", tmp_path / "b/model"
    os.utime(b / "sub/weights", (0, 0))
    (b / "__pycache__").mkdir()
    (b / "__pycache__/x.pyc").write_bytes(b"2")
    assert files.content_hash(a) == files.content_hash(b)
    (b / "sub/weights").rename(b / "sub/other")
    assert files.content_hash(a) != files.content_hash(b)
    assert files.content_hash(a, b) != files.content_hash(a)


def test_a_run_store_goes_on_where_it_stopped(clone, frame):
    made_by = {"model": "hybrid", "lengths": [64, 128]}
    first = store.RunStore(store.build_dir() / "runs/03_ablation", made_by=made_by)
    first.put("hybrid/low/0", frame)
    first.put("hybrid/high/0", frame.iloc[:1])
    (first.folder / ".hybrid%2Frandom%2F0.parquet.1.tmp").write_bytes(b"killed here")
    again = store.RunStore(store.build_dir() / "runs/03_ablation", made_by=made_by)
    assert [again.has(f"hybrid/{arm}/0") for arm in ("low", "high", "random")] == [True, True, False]
    pd.testing.assert_frame_equal(again.get("hybrid/low/0"), frame)
    again.put("hybrid/low/0", frame.iloc[:2])
    assert len(again.get("hybrid/low/0")) == 2
    other = store.RunStore(store.build_dir() / "runs/03_ablation", made_by=made_by | {"model": "pure"})
    assert not other.has("hybrid/low/0")


def test_what_is_kept_lies_in_build_or_where_it_is_said(clone, monkeypatch):
    assert store.kept_dir() == clone / "build"
    monkeypatch.setenv(store.KEPT, str(clone / "elsewhere"))
    assert store.kept_dir() == clone / "elsewhere"


@pytest.mark.parametrize("at", [0, 31, 32, 500, -1])
def test_a_broken_item_is_said_and_counts_as_not_finished(clone, frame, caplog, at):
    kept = store.RunStore(clone / "runs", made_by={})
    kept.put("hybrid/low/0", frame)
    [path] = kept.folder.glob("*.unit")
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    for broken in (bytes(content), content[:at], b""):
        path.write_bytes(broken)
        assert not kept.has("hybrid/low/0")
        assert f"{path} is broken" in caplog.text
        with pytest.raises(FileNotFoundError, match="no longer what was written"):
            kept.get("hybrid/low/0")
    kept.put("hybrid/low/0", frame)
    pd.testing.assert_frame_equal(kept.get("hybrid/low/0"), frame)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_write_that_fails_leaves_nothing_and_says_what_it_wants(tmp_path, monkeypatch, code):
    path = tmp_path / "folder/table.csv"
    files.write_bytes(path, b"before")

    def full(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    told = r"no space left for .*table\.csv, which wants 1,000 bytes" if code == errno.ENOSPC else os.strerror(code)
    with pytest.raises(OSError, match=told):
        files.write_bytes(path, b"x" * 1000)
    assert [p.name for p in path.parent.iterdir()] == ["table.csv"]
    assert path.read_bytes() == b"before"


def test_a_run_record_says_what_ran(clone):
    record = store.run_record(seed=5)
    assert record["run"] == "reference"
    assert record["commit"] == "unknown"  # the clone of this test is no git repository
    assert record["versions"]["pandas"] == pd.__version__
    assert record["seed"] == 5
    store.save_record("02_consistency", record)
    assert json.loads((clone / "build/reference/records/02_consistency.json").read_bytes()) == record


def test_a_table_that_grew_is_one_even_where_a_killed_run_left_both(clone):
    small, large = (pd.DataFrame({"x": range(n)}) for n in (5, 3000))
    old = store.save_table(small, "grown")
    left = old.read_bytes()
    store.save_table(large, "grown")
    old.write_bytes(left)  # as if the run had ended before it was removed
    path = store.save_table(large, "grown")
    assert sorted(x.name for x in path.parent.glob("grown.*")) == ["grown.json", "grown.parquet"]
    assert len(store.load_table("grown")) == 3000
    store.save_table(small, "grown")
    assert sorted(x.name for x in path.parent.glob("grown.*")) == ["grown.csv", "grown.json"]
