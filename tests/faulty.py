"""Work that is killed at random instants and goes on: `python tests/faulty.py FOLDER SEED WORK TIMES`.

WORK is one of those below, at toy size. It is done once undisturbed, then TIMES times in a folder of its own, each
killed (SIGKILL or SIGTERM) somewhere in between and done again. Prints a line of JSON for each: what differs from the
undisturbed result, what is left. Processes are forked from this one, which has imported everything.
"""

import dataclasses
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from srdyn import models, prune, pruning
from srdyn.loading import files
from srdyn.study import reproduce
from srdyn.study.run import opened, store, workers
from srdyn.study.survey import survey
from srdyn.study.trials import battery, trials

GRACE = 15
"""Seconds within which processes of a killed one are gone."""
READING = survey.Reading(("code", "prose"), ("recall4",), ("rare character",), (1, 16, 64), n=2)
ASKED = battery.Battery(("recall4",), ("code",), length=64, items=4, rows=4, windows=4, copies=0)
CALIBRATES = dataclasses.replace(ASKED, domains=(), rows=1, items=1, part="calibration")
PLAN = trials.Plan(ASKED, CALIBRATES, ("code", "prose"), sequences=1, length=48, draws=2)
ARMS = [trials.Arm(name, share) for name in ("intact", "high", "low", "random") for share in (0.25, 0.5)]


def survey_work(place):
    store.save_table(survey.heads([place / "tiny"], READING), "survey")


def trials_work(place):
    store.save_table(trials.answers([place / "tiny"], ARMS, PLAN), "trials")


def save_work(place):
    model, keep = models.load(place / "tiny"), torch.ones(3, 8, dtype=torch.bool)
    for head in range(7):
        keep[:, head] = False
        pruning.save(pruning.prune_heads(model, keep), files.root() / "build" / "pruned")


def store_work(place):
    drawn = np.random.default_rng(0)
    kept = store.RunStore(files.root() / "build" / "units", made_by={"it": 1})
    for i in range(60):
        frame = pd.DataFrame(drawn.normal(size=(40 + 90 * i, 6)), columns=list("abcdef"))
        if not kept.has(f"unit {i}"):
            kept.put(f"unit {i}", frame)
        store.save_table(kept.get(f"unit {i}"), f"table_{i % 9}")


def heal_work(place):
    prune.SAVE_EVERY = 2
    model = models.load(place / "tiny")
    tokens = torch.randint(0, 500, (8, 32), generator=torch.Generator().manual_seed(0))
    losses = prune.heal(model, tokens, steps=12, batch=2, folder=files.root() / "build" / "heal")
    store.save_table(pd.DataFrame({"loss": losses}), "heal")


def make_work(place):
    os.environ["SRDYN_PROCESSES"] = "1"
    reproduce.main(["--preset", "small", "--jobs", "2"])


WORKS = {name.removesuffix("_work"): value for name, value in list(globals().items()) if name.endswith("_work")}


def passing(root):
    """The folder for temporary files of a clone; a path of sockets is short."""
    return Path("/tmp") / f"faults-{os.environ['FAULTS']}-{root.name}"


def forked(work, place, root):
    """The number of a process that does the work on a clone at `root`, in a session of its own."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    passing(root).mkdir(exist_ok=True)
    os.environ |= {"SRDYN_ROOT": str(root), "SRDYN_RUN": "faults", "TMPDIR": str(passing(root))}
    tempfile.tempdir = None
    log = os.open(root.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1), os.dup2(log, 2)
    try:
        WORKS[work](place)
    except BaseException:  # noqa: BLE001, the process ends with it
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def session(leader):
    """The processes that are left of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def result(root):
    """The hash of everything that stays: tables, kept units, folders; not times."""
    names = (path for path in (root / "build").rglob("*") if path.is_file())
    timed = {"run.json", "runs.md", "lock", "heal.pt"}
    kept = {path.relative_to(root).as_posix(): path for path in names if path.name not in timed}
    skipped = ("/stamps/", "/notebooks/", "/records/")  # these hold times
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in kept.items()
        if not any(part in f"/{name}" for part in skipped)
    }


def leftovers(root):
    """Temporary files, by their names, and whatever lies in the folder for such."""
    inside = [path for path in root.rglob("*") if path.name.endswith(".tmp") or ".partial" in path.name]
    return sorted(map(str, [*inside, *passing(root).iterdir()]))


def finished(child):
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def disturbed(work, place, root, drawn, lasts):
    """What comes of one kill."""
    kind = drawn.choice([signal.SIGKILL, signal.SIGTERM])
    after, child = drawn.uniform(0, lasts), forked(work, place, root)
    time.sleep(after)
    os.kill(child, kind)
    ended = finished(child)
    deadline = time.monotonic() + GRACE
    while (left := session(child)) and time.monotonic() < deadline:
        time.sleep(0.2)
    for number in left:
        os.kill(number, signal.SIGKILL)
    again = finished(forked(work, place, root))
    return {"signal": kind.name, "after": round(after, 2), "killed": ended < 0, "processes": len(left), "again": again}


def main(folder, seed, work, times):
    torch.set_num_threads(1)  # a pool of threads does not outlive a fork: the process waits for it for ever
    tqdm.set_lock(threading.RLock())  # the usual one is shared with forked processes: a killed one would keep it
    os.environ["FAULTS"] = str(os.getpid())
    drawn, clones = random.Random(f"{seed} {work}"), folder / "clones"
    model = models.load(folder / "tiny")
    opened.cpu_speedups.use(model.hf)
    prune.loss(model, torch.zeros(1, 16, dtype=torch.long))  # compiles
    workers.deal = lambda function, items: (function(*item) for item in items)  # those of a killed one: test_workers
    durations = []
    for name in ("warm", "whole"):
        began = time.monotonic()
        assert finished(forked(work, folder, clones / name)) == 0, (clones / f"{name}.log").read_text()[-2000:]
        durations.append(time.monotonic() - began)
    wanted = result(clones / "whole")
    for i in range(times):
        root = clones / f"killed{i}"
        found = disturbed(work, folder, root, drawn, min(durations))
        now = result(root)
        differs = sorted(name for name in wanted.keys() | now.keys() if wanted.get(name) != now.get(name))
        print(json.dumps({"work": work, **found, "differs": differs[:5], "left": leftovers(root)}), flush=True)
    for root in clones.iterdir():
        shutil.rmtree(passing(root), ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
