"""Work dealt out to processes: results in order, errors and deaths told."""

import contextlib
import os
import signal
import subprocess
import sys

import dealt
import pytest

from srdyn import scores
from srdyn.study.run import opened, workers


class Process:
    def ask(self):
        return os.getpid()


PARENT = """
import dealt
from srdyn.study.run import workers
if __name__ == "__main__":
    list(workers.deal(dealt.started, [({seconds},), (600,)]))
"""


pytestmark = pytest.mark.usefixtures("own_workers")


def test_results_come_in_the_order_of_the_work():
    assert list(workers.deal(dealt.square, [(x,) for x in range(7)])) == [x * x for x in range(7)]


def test_where_one_core_is_left_this_process_does_it(monkeypatch):
    monkeypatch.setenv("SRDYN_PROCESSES", "1")
    assert list(workers.deal(os.getpid, [(), ()])) == [os.getpid()] * 2


def test_an_error_comes_out_and_the_workers_live_on():
    with pytest.raises(ValueError, match="3 on purpose"):
        list(workers.deal(dealt.fail, [(3,), (4,)]))
    assert list(workers.deal(dealt.square, [(2,)])) == [4]


def test_a_worker_that_dies_is_told_and_others_start():
    with pytest.raises(RuntimeError, match="a worker process died"):
        list(workers.deal(os._exit, [(1,)]))
    assert list(workers.deal(dealt.square, [(2,)])) == [4]


def test_what_this_process_alone_knows_is_answered_here(monkeypatch, caplog):
    ask = [((), ())]
    assert list(opened.deal(Process, ask)) != [os.getpid()]
    monkeypatch.setitem(scores.RULES, "mine", scores.RULES["rank"])
    assert list(opened.deal(Process, ask)) == [os.getpid()]
    assert "one process alone knows mine" in caplog.text


@pytest.mark.parametrize("seconds", [0, 600])
def test_workers_end_with_their_parent(seconds, tmp_path):
    """All of them hold the parent's output, so that it ends with the last."""
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(seconds=seconds))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    start = {"stdout": subprocess.PIPE, "text": True, "env": environment, "start_new_session": True}
    with subprocess.Popen([sys.executable, script], **start) as parent:
        try:
            assert all(int(parent.stdout.readline()) for _ in range(2))
            parent.kill()
            parent.communicate(timeout=30)
        finally:
            with contextlib.suppress(ProcessLookupError):  # there is none to kill
                os.killpg(parent.pid, signal.SIGKILL)
