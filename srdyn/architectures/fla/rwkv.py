"""RWKV layers of flash-linear-attention's models.

Beside the recurrence a head adds the bias of its norm, in RWKV-7 the token's own value as well; an ablated one neither.
"""

import contextlib
from typing import ClassVar

from jaxtyping import Bool
from torch import Tensor, nn
from transformers import PreTrainedModel

from srdyn.architectures import recipe, slicing
from srdyn.architectures.fla import layers
from srdyn.kernels import recurrence


class Rwkv(layers.Layer):
    """A decay for each key channel, no key shared; the last token is cached for the layer and for its feed-forward."""

    gating = "per channel"
    log_decay = ("w",)
    shared = ()
    sizes = ("num_heads", "num_heads", "head_k_dim", "head_v_dim")

    def conv_values(self, mixer: nn.Module) -> int:
        """The last token that the layer read and, since they go together, the one that its feed-forward read."""
        return 2 * mixer.hidden_size if self.kept(mixer) else mixer.hidden_size

    def convolution_width(self, mixer: nn.Module) -> int:
        """Two: every projection mixes a token with the one before it."""
        return 2

    def silencing(self, mixer: nn.Module, chosen: Bool[Tensor, " held"]) -> contextlib.AbstractContextManager:
        columns = chosen.repeat_interleave(self.heads(mixer).V)

        def silenced(_projection: nn.Module, arguments: tuple) -> tuple[Tensor]:
            return (arguments[0].masked_fill(columns.to(arguments[0].device), 0),)

        return mixer.o_proj.register_forward_pre_hook(silenced)


class Rwkv6(Rwkv):
    """`g = −exp(w)`; the token itself is read with a bonus."""

    mixers = ("fla.layers.rwkv6.RWKV6Attention",)
    model_types = ("rwkv6",)
    chunk_tap, step_tap = "chunk_rwkv6", "fused_recurrent_rwkv6"
    timed = ("r", "k", "v", "w")
    rule = staticmethod(recurrence.rwkv6)
    rows: ClassVar = layers.Layer.rows | {
        "r_proj.linear": "channel", "k_proj.linear": "channel", "w_proj.linear.lora.2": "channel", "bonus": "head",
        "v_proj.linear": "value", "g_proj.linear": "value", "g_norm": "value", "g_norm.num_groups": "head",
    }  # fmt: skip

    def inputs(self, call: recipe.Call) -> recipe.Inputs:
        r, k, v, w = call.floats(*self.timed)
        # Cloned, it is no parameter where no gradients are taken.
        return recipe.Inputs(q=call.options["scale"] * r, k=k, v=v, g=w, bonus=call.options["u"].float().clone())


class Rwkv7(Rwkv):
    """`g = −exp(−1/2)·sigmoid(w)` and a rank-one part of the transition.

    Layers after the first mix the first layer's values into their own, so the first has to keep the heads of all.
    """

    mixers = ("fla.layers.rwkv7.RWKV7Attention",)
    model_types = ("rwkv7",)
    chunk_tap, step_tap = "chunk_rwkv7", "fused_mul_recurrent_rwkv7"
    sizes = ("num_heads", "num_heads", "head_dim", "head_v_dim")
    timed = ("r", "w", "k", "v", "kk", "a", "b")
    rule = staticmethod(recurrence.rwkv7)
    rows: ClassVar = layers.Layer.rows | {
        "r_proj": "channel", "k_proj": "channel", "w_lora.lora.2": "channel", "a_lora.lora.2": "channel",
        "k_k": "channel", "k_a": "channel", "r_k": "head", "v_proj": "value", "v_lora.lora.2": "value",
        "g_lora.lora.2": "value", "g_norm": "value", "g_norm.num_groups": "head",
    }  # fmt: skip

    def inputs(self, call: recipe.Call) -> recipe.Inputs:
        r, k, v, w = call.floats("r", "k", "v", "w")
        if "b" in call.timed:
            a, b = call.floats("a", "b")
        else:
            kk, share = call.floats("kk", "a")
            a, b = -kk, kk * share
        return recipe.Inputs(q=call.options["scale"] * r, k=k, v=v, g=w, a=a, b=b)

    @staticmethod
    def nothing(mixer: nn.Module, hidden_states: Tensor, v_first: Tensor | None = None, **options) -> tuple:
        """As for any layer, with the first layer's values handed on."""
        return *Rwkv.nothing(mixer, hidden_states, **options), v_first

    def make_model_runnable(self, hf: PreTrainedModel) -> None:
        """As for any model. Raises ValueError where the first layer lacks a head that a later one holds."""
        super().make_model_runnable(hf)
        layers = [layer.attn for layer in hf.get_decoder().layers]
        first = self.kept(layers[0])
        for mixer in layers[1:]:
            missing = sorted(set(self.kept(mixer)) - set(first))
            if missing:
                raise ValueError(
                    f"decoder layer {mixer.layer_idx} keeps the heads {missing}, which mix in values of the first "
                    f"layer's: it has to keep them too, and keeps {list(first)}"
                )
            if self.kept(mixer) not in ((), first) and not hasattr(mixer, "srdyn_own"):
                mixer.register_forward_pre_hook(_take_own, with_kwargs=True)
                mixer.register_forward_hook(_hand_on)
                mixer.srdyn_own = None
            if hasattr(mixer, "srdyn_own"):
                mixer.srdyn_own = slicing.blocks([first.index(head) for head in self.kept(mixer)], mixer.head_v_dim)


def _take_own(mixer: nn.Module, arguments: tuple, options: dict) -> tuple[tuple, dict]:
    """Give a pruned layer its own heads' channels of the first layer's values."""
    whole, own = options["v_first"], mixer.srdyn_own
    if whole.shape[-1] == len(own):
        return arguments, options
    narrow = whole[..., own.to(whole.device)]
    narrow.srdyn_whole = whole
    return arguments, options | {"v_first": narrow}


def _hand_on(_mixer: nn.Module, _arguments: tuple, outputs: tuple) -> tuple:
    """Hand the whole of them on to the next layer."""
    *others, v_first = outputs
    return *others, getattr(v_first, "srdyn_whole", v_first)
