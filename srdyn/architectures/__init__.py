"""What differs between families of linear-attention models: for each a recipe, chosen by the class of its layers.

To add a family, follow notebooks/site/extend.md: at least its `mixers`, `model_types`, `sizes`, `rows`, `chunk_tap` and
`step_tap` are its own, and comments in `recipe.Recipe` say what each means and what else may differ.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

import pandas as pd
from torch import nn
from transformers import PreTrainedModel

from srdyn.architectures import gated_deltanet, kimi, mamba, recipe, unsupported
from srdyn.architectures.fla import delta, linear, rwkv

KNOWN = (
    gated_deltanet.Qwen3Next, gated_deltanet.Qwen35, gated_deltanet.OlmoHybrid,
    kimi.KimiDeltaAttention, kimi.BoundedKimiDeltaAttention, kimi.BailingDeltaAttention,
    mamba.StateSpaceDual, mamba.Mamba2, mamba.FalconH1,
    delta.GatedDeltaNet, delta.KimiDeltaAttention, delta.DeltaNet, delta.GatedDeltaProduct, delta.Comba,
    linear.GatedLinearAttention, linear.SimpleGatedLinearAttention, linear.Retention, linear.HGRN2,
    rwkv.Rwkv6, rwkv.Rwkv7,
)  # fmt: skip
_RECIPES: dict[str, recipe.Recipe] = {}
_Entry = TypeVar("_Entry")


class Site(NamedTuple):
    """One recurrent layer of a model: its place in the decoder, the module that holds the state, its recipe."""

    index: int
    mixer: nn.Module
    recipe: recipe.Recipe


def supported() -> pd.DataFrame:
    """One row per layer class that srdyn can study: its models, which heads can be cut out, what decays, the state."""
    known = _RECIPES.values()
    columns = {"mixer": list(_RECIPES), "model_types": [", ".join(x.model_types) for x in known]}
    columns |= {name: [getattr(x, name) for x in known] for name in ("slicing", "gating")}
    return pd.DataFrame(columns | {"state": [f"[B, H, {', '.join(x.state_axes)}]" for x in known]})


def refusal(hf: nn.Module) -> str | None:
    """Why the model cannot be studied, where it has recurrent layers of a refused class without a recipe; else None."""
    kinds = dict.fromkeys(map(type, hf.modules()))  # few, of many modules
    reasons = (_by_class(kind, unsupported.REASONS) for kind in kinds if recipe_for(kind) is None)
    return next((reason for reason in reasons if reason is not None), None)


def recipe_for(kind: type) -> recipe.Recipe | None:
    """The recipe of a class of modules or of its nearest known base; None where such a module holds no known state."""
    return _by_class(kind, _RECIPES)


def sites(hf: nn.Module) -> list[Site]:
    """The recurrent layers of a model in decoder order; empty where there is none that srdyn knows."""
    modules = list(hf.modules())
    known = {kind: recipe_for(kind) for kind in {*map(type, modules)}}
    found = [(module, known[type(module)]) for module in modules if known[type(module)] is not None]
    return sorted((Site(mixer.layer_idx, mixer, x.of(mixer)) for mixer, x in found), key=lambda site: site.index)


def keep_heads(hf: PreTrainedModel, kept: Mapping[str, Sequence[int]]) -> None:
    """Cut the recurrent layers down, in place, to the heads that `kept` lists under their places in the decoder.

    Heads have the numbers they had before any pruning; layers that are not listed stay whole. Nothing runs before
    `Recipe.make_runnable`. Raises ValueError for a place without such a layer, and as `Recipe.keep` does.
    """
    lists = kept.values() if isinstance(kept, Mapping) else [None]
    if not all(isinstance(x, Sequence) and all(type(head) is int for head in x) for x in lists):
        raise ValueError(f"the heads that are kept must be lists of numbers by layer, not {kept!r:.60}")
    by_place = {str(site.index): site for site in sites(hf)}
    unknown = sorted(kept.keys() - by_place.keys())
    if unknown:
        raise ValueError(f"heads are kept in the layers {', '.join(by_place)} of this model, not in {unknown}")
    for place, heads in kept.items():
        by_place[place].recipe.keep(by_place[place].mixer, heads)
    hf.config.srdyn_kept = {place: list(heads) for place, heads in kept.items()}


def register(known: recipe.Recipe) -> None:
    """Make a recipe known. Raises ValueError where another one already describes one of its classes."""
    taken = [name for name in known.mixers if name in _RECIPES]
    if taken:
        raise ValueError(f"{', '.join(taken)} already has a recipe ({type(_RECIPES[taken[0]]).__name__})")
    _RECIPES.update(dict.fromkeys(known.mixers, known))


def registered() -> list[str]:
    """The classes of layers that this process alone knows, by `register`."""
    return [name for name in _RECIPES if name not in _SHIPPED]


def _by_class(kind: type, known: Mapping[str, _Entry]) -> _Entry | None:
    """The entry under the full name of the class, or of the nearest of its bases that has one."""
    names = (f"{base.__module__}.{base.__qualname__}" for base in kind.__mro__)
    return next((known[name] for name in names if name in known), None)


for _recipe in KNOWN:
    register(_recipe())
_SHIPPED = frozenset(_RECIPES)
