"""One run's work shared by the processes that torchrun or accelerate launch started, if it is more than one."""

import datetime
import functools
import os
import sys
from collections.abc import Sequence

import torch
import torch.distributed as dist

_PATIENCE = datetime.timedelta(days=7)  # with the others; one that dies is noticed at once: its connections close


def count() -> int:
    """How many processes there are, on all machines: as torch.distributed has it, or the launcher's WORLD_SIZE."""
    return dist.get_world_size() if _has_group() else int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """The number of this process, 0 for the first or only one."""
    if count() == 1:
        return 0
    return dist.get_rank() if _has_group() else int(os.environ["RANK"])


def is_first() -> bool:
    """Whether this is the process that prints, shows bars, and puts results together."""
    return rank() == 0


def in_notebook() -> bool:
    """Whether this is the kernel of a notebook."""
    return "IPython" in sys.modules and hasattr(sys.modules["IPython"].get_ipython(), "kernel")


def device() -> str:
    """Where this process puts models: "auto", or a GPU of its own. Raises ValueError for more processes than GPUs."""
    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if here == 1 or gpus == 0:
        return "auto"
    if here > gpus:
        raise ValueError(f"{here} processes share {gpus} GPUs on this machine: start at most as many as there are GPUs")
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}"


def share(work: Sequence[str]) -> list[str]:
    """This process's part of the work: of the first process's list, every `count()`-th item. All must call this."""
    listed = [list(work)]
    if count() > 1:
        dist.broadcast_object_list(listed, src=0, group=_group())
    return listed[0][rank() :: count()]


def barrier() -> None:
    """Return when every process has come here. Raises RuntimeError where one of them is gone."""
    if count() > 1:
        dist.barrier(group=_group())


def _has_group() -> bool:
    return dist.is_available() and dist.is_initialized()


@functools.cache
def _group() -> dist.ProcessGroup:
    """All processes, connected over the network whatever else connects them, and patient once they have met."""
    if not _has_group():
        dist.init_process_group("gloo")
    return dist.new_group(backend="gloo", timeout=_PATIENCE)
