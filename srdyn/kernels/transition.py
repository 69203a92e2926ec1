"""Update rules whose transition is diagonal plus rank one, on a CPU, compiled, with gradients.

S ← (diag(w) + b aᵀ) S + k vᵀ, o = Sᵀq. The functions stand in for those of `recurrence` with the same names, of which
they return the last state alone; arithmetic is float32.

Yang et al., Parallelizing Linear Transformers with the Delta Rule over Sequence Length, NeurIPS 2024,
https://arxiv.org/abs/2406.06484. Peng et al., RWKV-7 "Goose", 2025, https://arxiv.org/abs/2503.14456.
"""

import numpy as np
import torch

from srdyn.kernels import fused, recurrence, scan, simd, transition_loops
from srdyn.kernels.recurrence import Initial, Keys, PerChannel, PerHead, State, Values
from srdyn.kernels.scan_loops import BLOCK, PANEL


def rwkv7(
    q: PerChannel, k: PerChannel, v: Values, g: PerChannel, a: PerChannel, b: PerChannel, *,
    initial_state: Initial = None,
) -> tuple[Values, State]:  # fmt: skip
    """S ← (diag(exp(g)) + b aᵀ) S + k vᵀ; o = Sᵀq, without a scale. Raises ValueError as `scan.check` does."""
    scan.check(k, v, {})
    inputs = [scan.filled(x, 1).contiguous() for x in (q, k, v, g.exp(), a, b)]
    outputs, last = _Transition.apply(*inputs, scan.first_state(initial_state, *inputs[1:3]))
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


class _Transition(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, w, a, b, initial_state):
        state, outputs, read = initial_state.clone(), torch.empty_like(v), torch.empty_like(v)
        starts = np.arange(0, v.shape[1], BLOCK) if any(ctx.needs_input_grad) else np.arange(0)
        captured = v.new_empty(v.shape[0], len(starts), *state.shape[1:])
        arrays = fused.arrays(q, k, v, w, a, b), fused.arrays(state, outputs, read, captured), starts
        scan.sweep(transition_loops.forward, arrays, len(state) * v.shape[2])
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
        scan.sweep(transition_loops.backward, arrays, B * H, scratch)
        return tuple(gradients)
