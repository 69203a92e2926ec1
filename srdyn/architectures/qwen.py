"""Gated DeltaNet layers of the Qwen families."""

import types
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from srdyn.architectures import delta, slicing


class Qwen3Next(delta.GatedDeltaNet):
    """b and a come from one projection whose rows are grouped by key head."""

    mixers = ("transformers.models.qwen3_next.modeling_qwen3_next.Qwen3NextGatedDeltaNet",)
    model_types = ("qwen3_next",)
    slicing = "any heads"

    def gate_logits(
        self, mixer: nn.Module, hidden: Float[Tensor, "B T M"]
    ) -> tuple[Float[Tensor, "B T H"], Float[Tensor, "B T H"]]:
        groups = 1 if self.is_pruned(mixer) else mixer.num_k_heads
        b, a = mixer.in_proj_ba(hidden).unflatten(-1, (groups, -1)).chunk(2, dim=-1)
        return b.flatten(-2), a.flatten(-2)

    def projection_rows(
        self, mixer: nn.Module, value_heads: Sequence[int], key_heads: Sequence[int]
    ) -> dict[str, Int64[Tensor, " rows"]]:
        # The module itself tells whose row is which: it gets the rows' numbers to put in order.
        numbers = (torch.arange(x.out_features)[None, None] for x in (mixer.in_proj_qkvz, mixer.in_proj_ba))
        q, k, v, z, b, a = (x[0, 0] for x in mixer.fix_query_key_value_ordering(*numbers))
        keys, values = slicing.blocks(key_heads), slicing.blocks(value_heads)
        return {
            "in_proj_qkvz": torch.cat([q[keys].flatten(), k[keys].flatten(), v[values].flatten(), z[values].flatten()]),
            "in_proj_ba": torch.cat([b[values], a[values]]),
        }

    def cut(self, mixer: nn.Module, value_heads: Sequence[int], key_heads: Sequence[int]) -> None:
        super().cut(mixer, value_heads, key_heads)
        mixer.fix_query_key_value_ordering = types.MethodType(_ungrouped, mixer)


class Qwen35(delta.GatedDeltaNet):
    """b and a have a projection each, rows in the order of the value heads."""

    mixers = (
        "transformers.models.qwen3_5.modeling_qwen3_5.Qwen3_5GatedDeltaNet",
        "transformers.models.qwen3_5_moe.modeling_qwen3_5_moe.Qwen3_5MoeGatedDeltaNet",
        "transformers.models.qwen4_exp.modeling_qwen4_exp.Qwen4ExpTextGatedDeltaNet",
    )
    model_types = ("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text", "qwen4_exp", "qwen4_exp_text")
    slicing = "any heads"

    def gate_logits(
        self, mixer: nn.Module, hidden: Float[Tensor, "B T M"]
    ) -> tuple[Float[Tensor, "B T H"], Float[Tensor, "B T H"]]:
        return mixer.in_proj_b(hidden), mixer.in_proj_a(hidden)

    def projection_rows(
        self, mixer: nn.Module, value_heads: Sequence[int], key_heads: Sequence[int]
    ) -> dict[str, Int64[Tensor, " rows"]]:
        return {
            "in_proj_qkv": slicing.channels(self.heads(mixer), value_heads=value_heads, key_heads=key_heads),
            "in_proj_z": slicing.blocks(value_heads, mixer.head_v_dim),
            "in_proj_b": slicing.blocks(value_heads),
            "in_proj_a": slicing.blocks(value_heads),
        }


def _ungrouped(
    mixer: nn.Module, qkvz: Shaped[Tensor, "B T rows"], ba: Shaped[Tensor, "B T two_H"]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What Qwen3-Next's `fix_query_key_value_ordering` returns, from rows that lie head after head, kind after kind."""
    widths = [mixer.head_k_dim * mixer.num_k_heads] * 2 + [mixer.value_dim] * 2
    q, k, v, z = qkvz.split(widths, dim=-1)
    q, k = (x.unflatten(-1, (-1, mixer.head_k_dim)) for x in (q, k))
    v, z = (x.unflatten(-1, (-1, mixer.head_v_dim)) for x in (v, z))
    return q, k, v, z, *ba.chunk(2, dim=-1)
