"""What a checkpoint says of itself before any weight is read: where it is, its configuration, its files."""

import contextlib
import importlib.util
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import safetensors
import torch
import transformers
from huggingface_hub import errors
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from srdyn import architectures

PRUNED = "pruned by srdyn, whose models.load alone reads it, while srdyn.export.save writes what others read"
"""The `model_type` of a pruned model's folder, for transformers, vLLM and others to show when they stop at it."""
OWN_TYPE = "srdyn_model_type"
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_READS, _SEES = transformers.MODEL_FOR_CAUSAL_LM_MAPPING, transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def source(name_or_path: str | Path) -> str:
    """The folder, or the name on the Hugging Face hub. Raises FileNotFoundError for what is neither."""
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


def configuration(where: str, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The configuration in a folder, in the local cache, or on the hub; its code runs only where it is trusted.

    It is of transformers' own class where there is one for the model type: flash-linear-attention registers others for
    some. Raises OSError where it is out of reach, ValueError where it is not known or needs code of its own.
    """
    try:
        stated, _ = PreTrainedConfig.get_config_dict(where)
        pruned = OWN_TYPE in stated
        kind = stated["model_type"] = stated.pop(OWN_TYPE, stated.get("model_type"))
        if kind is None:
            raise OSError("there is no config.json that names a type of model")
        if kind not in transformers.CONFIG_MAPPING and importlib.util.find_spec("fla") is not None:
            # It makes its model types known to transformers when it is imported.
            importlib.import_module("fla")
        _require_known(where, stated, kind in transformers.CONFIG_MAPPING or trust_remote_code)
        own = getattr(transformers, CONFIG_MAPPING_NAMES.get(kind, ""), None)
        if pruned and not trust_remote_code:
            return (own or transformers.CONFIG_MAPPING[kind]).from_dict(stated)
        config = transformers.AutoConfig.from_pretrained(where, trust_remote_code=trust_remote_code)
        if own is None or trust_remote_code:
            return config
        config = config if isinstance(config, own) else own.from_pretrained(where)
    except OSError as error:
        raise unreachable(where, error) from error
    if hasattr(config, "fuse_norm"):
        raise ValueError(
            f"{where} is a {kind} model of flash-linear-attention, whose weights the {kind} of transformers, which "
            "srdyn studies, cannot be trusted to read"
        )
    return config


def mark(folder: Path) -> None:
    """Make the folder of a pruned model one that nothing but `configuration` reads, with `PRUNED` as the reason."""
    path = folder / "config.json"
    stated = json.loads(path.read_bytes())
    if "srdyn_kept" in stated:
        stated |= {OWN_TYPE: stated["model_type"], "model_type": PRUNED}
        path.write_text(json.dumps(stated, indent=2, sort_keys=True) + "\n", "utf-8")


def _require_known(where: str, stated: dict, known: bool) -> None:
    if not known and "auto_map" in stated:
        raise ValueError(
            f"{where} brings its own code, and without it transformers {transformers.__version__} has no model of type "
            f"{stated.get('model_type')!r}: read that code, and if you trust it, load(..., trust_remote_code=True)"
        )
    if not known:
        raise ValueError(
            f"{where} is a {stated.get('model_type')!r}, which neither transformers {transformers.__version__} nor "
            "flash-linear-attention knows; srdyn.architectures.supported() lists what is studied here"
        )


def may_have_tokenizer(where: str) -> bool:
    """Whether tokenizer files lie in the folder; of a hub name only the hub knows."""
    return not Path(where).is_dir() or any(Path(where).glob("tokenizer*"))


def unreachable(where: str, error: OSError) -> OSError:
    """What to do about a checkpoint that cannot be got, told from what the hub's client raised on the way."""
    causes = list(_causes(error))
    if any(isinstance(cause, errors.GatedRepoError) for cause in causes):
        advice = (
            f"its owner asks for consent: accept the conditions on https://huggingface.co/{where}, then run "
            "`hf auth login`"
        )
    elif any(isinstance(cause, errors.RepositoryNotFoundError) for cause in causes):
        advice = "the hub knows no such repository, or it is private: check the name, or run `hf auth login`"
    elif any(isinstance(cause, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled) for cause in causes):
        advice = (
            "it is not in the local cache and the hub is out of reach: connect to it (HF_HUB_OFFLINE unset), or run "
            f"`hf download {where}` where it can be reached and give the folder"
        )
    else:
        advice = (
            "give a folder with config.json and safetensors weights, or the name of a hub repository that has them "
            "while the hub can be reached (HF_HUB_OFFLINE unset)"
        )
    what = where if Path(where).is_dir() else f"{where} is no folder seen from {Path.cwd()}; as a name on the hub it"
    return OSError(f"{what} cannot be loaded: {advice}. transformers says: {error}")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def folder(where: str, config: PreTrainedConfig) -> Path | None:
    """Where a checkpoint's files lie on this machine, None for a hub name whose weights are not in the cache."""
    if Path(where).is_dir():
        return Path(where)
    kept = huggingface_hub.try_to_load_from_cache(where, "config.json", revision=getattr(config, "_commit_hash", None))
    return Path(kept).parent if isinstance(kept, str) and weight_files(Path(kept).parent) else None


def weight_files(place: Path) -> list[Path]:
    """The safetensors files of a checkpoint, those that its index names where it has one; some may be missing."""
    index = place / "model.safetensors.index.json"
    if index.is_file():
        return sorted({place / name for name in json.loads(index.read_bytes())["weight_map"].values()})
    return sorted(place.glob("*.safetensors"))


def require_whole(place: Path) -> int:
    """How many bytes of weights a folder holds. Raises OSError where they are not safetensors, missing, or cut off."""
    files = weight_files(place)
    if not files:
        pickled = sorted(path.name for pattern in _PICKLED for path in place.glob(pattern))
        what = f"only pickled weights ({pickled[0]}), which can run code when they are opened" if pickled else "none"
        raise OSError(
            f"{place} cannot be loaded: weights must be in safetensors format, and it has {what}; convert them where "
            "they come from (save_pretrained writes safetensors)"
        )
    return sum(_whole(path) for path in files)


def _whole(path: Path) -> int:
    if not path.is_file():
        raise OSError(f"{path} is missing, although the checkpoint's index names it: download the checkpoint again")
    size = path.stat().st_size
    try:
        with safetensors.safe_open(path, framework="pt"):
            return size
    except safetensors.SafetensorError as error:
        raise OSError(f"{path} is cut off: it holds {size} bytes ({error}); download or copy it again") from error


def require_space(where: str, weights: int) -> None:
    """Raises OSError where the weights of a hub repository would not fit on the disk of the local cache."""
    cache = Path(huggingface_hub.constants.HF_HUB_CACHE)
    standing = next(path for path in (cache, *cache.parents) if path.exists())
    free = shutil.disk_usage(standing).free
    if weights > free:
        raise OSError(
            f"{where} takes {weights / 1e9:.1f} GB on disk, and {standing} has {free / 1e9:.1f} GB free: make room, or "
            "set HF_HOME to a larger disk"
        )


def builder(config: PreTrainedConfig) -> type:
    """The class that builds a checkpoint's model; for a pruned one it cuts the layers before weights are read.

    That is a causal language model, of a family that also sees (Qwen3.5) its text part; GLM-5 has none without eyes.
    """
    known, automatic = _READS, transformers.AutoModelForCausalLM
    if type(config) not in _READS and type(config) in _SEES:
        known, automatic = _SEES, transformers.AutoModelForImageTextToText
    kept = getattr(config, "srdyn_kept", None)
    if kept is None:
        return automatic
    stock = known[type(config)]

    def build(hf: PreTrainedModel, config: PreTrainedConfig, *arguments, **options) -> None:
        own = config if isinstance(config, stock.config_class) else config.get_text_config(decoder=True)
        stock.__init__(hf, own, *arguments, **options)
        architectures.keep_heads(hf, kept)
        hf.__class__ = stock

    # transformers reads the class's name and its module's source.
    return type(stock.__name__, (stock,), {"__init__": build, "__module__": stock.__module__})


@contextlib.contextmanager
def _fla_unseen(stock: bool) -> Iterator[None]:
    """Import the files of a `stock` model as if flash-linear-attention were not there, where no device can run it.

    They would take its functions, which crash on a CPU, and importing it takes seconds; what is imported stays so.
    """
    if not stock or "fla" in sys.modules or torch.accelerator.is_available():
        yield
        return
    sys.modules["fla"] = None
    try:
        yield
    finally:
        del sys.modules["fla"]


def outline(config: PreTrainedConfig, *, dtype: torch.dtype, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model that a configuration describes, without weights; ValueError where it is no causal language model."""
    remote = getattr(config, "auto_map", None) or {}
    known = any(type(config) in mapping for mapping in (_READS, _SEES))
    if not known and not (trust_remote_code and "AutoModelForCausalLM" in remote):
        raise ValueError(f"{config.model_type} is no causal language model, so it keeps no state while it reads")
    with torch.device("meta"), _fla_unseen(known and not trust_remote_code):
        build = builder(config)
        if issubclass(build, PreTrainedModel):
            return build._from_config(config, dtype=dtype)
        return build.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
