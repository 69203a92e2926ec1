"""The gated delta rule on a CPU, token by token, compiled.

It stands in for transformers' functions where `recurrence` is too slow. Names and layout as there.

Yang, Kautz & Hatamizadeh, Gated Delta Networks, ICLR 2025, https://arxiv.org/abs/2412.06464.
"""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from srdyn.kernels import denormals, fused, recurrence, scan_loops, simd, threads
from srdyn.kernels.recurrence import Asked, Initial, Keys, PerHead, State, Values


def gated_delta_rule(
    query: Keys, key: Keys, value: Values, g: PerHead, beta: PerHead, *, initial_state: Initial = None,
    output_final_state: bool = False, use_qk_l2norm_in_kernel: bool = False, **others: object,
) -> tuple[Values, State | None]:  # fmt: skip
    """Outputs and last state, with gradients; stands in for transformers' chunked and recurrent functions alike.

    Arithmetic and state are float32, the outputs have the dtype of `query`. Other options of the model reach it too, as
    in transformers, and mean nothing here, `chunk_size` among them. Raises ValueError as `check` does.
    """
    check(key, value, others)
    inputs = _ready(query, key, value, g, beta, use_qk_l2norm_in_kernel)
    outputs, state = _Scan.apply(*inputs, _padded_state(initial_state, inputs))
    state = state[..., : key.shape[-1], : value.shape[-1]] if output_final_state else None
    return outputs[..., : value.shape[-1]].to(query.dtype), state


def with_states(
    query: Keys, key: Keys, value: Values, g: PerHead, beta: PerHead, *, positions: Asked,
    initial_state: Initial = None, use_qk_l2norm_in_kernel: bool = False, **others: object,
) -> tuple[Values, State, Float[Tensor, "B C H K V"]]:  # fmt: skip
    """What `gated_delta_rule` returns, to the bit, and the states after the tokens named by `positions` (1 to T;
    the last alone for None).

    No gradients. All has the same bits wherever the pass is cut. Raises ValueError as `check` does, and for positions
    out of order.
    """
    check(key, value, others)
    listed = np.array(recurrence.checked_positions(positions, value.shape[1]))
    with torch.no_grad():
        inputs = _ready(query, key, value, g, beta, use_qk_l2norm_in_kernel)
        state = _padded_state(initial_state, inputs).clone()
        outputs, _, states = _run_forward(inputs, state, listed)
    K, V = key.shape[-1], value.shape[-1]
    return outputs[..., :V].to(query.dtype), state[..., :K, :V], states[..., :K, :V]


gated_delta_rule.with_states = with_states
"""`states.tapped` takes many states from one call of a function that has this."""


def check(key: Keys, value: Values, options: Mapping[str, object]) -> None:
    """Raises ValueError for what the compiled rules cannot do.

    That is several sequences packed into one, as the options of the call say; tensors off the CPU; value heads that do
    not share the key heads evenly.
    """
    packed = [name for name in ("cu_seqlens", "seq_idx") if options.get(name) is not None]
    if packed:
        raise ValueError(f"the compiled scan cannot keep packed sequences apart, leave out {', '.join(packed)}")
    if value.device.type != "cpu":
        raise ValueError(f"the compiled scan runs on the CPU, the tensors are on {value.device}: use fla's kernel")
    if value.shape[2] % key.shape[2]:
        raise ValueError(f"value heads must be a multiple of key heads, got {value.shape[2]} on {key.shape[2]}")


def _ready(query, key, value, g, beta, normalise):
    """The inputs as the kernels take them: float32, contiguous, q scaled, K and V filled up to whole panels."""
    scale = key.shape[-1] ** -0.5
    q, k, v = (_filled(x.float(), 1) for x in (query, key, value))
    q, k = (fused.l2norm(q, scale=scale), fused.l2norm(k)) if normalise else (q * scale, k)
    return tuple(x.contiguous() for x in (q, k, v, g.float(), beta.float()))


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, g, beta, initial_state):
        inputs, state = (q, k, v, g, beta), initial_state.clone()
        starts = np.arange(0, v.shape[1], scan_loops.BLOCK) if any(ctx.needs_input_grad) else np.arange(0)
        outputs, error, checkpoints = _run_forward(inputs, state, starts)
        ctx.save_for_backward(q, k, g, beta, error, checkpoints)
        return outputs, state

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_outputs, d_state):
        q, k, g, beta, error, checkpoints = ctx.saved_tensors
        d_outputs, d_state = d_outputs.contiguous(), d_state.clone(memory_format=torch.contiguous_format)
        gradients = (torch.zeros_like(q), torch.zeros_like(k), torch.empty_like(d_outputs))
        gradients += (torch.zeros_like(g), torch.zeros_like(beta), d_state)
        known = fused.arrays(q, k, g.exp(), beta, error, checkpoints, d_outputs)
        run = _with_scratch(scan_loops.backward, (known, fused.arrays(*gradients)), q.shape[-1])
        with denormals.flushed():
            threads.split(run, q.shape[0] * q.shape[2])
        return gradients


def _run_forward(inputs, state, positions):
    q, k, v, g, beta = inputs
    B, H, K, V = state.shape
    outputs, error = torch.empty_like(v), torch.empty_like(v)
    captured = v.new_empty(B, len(positions), H, K, V)
    arrays = fused.arrays(q, k, v, g.exp(), beta), fused.arrays(state, outputs, error, captured), positions
    with denormals.flushed():
        threads.split(_with_scratch(scan_loops.forward, arrays, K), B * H)
    return outputs, error, captured


def _with_scratch(kernel, arguments, K):
    panel = scan_loops.PANEL
    shapes = (scan_loops.BLOCK + 1, panel, K), (panel, K), (3, panel), (panel, simd.WIDTH)

    def run(first, stop):
        scratch = fused.arrays(*(torch.empty(shape, dtype=torch.float32) for shape in shapes))
        kernel(*arguments, scratch, first, stop)

    return run


def _filled(x, axes):
    missing = [-size % scan_loops.PANEL for size in x.shape[: -axes - 1 : -1]]
    return F.pad(x, [n for size in missing for n in (0, size)]) if any(missing) else x


def _padded_state(initial_state, inputs):
    k, v = inputs[1], inputs[2]
    if initial_state is None:
        return v.new_zeros(v.shape[0], v.shape[2], k.shape[-1], v.shape[-1])
    return _filled(initial_state.float(), 2).contiguous()
