"""Update rules on a CPU, token by token, compiled, with gradients, for where `recurrence` is too slow; names as there.

The gated delta rule, and rules whose transition is diagonal plus rank one, S ← (diag(w) + b aᵀ) S + k vᵀ, o = Sᵀq; of
states they return the last alone. Arithmetic and state are float32.

Yang et al., Parallelizing Linear Transformers with the Delta Rule over Sequence Length, NeurIPS 2024,
https://arxiv.org/abs/2406.06484. Peng et al., RWKV-7 "Goose", 2025, https://arxiv.org/abs/2503.14456.
"""

import types
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from srdyn.kernels import denormals, fused, recurrence, scan_loops, simd, threads, transition_loops
from srdyn.kernels.recurrence import Initial, Keys, PerChannel, PerHead, State, Values
from srdyn.kernels.scan_loops import BLOCK, PANEL

SHARED_FROM = 2**19
"""Numbers in a pass's states, taken over its tokens, from which on starting threads pays."""


def gated_delta_rule(
    query: Keys, key: Keys, value: Values, g: PerHead, beta: PerHead, *, initial_state: Initial = None,
    output_final_state: bool = False, use_qk_l2norm_in_kernel: bool = False, **others: object,
) -> tuple[Values, State | None]:  # fmt: skip
    """Outputs and last state, with gradients; stands in for transformers' chunked and recurrent functions alike.

    The outputs have the dtype of `query`. Other options mean nothing here. Raises ValueError as `check` does.
    """
    check(key, value, others)
    inputs = ready(query, key, value, g, beta, use_qk_l2norm_in_kernel)
    outputs, state = _Rule.apply(scan_loops, first_state(initial_state, *inputs[1:3]), *inputs)
    state = state[..., : key.shape[-1], : value.shape[-1]] if output_final_state else None
    return outputs[..., : value.shape[-1]].to(query.dtype), state


def rwkv7(
    q: PerChannel, k: PerChannel, v: Values, g: PerChannel, a: PerChannel, b: PerChannel, *,
    initial_state: Initial = None,
) -> tuple[Values, State]:  # fmt: skip
    """S ← (diag(exp(g)) + b aᵀ) S + k vᵀ; o = Sᵀq, without a scale. Raises ValueError as `check` does."""
    check(k, v, {})
    inputs = [filled(x, 1).contiguous() for x in (q, k, v, g.exp(), a, b)]
    outputs, last = _Rule.apply(transition_loops, first_state(initial_state, *inputs[1:3]), *inputs)
    K, V = k.shape[3], v.shape[3]
    return outputs[..., :V].to(q.dtype), last[..., :K, :V]


def kimi_delta_rule(
    q: Keys, k: Keys, v: Values, g: PerChannel, beta: PerHead, *, initial_state: Initial = None
) -> tuple[Values, State]:
    """S ← diag(exp(g))·S; S ← S + k (β (v − Sᵀk))ᵀ: what it erases is asked for before the decay."""
    q, k = (recurrence.per_value_head(x, v) for x in (q, k))
    written = beta[..., None] * k
    return rwkv7(q * q.shape[3] ** -0.5, written, v, g, g.exp() * k, -written, initial_state=initial_state)


def gated_linear_attention(
    q: Keys, k: Keys, v: Values, g: PerChannel, *, initial_state: Initial = None
) -> tuple[Values, State]:
    """S ← diag(exp(g))·S + k vᵀ."""
    q, k = (recurrence.per_value_head(x, v) for x in (q, k))
    nothing = torch.zeros_like(k)
    return rwkv7(q * q.shape[3] ** -0.5, k, v, g, nothing, nothing, initial_state=initial_state)


def check(key: Keys, value: Values, options: Mapping[str, object]) -> None:
    """Raises ValueError for packed sequences, tensors off the CPU, value heads that share key heads unevenly."""
    packed = [name for name in ("cu_seqlens", "seq_idx") if options.get(name) is not None]
    if packed:
        raise ValueError(f"the compiled scan cannot keep packed sequences apart, leave out {', '.join(packed)}")
    if value.device.type != "cpu":
        raise ValueError(f"the compiled scan runs on the CPU, the tensors are on {value.device}: use fla's kernel")
    if value.shape[2] % key.shape[2]:
        raise ValueError(f"value heads must be a multiple of key heads, got {value.shape[2]} on {key.shape[2]}")


def ready(query: Keys, key: Keys, value: Values, g: PerHead, beta: PerHead, normalise: bool) -> tuple[Tensor, ...]:
    """The inputs as the kernels take them: float32, contiguous, q scaled, K and V filled up to whole panels."""
    scale = key.shape[-1] ** -0.5
    q, k, v = (filled(x, 1) for x in (query, key, value))
    q, k = (fused.l2norm(q, scale=scale), fused.l2norm(k)) if normalise else (q * scale, k)
    return tuple(x.contiguous() for x in (q, k, v, g.float(), beta.float()))


class _Rule(torch.autograd.Function):
    """The outputs and the last state of a rule's `loops` as a differentiable function of its first state and inputs."""

    @staticmethod
    def forward(ctx, loops, initial_state, *inputs):
        state = initial_state.clone()
        starts = np.arange(0, inputs[2].shape[1], BLOCK) if any(ctx.needs_input_grad) else np.arange(0)
        outputs, read, checkpoints = run_forward(loops, inputs, state, starts)
        ctx.loops = loops
        ctx.save_for_backward(*inputs, read, checkpoints)
        return outputs, state

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_outputs, d_state):
        *inputs, read, checkpoints = ctx.saved_tensors
        d_state = d_state.clone(memory_format=torch.contiguous_format)
        gradients = [*map(torch.zeros_like, inputs), d_state]
        known, (B, _, heads, K) = _known(ctx.loops, inputs), inputs[0].shape
        known += [read, checkpoints, d_outputs.contiguous()]
        scratch = (BLOCK + 1, PANEL, K), (PANEL, K), (PANEL, simd.WIDTH), (PANEL, simd.WIDTH), (3, PANEL)
        sweep(ctx.loops.backward, (fused.arrays(*known), fused.arrays(*gradients)), B * heads, scratch)
        return None, d_state, *gradients[:-1]


def run_forward(
    loops: types.ModuleType, inputs: Sequence[Tensor], state: State, positions: np.ndarray
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, what else each token leaves (e or r), the states after `positions`; `state` becomes the last one."""
    v = inputs[2]
    outputs, read = torch.empty_like(v), torch.empty_like(v)
    captured, heads = v.new_empty(len(state), len(positions), *state.shape[1:]), len(state) * v.shape[2]
    arrays = fused.arrays(*_known(loops, inputs)), fused.arrays(state, outputs, read, captured), positions
    sweep(loops.forward, arrays, heads, most=heads if v.shape[1] * state.numel() >= SHARED_FROM else 1)
    return outputs, read, captured


def _known(loops: types.ModuleType, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The inputs as the loops read them: those of the gated delta rule have exp(g) for g."""
    return [x.exp() if loops is scan_loops and place == 3 else x for place, x in enumerate(inputs)]


def sweep(
    kernel: Callable, arguments: tuple, heads: int, scratch: Sequence[tuple[int, ...]] = (), *, most: int | None = None
) -> None:
    """A compiled sweep over so many heads, which torch's threads share, each with arrays of the shapes in `scratch`.

    At most `most` threads, which do not change the results.
    """

    def run(first, stop):
        kernel(*arguments, fused.arrays(*(torch.empty(shape, dtype=torch.float32) for shape in scratch)), first, stop)

    with denormals.flushed():
        threads.split(run, heads, most=most)


def filled(x: Tensor, axes: int) -> Tensor:
    """In float32, the last axes filled up with zeros to whole panels."""
    missing = [-size % PANEL for size in x.shape[: -axes - 1 : -1]]
    return F.pad(x.float(), [n for size in missing for n in (0, size)]) if any(missing) else x.float()


def first_state(initial_state: Tensor | None, k: Tensor, v: Tensor) -> Tensor:
    """The state from which a sweep over filled-up keys and values starts."""
    if initial_state is None:
        return v.new_zeros(v.shape[0], v.shape[2], k.shape[-1], v.shape[-1])
    return filled(initial_state, 2).contiguous()
