"""Layers of flash-linear-attention's models that erase before they write."""

import copy
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from srdyn.architectures import recipe
from srdyn.architectures.fla import layers
from srdyn.kernels import recurrence


class Eraser(layers.Layer):
    """Queries and keys are normalised unless the call says otherwise; without g no head forgets."""

    rows: ClassVar = layers.Layer.rows | {
        "q_proj": "key", "k_proj": "key", "v_proj": "value", "q_conv1d": "key", "k_conv1d": "key", "v_conv1d": "value",
    }  # fmt: skip

    def inputs(self, call: recipe.Call) -> recipe.Inputs:
        read = {name: call.timed[name].float() for name in self.timed if name in call.timed}
        if call.options.get("use_qk_l2norm_in_kernel", True):
            read |= {name: recurrence.l2norm(read[name]) for name in ("q", "k", "p") if name in read}
        beta = read.pop("beta")
        read.setdefault("g", beta.new_zeros(read["q"].shape[:3]))
        return recipe.Inputs(**read, beta=beta)


class GatedDeltaNet(Eraser):
    """`g = −exp(A_log)·softplus(a + dt_bias)`, `beta = sigmoid(b)` or twice that, both made by the recurrence."""

    mixers = ("fla.layers.gated_deltanet.GatedDeltaNet",)
    model_types = ("gated_deltanet",)
    state_axes = ("V", "K")
    chunk_tap, step_tap = "chunk_gated_delta_rule", "fused_recurrent_gated_delta_rule"
    rows: ClassVar = Eraser.rows | {
        "a_proj": "head", "b_proj": "head", "A_log": "head", "dt_bias": "head", "g_proj": "value",
    }  # fmt: skip

    def inputs(self, call: recipe.Call) -> recipe.Inputs:
        options, g = call.options, call.timed["g"]
        if options["use_gate_in_kernel"]:
            g = log_decay(g, options["A_log"], options["dt_bias"], options.get("lower_bound"))
        beta = call.timed["beta"].float().sigmoid() * (2 if options["allow_neg_eigval"] else 1)
        return super().inputs(call._replace(timed=call.timed | {"g": g, "beta": beta}))

    def forgetting(self, call: recipe.Call, decay: recipe.Decay) -> recipe.Call:
        """The call with log-decays where it had what the kernel makes them of."""
        gate = ("A_log", "dt_bias", "lower_bound", "safe_gate")
        options = {name: x for name, x in call.options.items() if name not in gate} | {"use_gate_in_kernel": False}
        timed = call.timed | {"g": decay.of(self.inputs(call).g)}
        return call._replace(timed=timed, options=options)


class KimiDeltaAttention(GatedDeltaNet):
    """A decay for each key channel: `g = −exp(A_log)·softplus(f + dt_bias)`, or bounded from below by a sigmoid."""

    mixers = ("fla.layers.kda.KimiDeltaAttention",)
    model_types = ("kda",)
    gating = "per channel"
    chunk_tap, step_tap = "chunk_kda", "fused_recurrent_kda"
    rule = staticmethod(recurrence.kimi_delta_rule)
    rows: ClassVar = Eraser.rows | {
        "f_proj.1": "channel", "b_proj": "head", "A_log": "head", "dt_bias": "channel", "g_proj.1": "value",
        "gate_dim": "channel",
    }  # fmt: skip


class DeltaNet(Eraser):
    """No decay; `beta = sigmoid(b)`, doubled where negative eigenvalues are allowed, or 1."""

    mixers = ("fla.layers.delta_net.DeltaNet",)
    model_types = ("delta_net",)
    gating = "none"
    has_decay = False
    chunk_tap, step_tap = "chunk_delta_rule", "fused_recurrent_delta_rule"
    shared = ()
    sizes = ("num_heads", "num_heads", "head_k_dim", "head_v_dim")
    rows: ClassVar = Eraser.rows | {"b_proj": "head", "g_proj": "value"}


class GatedDeltaProduct(Eraser):
    """Several writes a token, the decay before them optional; the gates of a token are g and the mean of its betas."""

    mixers = ("fla.layers.gated_deltaproduct.GatedDeltaProduct",)
    model_types = ("gated_deltaproduct",)
    gating = "per head, or none"
    chunk_tap, step_tap = "chunk_gated_delta_product", "fused_recurrent_gated_delta_rule"
    rule = staticmethod(recurrence.gated_delta_product)
    rows: ClassVar = GatedDeltaNet.rows | {
        "k_proj": "keys", "k_conv1d": "keys", "v_proj": "values", "v_conv1d": "values", "b_proj": "writes",
    }  # fmt: skip
    once: ClassVar = {"q": -1, "g": 0}
    """What a token has one row of, and where that lies among as many rows as it writes."""
    writes: int | None = None

    def of(self, mixer: nn.Module) -> "GatedDeltaProduct":
        known = copy.copy(super().of(mixer))
        known.writes, known.has_decay = mixer.num_householder, mixer.use_forget_gate
        return known

    def convolution_width(self, mixer: nn.Module) -> int | None:
        """None: each token writes several values."""
        return None

    def taken_apart(self, arguments: tuple, options: dict) -> recipe.Call:
        """One row a token in every tensor, whether the call is chunked or fused, which has one for each write."""
        call = super().taken_apart(arguments, options)
        is_fused, timed = "num_householder" not in call.options, {}
        for name, x in call.timed.items():
            once = name in self.once
            rows = x.unflatten(1, (-1, self.writes)) if is_fused or not once else x
            timed[name] = rows[:, :, self.once[name]] if is_fused and once else rows
        return call._replace(timed=timed)

    def run(self, function: Callable, call: recipe.Call) -> tuple[Tensor, Tensor]:
        is_fused, timed = "num_householder" not in call.options, {}
        for name, x in call.timed.items():
            if name in self.once and is_fused:
                rows = x.new_zeros(*x.shape[:2], self.writes, *x.shape[2:])
                rows[:, :, self.once[name]] = x
            else:
                rows = x
            timed[name] = rows.flatten(1, 2) if is_fused or name not in self.once else rows
        return super().run(function, call._replace(timed=timed))

    def on_cpu(self, **options) -> tuple[Tensor, Tensor | None]:
        """As for any layer; the fused form has a row for each write, of which the layer takes a token's last."""
        outputs, last = super().on_cpu(**options)
        return outputs if "num_householder" in options else outputs.repeat_interleave(self.writes, dim=1), last

    def heads(self, mixer: nn.Module) -> recipe.Heads:
        return super().heads(mixer)._replace(key_heads=getattr(mixer, "srdyn_key_heads", mixer.num_heads))

    def cut(self, mixer: nn.Module, value_heads: Sequence[int], key_heads: Sequence[int]) -> None:
        super().cut(mixer, value_heads, key_heads)
        # The layer would copy keys as if they served equally many heads.
        mixer.num_heads, mixer.srdyn_key_heads = mixer.num_v_heads, len(key_heads)

    def units(self, mixer: nn.Module, value_heads: Sequence[int], key_heads: Sequence[int]) -> dict[str, recipe.Rows]:
        """Keys, values and strengths of a token's writes, write after write, as well."""
        units, (H, all_keys, K, V) = super().units(mixer, value_heads, key_heads), self.heads(mixer)
        for name, unit, size in (("keys", "key", all_keys * K), ("values", "value", H * V), ("writes", "head", H)):
            units[name] = torch.cat([units[unit] + size * write for write in range(mixer.num_householder)])
        return units


class Comba(Eraser):
    """Gates as in Gated DeltaNet; the key that erases is a share of the key, which the query loses a part of."""

    mixers = ("fla.layers.comba.Comba",)
    model_types = ("comba",)
    chunk_tap, step_tap = "chunk_comba", "fused_recurrent_comba"
    timed = ("q", "k", "v", "p", "g", "beta")
    shared = ("q", "k", "p")
    rule = staticmethod(recurrence.comba)
    rows: ClassVar = GatedDeltaNet.rows | {"decay": "key head", "D": "key head"}


def log_decay(
    g: Float[Tensor, "B T H *K"], A_log: Float[Tensor, " H"] | None, dt_bias: Float[Tensor, " _"] | None,
    lower_bound: float | None = None,
) -> Float[Tensor, "B T H *K"]:  # fmt: skip
    """What the kernels make of a raw g: −exp(A_log)·softplus(g + dt_bias), or lower_bound·sigmoid(exp(A_log)·(…))."""
    g = g.float() if dt_bias is None else g.float() + dt_bias.float().view(g.shape[2:])
    rate = torch.ones(()) if A_log is None else A_log.float().exp().view(-1, *[1] * (g.ndim - 3))
    return -rate * F.softplus(g) if lower_bound is None else lower_bound * (rate * g).sigmoid()
