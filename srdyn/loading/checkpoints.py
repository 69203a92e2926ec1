"""What a checkpoint says of itself before any weight is read: where it is, its configuration, its files."""

import contextlib
import importlib.util
import json
import os
import re
import shutil
import sys
from collections.abc import Container
from pathlib import Path

import huggingface_hub
import safetensors
import torch
import transformers
from huggingface_hub import errors
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, conversion_mapping
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from srdyn import architectures
from srdyn.loading import files, refusals, streaming

PRUNED = "pruned by srdyn, whose models.load alone reads it, while srdyn.export.save writes what others read"
"""The `model_type` of a pruned model's folder, for transformers, vLLM and others to show when they stop at it."""
OWN_TYPE = "srdyn_model_type"
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_STORED = {"F64", "F32", "F16", "BF16"}
"""What weights are read from; fewer bits are those of a quantised model, whose states are another's."""
_MOST = 10_000
_AWAY = (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)
_ADVICE = {
    errors.GatedRepoError: "its owner asks for consent: accept the conditions on https://huggingface.co/{where}, "
    "then run `hf auth login`",
    errors.RepositoryNotFoundError: "the hub knows no such repository, or it is private: check the name, or run "
    "`hf auth login`",
    _AWAY: "it is not in the local cache and the hub is out of reach: connect to it (HF_HUB_OFFLINE unset), or run "
    "`hf download {where}` where it can be reached and give the folder",
    OSError: "give a folder with config.json and safetensors weights, or the name of a hub repository that has them "
    "while the hub can be reached (HF_HUB_OFFLINE unset)",
}
"""What helps where one of these was raised on the way to a checkpoint, the first that was."""
_READS, _SEES = transformers.MODEL_FOR_CAUSAL_LM_MAPPING, transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def source(name_or_path: str | Path) -> str:
    """The folder, or the name on the Hugging Face hub. Raises FileNotFoundError for what is neither."""
    path = Path(name_or_path).expanduser()
    if os.path.isdir(path):
        for file in path.iterdir():
            if not file.is_dir():
                files.require_regular(file)
        return str(path)
    is_hub_name = isinstance(name_or_path, str) and re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name_or_path)
    if os.path.exists(path) or not is_hub_name:
        advice = "give a folder with config.json and safetensors weights, or the name of a hub repository"
        raise FileNotFoundError(f"{name_or_path!s:.200} is not a folder (seen from {Path.cwd()}): {advice}")
    return str(name_or_path)


def configuration(where: str) -> PreTrainedConfig:
    """The configuration in a folder, in the local cache, or on the hub; code that lies beside it never runs.

    It is of transformers' own class where there is one for the model type: flash-linear-attention registers others for
    some. Raises OSError where it is out of reach, ValueError where it is not known or needs code of its own.
    """
    about = f"{where} has a config.json that describes no model"
    try:
        with refusals.within(about):
            stated, _ = PreTrainedConfig.get_config_dict(where)
        _require_plain(stated, about)
        kind = stated["model_type"] = stated.pop(OWN_TYPE, stated.get("model_type"))
        if kind is None:
            raise OSError("there is no config.json that names a type of model")
        if kind not in transformers.CONFIG_MAPPING and importlib.util.find_spec("fla") is not None:
            # It makes its model types known to transformers when it is imported.
            importlib.import_module("fla")
        if kind not in transformers.CONFIG_MAPPING:
            own = "brings its own code, which srdyn does not run, for" if "auto_map" in stated else "is"
            library = f"neither transformers {transformers.__version__} nor flash-linear-attention"
            listed = "srdyn.architectures.supported() lists what is studied here"
            raise ValueError(f"{where} {own} a {kind!r}, which {library} knows; {listed}")
        own = getattr(transformers, CONFIG_MAPPING_NAMES.get(kind, ""), None)
        with refusals.within(about):
            config = (own or transformers.CONFIG_MAPPING[kind]).from_dict(stated)
    except OSError as error:
        raise unreachable(where, error) from error
    if own and hasattr(config, "fuse_norm"):
        why = f"whose weights the {kind} of transformers, which srdyn studies, cannot be trusted to read"
        raise ValueError(f"{where} is a {kind} model of flash-linear-attention, {why}")
    return config


def mark(folder: Path) -> None:
    """Make the folder of a pruned model one that nothing but `configuration` reads, with `PRUNED` as the reason."""
    path = folder / "config.json"
    stated = json.loads(path.read_bytes())
    if "srdyn_kept" in stated:
        stated |= {OWN_TYPE: stated["model_type"], "model_type": PRUNED}
        path.write_text(json.dumps(stated, indent=2, sort_keys=True) + "\n", "utf-8")


def _require_plain(stated: object, about: str) -> None:
    """Raises ValueError for what a configuration cannot say, and for what would take for ever to build."""
    kinds = [stated.get(key) for key in ("model_type", OWN_TYPE)] if isinstance(stated, dict) else [0]
    if not all(kind is None or isinstance(kind, str) for kind in kinds):
        raise ValueError(f"{about}: it must be an object whose model_type is a text, not {stated!r:.60}")
    if stated.get("quantization_config") is not None:
        raise ValueError(f"{about} that is studied here: it is quantised, take the checkpoint in 16 bits")
    parts = [stated, *(part for part in stated.values() if isinstance(part, dict))]
    for key, size in (item for part in parts for item in part.items()):
        if str(key).endswith(("layers", "heads")) and isinstance(size, int) and size > _MOST:
            raise ValueError(f"{about}: {key} is {size}, more than {_MOST}")


def may_have_tokenizer(where: str) -> bool:
    """Whether tokenizer files lie in the folder; of a hub name only the hub knows."""
    return not Path(where).is_dir() or any(Path(where).glob("tokenizer*"))


def tokenizer(where: str, config: PreTrainedConfig) -> PreTrainedTokenizerBase | None:
    """The checkpoint's tokenizer; None where none of its files lie in the folder. Raises ValueError for broken ones."""
    if not may_have_tokenizer(where):
        return None
    with refusals.within(f"{where} has a broken tokenizer, take its files from where the weights come from"):
        return AutoTokenizer.from_pretrained(where, config=config, trust_remote_code=False)


def unreachable(where: str, error: OSError) -> OSError:
    """What to do about a checkpoint that cannot be got, told from what the hub's client raised on the way."""
    causes = [error]
    while cause := causes[-1].__cause__ or causes[-1].__context__:
        causes.append(cause)
    advice = next(said for kind, said in _ADVICE.items() if any(isinstance(x, kind) for x in causes))
    what = where if Path(where).is_dir() else f"{where} is no folder seen from {Path.cwd()}; as a name on the hub it"
    said = f"{advice.format(where=where)}. transformers says: {refusals.one_line(error)}"
    return OSError(f"{what} cannot be loaded: {said}")


def folder(where: str) -> Path | None:
    """Where a checkpoint's files lie on this machine, None for a hub name whose weights are not in the cache."""
    if Path(where).is_dir():
        return Path(where)
    kept = huggingface_hub.try_to_load_from_cache(where, "config.json")
    return Path(kept).parent if isinstance(kept, str) and weight_files(Path(kept).parent) else None


def weight_files(place: Path) -> list[Path]:
    """The safetensors files of a checkpoint, those that its index names where it has one; some may be missing."""
    index = place / "model.safetensors.index.json"
    if not index.is_file():
        return sorted(place.glob("*.safetensors"))
    listed = files.read_json(index).get("weight_map")
    names = [*listed.values()] if isinstance(listed, dict) else []
    if not names or not all(isinstance(x, str) and Path(x).name == x != "" for x in names):
        raise ValueError(f"{index} must map each weight to a file beside it, under weight_map: download it again")
    return sorted(place / name for name in {*names})


def identity(where: str | Path) -> list[tuple[str, int, int]]:
    """What tells a checkpoint's weights from others without reading them: their files' names, sizes, times."""
    place = folder(source(where))
    stored = [] if place is None else weight_files(place)
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in stored]


def holds_weights(place: Path) -> bool:
    """Whether weights of any form lie in a folder."""
    return bool(weight_files(place)) or any(any(place.glob(pattern)) for pattern in _PICKLED)


def require_whole(place: Path, hf: PreTrainedModel) -> None:
    """Raises OSError where the weights in a folder are not safetensors, missing, or cut off, ValueError for another's.

    They are another's where a parameter of the model `hf` has another shape, or nothing that it could be made of.
    """
    stored = weight_files(place)
    if not stored:
        pickled = sorted(path.name for pattern in _PICKLED for path in place.glob(pattern))
        what = f"only pickled weights ({pickled[0]}), which can run code when they are opened" if pickled else "none"
        advice = "convert them where they come from (save_pretrained writes safetensors)"
        raise OSError(f"{place} cannot be loaded: weights must be in safetensors format, and it has {what}; {advice}")
    wanted = {name: list(x.shape) for name, x in hf.named_parameters()}
    shapes = {name: shape for path in stored for name, shape in _shapes(path, wanted).items()}
    read = streaming.Shards(hf, dict.fromkeys(shapes, place), conversion_mapping.get_model_conversion_mapping(hf))
    if lacking := wanted.keys() - set(read) - hf.all_tied_weights_keys.keys():
        raise ValueError(f"{place} lacks weights of the model it describes: {sorted(lacking)}")
    if wrong := sorted(name for name in shapes.keys() & wanted.keys() if shapes[name] != wanted[name]):
        told = f"{wrong[0]} is {shapes[wrong[0]]}, and should be {wanted[wrong[0]]}"
        raise ValueError(f"{place} holds weights of another model than it describes: {told}")


def _shapes(path: Path, parameters: Container[str]) -> dict[str, list[int]]:
    """The shape of each tensor in a file, from its header; whole numbers of 64 bits are none of the parameters."""
    if not path.is_file():
        raise OSError(f"{path} is missing, although the checkpoint's index names it: download the checkpoint again")
    size, found = path.stat().st_size, {}
    try:
        with safetensors.safe_open(path, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118, no mapping
                held = opened.get_slice(name)
                found[name], kind = held.get_shape(), held.get_dtype()
                counts = kind == "I64" and name not in parameters
                if found[name] and kind not in _STORED and not counts:
                    raise ValueError(f"{path} holds {name} as {kind}: take the checkpoint in 16 bits or more")
    except safetensors.SafetensorError as error:
        told = f"it holds {size} bytes ({refusals.one_line(error)})"
        raise OSError(f"{path} is cut off or broken: {told}; download or copy it again") from error
    return found


def require_space(where: str, weights: int) -> None:
    """Raises OSError where the weights of a hub repository would not fit on the disk of the local cache."""
    cache = Path(huggingface_hub.constants.HF_HUB_CACHE)
    standing = next(path for path in (cache, *cache.parents) if path.exists())
    free = shutil.disk_usage(standing).free
    if weights > free:
        room = f"{standing} has {free / 1e9:.1f} GB free: make room, or set HF_HOME to a larger disk"
        raise OSError(f"{where} takes {weights / 1e9:.1f} GB on disk, and {room}")


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


def outline(config: PreTrainedConfig, *, dtype: torch.dtype) -> PreTrainedModel:
    """The model that a configuration describes, without weights; ValueError where it is no causal language model."""
    if not any(type(config) in mapping for mapping in (_READS, _SEES)):
        raise ValueError(f"{config.model_type} is no causal language model, so it keeps no state while it reads")
    with torch.device("meta"), contextlib.ExitStack() as stack:
        stack.enter_context(refusals.within("its configuration describes no model that can be built"))
        if "fla" not in sys.modules and not torch.accelerator.is_available():
            # Its file would take functions of flash-linear-attention, which crash on a CPU, and seconds to import it.
            sys.modules["fla"] = None
            stack.callback(sys.modules.pop, "fla")
        build = builder(config)
        if issubclass(build, PreTrainedModel):
            return build._from_config(config, dtype=dtype)
        return build.from_config(config, dtype=dtype, trust_remote_code=False)
