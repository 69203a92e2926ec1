"""Kimi Delta Attention layers, in which every key channel decays at a rate of its own."""

import re
from collections.abc import Callable, Sequence
from typing import ClassVar

from torch import Tensor, nn
from transformers import PreTrainedModel, conversion_mapping

from srdyn.architectures import recipe, slicing
from srdyn.kernels import recurrence


class KimiDeltaAttention(recipe.Recipe):
    """Decay `g = −exp(A_log)·softplus(f + dt_bias)` of each key channel of a head; no head shares its key."""

    mixers = ("transformers.models.kimi_linear.modeling_kimi_linear.KimiLinearDeltaAttention",)
    model_types = ("kimi_linear",)
    gating = "per channel"
    chunk_tap, step_tap = "chunk_kimi_delta_attention", "recurrent_kimi_delta_attention"
    sizes = ("num_heads", "num_heads", "head_dim", "head_dim")
    # What decays and output gates come from; of two factors the second, the first serves all heads.
    rows: ClassVar = {
        "q_proj": "key", "k_proj": "key", "v_proj": "value", "conv1d": "qkv", "b_proj": "head",
        "forget_gate.f_b_proj": "channel", "forget_gate.dt_bias": "channel", "g_b_proj": "value",
        "conv_dim": "qkv", "qkv_dim": "value", "forget_gate.qkv_dim": "value", "forget_gate.num_heads": "head",
    }  # fmt: skip
    rule = staticmethod(recurrence.kimi_delta_rule)

    def cpu_functions(self, mixer: nn.Module) -> dict[str, Callable]:
        """The plain torch functions, that of a single token for many too: it is exact wherever it is cut.

        The chunked one needs 2 GB for 2048 tokens of 32 heads with 128 channels each, and ten times as long.
        """
        functions = super().cpu_functions(mixer)
        return functions | {self.chunk_tap: functions[self.step_tap]}

    def cut(self, mixer: nn.Module, value_heads: Sequence[int], key_heads: Sequence[int]) -> None:
        super().cut(mixer, value_heads, key_heads)
        gate = mixer.forget_gate
        # A_log is [1, 1, H, 1] in Kimi Linear, [H] elsewhere.
        gate.A_log = slicing.taken(gate.A_log, slicing.blocks(value_heads), axis=gate.A_log.ndim // 2)

    def as_engines_read(self, mixer: nn.Module, stock: PreTrainedModel, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Dense feed-forward layers as such: transformers 5.23 would name them as if they were mixtures of experts.

        `stock` is told to leave the names alone.
        """
        every = conversion_mapping.get_model_conversion_mapping(stock, add_legacy=False)
        stock._weight_conversions = [x for x in every if r"\.block_sparse_moe\." not in x.source_patterns]
        sparse = "|".join(str(i) for i, kind in enumerate(stock.config.mlp_layer_types) if kind == "sparse")
        moved = (rf"(\.layers\.({sparse}))\.mlp\.", r"\1.block_sparse_moe.")
        return {re.sub(*moved, name): x for name, x in state.items()}


class BoundedKimiDeltaAttention(KimiDeltaAttention):
    """`g = bound·sigmoid(exp(A_log)·(f + dt_bias))` with a bound below 0; without one as in Kimi Linear."""

    as_engines_read = recipe.Recipe.as_engines_read

    mixers = ("transformers.models.glm5_next.modeling_glm5_next.Glm5NextTextLinearAttention",)
    model_types = ("glm5_next", "glm5_next_text")


class BailingDeltaAttention(BoundedKimiDeltaAttention):
    """Decay and output gate come from one full matrix each."""

    mixers = ("transformers.models.bailing_hybrid.modeling_bailing_hybrid.BailingHybridDeltaAttention",)
    model_types = ("bailing_hybrid",)
    rows: ClassVar = KimiDeltaAttention.rows | {"forget_gate.f_proj": "channel", "g_proj": "value"}
