"""Work dealt out to processes of this machine, one a core and one thread each.

With a small model, two threads of one process mostly wait for each other; two processes do not.
"""

import functools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import torch
import transformers


def deal(function: Callable, work: Iterable[tuple]) -> Iterator:
    """`function(*item)` for every item, in this order, by processes, which find it by its name; errors end it.

    Where it may be one only, this process does it: another would import for seconds and then wait.
    """
    if _processes() == 1:
        return (function(*item) for item in work)
    return _results([_pool().submit(function, *item) for item in work])


def _results(asked: list[Future]) -> Iterator:
    try:
        yield from (future.result() for future in asked)
    except BrokenProcessPool as error:
        _pool.cache_clear()
        script = 'a script without `if __name__ == "__main__":`, whose processes would start it anew'
        raise RuntimeError(f"a worker process died: memory ran out, or this is {script}") from error
    finally:
        for future in asked:
            future.cancel()


def _processes() -> int:
    """As many as `SRDYN_PROCESSES` says (one where the work is small), else as there are cores for this process."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return int(os.environ.get("SRDYN_PROCESSES") or here)


@functools.cache
def _pool() -> ProcessPoolExecutor:
    """Kept for further calls: starting the processes costs more than a short answer."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(_processes(), mp_context=context, initializer=_start)


def _start() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupted notebook stops asking; its workers end with it
    watch_parent()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()


def watch_parent() -> None:
    """This process ends with its parent: of a killed one it would hold both ends of a pipe, and wait for ever."""
    ended = functools.partial(multiprocessing.connection.wait, [multiprocessing.parent_process().sentinel])
    threading.Thread(target=lambda: ended() and os._exit(1), daemon=True).start()
