"""Gated DeltaNet layers of the Qwen families and of OLMo Hybrid."""

import types
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from transformers import PreTrainedModel

from srdyn.architectures import recipe, slicing
from srdyn.kernels import decode, scan


class GatedDeltaNet(recipe.Recipe):
    """Scalar decay per value head, `g = −exp(A_log)·softplus(a + dt_bias)`, write strength `beta = sigmoid(b)`."""

    chunk_tap, step_tap = "torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule"
    conv_step = "causal_conv1d_update"
    sizes = ("num_v_heads", "num_k_heads", "head_k_dim", "head_v_dim")
    shared = ("query", "key")
    rows: ClassVar = {
        "conv1d": "qkv", "A_log": "head", "dt_bias": "head", "conv_dim": "qkv", "key_dim": "key", "value_dim": "value",
    }  # fmt: skip

    def cpu_functions(self, mixer: nn.Module) -> dict[str, Callable]:
        """For many tokens the compiled scan, which is exact wherever it is cut; for a single one, `decode`."""
        functions = super().cpu_functions(mixer)
        functions |= {self.chunk_tap: scan.gated_delta_rule, self.step_tap: decode.gated_delta_rule}
        return functions | {self.conv_step: decode.convolution(functions[self.conv_step])}


class Qwen3Next(GatedDeltaNet):
    """b and a come from one projection whose rows are grouped by key head."""

    mixers = ("transformers.models.qwen3_next.modeling_qwen3_next.Qwen3NextGatedDeltaNet",)
    model_types = ("qwen3_next",)
    rows: ClassVar = GatedDeltaNet.rows | {"in_proj_qkvz": "qkvz", "in_proj_ba": "ba"}

    def units(self, mixer: nn.Module, value_heads: Sequence[int], key_heads: Sequence[int]) -> dict[str, recipe.Rows]:
        # The module itself tells whose row is which: it gets the rows' numbers to put in order.
        numbers = (torch.arange(x.out_features)[None, None] for x in (mixer.in_proj_qkvz, mixer.in_proj_ba))
        q, k, v, z, b, a = (x[0, 0] for x in mixer.fix_query_key_value_ordering(*numbers))
        keys, values = slicing.blocks(key_heads), slicing.blocks(value_heads)
        qkvz = torch.cat([q[keys].flatten(), k[keys].flatten(), v[values].flatten(), z[values].flatten()])
        units = super().units(mixer, value_heads, key_heads)
        return units | {"qkvz": qkvz, "ba": torch.cat([b[values], a[values]])}

    def cut(self, mixer: nn.Module, value_heads: Sequence[int], key_heads: Sequence[int]) -> None:
        super().cut(mixer, value_heads, key_heads)
        mixer.fix_query_key_value_ordering = types.MethodType(_ungrouped, mixer)

    def as_stock(self, mixer: nn.Module, *, repeat_keys: bool) -> None:
        """Rows of one key head after the other again: q, k, v, z and b, a of each."""
        super().as_stock(mixer, repeat_keys=repeat_keys)
        projections = mixer.in_proj_qkvz, mixer.in_proj_ba
        numbers = (torch.arange(x.out_features)[None, None] for x in projections)
        places = [x.flatten() for x in type(mixer).fix_query_key_value_ordering(mixer, *numbers)]
        for projection, parts in zip(projections, (places[:4], places[4:]), strict=True):
            projection.weight = slicing.taken(projection.weight, torch.cat(parts).argsort())


class Qwen35(GatedDeltaNet):
    """b and a have a projection each, rows in the order of the value heads."""

    mixers = (
        "transformers.models.qwen3_5.modeling_qwen3_5.Qwen3_5GatedDeltaNet",
        "transformers.models.qwen3_5_moe.modeling_qwen3_5_moe.Qwen3_5MoeGatedDeltaNet",
        "transformers.models.qwen4_exp.modeling_qwen4_exp.Qwen4ExpTextGatedDeltaNet",
    )
    model_types = ("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text", "qwen4_exp", "qwen4_exp_text")
    rows: ClassVar = GatedDeltaNet.rows | {
        "in_proj_qkv": "qkv", "in_proj_z": "value", "in_proj_b": "head", "in_proj_a": "head"
    }  # fmt: skip


class OlmoHybrid(GatedDeltaNet):
    """Every input has a projection of its own; a write may overshoot, `beta = 2·sigmoid(b)`, where the model lets it.

    Beyond beta = 1 the transition has an eigenvalue between −1 and 0 along the key.
    """

    mixers = ("transformers.models.olmo_hybrid.modeling_olmo_hybrid.OlmoHybridGatedDeltaNet",)
    model_types = ("olmo_hybrid",)
    rows: ClassVar = GatedDeltaNet.rows | {
        "q_proj": "key", "k_proj": "key", "v_proj": "value", "g_proj": "value", "a_proj": "head", "b_proj": "head"
    }  # fmt: skip

    def as_engines_read(self, mixer: nn.Module, stock: PreTrainedModel, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Queries', keys' and values' convolutions each under its name; transformers 5.23 writes thirds, all alike."""
        (heads, keys, K, V), apart = self.heads(mixer), {}
        for name, x in state.items():
            parts = x.split([keys * K, keys * K, heads * V]) if name.endswith(".conv1d.weight") else [x]
            names = [name.replace(".conv1d.", f".{part}_conv1d.") for part in "qkv"] if len(parts) == 3 else [name]
            apart |= {one: part.contiguous() for one, part in zip(names, parts, strict=True)}
        return apart


def _ungrouped(mixer: nn.Module, qkvz: Shaped[Tensor, "B T rows"], ba: Shaped[Tensor, "B T two_H"]) -> tuple:
    """What Qwen3-Next's `fix_query_key_value_ordering` returns, from rows that lie head after head, kind after kind."""
    widths = [mixer.head_k_dim * mixer.num_k_heads] * 2 + [mixer.value_dim] * 2
    q, k, v, z = qkvz.split(widths, dim=-1)
    q, k = (x.unflatten(-1, (-1, mixer.head_k_dim)) for x in (q, k))
    v, z = (x.unflatten(-1, (-1, mixer.head_v_dim)) for x in (v, z))
    return q, k, v, z, *ba.chunk(2, dim=-1)
