"""The elementwise parts of a Qwen3-Next layer, each fused into one compiled sweep for a CPU.

They do in one pass over memory what PyTorch does in several, forwards and backwards, and stand in for transformers'
functions. Float32; the last axis must be a multiple of sixteen. Forwards, torch's threads share the rows.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from srdyn.kernels import fused_loops, threads
from srdyn.kernels.fused_loops import TAPS
from srdyn.kernels.simd import WIDTH

SHARED_FROM = 2**16
"""Numbers that a thread should have to itself: with fewer, starting it costs more than it saves."""
Rows = Float[Tensor, "*batch D"]
Weight = Float[Tensor, " D"]


def causal_conv1d_fn(
    hidden_states: Float[Tensor, "B D T"], weight: Float[Tensor, "D W"], bias: None = None,
    activation: str | None = None, **others: object,
) -> Float[Tensor, "B D T"]:  # fmt: skip
    """SiLU of the depthwise causal convolution; both sides are transposed views of `[B, T, D]` memory."""
    if weight.shape[1] != TAPS or bias is not None or activation != "silu" or others.get("seq_idx") is not None:
        raise ValueError(
            f"the fused convolution has {TAPS} taps, SiLU, no bias, no packed sequences; got {weight.shape[1]} taps, "
            f"activation {activation!r}, bias {bias is not None}, packed {others.get('seq_idx') is not None}"
        )
    return _swept((fused_loops.convolve, fused_loops.convolve_back), [hidden_states.mT], [weight.T]).mT


def gated_norm(x: Rows, gate: Rows, weight: Weight, *, eps: float) -> Rows:
    """weight · x / √(mean x² + eps) · SiLU(gate)."""
    return _by_row((fused_loops.gate_norm, fused_loops.gate_norm_back), x, gate, weights=[weight], options=[eps])


def norm(x: Rows, weight: Weight, *, eps: float) -> Rows:
    """(1 + weight) · x / √(mean x² + eps)."""
    return _by_row((fused_loops.normalise, fused_loops.normalise_back), x, weights=[weight], options=[eps])


def l2norm(x: Rows, *, scale: float = 1.0) -> Rows:
    """scale · x / √(Σx² + 1e-6)."""
    return _by_row((fused_loops.shorten, fused_loops.shorten_back), x, options=[scale, 1e-6])


def swiglu(gate: Rows, up: Rows) -> Rows:
    """SiLU(gate) · up."""
    return _by_row((fused_loops.swiglu, fused_loops.swiglu_back), gate, up)


def fit(x: Tensor) -> bool:
    """Whether these functions take rows like these."""
    return x.dtype == torch.float32 and x.device.type == "cpu" and x.shape[-1] % WIDTH == 0


def _by_row(loops: tuple[Callable, Callable], *rows: Tensor, weights: Sequence[Tensor] = (), options=()) -> Tensor:
    flat = [x.reshape(-1, x.shape[-1]) for x in rows]
    return _swept(loops, flat, weights, options).view(rows[0].shape)


def _swept(loops, rows, weights, options=()):
    inputs = [*rows, *weights]
    for x in inputs:
        if not fit(x):
            raise ValueError(
                f"fused functions take float32 on the CPU with a last axis that is a multiple of {WIDTH}, "
                f"got {x.dtype} on {x.device} with {x.shape[-1]}; leave the model as transformers made it"
            )
    return _Sweep.apply(loops, len(rows), options, *(x.contiguous() for x in inputs))


class _Sweep(torch.autograd.Function):
    """A loop forwards and one backwards as a differentiable function of rows, the first inputs, and of weights.

    Forwards the loop takes inputs, result, options; backwards inputs, the gradient of the result, those of the inputs
    to fill in (those of weights are added to), options.
    """

    @staticmethod
    def forward(ctx, loops, cut, options, *inputs):
        ctx.save_for_backward(*inputs)
        ctx.back, ctx.cut, ctx.options = loops[1], cut, options
        y = torch.empty_like(inputs[0])
        rows, weights, result = arrays(*inputs[:cut]), arrays(*inputs[cut:]), y.numpy()

        def run(first, stop):
            part = slice(first, stop)
            loops[0](*(x[part] for x in rows), *weights, result[part], *options)

        # the results do not depend on how many threads share the rows
        threads.split(run, len(result), most=result.size // SHARED_FROM)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        inputs = ctx.saved_tensors
        gradients = [torch.empty_like(x) if n < ctx.cut else torch.zeros_like(x) for n, x in enumerate(inputs)]
        ctx.back(*arrays(*inputs, dy.contiguous(), *gradients), *ctx.options)
        return None, None, None, *gradients


def arrays(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    """The tensors as compiled code takes them: the same memory, without gradients."""
    return tuple(tensor.detach().numpy() for tensor in tensors)
