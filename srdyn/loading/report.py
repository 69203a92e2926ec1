"""What would come of loading a checkpoint, told from its configuration before any weight is read."""

import collections
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from srdyn import architectures
from srdyn.loading import checkpoints, devices, memory, refusals, streaming

LENGTHS = (2048, 32768, 131072)
"""Tokens after which the cache is told."""
_MIB = 2**20


class Linear(NamedTuple):
    """Linear-attention layers that are alike: how many, their class, heads in each, K, V."""

    layers: int
    mixer: str
    heads: int
    K: int
    V: int

    def __str__(self) -> str:
        return f"{self.layers} {self.mixer} layers of {self.heads} heads, {self.K} × {self.V} each"


@dataclasses.dataclass(frozen=True, repr=False)
class Report:
    """What a checkpoint is, costs, and lacks.

    `active` parameters are those that read one token. Bytes of weights are in `dtype`, those of state and cache, by
    context length, of one sequence; None where they are not known. `placement` is what `models.load(...,
    offload="auto")` would do. `unsupported` and `notes` are sentences; a model with any of the first is not loaded.
    """

    name: str
    family: str
    dtype: torch.dtype
    parameters: int
    active: int
    weight_bytes: int
    layer_bytes: int
    linear: tuple[Linear, ...]
    state_bytes: int
    cache_bytes: Mapping[int, int | None]
    placement: devices.Placement | None
    unsupported: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def heads(self) -> int:
        """How many heads all linear layers hold together."""
        return sum(kind.layers * kind.heads for kind in self.linear)

    def __repr__(self) -> str:
        cache = [f"{in_mib(size)} at {tokens} tokens" for tokens, size in self.cache_bytes.items() if size is not None]
        some = "" if self.active == self.parameters else f", {count(self.active)} of them for a token"
        sizes = f"{count(self.parameters)} parameters{some}: {devices.in_words(self.weight_bytes)}"
        dtype = str(self.dtype).removeprefix("torch.")
        lines = [
            ("model", f"{self.name} ({self.family})"),
            ("weights", f"{sizes} as {dtype}; largest layer {devices.in_words(self.layer_bytes)}"),
            ("linear layers", "; ".join(map(str, self.linear)) or "none that srdyn knows"),
            ("state", f"{in_mib(self.state_bytes)} per sequence" if self.linear else "–"),
            ("cache", ", ".join(cache) or "–"),
            ("would load", str(self.placement or ("–" if self.unsupported else "– (no weights are here)"))),
            *[("not supported", reason) for reason in self.unsupported],
            *[("note", note) for note in self.notes],
        ]
        return "\n".join(f"{name + ':':15}{value}" for name, value in lines)


class Outline(NamedTuple):
    """A checkpoint's place and configuration, the model that it describes without weights, and its memory."""

    where: str
    config: PreTrainedConfig
    dtype: torch.dtype
    hf: PreTrainedModel
    rooms: devices.Rooms
    placement: devices.Placement


def check(name_or_path: str | Path, *, device: str | torch.device = "auto", dtype: torch.dtype | None = None) -> Report:
    """What `models.load` would make of a local folder or a hub name, from its configuration alone.

    Raises as `checkpoints.configuration` does; what else is in the way of loading stands in the report.
    """
    where, config, precision = _stated(name_or_path, device, dtype)
    folder, name, notes, cache = Path(where), Path(where).name, [], dict.fromkeys(LENGTHS)
    try:
        hf = checkpoints.outline(config, dtype=precision)
    except ValueError as error:
        return Report(name, config.model_type, precision, 0, 0, 0, 0, (), 0, cache, None, (str(error),))
    (weights, layer), unsupported = weight_bytes(hf), unsupported_in(hf, name)
    try:
        cache = {tokens: memory.cache_bytes(hf, tokens) for tokens in LENGTHS}
    except ValueError as error:
        notes += [] if unsupported else [f"The size of its cache is not known: {error}."]
    try:
        place = devices.decide(weights, layer, devices.rooms(), device=device, offload="auto")
    except MemoryError as error:
        place, unsupported = None, (*unsupported, str(error))
    if not (unsupported or checkpoints.may_have_tokenizer(where)):
        notes.append("It has no tokenizer beside its weights, without which the notebooks cannot read text.")
    try:
        if folder.is_dir() and not unsupported:
            place = place if checkpoints.holds_weights(folder) else None
            if place:
                checkpoints.require_whole(folder, hf)
                checkpoints.tokenizer(where, config)
    except (OSError, ValueError) as error:
        place, unsupported = None, (refusals.one_line(error),)
    sizes = *_parameters(hf), weights, layer, _linear(hf), memory.state_bytes(hf), cache
    return Report(name, hf.config.model_type, hf.dtype, *sizes, place, unsupported, tuple(notes))


def outline(
    name_or_path: str | Path, *, device: str | torch.device, dtype: torch.dtype | None,
    offload: devices.Offload | None, max_memory: Mapping[int | str, int | str] | None,
) -> Outline:  # fmt: skip
    """What `models.load` goes by, after all that can be found wrong before weights are read; raises as it says."""
    where, config, precision = _stated(name_or_path, device, dtype)
    hf = checkpoints.outline(config, dtype=precision)
    if unsupported := unsupported_in(hf, Path(where).name):
        raise ValueError(" ".join(unsupported))
    weights, layer = weight_bytes(hf)
    if folder := checkpoints.folder(where):
        checkpoints.require_whole(folder, hf)
    else:
        stored = _stored(config) or torch.float32
        checkpoints.require_space(where, weights // precision.itemsize * stored.itemsize)
    rooms = devices.rooms(max_memory)
    place = devices.decide(weights, layer, rooms, device=device, offload=offload)
    return Outline(where, config, precision, hf, rooms, place)


def _stated(
    name_or_path: str | Path, device: str | torch.device, dtype: torch.dtype | None
) -> tuple[str, PreTrainedConfig, torch.dtype]:
    """Where a checkpoint is, its configuration, and what it is loaded as."""
    where = checkpoints.source(name_or_path)
    config = checkpoints.configuration(where)
    return where, config, dtype or devices.precision(_stored(config), device)


def unsupported_in(hf: PreTrainedModel, name: str) -> tuple[str, ...]:
    """Why the model cannot be studied, a sentence each; empty where it can."""
    known, refusal = len(architectures.sites(hf)), architectures.refusal(hf)
    kinds = getattr(hf.config.get_text_config(decoder=True), "layer_types", None) or []
    linear = sum(kind in memory.RECURRENT for kind in kinds)
    if refusal is not None:
        return (f"{name} cannot be studied: {refusal}",)
    if not known:
        return (f"{name} has no linear-attention layers; srdyn.architectures.supported() lists what it knows",)
    return (f"{name} has {linear} layers with a state, of which srdyn knows {known}",) if known < linear else ()


def weight_bytes(hf: PreTrainedModel) -> tuple[int, int]:
    """Bytes of all parameters, tied ones once, and of the largest part that is brought in at once."""
    by_part: collections.Counter[str] = collections.Counter()
    for name, parameter in hf.named_parameters():
        by_part[streaming.part_of(name)] += parameter.numel() * parameter.itemsize
    return by_part.total(), max(by_part.values(), default=0)


def _parameters(hf: PreTrainedModel) -> tuple[int, int]:
    """How many parameters a model has, and how many of them read one token; an embedding reads by one row."""
    config, embedding, active = hf.config.get_text_config(decoder=True), hf.get_input_embeddings().weight, 0
    chosen = getattr(config, "num_experts_per_tok", None) or getattr(config, "num_experts_per_token", None)
    tied = embedding is getattr(hf.get_output_embeddings(), "weight", None)
    for name, parameter in hf.named_parameters():
        if parameter is not embedding or tied:
            size = parameter.numel()
            active += size * chosen // len(parameter) if ".experts." in name and chosen else size
    return hf.num_parameters(), active


def _linear(hf: PreTrainedModel) -> tuple[Linear, ...]:
    """The linear layers, those that are alike together."""
    alike: collections.Counter[tuple] = collections.Counter()
    for site in architectures.sites(hf):
        heads = site.recipe.heads(site.mixer)
        alike[type(site.mixer).__name__, len(site.recipe.kept(site.mixer)), heads.K, heads.V] += 1
    return tuple(Linear(layers, *kind) for kind, layers in alike.items())


def _stored(config: PreTrainedConfig) -> torch.dtype | None:
    return config.dtype or config.get_text_config(decoder=True).dtype


def count(number: int) -> str:
    """How many parameters, as text."""
    return f"{number / 1e9:.2f} billion" if number >= 1e8 else f"{number / 1e6:.3g} million"


def in_mib(size: int) -> str:
    """Bytes of a cache as text."""
    return f"{size / _MIB:,.1f} MiB" if size >= _MIB / 10 else f"{size / 1024:.1f} KiB"
