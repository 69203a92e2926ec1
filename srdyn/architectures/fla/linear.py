"""Layers of flash-linear-attention's models that decay and write, and erase nothing."""

import copy
import functools
import importlib
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from srdyn.architectures import rebinding, recipe, slicing
from srdyn.architectures.fla import layers
from srdyn.kernels import recurrence


class Writer(layers.Layer):
    """Value heads here are query heads: those that share keys and values hold the same state each."""

    shared = ("k", "v")
    sizes = ("num_heads", "num_kv_heads", "head_k_dim", "head_v_dim")
    rule = staticmethod(recurrence.gated_linear_attention)
    rows: ClassVar = layers.Layer.rows | {
        "q_proj": "channel", "k_proj": "key", "v_proj": "shared value", "g_proj": "value",
        "q_conv1d": "channel", "k_conv1d": "key", "v_conv1d": "shared value",
    }  # fmt: skip

    def cut(self, mixer: nn.Module, value_heads: Sequence[int], key_heads: Sequence[int]) -> None:
        super().cut(mixer, value_heads, key_heads)
        # The layer would copy keys as if they served equally many heads.
        mixer.num_kv_groups = 1


class GatedLinearAttention(Writer):
    """A decay for each key channel, `g = log sigmoid(gk) / gate_logit_normalizer`, not below `clamp_min`."""

    mixers = ("fla.layers.gla.GatedLinearAttention",)
    model_types = ("gla",)
    gating = "per channel"
    state_axes = ("V", "K")
    chunk_tap, step_tap = "chunk_gla", "fused_recurrent_gla"
    timed = ("q", "k", "v", "g", "gk")
    shared = ("k", "v", "g", "gk")
    log_decay = ("g", "gk")
    rows: ClassVar = Writer.rows | {"gk_proj.1": "key"}

    def inputs(self, call: recipe.Call) -> recipe.Inputs:
        q, k, v, g = call.floats("q", "k", "v", "g" if "g" in call.timed else "gk")
        return recipe.Inputs(q=q, k=k, v=v, g=g)


class SimpleGatedLinearAttention(Writer):
    """One decay a head, `g = log sigmoid(gk) / gate_logit_normalizer`; a layer that no model of fla 0.6 has."""

    mixers = ("fla.layers.simple_gla.SimpleGatedLinearAttention",)
    model_types = ()
    state_axes = ("V", "K")
    chunk_tap, step_tap = "chunk_simple_gla", "fused_recurrent_simple_gla"
    timed = ("q", "k", "v", "g")
    rows: ClassVar = Writer.rows | {"gk_proj": "head"}

    def inputs(self, call: recipe.Call) -> recipe.Inputs:
        q, k, v, g = call.floats(*self.timed)
        return recipe.Inputs(q=q, k=k, v=v, g=g[..., None].expand_as(k))


class HGRN2(GatedLinearAttention):
    """As `GatedLinearAttention` with `g = log sigmoid(f)` above the layer's lower bound, and the key `1 − exp(g)`.

    The output is normed over all heads, those that are ablated counted: a pruned layer's norm has weights and an ε that
    make up for its fewer channels.
    """

    mixers = ("fla.layers.hgrn2.HGRN2Attention",)
    model_types = ("hgrn2",)
    shared = ()
    sizes = ("num_heads", "num_heads", "head_f_dim", "head_i_dim")
    rows: ClassVar = layers.Layer.rows | {
        "q_proj": "channel", "f_proj": "channel", "i_proj": "value", "g_norm": "value",
        "q_conv1d": "channel", "f_conv1d": "channel", "i_conv1d": "value", "forget_dim": "key", "input_dim": "value",
    }  # fmt: skip

    def bind(self, mixer: nn.Module) -> None:
        super().bind(mixer)
        if self.is_pruned(mixer):
            if _own_bound not in mixer._forward_pre_hooks.values():
                mixer.register_forward_pre_hook(_own_bound, with_kwargs=True)
            norm = rebinding.meaning(mixer, "rms_norm_linear")
            narrower = self.unpruned(mixer).H / len(self.kept(mixer))
            # The layer leaves ε to the function, whose default is 1e-5.
            rebinding.bind(mixer, {"rms_norm_linear": functools.partial(norm, eps=1e-5 * narrower)})

    def cut(self, mixer: nn.Module, value_heads: Sequence[int], key_heads: Sequence[int]) -> None:
        narrower = mixer.num_heads / max(len(value_heads), 1)
        super().cut(mixer, value_heads, key_heads)
        mixer.g_norm.weight.data *= narrower**0.5


class Retention(Writer):
    """One fixed decay a head, which goes by the number that the head had before any pruning: log(1 − 2^(−5−h))."""

    mixers = ("fla.layers.multiscale_retention.MultiScaleRetention",)
    model_types = ("retnet",)
    gating = "per head, fixed"
    chunk_tap, step_tap = "chunk_retention", "fused_recurrent_retention"
    timed = ("q", "k", "v")
    decay: Float[Tensor, " H"] | None = None

    def of(self, mixer: nn.Module) -> "Retention":
        known = copy.copy(super().of(mixer))
        every = torch.log1p(-torch.exp2(-5.0 - torch.arange(self.unpruned(mixer).H)))
        known.decay = every[list(self.kept(mixer))]
        return known

    def inputs(self, call: recipe.Call) -> recipe.Inputs:
        q, k, v = call.floats(*self.timed)
        decay = call.options.get("g_gamma", self.decay)
        return recipe.Inputs(q=q, k=k, v=v, g=decay.to(k.device)[:, None].expand_as(k))

    def forgetting(self, call: recipe.Call, decay: recipe.Decay) -> recipe.Call:
        own = call.options.get("g_gamma", self.decay)
        return call._replace(options=call.options | {"g_gamma": decay.of(own.expand(1, 1, -1))[0, 0]})

    def bind(self, mixer: nn.Module) -> None:
        # fla's own has the decays of its heads' present numbers, and no others.
        ops = importlib.import_module("fla.ops.simple_gla")
        stock = ops.chunk_simple_gla, ops.fused_recurrent_simple_gla
        decaying = (_decaying(self.of(mixer).decay, function) for function in stock)
        rebinding.bind(mixer, dict(zip(self.readers, decaying, strict=True)))
        super().bind(mixer)


def _decaying(decay: Float[Tensor, " held"], function: Callable) -> Callable:
    @functools.wraps(function)
    def call(*, q: Tensor, g_gamma: Tensor = decay, **options) -> tuple[Tensor, Tensor | None]:
        return function(q=q, **options, g_gamma=g_gamma.to(q.device))

    return call


def _own_bound(mixer: nn.Module, arguments: tuple, options: dict) -> tuple[tuple, dict]:
    """Give a pruned layer the bound of its own channels, out of the model's for all."""
    bound = options.get("lower_bound")
    if bound is None:
        return arguments, options
    channels = slicing.blocks(mixer.srdyn_kept, mixer.head_f_dim)
    return arguments, options | {"lower_bound": bound[channels.to(bound.device)]}
