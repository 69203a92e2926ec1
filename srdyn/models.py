"""One view of every model that is studied."""

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from srdyn import architectures
from srdyn.architectures import linear_cache
from srdyn.loading import checkpoints, devices, memory, refusals, report, streaming

log = logging.getLogger(__name__)

_READ_AT_ONCE = 512  # tokens that a CPU reads together: what many more leave does not fit its second-level cache


class HeadGrid(NamedTuple):
    """L linear-attention layers of H value heads, each with a K × V state; L and H keep the original numbering."""

    L: int
    H: int
    K: int
    V: int

    @property
    def D(self) -> int:
        """The most that the rank of a state can be."""
        return min(self.K, self.V)


class Layer(NamedTuple):
    """A linear-attention layer: its place in the decoder, the heads it holds by their numbers before any pruning."""

    index: int
    heads: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A transformers model that runs as it is, with what srdyn knows about its states.

    `layers[l]` describes axis L's entry l; `seed` is the one that the weights were drawn from, where that is known.
    """

    hf: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    grid: HeadGrid
    layers: tuple[Layer, ...]
    name: str
    seed: int | None = None

    @property
    def device(self) -> torch.device:
        """Where the model computes and wants its tokens, wherever the weights are kept."""
        if streaming.is_attached(self.hf):
            return torch.device(self.hf.get_input_embeddings()._hf_hook.execution_device)
        return self.hf.device

    @property
    def held(self) -> Bool[Tensor, "L H"]:
        """The heads that it has, by their numbers before any pruning."""
        held = torch.zeros(self.grid.L, self.grid.H, dtype=torch.bool)
        for row, layer in zip(held, self.layers, strict=True):
            row[list(layer.heads)] = True
        return held

    def logits(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T vocabulary"]:
        """What the model expects after each token: one pass in evaluation mode, without gradients or a cache."""
        with torch.no_grad(), evaluating(self.hf):
            return self.hf(tokens.to(self.device), use_cache=False).logits

    def generate(
        self, prompt: str | Int[Tensor, "B T"], *, max_new_tokens: int = 64, **options: object
    ) -> str | Int[Tensor, "N _"]:
        """The prompt and how the model goes on: text for text, tokens for tokens.

        The likeliest token at each step, unless `options` of transformers' `generate` say otherwise (`do_sample=True`).
        Raises ValueError for text where there is no tokenizer.
        """
        if isinstance(prompt, str) and self.tokenizer is None:
            raise ValueError(f"{self.name} has no tokenizer to read text with: give tokens [B, T]")
        tokens = self.tokenizer(prompt, return_tensors="pt").input_ids if isinstance(prompt, str) else prompt
        options = {"max_new_tokens": max_new_tokens, "do_sample": False} | options
        with evaluating(self.hf):
            written = self.hf.generate(tokens.to(self.device), **options)
        return self.tokenizer.decode(written[0], skip_special_tokens=True) if isinstance(prompt, str) else written


check = report.check
"""What `load` would make of a checkpoint, from its configuration alone."""


def load(
    name_or_path: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: torch.dtype | None = None,
    offload: devices.Offload | None = None,
    max_memory: Mapping[int | str, int | str] | None = None,
) -> Model:
    """A checkpoint in safetensors format, from a local folder or by its name from the Hugging Face hub, pruned or not.

    Runs on a CPU whether or not flash-linear-attention is installed. `device="auto"` takes a GPU where there is one,
    all of them where the weights need it. `dtype=None` means float32, but on a GPU the checkpoint's own unless that is
    float16. `offload` keeps weights on the "cpu" or on "disk", in the checkpoint's own files, and brings them in layer
    by layer; "auto" does so if they do not fit otherwise, which is logged. `max_memory` says how much of each GPU and
    of the "cpu" may be used ({0: "20GiB"}). Code that lies beside a checkpoint never runs.
    Raises, before weights are read, FileNotFoundError for a missing folder, OSError where the hub or a file is out of
    reach, broken or pickled or the disk too small, MemoryError where the weights do not fit, ValueError for a model
    without linear-attention layers, with weights missing or not finite.
    """
    outline = report.outline(name_or_path, device=device, dtype=dtype, offload=offload, max_memory=max_memory)
    where, place = outline.where, outline.placement
    if place.offload and offload == "auto":
        log.warning("%s: %s", Path(where).name, place)
    try:
        with refusals.within(f"{where} holds weights of another model than it describes"):
            hf, told, weights = _read(outline)
    except OSError as error:
        raise checkpoints.unreachable(where, error) from error
    if told["missing_keys"]:
        raise ValueError(f"{where} lacks weights of the model it describes: {sorted(told['missing_keys'])}")
    if broken := [name for name, x in hf.named_parameters() if not (x.is_meta or x.isfinite().all())]:
        raise ValueError(f"{where} holds weights that are no finite numbers, in {len(broken)} tensors: {broken[0]} …")
    tokenizer = checkpoints.tokenizer(where, outline.config)
    model = from_hf(hf, tokenizer, name=Path(where).name, seed=getattr(outline.config, "srdyn_seed", None))
    if weights is not None:
        streaming.attach(hf, weights, place.device)
    return model


def _read(outline: report.Outline) -> tuple[PreTrainedModel, dict, Mapping | None]:
    """The model, transformers' report about its weights, and the weights themselves where they are to be streamed."""
    place, build = outline.placement, checkpoints.builder(outline.config)
    options = {"config": outline.config, "dtype": outline.dtype, "use_safetensors": True}
    if place.offload == "disk":
        stock = build if issubclass(build, PreTrainedModel) else type(outline.hf)
        return streaming.from_pretrained(stock, outline.where, **options | {"config": outline.hf.config})
    if place.shards:
        options |= {"device_map": "balanced", "max_memory": outline.rooms}
    options |= {"trust_remote_code": False, "output_loading_info": True}
    hf, told = build.from_pretrained(outline.where, **options)
    if place.shards:
        return hf, told, None
    # Out of the mapped file, where weights lie at odd addresses, at which the last bits of products vary.
    for parameter in hf.parameters():
        parameter.data = parameter.data.clone()
    return (hf, told, hf.state_dict()) if place.offload == "cpu" else (hf.to(place.device), told, None)


def batch_size(model: Model, length: int) -> int:
    """How many sequences are best read together: `_READ_AT_ONCE` tokens of them, 16 on a GPU, 64 streamed."""
    if streaming.is_attached(model.hf):
        return 64
    return 16 if model.device.type != "cpu" else max(1, _READ_AT_ONCE // length)


def from_hf(
    hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None, *, name: str, seed: int | None = None
) -> Model:
    """Wrap a model that is built; its linear-attention layers, nobody else's, become runnable on a CPU.

    Raises ValueError for a model without such layers, or with layers that are not supported.
    """
    if unsupported := report.unsupported_in(hf, name):
        raise ValueError(" ".join(unsupported))
    sites = architectures.sites(hf)
    for site in sites:
        site.recipe.make_runnable(site.mixer)
    sites[0].recipe.make_model_runnable(hf)
    if sites[0].recipe.cache_argument == "past_key_values" and linear_cache.is_needed(hf):
        linear_cache.attach(hf)
    layers = tuple(Layer(site.index, site.recipe.kept(site.mixer)) for site in sites)
    unpruned = [site.recipe.unpruned(site.mixer) for site in sites]
    grid = HeadGrid(len(layers), max(heads.H for heads in unpruned), *unpruned[0][2:])
    return Model(hf=hf, tokenizer=tokenizer, grid=grid, layers=layers, name=name, seed=seed)


@contextlib.contextmanager
def evaluating(hf: nn.Module) -> Iterator[None]:
    """While this is open, all parts of the model are in evaluation mode; then in the mode that each was in."""
    modes = [(part, part.training) for part in hf.modules()]
    hf.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def checked_mask(model: Model, mask: Tensor, what: str) -> None:
    """Raises ValueError unless the mask, called `what`, is a Bool [L, H] over the model's grid."""
    wanted = list(model.grid[:2])
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or list(mask.shape) != wanted:
        got = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, Tensor) else f"a {type(mask).__name__}"
        raise ValueError(f"{what} must be a bool tensor [L, H] = {wanted} for {model.name}, got {got}")


def state_bytes(model: Model) -> int:
    """Bytes of recurrent state that one sequence costs, whatever its length (float32)."""
    return memory.state_bytes(model.hf)
