"""Layers of flash-linear-attention's models that erase before they write."""

import copy
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from srdyn.architectures import recipe
from srdyn.architectures.fla import layers, rules
from srdyn.kernels import recurrence

Gates = tuple[Float[Tensor, "B T H"], Float[Tensor, "B T H"]]


QKV = {
    "q_proj": "key", "k_proj": "key", "v_proj": "value", "q_conv1d": "key", "k_conv1d": "key", "v_conv1d": "value",
}  # fmt: skip
"""What all of these layers have, as `layers.Layer.rows` says it."""


class GatedDeltaNet(layers.Layer):
    """`g = −exp(A_log)·softplus(a + dt_bias)` and `beta = sigmoid(b)`, doubled where negative eigenvalues are allowed.

    Both are taken by the recurrence before softplus and sigmoid.
    """

    mixers = ("fla.layers.gated_deltanet.GatedDeltaNet",)
    model_types = ("gated_deltanet",)
    gating = "per head"
    state_axes = ("V", "K")
    chunk_tap = "chunk_gated_delta_rule"
    step_tap = "fused_recurrent_gated_delta_rule"
    rows: ClassVar = QKV | {
        "a_proj": "head", "b_proj": "head", "A_log": "head", "dt_bias": "head", "g_proj": "value",
    }  # fmt: skip

    def gates(self, mixer: nn.Module, hidden: Float[Tensor, "B T M"]) -> Gates:
        g = -mixer.A_log.float().exp() * F.softplus(mixer.a_proj(hidden).float() + mixer.dt_bias)
        return g, _beta(mixer, hidden)

    def inputs(self, call: recipe.Call) -> recipe.Inputs:
        (q, k, v), options = call.floats("q", "k", "v"), call.options
        g = rules.log_decay(call.timed["g"], options["A_log"], options["dt_bias"], options.get("lower_bound"))
        beta = rules.write_strength(call.timed["beta"], is_logit=True, allow_neg_eigval=options["allow_neg_eigval"])
        return recipe.Inputs(q=recurrence.l2norm(q), k=recurrence.l2norm(k), v=v, g=g, beta=beta)


class KimiDeltaAttention(GatedDeltaNet):
    """A decay for each key channel: `g = −exp(A_log)·softplus(f + dt_bias)`, or bounded from below by a sigmoid."""

    mixers = ("fla.layers.kda.KimiDeltaAttention",)
    model_types = ("kda",)
    gating = "per channel"
    chunk_tap = "chunk_kda"
    step_tap = "fused_recurrent_kda"
    rule = staticmethod(recurrence.kimi_delta_rule)
    rows: ClassVar = QKV | {
        "f_proj.1": "channel", "b_proj": "head", "A_log": "head", "dt_bias": "channel", "g_proj.1": "value",
    }  # fmt: skip

    def gates(self, mixer: nn.Module, hidden: Float[Tensor, "B T M"]) -> Gates:
        """g is the mean over the key channels of a head."""
        heads = self.heads(mixer)
        f = mixer.f_proj(hidden).float().unflatten(-1, (heads.H, heads.K)) + mixer.dt_bias.view(heads.H, heads.K)
        rate = mixer.A_log.float().exp()[:, None]
        bound = mixer.lower_bound
        g = -rate * F.softplus(f) if bound is None else bound * (rate * f).sigmoid()
        return g.mean(-1), _beta(mixer, hidden)

    def cut(self, mixer: nn.Module, value_heads: Sequence[int], key_heads: Sequence[int]) -> None:
        super().cut(mixer, value_heads, key_heads)
        mixer.gate_dim = mixer.num_v_heads * mixer.head_k_dim


class DeltaNet(layers.Layer):
    """No decay; `beta = sigmoid(b)`, doubled where negative eigenvalues are allowed, or 1."""

    mixers = ("fla.layers.delta_net.DeltaNet",)
    model_types = ("delta_net",)
    gating = "none"
    has_decay = False
    chunk_tap = "chunk_delta_rule"
    step_tap = "fused_recurrent_delta_rule"
    shared = ()
    counts = ("num_heads", "num_heads")
    rows: ClassVar = QKV | {"b_proj": "head", "g_proj": "value"}

    def gates(self, mixer: nn.Module, hidden: Float[Tensor, "B T M"]) -> Gates:
        if mixer.use_beta:
            beta = _beta(mixer, hidden)
        else:
            beta = hidden.new_full((*hidden.shape[:2], mixer.num_heads), 1 + mixer.allow_neg_eigval).float()
        return torch.zeros_like(beta), beta

    def inputs(self, call: recipe.Call) -> recipe.Inputs:
        q, k, v, beta = call.floats("q", "k", "v", "beta")
        if call.options["use_qk_l2norm_in_kernel"]:
            q, k = recurrence.l2norm(q), recurrence.l2norm(k)
        return recipe.Inputs(q=q, k=k, v=v, g=torch.zeros_like(beta), beta=beta)


class GatedDeltaProduct(layers.Layer):
    """Several writes a token, the decay before them optional; the gates of a token are g and the mean of its betas."""

    mixers = ("fla.layers.gated_deltaproduct.GatedDeltaProduct",)
    model_types = ("gated_deltaproduct",)
    gating = "per head, or none"
    chunk_tap = "chunk_gated_delta_product"
    step_tap = "fused_recurrent_gated_delta_rule"
    rule = staticmethod(recurrence.gated_delta_product)
    rows: ClassVar = GatedDeltaNet.rows
    repeated = ("k_proj", "v_proj", "b_proj", "k_conv1d", "v_conv1d")
    writes: int | None = None

    def of(self, mixer: nn.Module) -> "GatedDeltaProduct":
        known = copy.copy(super().of(mixer))
        known.writes, known.has_decay = mixer.num_householder, mixer.use_forget_gate
        return known

    def convolution_width(self, mixer: nn.Module) -> int | None:
        """None: each token writes several values."""
        return None

    def gates(self, mixer: nn.Module, hidden: Float[Tensor, "B T M"]) -> Gates:
        beta = _beta(mixer, hidden).unflatten(-1, (mixer.num_householder, -1)).mean(2)
        if not mixer.use_forget_gate:
            return torch.zeros_like(beta), beta
        return -mixer.A_log.float().exp() * F.softplus(mixer.a_proj(hidden).float() + mixer.dt_bias), beta

    def taken_apart(self, arguments: tuple, options: dict) -> recipe.Call:
        """One row a token in every tensor, whether the call is chunked or fused, which has one for each write."""
        call = super().taken_apart(arguments, options)
        timed = {
            name: x.unflatten(1, (-1, self.writes)) for name, x in call.timed.items() if name in ("k", "v", "beta")
        }
        is_fused = "num_householder" not in call.options
        for name, place in (("q", -1), ("g", 0)):
            x = call.timed.get(name)
            if x is not None:
                timed[name] = x.unflatten(1, (-1, self.writes))[:, :, place] if is_fused else x
        return recipe.Call(timed, call.state, call.options)

    def run(self, function: Callable, call: recipe.Call) -> tuple[Tensor, Tensor]:
        timed = {name: x.flatten(1, 2) for name, x in call.timed.items() if name in ("k", "v", "beta")}
        for name, place in (("q", -1), ("g", 0)):
            x = call.timed.get(name)
            if x is None:
                timed[name] = None
            elif "num_householder" in call.options:
                timed[name] = x
            else:
                rows = x.new_zeros(*x.shape[:2], self.writes, *x.shape[2:])
                rows[:, :, place] = x
                timed[name] = rows.flatten(1, 2)
        named = call.options | timed | {"initial_state": call.state, "output_final_state": True}
        return function(**named)

    def inputs(self, call: recipe.Call) -> recipe.Inputs:
        q, k, v, beta = call.floats("q", "k", "v", "beta")
        g = call.timed["g"].float() if "g" in call.timed else beta.new_zeros(q.shape[:3])
        return recipe.Inputs(q=recurrence.l2norm(q), k=recurrence.l2norm(k), v=v, g=g, beta=beta)

    def heads(self, mixer: nn.Module) -> recipe.Heads:
        return super().heads(mixer)._replace(key_heads=getattr(mixer, "srdyn_key_heads", mixer.num_heads))

    def cut(self, mixer: nn.Module, value_heads: Sequence[int], key_heads: Sequence[int]) -> None:
        super().cut(mixer, value_heads, key_heads)
        # The layer would copy keys as if they served equally many heads.
        mixer.num_heads, mixer.srdyn_key_heads = mixer.num_v_heads, len(key_heads)

    def copies(self, mixer: nn.Module, path: str) -> int:
        return mixer.num_householder if path in self.repeated else 1


class Comba(layers.Layer):
    """Gates as in Gated DeltaNet; the key that erases is a share of the key, which the query loses a part of."""

    mixers = ("fla.layers.comba.Comba",)
    model_types = ("comba",)
    gating = "per head"
    chunk_tap = "chunk_comba"
    step_tap = "fused_recurrent_comba"
    timed = ("q", "k", "v", "p", "g", "beta")
    shared = ("q", "k", "p")
    rule = staticmethod(recurrence.comba)
    rows: ClassVar = GatedDeltaNet.rows | {"decay": "key head", "D": "key head"}
    gates = GatedDeltaNet.gates

    def inputs(self, call: recipe.Call) -> recipe.Inputs:
        q, k, p = (recurrence.l2norm(x) for x in call.floats("q", "k", "p"))
        v, g, beta = call.floats("v", "g", "beta")
        return recipe.Inputs(q=q, k=k, v=v, p=p, g=g, beta=beta)


def _beta(mixer: nn.Module, hidden: Float[Tensor, "B T M"]) -> Float[Tensor, "B T _"]:
    return mixer.b_proj(hidden).float().sigmoid() * (2 if getattr(mixer, "allow_neg_eigval", False) else 1)
