"""Weights that come to the computing device a decoder layer at a time, each once in a pass, and leave again.

accelerate's hooks place and remove them. Its own offload to disk is not used: it writes a second copy of what
transformers puts together from several weights, such as all experts, and maps files, whose pages count as memory.
"""

import collections
import copy
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import accelerate
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, core_model_loading
from transformers.modeling_utils import LoadStateDictConfig, LoadStateDictInfo

from srdyn import architectures
from srdyn.loading import files


class Shards(Mapping[str, Tensor]):
    """The parameters of a model by name, read from safetensors files and converted when they are asked for.

    `conversions` are those of transformers, from the names and shapes in the files to those of the model. Nothing is
    kept, except where one conversion makes several parameters. Files are read, not mapped.
    """

    def __init__(self, hf: PreTrainedModel, files: Mapping[str, Path], conversions: list) -> None:
        """`files` tells in which file each of the checkpoint's tensors lies."""
        self.hf, self.files = hf, files
        self.unexpected: set[str] = set()
        self._wanted = dict(hf.state_dict(keep_vars=True))
        self._sources: dict[str, list[tuple[str, str | None]]] = {}
        self._made_with: dict[str, str] = {}
        self._waiting: dict[str, Tensor] = {}
        self._opened = functools.cache(lambda path: safe_open(path, framework="pt", backend="pread"))
        self._converters = [x for x in conversions if isinstance(x, core_model_loading.WeightConverter)]
        renamings = [x for x in conversions if isinstance(x, core_model_loading.WeightRenaming)]
        for key in sorted(files, key=core_model_loading.dot_natural_key):
            self._place(key, renamings)

    def _place(self, key: str, renamings: list) -> None:
        """Note what the checkpoint's tensor `key` is for."""
        about = {"base_model_prefix": self.hf.base_model_prefix, "meta_state_dict": self._wanted}
        rename = functools.partial(core_model_loading.rename_source_key, key, **about)
        name, pattern = rename(weight_renamings=renamings, weight_converters=self._converters)
        if name not in self._wanted and key in self._wanted:
            name, pattern = rename(weight_renamings=[], weight_converters=[])
        if name not in self._wanted:
            self.unexpected.add(key)
            return
        self._sources.setdefault(name, []).append((key, pattern))
        if pattern is not None:
            first, *others = self._converter(pattern).target_patterns
            self._made_with |= {name.replace(first, other): name for other in others}

    def _converter(self, pattern: str) -> core_model_loading.WeightConverter:
        return next(x for x in self._converters if pattern in x.source_patterns)

    def __iter__(self) -> Iterator[str]:
        return iter([*self._sources, *self._made_with])

    def __len__(self) -> int:
        return len(self._sources) + len(self._made_with)

    def __getitem__(self, name: str) -> Tensor:
        if name in self._waiting:
            return self._waiting.pop(name)
        tied = self.hf.all_tied_weights_keys
        stored = self._made_with.get(name, name)
        if stored not in self._sources and name in tied:
            return self[tied[name]]
        made = self._converted(stored)
        self._waiting |= {other: value for other, value in made.items() if other != name}
        return made[name]

    def _converted(self, name: str) -> dict[str, Tensor]:
        """Everything that comes of the tensors behind `name`, as the model wants it."""
        (key, pattern), *_ = self._sources[name]
        if pattern is None:
            made = {name: self._read(key)}
        else:
            conversion = copy.deepcopy(self._converter(pattern))
            for source, matched in self._sources[name]:
                conversion.add_tensor(name, source, matched, functools.partial(self._read, source))
            made = conversion.convert(name, model=self.hf, config=self.hf.config)
        flat = {name: value[0] if isinstance(value, list) else value for name, value in made.items()}
        # Cast last: what is put together of many tensors takes less room as it is stored.
        return {name: value.to(self._wanted[name].dtype) for name, value in flat.items()}

    def _read(self, key: str) -> Tensor:
        return self._opened(self.files[key]).get_tensor(key)


class Changed(collections.ChainMap[str, Tensor]):
    """A model's parameters and buffers by name, those of recurrent layers as a change of the layers leaves them.

    `change` is done to a copy of one layer, in place, when one of its tensors is asked for; the others of this layer
    are all that is kept. Only names from before the change are listed.
    """

    def __init__(self, hf: PreTrainedModel, change: Callable[[architectures.Site], None]) -> None:
        names = {id(module): name for name, module in hf.named_modules()}
        self._sites = {f"{names[id(site.mixer)]}.": site for site in architectures.sites(hf)}
        self._weights, self._change = weights(hf), change
        self._waiting: dict[str, Tensor] = {}
        super().__init__(self._weights)

    def __getitem__(self, name: str) -> Tensor:
        prefix = next((x for x in self._sites if name.startswith(x)), None)
        if prefix is None:
            return self._weights[name]
        if name not in self._waiting:
            site = self._sites[prefix]._replace(mixer=copy.deepcopy(self._sites[prefix].mixer))
            held = {x: self._weights[prefix + x] for x, _ in site.mixer.named_parameters()}
            site.mixer.load_state_dict(held, strict=False, assign=True)
            self._change(site)
            self._waiting = {prefix + x: value for x, value in site.mixer.state_dict().items()}
        return self._waiting.pop(name)


def weights(hf: PreTrainedModel) -> Mapping[str, Tensor]:
    """A model's parameters and buffers by name, wherever they are kept."""
    return hf.get_input_embeddings()._hf_hook.weights_map.dataset if is_attached(hf) else hf.state_dict()


def save(
    hf: PreTrainedModel, folder: Path, held: Mapping[str, Tensor], *, apart: bool, named: Callable[[dict], dict] = dict
) -> None:
    """Write what `hf.save_pretrained` does, but the weights `held`, under the names that `named` gives them.

    `apart` gives each part, a layer or what lies beside them, a file of its own, and one part is held at a time.
    """
    wanted, index, parts = hf.state_dict(), {}, collections.defaultdict(list)

    def read(names: Iterable[str]) -> dict[str, Tensor]:
        found = {name: held[name] for name in names}
        assert all(x.shape == wanted[name].shape for name, x in found.items()), "a layer has other tensors"
        return named(found)

    if not apart:
        hf.save_pretrained(folder, state_dict=read(wanted))
        return
    hf.save_pretrained(folder, state_dict={})  # all but the weights
    for name in [name for name in wanted if name not in hf.all_tied_weights_keys]:
        parts[part_of(name)].append(name)
    for number, names in enumerate(tqdm(parts.values(), desc="layers written", leave=False), 1):
        stored = core_model_loading.revert_weight_conversion(hf, read(names))
        file = f"model-{number:05}-of-{len(parts):05}.safetensors"
        save_file({name: x.contiguous() for name, x in stored.items()}, folder / file, {"format": "pt"})
        index |= dict.fromkeys(stored, file)
        del stored  # before the next is read
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    about = {"metadata": {"total_size": size}, "weight_map": index}
    files.write_json(folder / "model.safetensors.index.json", about)


def part_of(name: str) -> str:
    """The part that a parameter is brought in with: its layer, or itself where it lies beside them."""
    words = name.split(".")
    end = next((i for i, word in enumerate(words) if word.isdigit()), len(words) - 1)
    return ".".join(words[: end + 1])


def from_pretrained(stock: type, where: str, **options) -> tuple[PreTrainedModel, dict, Shards]:
    """As `stock.from_pretrained`, with its loading report, but parameters stay in the checkpoint's files, for `attach`.

    Buffers are read at once. `stock` is a model's class, not one of the Auto classes.
    """
    found = []

    def later(hf: PreTrainedModel, _state: None, files: list[str], settings: LoadStateDictConfig):
        lies: dict[str, Path] = {}
        for file in files:
            with safe_open(file, framework="pt", backend="pread") as opened:
                lies |= dict.fromkeys(opened.keys(), Path(file))
        shards = Shards(hf, lies, settings.weight_mapping or [])
        found.append(shards)
        wanted = set(hf.state_dict())
        for name in wanted & dict(hf.named_buffers()).keys() & shards.keys():
            accelerate.utils.set_module_tensor_to_device(hf, name, "cpu", value=shards[name])
        for parameter in hf.parameters():
            parameter._is_hf_initialized = True
        report = LoadStateDictInfo(wanted - shards.keys(), shards.unexpected, set(), [], {}, set())
        return report, None

    methods = {"_load_pretrained_model": staticmethod(later), "__module__": stock.__module__}
    patient = type(stock.__name__, (stock,), methods)
    hf, report = patient.from_pretrained(where, output_loading_info=True, **options)
    if type(hf) is patient:
        hf.__class__ = stock
    return hf, report, found[0]


def attach(hf: PreTrainedModel, weights: Mapping[str, Tensor], device: torch.device) -> None:
    """Let every part of a model, a layer or what lies beside them, take its parameters from `weights` when it starts.

    It drops them when it is done; the model's own go to the meta device. A bar shows the layers of a pass.
    """
    depth, decoder = hf.config.get_text_config(decoder=True).num_hidden_layers, hf.get_decoder()
    lists = (module for module in decoder.modules() if isinstance(module, nn.ModuleList))
    layers = list(next(found for found in lists if len(found) == depth))
    accelerate.hooks.attach_align_device_hook(
        hf, execution_device=device, offload=True, weights_map=weights,
        preload_module_classes=[type(layer).__name__ for layer in layers],
    )  # fmt: skip
    _show_progress(decoder, layers)


def is_attached(hf: nn.Module) -> bool:
    """Whether weights come to this model from elsewhere, so that it holds none to change."""
    return any(parameter.device.type == "meta" for parameter in hf.parameters())


def _show_progress(decoder: nn.Module, layers: list[nn.Module]) -> None:
    bars: list[tqdm] = []

    def start(*_) -> None:
        bars.append(tqdm(total=len(layers), desc="layers read", delay=10, leave=False))

    def step(*_) -> None:
        if bars:
            bars[-1].update()

    def stop(*_) -> None:
        bars.pop().close()

    decoder.register_forward_pre_hook(start)
    decoder.register_forward_hook(stop, always_call=True)
    for layer in layers:
        layer.register_forward_hook(step)
