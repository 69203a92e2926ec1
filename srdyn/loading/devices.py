"""Where a model's weights go: one device, several, or kept on the CPU or on disk and brought in layer by layer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import accelerate
import torch

from srdyn.loading import refusals

Offload = Literal["cpu", "disk", "auto"]
Rooms = Mapping[int | str, int]
LIMIT = Path("/sys/fs/cgroup/memory.max")
STREAMED = 2
"""Layers' worth of memory that bringing in one layer may take: itself, and what it is put together from."""


class Placement(NamedTuple):
    """What computes, what keeps the weights (None: the same device), the GPUs that share them if several, and why."""

    device: torch.device
    offload: Literal["cpu", "disk"] | None
    shards: tuple[int, ...]
    why: str

    def __str__(self) -> str:
        kept = {None: "", "cpu": ", weights kept in CPU memory", "disk": ", weights read from disk layer by layer"}
        where = f"on {self.device}{kept[self.offload]}"
        where = f"shared by the GPUs {', '.join(map(str, self.shards))}" if self.shards else where
        return f"{where} ({self.why})"


def resolve_device(device: str | torch.device) -> torch.device:
    """The device named; "auto" is a GPU where there is one. Raises ValueError for a name of none."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with refusals.within(f"there is no device {str(device)!r}"):
        return torch.device(device)


def precision(stored: torch.dtype | None, device: str | torch.device) -> torch.dtype:
    """What a checkpoint is loaded as: its own on a GPU, unless that is float16; float32 otherwise."""
    keeps_its_own = resolve_device(device).type != "cpu" and stored not in (None, torch.float16)
    return stored if keeps_its_own else torch.float32


def rooms(max_memory: Mapping[int | str, int | str] | None = None) -> dict[int | str, int]:
    """Bytes that may be used on each GPU (by its number) and on the CPU: what is free, or what `max_memory` grants.

    A device that `max_memory` leaves out may use what is free. Raises ValueError for a GPU that is not there.
    """
    free = accelerate.utils.get_max_memory()
    absent = sorted(key for key in max_memory or {} if isinstance(key, int) and key not in free)
    if absent:
        raise ValueError(f"max_memory names the GPUs {absent}, which are not there; there are {sorted(map(str, free))}")
    if "cpu" in free and LIMIT.is_file() and (limit := LIMIT.read_text().strip()).isdigit():
        free["cpu"] = min(free["cpu"], int(limit))
    return free | accelerate.utils.get_max_memory(dict(max_memory or {}))


def decide(
    weights: int, layer: int, rooms: Rooms, *, device: str | torch.device = "auto", offload: Offload | None = None
) -> Placement:
    """Where `weights` bytes go whose largest part, which is brought in at once, has `layer` bytes.

    Without `offload` the weights stay where they are computed with, beside room for one such part; "auto" takes the
    first that fits of: one device, several GPUs, the CPU, the disk. Raises MemoryError where nothing that is allowed
    fits, ValueError for an unknown `offload`, or "cpu" without a GPU.
    """
    if offload not in (None, "cpu", "disk", "auto"):
        raise ValueError(f'offload must be None, "cpu", "disk" or "auto", got {offload!r}')
    gpus = sorted(key for key in rooms if isinstance(key, int)) if device == "auto" else []
    main = torch.device("cuda", gpus[0]) if gpus else resolve_device("cpu" if device == "auto" else device)
    if offload == "cpu" and main.type == "cpu":
        raise ValueError('offload="cpu" keeps weights in CPU memory for a GPU, and this runs on the CPU: leave it out')
    key = (main.index or 0) if main.type == "cuda" else main.type
    if main.type == "cuda" and key not in rooms:
        raise ValueError(f"there is no device {main} here")
    here, on_cpu = rooms.get(key), rooms.get("cpu", 0)
    size, granted = f"{in_words(weights)} of weights", in_words(here) if here is not None else "an unknown room"
    fits = {
        None: here is None or weights + layer <= here,
        "shards": len(gpus) > 1 and weights + len(gpus) * layer <= sum(rooms[gpu] for gpu in gpus),
        "cpu": main.type != "cpu" and weights + layer <= on_cpu and (here is None or STREAMED * layer <= here),
        "disk": here is None or STREAMED * layer <= here,
    }
    allowed = {None: (None, "shards"), "auto": (None, "shards", "cpu", "disk")}.get(offload, (offload,))
    chosen = next((kept for kept in allowed if fits[kept]), "nowhere")
    if chosen == "nowhere":
        how = ' offload="auto" to bring them in layer by layer,' if offload is None else ""
        advice = f"Pass{how} a smaller dtype or a larger max_memory, or take a machine with more memory"
        raise MemoryError(f"{size} (largest layer {in_words(layer)}) do not fit: {main} has {granted}. {advice}")
    if chosen == "shards":
        return Placement(main, None, tuple(gpus), f"{size}, more than the {granted} of {main}")
    return Placement(main, chosen, (), f"{size}; {main} has {granted}")


def in_words(size: int) -> str:
    """Bytes as a reader takes them in: three digits, and the unit that suits."""
    power = next(p for p in (9, 6, 3, 0) if size >= 10**p or p == 0)
    return f"{size / 10**power:.3g} {dict(zip((9, 6, 3, 0), ('GB', 'MB', 'kB', 'bytes'), strict=True))[power]}"
