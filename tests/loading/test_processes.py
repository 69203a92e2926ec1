"""Several processes do one run's work: shared out, killed, gone on with, the same table in the end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import saved
import torch

from srdyn import states
from srdyn.loading import processes
from srdyn.study.run import store
from srdyn.study.survey import survey

REPOSITORY = Path(__file__).parents[2]
ITEMS = 16 * 4  # contexts, sources
PAIRS = """
import json, multiprocessing, os, pathlib, signal, socket, sys
from srdyn.study.run import store
from srdyn.study.survey import __main__ as command

def work(rank, port, dies):
    # As torchrun sets them.
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    put, made = store.RunStore.put, []

    def put_or_die(kept, key, frame):
        put(kept, key, frame)
        made.append(key)
        if dies and rank == 1 and len(made) == 14:
            os.kill(os.getpid(), signal.SIGKILL)

    store.RunStore.put = put_or_die
    command.main(sys.argv[1:])

def together(dies):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")  # importing takes longer than the work
    pair = [fork.Process(target=work, args=(rank, port, dies)) for rank in range(2)]
    for process in pair:
        process.start()
    for process in pair:
        process.join()
    print(*(process.exitcode for process in pair), flush=True)

together(dies=True)
units = pathlib.Path(os.environ["SRDYN_ROOT"]).glob("build/survey/*/*.unit")
print(json.dumps({str(path): path.stat().st_mtime_ns for path in units}), flush=True)
together(dies=False)
"""


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A clone with one tiny model and fourteen texts of its own."""
    for name in ("data", "notebooks"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    saved.tiny(tmp_path / "tiny")
    for i in range(14):
        sentences = (f"The number {i * j} is {i} times {j}, as anybody can tell who counts.\n" for j in range(40))
        (tmp_path / f"text{i}.txt").write_text("".join(sentences))
    (tmp_path / "pairs.py").write_text(PAIRS)
    monkeypatch.setenv("SRDYN_ROOT", str(tmp_path))
    return tmp_path


def test_two_processes_one_killed_make_the_table_of_one(clone, monkeypatch):
    texts = tuple(str(clone / f"text{i}.txt") for i in range(14))
    attacks, positions = ("rare character", "common number"), (1, 8, 33)
    given = {"models": [str(clone / "tiny")], "domains": list(texts), "tasks": [], "positions": list(positions), "n": 2}
    overrides = [f"{name}={value}" for name, value in given.items()]
    # One thread a process, as the single process below: the last bits of a product may depend on their number.
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, clone / "pairs.py", *overrides]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    killed, finished, told, resumed = done.stdout.splitlines()
    assert killed == "1 -9", done.stderr  # the first one sees that the second is gone
    assert resumed == "0 0", done.stderr
    assert told == "tiny: 16 contexts of 4 sources, 9216 rows"
    finished = json.loads(finished)
    assert len(finished) == 8 * 3 + 14
    assert len(list((clone / "build" / "survey").glob("*/*.unit"))) == ITEMS
    assert all(os.stat(path).st_mtime_ns == time for path, time in finished.items())

    reading = survey.Reading(texts, (), attacks, positions, n=2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv(store.KEPT, str(clone / "alone"))
    alone = survey.heads(given["models"], reading)
    monkeypatch.delenv(store.KEPT)
    torch.set_num_threads(threads)
    monkeypatch.setattr(states, "trace", None)  # the table of the two is read, not made
    together = survey.heads(given["models"], reading)
    assert store._encode(together, ".parquet") == store._encode(alone, ".parquet")
    assert together["context"].nunique() == 16


def test_a_single_process_notices_nothing(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    processes.barrier()
    assert (processes.rank(), processes.count(), processes.is_first()) == (0, 1, True)
    assert processes.share(["a", "b", "c"]) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("here", "gpus", "wanted"), [("1", 0, "auto"), ("2", 0, "auto"), ("1", 8, "auto"), ("2", 2, "cuda:1")]
)
def test_each_process_has_a_gpu_of_its_own_where_there_are_gpus(here, gpus, wanted, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", here)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert processes.device() == wanted


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="4 processes share 2 GPUs"):
        processes.device()


def test_items_that_another_machine_keeps_for_itself_are_missed(clone, monkeypatch):
    """As the second of two processes whose folders are not one: its own half is here, the first one's never comes."""
    monkeypatch.setattr(survey, "_SETTLING", 0)
    monkeypatch.setattr(processes, "share", lambda work: work[1::2])
    reading = survey.Reading((), (), ("rare character", "common number"), (1, 8), n=2)
    with pytest.raises(FileNotFoundError, match="rare character: finished by other processes"):
        survey.heads([clone / "tiny"], reading, sources=())
