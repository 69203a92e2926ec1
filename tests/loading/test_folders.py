"""Folders that are replaced whole, or not at all, and never lose what somebody else put there."""

import ast
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from srdyn.loading import folders


def write(folder, text, *, meanwhile=None, **options):
    with folders.replacing(folder, **options) as new:
        (new / "inside").mkdir(parents=True)
        (new / "config.json").write_text(text)
        (new / "inside" / "part").write_text(text)
        if meanwhile:
            meanwhile(folder)


def texts(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_that_was_written_here_is_replaced(tmp_path):
    for text in ("first", "second"):
        write(tmp_path / "a" / "model", text)
    found = texts(tmp_path / "a" / "model")
    assert set(json.loads(found.pop(folders.LIST))) == {"config.json", "inside/part"}
    assert found == {"config.json": "second", "inside/part": "second"}
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["model"]


def add(folder):
    (folder / "inside" / "notes.txt").write_text("precious")


def change(folder):
    (folder / "config.json").write_text("First")  # of the same size


def forget(folder):
    (folder / folders.LIST).unlink()


def garble(folder):
    (folder / folders.LIST).write_text("[")


def link(folder):
    (folder / "elsewhere").symlink_to(folder.parent, target_is_directory=True)


@pytest.mark.parametrize("touch", [add, change, forget, garble, link])
def test_what_was_not_written_here_stays(touch, tmp_path):
    write(tmp_path / "model", "first")
    touch(tmp_path / "model")
    before = texts(tmp_path / "model")
    with pytest.raises(FileExistsError, match=r"not written here.*stays as it is"):
        write(tmp_path / "model", "second")
    assert texts(tmp_path / "model") == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_is_put_there_during_the_writing_stays(tmp_path):
    write(tmp_path / "model", "first")
    with pytest.raises(FileExistsError, match=r"inside/notes\.txt"):
        write(tmp_path / "model", "second", meanwhile=add)
    assert (tmp_path / "model" / "inside" / "notes.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_file_in_the_place_of_the_folder_stays(tmp_path):
    (tmp_path / "model").write_text("precious")
    for options in ({}, {"mark": "config.json"}):
        with pytest.raises(FileExistsError, match="stays as it is"):
            write(tmp_path / "model", "x", **options)
    assert (tmp_path / "model").read_text() == "precious"


def test_an_empty_folder_and_one_behind_a_link_are_taken(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "model").symlink_to(tmp_path / "disk")
    write(tmp_path / "model", "x")
    assert (tmp_path / "model").is_symlink()
    assert (tmp_path / "disk" / "config.json").read_text() == "x"


def test_without_a_list_a_mark_and_the_names_tell(tmp_path):
    for text in ("first", "second"):
        write(tmp_path / "run", text, mark="config.json")
    assert texts(tmp_path / "run") == {"config.json": "second", "inside/part": "second"}
    with pytest.raises(FileExistsError, match=r"config\.json"):
        write(tmp_path / "run", "third", mark="record.json")
    add(tmp_path / "run")
    with pytest.raises(FileExistsError, match=r"inside/notes\.txt"):
        write(tmp_path / "run", "third", mark="config.json")
    assert texts(tmp_path / "run")["config.json"] == "second"


def test_a_neighbour_of_a_similar_name_stays(tmp_path):
    others = [".model.a.12345678.tmp", ".model.tmp", ".model.123456789abc.tmp", ".models.12345678.tmp"]
    for name in others:
        (tmp_path / name).mkdir()
    write(tmp_path / "model", "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, "model"])


def dying(function, steps, at):
    """`function`, killed with its process before the step `at` of those that `steps` counts."""

    def call(*arguments, **options):
        if next(steps) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)

    return call


def killed(folder, options, at):
    """Whether writing the folder is over before its step `at`, where a child that writes it is killed."""
    child = os.fork()
    if child == 0:
        steps = itertools.count()
        for name in ("rename", "unlink", "rmdir", "mkdir", "open"):
            setattr(os, name, dying(getattr(os, name), steps, at))
        pathlib.Path.write_text = dying(pathlib.Path.write_text, steps, at)
        write(folder, "second", **options)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def kill_everywhere(folder, options):
    """Which folder was whole after each kill, the first or the second one, in its place or hidden beside it."""
    ends = []
    for at in itertools.count():
        write(folder, "first", **options)
        over = killed(folder, options, at)
        hidden = list(folder.parent.glob(".model.*/former"))
        (whole,) = {
            found for name, found in texts(folder if folder.exists() else hidden[0]).items() if name != folders.LIST
        }
        ends.append((whole, folder.exists()))
        folders._recover(folder)
        assert [path.name for path in folder.parent.iterdir()] == ["model"]
        assert len(texts(folder)) == (2 if options else 3)
        if over:
            return ends


@pytest.mark.parametrize("options", [{}, {"mark": "config.json"}], ids=["list", "mark"])
def test_killed_at_any_step_one_of_the_two_is_whole_and_the_next_call_clears_up(options, tmp_path):
    """In a process of its own: one with threads may not fork."""
    call = f"test_folders.kill_everywhere(pathlib.Path(r'{tmp_path / 'model'}'), {options})"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", f"import pathlib, test_folders; print({call})"],
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
    )
    ends = ast.literal_eval(done.stdout.decode())
    assert len(ends) > 15
    assert list(dict.fromkeys(ends)) == [("first", True), ("first", False), ("second", True)]
