"""Gated DeltaNet layers of OLMo Hybrid."""

from collections.abc import Sequence

from jaxtyping import Float, Int64
from torch import Tensor, nn

from srdyn.architectures import delta, slicing


class OlmoHybrid(delta.GatedDeltaNet):
    """Every input has a projection of its own; a write may overshoot, `beta = 2·sigmoid(b)`, where the model lets it.

    Beyond beta = 1 the transition has an eigenvalue between −1 and 0 along the key.
    """

    mixers = ("transformers.models.olmo_hybrid.modeling_olmo_hybrid.OlmoHybridGatedDeltaNet",)
    model_types = ("olmo_hybrid",)
    slicing = "any heads"
    gating = "per head"

    def gate_logits(
        self, mixer: nn.Module, hidden: Float[Tensor, "B T M"]
    ) -> tuple[Float[Tensor, "B T H"], Float[Tensor, "B T H"]]:
        return mixer.b_proj(hidden), mixer.a_proj(hidden)

    def gates(
        self, mixer: nn.Module, hidden: Float[Tensor, "B T M"]
    ) -> tuple[Float[Tensor, "B T H"], Float[Tensor, "B T H"]]:
        g, beta = super().gates(mixer, hidden)
        return g, 2 * beta if mixer.allow_neg_eigval else beta

    def projection_rows(
        self, mixer: nn.Module, value_heads: Sequence[int], key_heads: Sequence[int]
    ) -> dict[str, Int64[Tensor, " rows"]]:
        keys, values = slicing.blocks(key_heads, mixer.head_k_dim), slicing.blocks(value_heads, mixer.head_v_dim)
        one_each = slicing.blocks(value_heads)
        return {
            "q_proj": keys, "k_proj": keys, "v_proj": values, "g_proj": values, "a_proj": one_each, "b_proj": one_each
        }  # fmt: skip

    def readout(self, mixer: nn.Module) -> nn.Linear:
        return mixer.o_proj
