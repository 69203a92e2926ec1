"""The elementwise parts of a Qwen3-Next layer, each fused into one compiled sweep for a CPU.

They do in one pass over memory what PyTorch does in several, forwards and backwards, and stand in for transformers'
functions. Float32; the last axis must be a multiple of sixteen. Forwards, torch's threads share the rows.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from srdyn.kernels import fused_loops, threads
from srdyn.kernels.fused_loops import TAPS
from srdyn.kernels.simd_float32 import WIDTH

EPS = 1e-6
"""What `l2norm` adds to the sum of squares."""
SHARED_FROM = 2**16
"""Numbers that a thread should have to itself: with fewer, starting it costs more than it saves."""


def causal_conv1d_fn(
    hidden_states: Float[Tensor, "B D T"],
    weight: Float[Tensor, "D W"],
    bias: None = None,
    activation: str | None = None,
    **others: object,
) -> Float[Tensor, "B D T"]:
    """SiLU of the depthwise causal convolution; both sides are transposed views of `[B, T, D]` memory.

    Raises ValueError on anything but four taps, SiLU, no bias, unpacked sequences.
    """
    if weight.shape[1] != TAPS or bias is not None or activation != "silu" or others.get("seq_idx") is not None:
        raise ValueError(
            f"the fused convolution has {TAPS} taps, SiLU, no bias, no packed sequences; got {weight.shape[1]} taps, "
            f"activation {activation!r}, bias {bias is not None}, packed {others.get('seq_idx') is not None}"
        )
    return _Convolution.apply(_checked(hidden_states.transpose(1, 2)), _checked(weight.T)).transpose(1, 2)


def gated_norm(
    x: Float[Tensor, "*batch D"], gate: Float[Tensor, "*batch D"], weight: Float[Tensor, " D"], *, eps: float
) -> Float[Tensor, "*batch D"]:
    """weight · x / √(mean x² + eps) · SiLU(gate)."""
    return _GatedNorm.apply(_checked(x), _checked(gate), _checked(weight), eps)


def norm(x: Float[Tensor, "*batch D"], weight: Float[Tensor, " D"], *, eps: float) -> Float[Tensor, "*batch D"]:
    """(1 + weight) · x / √(mean x² + eps)."""
    return _Norm.apply(_checked(x), _checked(weight), eps)


def l2norm(x: Float[Tensor, "*batch D"], *, scale: float = 1.0, eps: float = EPS) -> Float[Tensor, "*batch D"]:
    """scale · x / √(Σx² + eps)."""
    return _L2Norm.apply(_checked(x), scale, eps)


def swiglu(gate: Float[Tensor, "*batch D"], up: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
    """SiLU(gate) · up."""
    return _SwiGLU.apply(_checked(gate), _checked(up))


def _checked(x):
    if x.dtype != torch.float32 or x.device.type != "cpu" or x.shape[-1] % WIDTH:
        raise ValueError(
            f"fused functions take float32 on the CPU with a last axis that is a multiple of {WIDTH}, "
            f"got {x.dtype} on {x.device} with {x.shape[-1]}; leave the model as transformers made it"
        )
    return x.contiguous()


def _arrays(*tensors):
    return tuple(tensor.detach().numpy() for tensor in tensors)


def _rows(*tensors):
    return tuple(tensor.detach().numpy().reshape(-1, tensor.shape[-1]) for tensor in tensors)


def _shared(run, rows):
    """`run(part)` for slices of the rows: the results do not depend on how many."""
    threads.split(lambda first, stop: run(slice(first, stop)), len(rows), most=rows.size // SHARED_FROM)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        y = torch.empty_like(x)
        x_rows, w, y_rows = _arrays(x, weight, y)
        _shared(lambda part: fused_loops.convolve(x_rows[part], w, y_rows[part]), y_rows)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        dx, dweight, ring = torch.empty_like(x), torch.zeros_like(weight), torch.empty_like(weight)
        fused_loops.convolve_back(*_arrays(x, weight, dy.contiguous(), dx, dweight, ring))
        return dx, dweight


class _GatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, gate, weight, eps):
        ctx.save_for_backward(x, gate, weight)
        ctx.eps = eps
        y = torch.empty_like(x)
        x_rows, gate_rows, y_rows = _rows(x, gate, y)
        _shared(
            lambda part: fused_loops.gate_norm(x_rows[part], gate_rows[part], *_arrays(weight), y_rows[part], eps),
            y_rows,
        )
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        x, gate, weight = ctx.saved_tensors
        dx, dgate, dweight = torch.empty_like(x), torch.empty_like(x), torch.zeros_like(weight)
        known = (*_rows(x, gate), *_arrays(weight), *_rows(dy.contiguous()))
        fused_loops.gate_norm_back(*known, *_rows(dx, dgate), *_arrays(dweight), ctx.eps)
        return dx, dgate, dweight, None


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps):
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        y = torch.empty_like(x)
        x_rows, y_rows = _rows(x, y)
        _shared(lambda part: fused_loops.normalise(x_rows[part], *_arrays(weight), y_rows[part], eps), y_rows)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        dx, dweight = torch.empty_like(x), torch.zeros_like(weight)
        fused_loops.normalise_back(*_rows(x), *_arrays(weight), *_rows(dy.contiguous(), dx), *_arrays(dweight), ctx.eps)
        return dx, dweight, None


class _L2Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale, eps):
        ctx.save_for_backward(x)
        ctx.options = scale, eps
        y = torch.empty_like(x)
        x_rows, y_rows = _rows(x, y)
        _shared(lambda part: fused_loops.shorten(x_rows[part], y_rows[part], scale, eps), y_rows)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        dx = torch.empty_like(x)
        fused_loops.shorten_back(*_rows(x, dy.contiguous(), dx), *ctx.options)
        return dx, None, None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        y = torch.empty_like(up)
        gate_rows, up_rows, y_rows = _rows(gate, up, y)
        _shared(lambda part: fused_loops.swiglu(gate_rows[part], up_rows[part], y_rows[part]), y_rows)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        gate, up = ctx.saved_tensors
        dgate, dup = torch.empty_like(gate), torch.empty_like(up)
        fused_loops.swiglu_back(*_rows(gate, up, dy.contiguous(), dgate, dup))
        return dgate, dup
