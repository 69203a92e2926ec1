"""Gated DeltaNet layers of the Qwen families."""

import abc
import functools
import types
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from srdyn import rebinding, recurrence, scan
from srdyn.architectures import recipe


class GatedDeltaNet(recipe.Recipe):
    """Scalar decay per value head, `g = −exp(A_log)·softplus(a + dt_bias)`, write strength `beta = sigmoid(b)`.

    Value head h reads with key head h // (H / key_heads). In a pruned layer key heads may serve unequal numbers of
    value heads: there each value head gets its key's channels right behind the convolution, before anything that reads
    the recurrence's inputs, while weights and cache hold a key once.
    """

    gating = "G1"
    chunk_tap = "torch_chunk_gated_delta_rule"
    step_tap = "torch_recurrent_gated_delta_rule"

    @abc.abstractmethod
    def gate_logits(
        self, mixer: nn.Module, hidden: Float[Tensor, "B T M"]
    ) -> tuple[Float[Tensor, "B T H"], Float[Tensor, "B T H"]]:
        """b and a, before sigmoid and softplus."""

    @abc.abstractmethod
    def projection_rows(
        self, mixer: nn.Module, value_heads: Sequence[int], key_heads: Sequence[int]
    ) -> dict[str, Int64[Tensor, " rows"]]:
        """The rows of each input projection that belong to these heads."""

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

    def make_runnable(self, mixer: nn.Module) -> None:
        super().make_runnable(mixer)
        heads = self.heads(mixer)
        if self.is_pruned(mixer) and heads.H:
            channels = _channels(heads, value_heads=range(heads.H), key_heads=self.sharing(mixer))
            picking = {name: _picking(channels, rebinding.meaning(mixer, name)) for name in self.convolutions}
            rebinding.bind(mixer, picking)

    def cut(self, mixer: nn.Module, value_heads: Sequence[int], key_heads: Sequence[int]) -> None:
        heads = self.heads(mixer)
        channels = _channels(heads, value_heads=value_heads, key_heads=key_heads)
        columns = _blocks(value_heads, heads.V)
        for name, rows in self.projection_rows(mixer, value_heads, key_heads).items():
            projection = getattr(mixer, name)
            projection.weight, projection.out_features = _taken(projection.weight, rows), len(rows)
        mixer.conv1d.weight = _taken(mixer.conv1d.weight, channels)
        mixer.conv1d.in_channels = mixer.conv1d.out_channels = mixer.conv1d.groups = len(channels)
        mixer.A_log, mixer.dt_bias = (_taken(x, _blocks(value_heads)) for x in (mixer.A_log, mixer.dt_bias))
        mixer.out_proj.weight, mixer.out_proj.in_features = _taken(mixer.out_proj.weight, columns, axis=1), len(columns)
        mixer.num_v_heads, mixer.num_k_heads, mixer.conv_dim = len(value_heads), len(key_heads), len(channels)
        # Behind the convolution, where the forward asks for `key_dim`, every value head has its key to itself.
        mixer.key_dim, mixer.value_dim = heads.K * len(value_heads), heads.V * len(value_heads)

    def inputs(self, call: recipe.Call) -> recipe.Inputs:
        q, k, v, g, beta = (call.timed[name].to(torch.float32) for name in self.timed)
        return recipe.Inputs(recurrence.l2norm(q), recurrence.l2norm(k), v, g, beta)


class Qwen3Next(GatedDeltaNet):
    """b and a come from one projection whose rows are grouped by key head."""

    mixers = ("transformers.models.qwen3_next.modeling_qwen3_next.Qwen3NextGatedDeltaNet",)
    model_types = ("qwen3_next",)
    slicing = "R1"

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
        keys, values = _blocks(key_heads), _blocks(value_heads)
        return {
            "in_proj_qkvz": torch.cat([q[keys].flatten(), k[keys].flatten(), v[values].flatten(), z[values].flatten()]),
            "in_proj_ba": torch.cat([b[values], a[values]]),
        }

    def cut(self, mixer: nn.Module, value_heads: Sequence[int], key_heads: Sequence[int]) -> None:
        super().cut(mixer, value_heads, key_heads)
        mixer.fix_query_key_value_ordering = types.MethodType(_ungrouped, mixer)


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

    def projection_rows(
        self, mixer: nn.Module, value_heads: Sequence[int], key_heads: Sequence[int]
    ) -> dict[str, Int64[Tensor, " rows"]]:
        return {
            "in_proj_qkv": _channels(self.heads(mixer), value_heads=value_heads, key_heads=key_heads),
            "in_proj_z": _blocks(value_heads, mixer.head_v_dim),
            "in_proj_b": _blocks(value_heads),
            "in_proj_a": _blocks(value_heads),
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


def _picking(channels: Int64[Tensor, " picked"], convolution: Callable) -> Callable:
    """The convolution with these of its channels as the result, unless it is a `_picking` already."""
    on = functools.cache(channels.to)

    @functools.wraps(convolution)
    def call(x: Tensor, *arguments, **options) -> Tensor:
        x = convolution(x, *arguments, **options)
        return x if x.shape[1] == len(channels) else x.index_select(1, on(x.device))

    return call


def _channels(
    heads: recipe.Heads, *, value_heads: Sequence[int], key_heads: Sequence[int]
) -> Int64[Tensor, " channels"]:
    """Numbers of the channels that hold q and k of some key heads and v of some value heads, in a layer of `heads`."""
    all_keys = heads.key_heads * heads.K
    q = _blocks(key_heads, heads.K)
    return torch.cat([q, all_keys + q, 2 * all_keys + _blocks(value_heads, heads.V)])


def _blocks(heads: Sequence[int], size: int = 1) -> Int64[Tensor, " rows"]:
    """Numbers of the rows of some heads where each head has `size` of them, head after head."""
    return (torch.tensor(heads, dtype=torch.int64)[:, None] * size + torch.arange(size)).flatten()


def _taken(parameter: nn.Parameter, places: Int64[Tensor, " kept"], *, axis: int = 0) -> nn.Parameter:
    taken = parameter.detach().index_select(axis, places.to(parameter.device))
    return nn.Parameter(taken, requires_grad=parameter.requires_grad)
