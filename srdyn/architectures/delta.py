"""What layers that follow the gated delta rule have in common."""

import abc
import functools
import math
from collections.abc import Callable, Sequence

import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from srdyn.architectures import rebinding, recipe, slicing
from srdyn.kernels import decode, recurrence, scan


class DeltaRule(recipe.Recipe):
    """Queries and keys that the recurrence normalises, one short convolution over all channels of q, k and v."""

    def index(self, mixer: nn.Module) -> int:
        return mixer.layer_idx

    def conv_values(self, mixer: nn.Module) -> int:
        return mixer.conv_dim * mixer.conv_kernel_size

    def inputs(self, call: recipe.Call) -> recipe.Inputs:
        q, k, v, g, beta = (call.timed[name].float() for name in self.timed)
        return recipe.Inputs(recurrence.l2norm(q), recurrence.l2norm(k), v, g, beta)


class GatedDeltaNet(DeltaRule):
    """Scalar decay per value head, `g = −exp(A_log)·softplus(a + dt_bias)`, write strength `beta = sigmoid(b)`.

    Value head h reads with key head h // (H / key_heads). In a pruned layer key heads may serve unequal numbers of
    value heads: there each value head gets its key's channels right behind the convolution, before anything that reads
    the recurrence's inputs, while weights and cache hold a key once.
    """

    gating = "per head"
    chunk_tap = "torch_chunk_gated_delta_rule"
    step_tap = "torch_recurrent_gated_delta_rule"
    conv_step = "causal_conv1d_update"

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

    def heads(self, mixer: nn.Module) -> recipe.Heads:
        return recipe.Heads(mixer.num_v_heads, mixer.num_k_heads, mixer.head_k_dim, mixer.head_v_dim)

    def gates(
        self, mixer: nn.Module, hidden: Float[Tensor, "B T M"]
    ) -> tuple[Float[Tensor, "B T H"], Float[Tensor, "B T H"]]:
        b, a = self.gate_logits(mixer, hidden)
        g = -mixer.A_log.float().exp() * F.softplus(a.float() + mixer.dt_bias)
        return g, b.sigmoid().float()

    def cpu_functions(self, mixer: nn.Module) -> dict[str, Callable]:
        """For many tokens the compiled scan, which is exact wherever it is cut; for a single one, `decode`."""
        functions = super().cpu_functions(mixer)
        functions |= {self.chunk_tap: scan.gated_delta_rule, self.step_tap: decode.gated_delta_rule}
        return functions | {self.conv_step: decode.convolution(functions[self.conv_step])}

    def chunk_of(self, call: recipe.Call) -> int:
        """The compiled scan has the same bits wherever it is cut."""
        return 1 if call.timed["query"].device.type == "cpu" else self.chunk

    def make_runnable(self, mixer: nn.Module) -> None:
        super().make_runnable(mixer)
        heads = self.heads(mixer)
        if self.is_pruned(mixer) and heads.H:
            channels = slicing.channels(heads, value_heads=range(heads.H), key_heads=self.sharing(mixer))
            size = math.gcd(heads.K, heads.V)  # whole blocks are copied faster than channels
            blocks = channels[::size] // size
            picking = {name: _picking(blocks, size, rebinding.meaning(mixer, name)) for name in self.convolutions}
            rebinding.bind(mixer, picking)

    def cut(self, mixer: nn.Module, value_heads: Sequence[int], key_heads: Sequence[int]) -> None:
        heads = self.heads(mixer)
        channels = slicing.channels(heads, value_heads=value_heads, key_heads=key_heads)
        for name, rows in self.projection_rows(mixer, value_heads, key_heads).items():
            slicing.cut_outputs(getattr(mixer, name), rows)
        slicing.cut_channels(mixer.conv1d, channels)
        slicing.cut_inputs(self.readout(mixer), slicing.blocks(value_heads, heads.V))
        chosen = slicing.blocks(value_heads)
        mixer.A_log, mixer.dt_bias = (slicing.taken(x, chosen) for x in (mixer.A_log, mixer.dt_bias))
        mixer.num_v_heads, mixer.num_k_heads, mixer.conv_dim = len(value_heads), len(key_heads), len(channels)
        # Behind the convolution, where the forward asks for `key_dim`, every value head has its key to itself.
        mixer.key_dim, mixer.value_dim = heads.K * len(value_heads), heads.V * len(value_heads)


def _picking(blocks: Int64[Tensor, " picked"], size: int, convolution: Callable) -> Callable:
    """The convolution with these blocks of channels as the result, unless it is a `_picking` already."""
    on = functools.cache(blocks.to)

    @functools.wraps(convolution)
    def call(x: Tensor, *arguments, **options) -> Tensor:
        x = convolution(x, *arguments, **options)
        if x.shape[1] == len(blocks) * size:
            return x
        return x.unflatten(1, (-1, size)).index_select(1, on(x.device)).flatten(1, 2)

    return call
