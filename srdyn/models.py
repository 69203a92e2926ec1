"""One view of every model that is studied."""

import dataclasses
import re
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from srdyn import architectures, linear_cache, memory

FLOAT32_BYTES = 4


class HeadGrid(NamedTuple):
    """L linear-attention layers of H value heads, each with a K × V state; L and H keep the original numbering."""

    L: int
    H: int
    K: int
    V: int


class Layer(NamedTuple):
    """A linear-attention layer: its place in the decoder, the value heads that it holds, K, V.

    Heads keep the numbers they had before any pruning; a layer may have lost them all.
    """

    index: int
    heads: tuple[int, ...]
    K: int
    V: int


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A transformers model that runs as it is, with what srdyn knows about its states.

    `layers[l]` describes axis L's entry l. `tokenizer` is None where the folder holds none; `seed` is the one that the
    weights were drawn from, where it is known (`srdyn_seed` in config.json).
    """

    hf: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    grid: HeadGrid
    layers: tuple[Layer, ...]
    name: str
    seed: int | None = None


def load(
    name_or_path: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: torch.dtype | None = None,
    offload: None = None,
) -> Model:
    """A checkpoint in safetensors format, from a local folder or by its name from the Hugging Face hub, pruned or not.

    Runs on a CPU whether or not flash-linear-attention is installed. `device="auto"` takes a GPU where there is one.
    `dtype=None` means float32, except for a checkpoint that is not float16 on a GPU, which keeps its own: float16 only
    saves disk space. Code from a checkpoint is never executed. The network is used for a hub name only.

    Raises FileNotFoundError for a missing folder, OSError where the hub or a file is out of reach, ValueError for a
    model without linear-attention layers or with weights missing.
    """
    if offload is not None:
        raise ValueError(f"offload must be None, got {offload!r}: models larger than one device are not supported yet")
    source, place = _source(name_or_path), resolve_device(device)
    try:
        config = _configuration(source)
        precision = _precision(config.dtype, place) if dtype is None else dtype
        hf, report = _builder(config).from_pretrained(
            source,
            config=config,
            dtype=precision,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except OSError as error:
        raise OSError(
            f"{source} cannot be loaded: give a folder with config.json and safetensors weights, or the name of a hub "
            f"repository that has them while the hub can be reached (HF_HUB_OFFLINE unset). transformers says: {error}"
        ) from error
    if report["missing_keys"]:
        raise ValueError(f"{source} lacks weights of the model it describes: {sorted(report['missing_keys'])}")
    _own_storage(hf)
    seed = getattr(config, "srdyn_seed", None)
    return from_hf(hf.to(place), _tokenizer(source), name=Path(source).name, seed=seed)


def from_hf(
    hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None, *, name: str, seed: int | None = None
) -> Model:
    """Wrap a model that is already built; its linear-attention layers become runnable on a CPU, nobody else's do.

    Only these module instances change (`Recipe.make_runnable`, and `linear_cache.attach` in a model of linear layers
    alone), so `deepcopy` and `save_pretrained` work as before. Raises ValueError where there is no such layer, or one
    that `architectures.refused.table` lists.
    """
    sites, refusal = architectures.sites(hf), architectures.refusal(hf)
    if refusal is not None:
        raise ValueError(f"{name} cannot be studied: {refusal}")
    if not sites:
        raise ValueError(f"{name} has no linear-attention layers; srdyn.architectures.supported() lists what it knows")
    for site in sites:
        site.recipe.make_runnable(site.mixer)
    if sites[0].recipe.cache_argument == "past_key_values" and linear_cache.is_needed(hf):
        linear_cache.attach(hf)
    layers = tuple(_layer(site) for site in sites)
    unpruned = [site.recipe.unpruned(site.mixer).H for site in sites]
    grid = HeadGrid(len(layers), max(unpruned), layers[0].K, layers[0].V)
    return Model(hf=hf, tokenizer=tokenizer, grid=grid, layers=layers, name=name, seed=seed)


def state_bytes(model: Model) -> int:
    """Bytes of recurrent state that one sequence costs, whatever its length (float32)."""
    return sum(len(layer.heads) * layer.K * layer.V * FLOAT32_BYTES for layer in model.layers)


def cache_bytes(model: Model, tokens: int) -> int:
    """Bytes of the whole cache of one sequence after `tokens` tokens: states, short convolutions, keys and values."""
    config = model.hf.config.get_text_config(decoder=True)
    convolutions = sum(site.recipe.conv_values(site.mixer) for site in architectures.sites(model.hf))
    attending = sum(kind in memory.ATTENDING for kind in config.layer_types)
    keys_and_values = attending * memory.key_values(config) * tokens if attending else 0
    return state_bytes(model) + (convolutions + keys_and_values) * model.hf.dtype.itemsize


def _layer(site: architectures.Site) -> Layer:
    heads = site.recipe.heads(site.mixer)
    return Layer(site.index, site.recipe.kept(site.mixer), heads.K, heads.V)


def _configuration(source: str) -> PreTrainedConfig:
    """The configuration, of transformers' own class where there is one for the model type.

    Importing flash-linear-attention registers classes of its own for some of them, mamba2 for one. Raises ValueError
    for a checkpoint that was written by such a class.
    """
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    own = getattr(transformers, CONFIG_MAPPING_NAMES.get(config.model_type, ""), None)
    if own is None:
        return config
    if not isinstance(config, own):
        config = own.from_pretrained(source)
    if hasattr(config, "fuse_norm"):
        raise ValueError(
            f"{source} is a {config.model_type} model of flash-linear-attention, whose weights the {config.model_type} "
            "of transformers, which srdyn studies, cannot be trusted to read"
        )
    return config


def _builder(config: PreTrainedConfig) -> type:
    """The class that builds a checkpoint's model; for a pruned one it cuts the layers before weights are read.

    That is a causal language model, of a family that also sees (Qwen3.5) its text part; GLM-5 has none without eyes.
    """
    sees = type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    kept = getattr(config, "srdyn_kept", None)
    if kept is None:
        return AutoModelForImageTextToText if sees else AutoModelForCausalLM
    stock = (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING if sees else MODEL_FOR_CAUSAL_LM_MAPPING)[type(config)]

    def build(hf: PreTrainedModel, config: PreTrainedConfig, *arguments, **options) -> None:
        own = config if isinstance(config, stock.config_class) else config.get_text_config(decoder=True)
        stock.__init__(hf, own, *arguments, **options)
        architectures.keep_heads(hf, kept)
        hf.__class__ = stock

    # transformers reads the class's name and its module's source.
    return type(stock.__name__, (stock,), {"__init__": build, "__module__": stock.__module__})


def _own_storage(hf: PreTrainedModel) -> None:
    """Copy the weights out of the mapped file: they lie at odd addresses there, and the last bits of products vary."""
    for parameter in hf.parameters():
        parameter.data = parameter.data.clone()


def _source(name_or_path: str | Path) -> str:
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return str(path)
    is_hub_name = isinstance(name_or_path, str) and re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name_or_path)
    if path.exists() or not is_hub_name:
        raise FileNotFoundError(
            f"{name_or_path} is not a folder (seen from {Path.cwd()}): give a folder with config.json and safetensors "
            "weights, or the name of a hub repository"
        )
    return str(name_or_path)


def resolve_device(device: str | torch.device) -> torch.device:
    """The device named; "auto" is a GPU where there is one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def _precision(stored: torch.dtype | None, device: torch.device) -> torch.dtype:
    keeps_its_own = device.type != "cpu" and stored not in (None, torch.float16)
    return stored if keeps_its_own else torch.float32


def _tokenizer(source: str) -> PreTrainedTokenizerBase | None:
    if Path(source).is_dir() and not any(Path(source).glob("tokenizer*")):
        return None
    return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
