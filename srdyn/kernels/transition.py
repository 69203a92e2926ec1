"""Update rules whose transition is diagonal plus rank one, on a CPU, compiled, with gradients.

S ← (diag(w) + b aᵀ) S + k vᵀ, o = Sᵀq. The functions stand in for those of `recurrence` with the same names, of which
they return the last state alone; arithmetic is float32.

Yang et al., Parallelizing Linear Transformers with the Delta Rule over Sequence Length, NeurIPS 2024,
https://arxiv.org/abs/2406.06484. Peng et al., RWKV-7 "Goose", 2025, https://arxiv.org/abs/2503.14456.
"""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from srdyn.kernels import denormals, fused, scan, scan_loops, simd, threads, transition_loops

PerChannel = Float[Tensor, "B T H K"]
Values = Float[Tensor, "B T H V"]
State = Float[Tensor, "B H K V"]


def rwkv7(
    q: PerChannel, k: PerChannel, v: Values, g: PerChannel, a: PerChannel, b: PerChannel, *,
    initial_state: State | None = None,
) -> tuple[Values, State]:  # fmt: skip
    """S ← (diag(exp(g)) + b aᵀ) S + k vᵀ; o = Sᵀq, without a scale. Raises ValueError as `scan.check` does."""
    scan.check(k, v, {})
    K, V, missing = k.shape[3], v.shape[3], [-x.shape[3] % scan_loops.PANEL for x in (k, v)]
    keys = [F.pad(x.float(), (0, missing[0])).contiguous() for x in (q, k, g.exp(), a, b)]
    values = F.pad(v.float(), (0, missing[1])).contiguous()
    state = v.new_zeros(v.shape[0], v.shape[2], K, V) if initial_state is None else initial_state
    state = F.pad(state.float(), (0, missing[1], 0, missing[0])).contiguous()
    outputs, last = _Transition.apply(keys[0], keys[1], values, *keys[2:], state)
    return outputs[..., :V].to(q.dtype), last[..., :K, :V]


def kimi_delta_rule(
    q: Float[Tensor, "B T Hk K"], k: Float[Tensor, "B T Hk K"], v: Values, g: PerChannel,
    beta: Float[Tensor, "B T H"], *, initial_state: State | None = None,
) -> tuple[Values, State]:  # fmt: skip
    """S ← diag(exp(g))·S; S ← S + k (β (v − Sᵀk))ᵀ: what it erases is asked for before the decay."""
    q, k = (_shared(x, v) for x in (q, k))
    written = beta[..., None] * k
    return rwkv7(q * q.shape[3] ** -0.5, written, v, g, g.exp() * k, -written, initial_state=initial_state)


def gated_linear_attention(
    q: Float[Tensor, "B T Hk K"], k: Float[Tensor, "B T Hk K"], v: Values, g: PerChannel, *,
    initial_state: State | None = None,
) -> tuple[Values, State]:  # fmt: skip
    """S ← diag(exp(g))·S + k vᵀ."""
    q, k, g = (_shared(x, v) for x in (q, k, g))
    nothing = torch.zeros_like(k)
    return rwkv7(q * q.shape[3] ** -0.5, k, v, g, nothing, nothing, initial_state=initial_state)


def _shared(x, v):
    """Key heads repeated for the value heads that share them."""
    scan.check(x, v, {})
    return x.repeat_interleave(v.shape[2] // x.shape[2], 2)


class _Transition(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, w, a, b, initial_state):
        state, outputs, read = initial_state.clone(), torch.empty_like(v), torch.empty_like(v)
        starts = np.arange(0, v.shape[1], scan_loops.BLOCK) if any(ctx.needs_input_grad) else np.arange(0)
        captured = v.new_empty(v.shape[0], len(starts), *state.shape[1:])
        inputs, results = fused.arrays(q, k, v, w, a, b), fused.arrays(state, outputs, read, captured)
        with denormals.flushed():
            threads.split(
                lambda first, stop: transition_loops.forward(inputs, results, starts, first, stop),
                len(state) * v.shape[2],
            )
        ctx.save_for_backward(q, k, v, w, a, b, read, captured)
        return outputs, state

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_outputs, d_state):
        saved = ctx.saved_tensors
        gradients = [torch.zeros_like(x) for x in saved[:6]]
        gradients.append(d_state.clone(memory_format=torch.contiguous_format))
        known, into = fused.arrays(*saved, d_outputs.contiguous()), fused.arrays(*gradients)
        panel, K = scan_loops.PANEL, saved[0].shape[3]
        shapes = (scan_loops.BLOCK + 1, panel, K), (panel, K), (panel, simd.WIDTH), (panel, simd.WIDTH)

        def run(first, stop):
            scratch = fused.arrays(*(torch.empty(shape, dtype=torch.float32) for shape in shapes))
            transition_loops.backward(known, into, scratch, first, stop)

        with denormals.flushed():
            threads.split(run, len(saved[0]) * saved[0].shape[2])
        return tuple(gradients)
