"""The models that the benchmark measures."""

import inspect
from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor

from srdyn import architectures, models, pruning
from srdyn.architectures import linear_cache, rebinding
from srdyn.loading import files, reference

QWEN3_NEXT = {"heads": 32, "head": 128}
"""The real geometry of a linear layer of Qwen3-Next-80B: 32 value heads on 16 key heads, 128 × 128 each."""


def shipped(name: str) -> models.Model:
    """A reference model of data/models, on the CPU."""
    return models.load(files.data_dir() / "models" / name, device="cpu")


def drawn(layers: int, **sizes: int) -> models.Model:
    """A model of linear layers alone with weights as before training; `sizes` as `reference.config` has them."""
    hf = reference.initialise("pure", seed=0, layers=layers, **sizes)
    return models.from_hf(hf.eval(), name=f"{layers} layers", seed=0)


def smaller(model: models.Model, removed: float) -> models.Model:
    """The model without a share of its heads, drawn over all layers: which ones matters to no clock."""
    score = torch.rand(model.grid.L, model.grid.H, generator=torch.Generator().manual_seed(0))
    return pruning.prune_heads(model, pruning.select(score, removed))


def copied(model: models.Model) -> models.Model:
    """The same weights in a model of its own, its layers as `models.from_hf` leaves them."""
    return pruning.prune_heads(model, torch.ones(model.grid.L, model.grid.H, dtype=torch.bool))


def stock_functions(site: architectures.Site) -> dict[str, Callable]:
    """What a linear layer calls on a CPU without srdyn: the plain torch functions of its modelling file."""
    file = inspect.getmodule(type(site.mixer))
    return {name: inspect.unwrap(getattr(file, name)) for name in site.recipe.cpu_functions(site.mixer)}


def stock(model: models.Model) -> models.Model:
    """The same weights in a model whose linear layers call `stock_functions`."""
    found = copied(model)
    for site in architectures.sites(found.hf):
        rebinding.bind(site.mixer, stock_functions(site))
    return found


def tokens(model: models.Model, B: int, T: int) -> Int[Tensor, "B T"]:
    """Tokens drawn from the vocabulary."""
    return torch.randint(model.hf.config.vocab_size, (B, T), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def read(model: models.Model, ids: Int[Tensor, "B T"], *, cached: bool = False) -> object:
    """One pass of the decoder, as `states.trace` makes it; with `cached` what it leaves for the next token."""
    cache = linear_cache.empty(model.hf) if cached else None
    model.hf.get_decoder()(input_ids=ids, use_cache=cached, past_key_values=cache)
    return cache
