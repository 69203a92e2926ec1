"""Gated DeltaNet layers of the Qwen families."""

import abc
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from srdyn import recurrence, scan
from srdyn.architectures import recipe


class GatedDeltaNet(recipe.Recipe):
    """Scalar decay per value head, `g = −exp(A_log)·softplus(a + dt_bias)`, write strength `beta = sigmoid(b)`.

    Value head h reads with key head h // (H / key_heads).
    """

    gating = "G1"
    chunk_tap = "torch_chunk_gated_delta_rule"
    step_tap = "torch_recurrent_gated_delta_rule"

    @abc.abstractmethod
    def gate_logits(
        self, mixer: nn.Module, hidden: Float[Tensor, "B T M"]
    ) -> tuple[Float[Tensor, "B T H"], Float[Tensor, "B T H"]]:
        """b and a, before sigmoid and softplus."""

    def index(self, mixer: nn.Module) -> int:
        return mixer.layer_idx

    def heads(self, mixer: nn.Module) -> recipe.Heads:
        return recipe.Heads(mixer.num_v_heads, mixer.num_k_heads, mixer.head_k_dim, mixer.head_v_dim)

    def gates(
        self, mixer: nn.Module, hidden: Float[Tensor, "B T M"]
    ) -> tuple[Float[Tensor, "B T H"], Float[Tensor, "B T H"]]:
        b, a = self.gate_logits(mixer, hidden)
        g = -mixer.A_log.float().exp() * F.softplus(a.float() + mixer.dt_bias)
        return g, b.sigmoid().float()

    def conv_values(self, mixer: nn.Module) -> int:
        return mixer.conv_dim * mixer.conv_kernel_size

    def cpu_functions(self, mixer: nn.Module) -> dict[str, Callable]:
        """The plain torch functions, but for many tokens the compiled scan, which is exact wherever it is cut."""
        return super().cpu_functions(mixer) | {self.chunk_tap: scan.gated_delta_rule}

    def inputs(self, query: Tensor, key: Tensor, value: Tensor, *, g: Tensor, beta: Tensor) -> recipe.Inputs:
        q, k, v, g, beta = (x.to(torch.float32) for x in (query, key, value, g, beta))
        return recipe.Inputs(recurrence.l2norm(q), recurrence.l2norm(k), v, g, beta)


class Qwen3Next(GatedDeltaNet):
    """b and a come from one projection whose rows are grouped by key head."""

    mixers = ("transformers.models.qwen3_next.modeling_qwen3_next.Qwen3NextGatedDeltaNet",)
    model_types = ("qwen3_next",)
    slicing = "R1"

    def gate_logits(
        self, mixer: nn.Module, hidden: Float[Tensor, "B T M"]
    ) -> tuple[Float[Tensor, "B T H"], Float[Tensor, "B T H"]]:
        by_key_head = mixer.in_proj_ba(hidden).unflatten(-1, (mixer.num_k_heads, -1))
        b, a = by_key_head.chunk(2, dim=-1)
        return b.flatten(-2), a.flatten(-2)


class Qwen35(GatedDeltaNet):
    """b and a have a projection each, rows in the order of the value heads."""

    mixers = (
        "transformers.models.qwen3_5.modeling_qwen3_5.Qwen3_5GatedDeltaNet",
        "transformers.models.qwen3_5_moe.modeling_qwen3_5_moe.Qwen3_5MoeGatedDeltaNet",
    )
    model_types = ("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text")
    slicing = "R2"

    def gate_logits(
        self, mixer: nn.Module, hidden: Float[Tensor, "B T M"]
    ) -> tuple[Float[Tensor, "B T H"], Float[Tensor, "B T H"]]:
        return mixer.in_proj_b(hidden), mixer.in_proj_a(hidden)
