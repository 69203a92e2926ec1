"""Update rules on a CPU, token by token, compiled, with gradients, for where `recurrence` is too slow; names as there.

The gated delta rule, and rules whose transition is diagonal plus rank one, S ← (diag(w) + b aᵀ) S + k vᵀ, o = Sᵀq; of
states they return the last alone. Arithmetic and state are float32.

Yang et al., Parallelizing Linear Transformers with the Delta Rule over Sequence Length, NeurIPS 2024,
https://arxiv.org/abs/2406.06484. Peng et al., RWKV-7 "Goose", 2025, https://arxiv.org/abs/2503.14456.
"""

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
    outputs, state = _Scan.apply(*inputs, first_state(initial_state, *inputs[1:3]))
    state = state[..., : key.shape[-1], : value.shape[-1]] if output_final_state else None
    return outputs[..., : value.shape[-1]].to(query.dtype), state


def rwkv7(
    q: PerChannel, k: PerChannel, v: Values, g: PerChannel, a: PerChannel, b: PerChannel, *,
    initial_state: Initial = None,
) -> tuple[Values, State]:  # fmt: skip
    """S ← (diag(exp(g)) + b aᵀ) S + k vᵀ; o = Sᵀq, without a scale. Raises ValueError as `check` does."""
    check(k, v, {})
    inputs = [filled(x, 1).contiguous() for x in (q, k, v, g.exp(), a, b)]
    outputs, last = _Transition.apply(*inputs, first_state(initial_state, *inputs[1:3]))
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


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, g, beta, initial_state):
        inputs, state = (q, k, v, g, beta), initial_state.clone()
        starts = np.arange(0, v.shape[1], BLOCK) if any(ctx.needs_input_grad) else np.arange(0)
        outputs, error, checkpoints = run_forward(inputs, state, starts)
        ctx.save_for_backward(q, k, g, beta, error, checkpoints)
        return outputs, state

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_outputs, d_state):
        q, k, g, beta, error, checkpoints = ctx.saved_tensors
        d_outputs, d_state = d_outputs.contiguous(), d_state.clone(memory_format=torch.contiguous_format)
        gradients = (torch.zeros_like(q), torch.zeros_like(k), torch.empty_like(d_outputs))
        gradients += (torch.zeros_like(g), torch.zeros_like(beta), d_state)
        known, (B, _, Hk, K) = fused.arrays(q, k, g.exp(), beta, error, checkpoints, d_outputs), q.shape
        scratch = (BLOCK + 1, PANEL, K), (PANEL, K), (3, PANEL), (PANEL, simd.WIDTH)
        sweep(scan_loops.backward, (known, fused.arrays(*gradients)), B * Hk, scratch)
        return gradients


class _Transition(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, w, a, b, initial_state):
        state, outputs, read = initial_state.clone(), torch.empty_like(v), torch.empty_like(v)
        starts = np.arange(0, v.shape[1], BLOCK) if any(ctx.needs_input_grad) else np.arange(0)
        captured = v.new_empty(v.shape[0], len(starts), *state.shape[1:])
        arrays = fused.arrays(q, k, v, w, a, b), fused.arrays(state, outputs, read, captured), starts
        sweep(transition_loops.forward, arrays, len(state) * v.shape[2])
        ctx.save_for_backward(q, k, v, w, a, b, read, captured)
        return outputs, state

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_outputs, d_state):
        saved = ctx.saved_tensors
        gradients = [torch.zeros_like(x) for x in saved[:6]]
        gradients.append(d_state.clone(memory_format=torch.contiguous_format))
        arrays, (B, _, H, K) = (fused.arrays(*saved, d_outputs.contiguous()), fused.arrays(*gradients)), saved[0].shape
        scratch = (BLOCK + 1, PANEL, K), (PANEL, K), (PANEL, simd.WIDTH), (PANEL, simd.WIDTH)
        sweep(transition_loops.backward, arrays, B * H, scratch)
        return tuple(gradients)


def run_forward(inputs: tuple[Tensor, ...], state: State, positions: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, errors e and the states after `positions`, from inputs as of `ready`; `state` becomes the last one."""
    q, k, v, g, beta = inputs
    outputs, error = torch.empty_like(v), torch.empty_like(v)
    captured = v.new_empty(len(state), len(positions), *state.shape[1:])
    arrays = fused.arrays(q, k, v, g.exp(), beta), fused.arrays(state, outputs, error, captured), positions
    heads = len(state) * v.shape[2]
    sweep(scan_loops.forward, arrays, heads, most=heads if v.shape[1] * state.numel() >= SHARED_FROM else 1)
    return outputs, error, captured


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
