"""Which recipe describes a recurrent layer, chosen by the layer's class."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd
from torch import nn
from transformers import PreTrainedModel

from srdyn.architectures import kimi, mamba, olmo, qwen, recipe, unsupported
from srdyn.architectures.fla import delta, linear, rwkv

_RECIPES: dict[str, recipe.Recipe] = {}


class Site(NamedTuple):
    """One recurrent layer of a model: its place in the decoder, the module that holds the state, its recipe."""

    index: int
    mixer: nn.Module
    recipe: recipe.Recipe


def supported() -> pd.DataFrame:
    """One row per layer class that srdyn can study: its models, which heads can be cut out, what decays, the state."""
    rows = [
        {
            "mixer": name,
            "model_types": ", ".join(known.model_types),
            "slicing": known.slicing,
            "gating": known.gating,
            "state": "[B, H, " + ", ".join(known.state_axes) + "]",
        }
        for name, known in _RECIPES.items()
    ]
    return pd.DataFrame(rows)


def refusal(hf: nn.Module) -> str | None:
    """Why the model cannot be studied, where it has recurrent layers of a refused class; else None.

    A class with a recipe is not refused, whoever registered it.
    """
    reasons = (unsupported.reason(module) for module in hf.modules() if adapter_for(module) is None)
    return next((reason for reason in reasons if reason is not None), None)


def adapter_for(module: nn.Module) -> recipe.Recipe | None:
    """The recipe of a module's class or of its nearest known base class; None for a module that holds no known state.

    The class decides, never `config.model_type`: importing flash-linear-attention re-registers some model types.
    """
    names = (f"{base.__module__}.{base.__qualname__}" for base in type(module).__mro__)
    return next((_RECIPES[name] for name in names if name in _RECIPES), None)


def sites(hf: nn.Module) -> list[Site]:
    """The recurrent layers of a model in decoder order; empty where there is none that srdyn knows."""
    found = ((module, adapter_for(module)) for module in hf.modules())
    known = [Site(adapter.index(mixer), mixer, adapter.of(mixer)) for mixer, adapter in found if adapter is not None]
    return sorted(known, key=lambda site: site.index)


def keep_heads(hf: PreTrainedModel, kept: Mapping[str, Sequence[int]]) -> None:
    """Cut the recurrent layers down, in place, to the heads that `kept` lists under their places in the decoder.

    Heads have the numbers they had before any pruning; layers that are not listed stay whole. `config.srdyn_kept` says
    what was kept. Nothing runs before `Recipe.make_runnable`. Raises ValueError for a place without such a layer, and
    as `Recipe.keep` does.
    """
    by_place = {str(site.index): site for site in sites(hf)}
    unknown = sorted(kept.keys() - by_place.keys())
    if unknown:
        raise ValueError(f"heads are kept in the layers {', '.join(by_place)} of this model, not in {unknown}")
    for place, heads in kept.items():
        by_place[place].recipe.keep(by_place[place].mixer, heads)
    hf.config.srdyn_kept = {place: list(heads) for place, heads in kept.items()}


def register(adapter: recipe.Recipe) -> None:
    """Make a recipe known. Raises ValueError where another one already describes one of its classes."""
    taken = [name for name in adapter.mixers if name in _RECIPES]
    if taken:
        raise ValueError(f"{', '.join(taken)} already has a recipe ({type(_RECIPES[taken[0]]).__name__})")
    _RECIPES.update(dict.fromkeys(adapter.mixers, adapter))


register(qwen.Qwen3Next())
register(qwen.Qwen35())
register(olmo.OlmoHybrid())
register(kimi.KimiDeltaAttention())
register(kimi.BoundedKimiDeltaAttention())
register(kimi.BailingDeltaAttention())
register(mamba.StateSpaceDual())
register(mamba.Mamba2())
register(mamba.FalconH1())
register(delta.GatedDeltaNet())
register(delta.KimiDeltaAttention())
register(delta.DeltaNet())
register(delta.GatedDeltaProduct())
register(delta.Comba())
register(linear.GatedLinearAttention())
register(linear.SimpleGatedLinearAttention())
register(linear.Retention())
register(linear.HGRN2())
register(rwkv.Rwkv6())
register(rwkv.Rwkv7())
