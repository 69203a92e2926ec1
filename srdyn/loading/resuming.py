"""What a long call has found so far, kept for the next one, which goes on with it."""

import io
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from srdyn.loading import files

log = logging.getLogger(__name__)


def keep(path: Path, record: Mapping[str, object]) -> None:
    """Leave a record of tensors and plain values at `path`, whole or not at all, for `kept`."""
    buffer = io.BytesIO()
    torch.save(record, buffer)
    files.keep(path, buffer.getvalue())


def kept(path: Path, *, device: torch.device | None = None) -> dict | None:
    """The record that lies there, on the device; None where none does, or where it is broken, which is logged."""
    content = files.kept(path)
    return None if content is None else torch.load(io.BytesIO(content), weights_only=True, map_location=device)


def made(path: Path, of: Sequence[object], make: Callable[[], Sequence[Tensor]]) -> list[Tensor]:
    """The tensors that `make` gives, left at `path` with what they are `of` for the next call, which then takes them.

    What is there of anything else, or broken, is made again, which is logged.
    """
    if (found := kept(path)) is not None:
        if found["of"] == files.record_hash(of):
            log.info("%s was made before", path)
            return found["tensors"]
        log.warning("%s is of another model, text or cut, and made again", path)
    tensors = [*make()]
    keep(path, {"of": files.record_hash(of), "tensors": tensors})
    return tensors
