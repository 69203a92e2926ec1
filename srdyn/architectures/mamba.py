"""Mamba-2 layers of the transformers families.

Dao & Gu, Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State Space Duality,
ICML 2024, https://arxiv.org/abs/2405.21060.
"""

import collections
import functools
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from srdyn.architectures import rebinding, recipe, slicing
from srdyn.kernels import recurrence

_STEP_PLACES = ("state", "hidden_states", "dt", "A", "B", "C", "D")


class StateSpaceDual(recipe.Recipe):
    """Scalar decay per head, `g = −exp(A_log)·dt`, `dt = softplus(dt + dt_bias)` within `time_step_limit`; no erasure.

    The key is B, the query C, the value x, the write strength dt; the heads of a group share B and C. An ablated head
    has x = 0, and with it no skip D·x. The output is normed over the heads of a group, ablated ones counted: a pruned
    layer's norm makes up for its fewer channels, which it can where every group keeps equally many heads or none.

    A single token is read by a function that updates the cache's state in place and knows no `time_step_limit`: where
    the limit binds, transformers generates from another state than it reads a prompt to, and so do these layers.
    """

    mixers = (
        "transformers.models.bamba.modeling_bamba.BambaMixer",
        "transformers.models.granitemoehybrid.modeling_granitemoehybrid.GraniteMoeHybridMambaLayer",
        "transformers.models.nemotron_h.modeling_nemotron_h.NemotronHMamba2Mixer",
        "transformers.models.zamba2.modeling_zamba2.Zamba2MambaMixer",
    )
    model_types = ("bamba", "granitemoehybrid", "nemotron_h", "zamba2")
    slicing = "equally many heads of each group"
    state_axes = ("V", "K")
    chunk_tap, step_tap = "mamba2_chunk_scan", "mamba2_selective_state_update"
    places = ("hidden_states", "dt", "A", "B", "C")
    timed = ("hidden_states", "dt", "B", "C")
    written = "hidden_states"
    sizes = ("num_heads", "n_groups", "ssm_state_size", "head_dim")
    rows: ClassVar = {
        "in_proj": "projected", "conv1d": "xBC", "A_log": "head", "D": "head", "dt_bias": "head",
        "intermediate_size": "value", "conv_dim": "xBC",
    }  # fmt: skip
    first_state = "initial_states"
    wants_state = "return_final_states"
    rule = staticmethod(recurrence.state_space_dual)
    fused = "mamba2_split_conv1d_scan_combined"

    def inputs(self, call: recipe.Call) -> recipe.Inputs:
        dt = self._write_strength(call)
        q, k, v = call.floats("C", "B", "hidden_states")
        return recipe.Inputs(q=q, k=k, v=v, g=call.options["A"].float() * dt, beta=dt)

    def chunk_of(self, call: recipe.Call) -> int:
        return call.options["chunk_size"]

    def taken_apart(self, arguments: tuple, options: dict) -> recipe.Call:
        if "chunk_size" in options:
            return super().taken_apart(arguments, options)
        named = dict(zip(_STEP_PLACES, arguments, strict=False)) | options
        timed = {name: named.pop(name)[:, None] for name in self.timed}
        return recipe.Call(timed, named.pop("state"), named)

    def run(self, function: Callable, call: recipe.Call) -> tuple[Tensor, Tensor]:
        if "chunk_size" in call.options:
            return super().run(function, call)
        named = call.options | {name: x[:, 0] for name, x in call.timed.items()} | {"state": call.state}
        arguments = [named.pop(name) for name in _STEP_PLACES]
        return function(*arguments, **named), call.state

    def returned(self, outputs: Tensor, state: Tensor, options: dict) -> Tensor | tuple[Tensor, Tensor]:
        return (outputs, state) if options.get(self.wants_state) else outputs

    def silenced(self, call: recipe.Call, chosen: Bool[Tensor, " held"]) -> recipe.Call:
        silenced = super().silenced(call, chosen)
        if "chunk_size" in call.options:
            return silenced
        # A step writes where it reads, into the cache, so that the cache has to lose what it brings along.
        return silenced._replace(state=call.state.copy_(silenced.state))

    def forgetting(self, call: recipe.Call, decay: recipe.Decay) -> recipe.Call:
        """The call with other log-decays A·dt, its writes dt·B as they are, though dt is in both.

        To scale a decay is to scale A. Where a head gets one decay for all tokens, it reads that as A, 1 as dt and dt·B
        as B, and every head of the layer has B and C to itself.
        """
        A, dt, B = call.options["A"], self._write_strength(call), call.timed["B"]
        scale, added = (x.to(A.device).view(-1, *[1] * (A.ndim - 1)) for x in decay)  # a step has A of each channel
        A, fixed = torch.where(scale == 0, added, scale * A), (decay.scale == 0).to(A.device)
        if not fixed.any():
            return call._replace(options=call.options | {"A": A})
        mine = fixed if dt.ndim == 3 else fixed[:, None]
        strength = (dt if dt.ndim == 3 else dt[..., 0])[..., None]
        B, C = (x.repeat_interleave(len(fixed) // x.shape[2], dim=2) for x in (B, call.timed["C"]))
        B = torch.where(fixed[:, None], strength * B, B)
        timed = call.timed | {"dt": dt.masked_fill(mine, 1), "B": B, "C": C}
        options = call.options | {"A": A, "dt_bias": None, "dt_softplus": False}
        options |= {"dt_limit": (0.0, float("inf"))} if "dt_limit" in options else {}
        return call._replace(timed=timed, options=options)

    def _write_strength(self, call: recipe.Call) -> Float[Tensor, "B T held *P"]:
        """dt, as the call's function takes it from what it reads: a step knows no limit."""
        dt, bias = call.timed["dt"], call.options["dt_bias"]
        if bias is None:
            return dt.float()
        return F.softplus(dt + bias.to(dt.dtype)).clamp(*call.options.get("dt_limit", (0.0, float("inf")))).float()

    def cpu_functions(self, mixer: nn.Module) -> dict[str, Callable]:
        """The plain torch functions, but chunk after chunk, so that a cut between chunks changes no bit."""
        functions = super().cpu_functions(mixer)
        return functions | {self.chunk_tap: _chunk_by_chunk(functions[self.chunk_tap])}

    def bind(self, mixer: nn.Module) -> None:
        """As for any layer, but training takes no fused short cut around the recurrence."""
        super().bind(mixer)
        rebinding.bind(mixer, {self.fused: lambda *_arguments, **_options: None})  # as where it is not to be had

    @staticmethod
    def nothing(mixer: nn.Module, hidden_states: Tensor, *_arguments, **_options) -> Tensor:
        """What the layer adds to the zeros of its heads: its last bias, where it has one."""
        return mixer.out_proj(hidden_states[..., :0]) if hasattr(mixer, "out_proj") else torch.zeros_like(hidden_states)

    def keep(self, mixer: nn.Module, heads: Sequence[int]) -> None:
        """As for any layer, but every group of heads with one B and C keeps equally many heads, or none.

        Without heads the last projection stays, of no inputs, where it has a bias. Raises ValueError for other heads.
        """
        counts, groups = collections.Counter(self._keys(mixer, heads)), self.unpruned(mixer).key_heads
        if len(set(counts.values())) > 1:
            numbers = ", ".join(f"{counts[group]} of group {group}" for group in sorted(counts))
            raise ValueError(
                f"decoder layer {mixer.layer_idx} must keep equally many heads of each of its {groups} groups, which "
                f"share B, C and a norm, or none of a group: got {numbers}. "
                f"pruning.select(..., groups={groups}) chooses so"
            )
        last = getattr(mixer, "out_proj", None)
        super().keep(mixer, heads)
        if last is not None and last.bias is not None:
            mixer.out_proj = last

    def units(self, mixer: nn.Module, value_heads: Sequence[int], key_heads: Sequence[int]) -> dict[str, recipe.Rows]:
        units, (H, groups, N, P) = super().units(mixer, value_heads, key_heads), self.heads(mixer)
        x, keys = units["value"], units["key"]
        channels = torch.cat([x, H * P + keys, H * P + groups * N + keys])
        dt = 2 * (H * P + groups * N) + units["head"]
        return units | {"xBC": channels, "projected": torch.cat([x, H * P + channels, dt])}

    def cut(self, mixer: nn.Module, value_heads: Sequence[int], key_heads: Sequence[int]) -> None:
        H, groups, _, P = self.heads(mixer)
        super().cut(mixer, value_heads, key_heads)
        if value_heads:
            narrower = (H / groups) / (len(value_heads) / len(key_heads))
            self.cut_norm(mixer, slicing.blocks(value_heads, P), len(key_heads), narrower)

    def cut_norm(self, mixer: nn.Module, channels: recipe.Rows, groups: int, narrower: float) -> None:
        """Leave the norm these channels in this many groups, each narrower by this factor.

        What is gone was 0: a group's mean square is that much larger, ε is made so, and the weights take the root back.
        """
        mixer.norm.weight = slicing.taken(mixer.norm.weight, channels)
        mixer.norm.weight.data *= narrower**0.5
        mixer.norm.variance_epsilon *= narrower
        mixer.norm.group_size = len(channels) // groups


class Mamba2(StateSpaceDual):
    """A model of such layers alone, which calls its cache `cache_params` and asks no cache for its length."""

    mixers = ("transformers.models.mamba2.modeling_mamba2.Mamba2Mixer",)
    model_types = ("mamba2",)
    cache_argument = "cache_params"


class FalconH1(StateSpaceDual):
    """Each layer attends as well; inputs are multiplied by constants. Where the norm is left out, heads do not meet."""

    mixers = ("transformers.models.falcon_h1.modeling_falcon_h1.FalconH1Mixer",)
    model_types = ("falcon_h1",)

    def cut(self, mixer: nn.Module, value_heads: Sequence[int], key_heads: Sequence[int]) -> None:
        rows = self.units(mixer, value_heads, key_heads)["projected"]
        super().cut(mixer, value_heads, key_heads)
        multipliers = mixer.mup_vector.index_select(-1, rows.to(mixer.mup_vector.device))
        # Saved with the weights: transformers would fill a buffer that is not with the multipliers of all heads.
        mixer.register_buffer("mup_vector", multipliers, persistent=True)

    def as_stock(self, mixer: nn.Module, *, repeat_keys: bool) -> None:
        super().as_stock(mixer, repeat_keys=repeat_keys)
        mixer.register_buffer("mup_vector", mixer.mup_vector, persistent=False)

    def cut_norm(self, mixer: nn.Module, channels: recipe.Rows, groups: int, narrower: float) -> None:
        if mixer.mamba_rms_norm:
            super().cut_norm(mixer, channels, groups, narrower)
            mixer.norm.n_groups = groups


def _chunk_by_chunk(function: Callable) -> Callable:
    """The chunked form with one chunk at a time, and a last one as short as what is left."""

    @functools.wraps(function)
    def call(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk_size: int, **options):
        state, wanted = options.pop("initial_states", None), options.pop("return_final_states", False)
        outputs = []
        for parts in zip(*(part.split(chunk_size, dim=1) for part in (x, dt, B, C)), strict=True):
            x, dt, B, C = parts
            output, state = function(
                x, dt, A, B, C, chunk_size=x.shape[1], initial_states=state, return_final_states=True, **options
            )
            outputs.append(output)
        output = torch.cat(outputs, dim=1)
        return (output, state) if wanted else output

    return call
