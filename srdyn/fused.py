"""The elementwise parts of a Qwen3-Next layer, each fused into one compiled sweep for a CPU.

They do in one pass over memory what PyTorch does in several, forwards and backwards, and stand in for transformers'
functions. Float32; the last axis must be a multiple of sixteen. Forwards, torch's threads share the rows.
"""

from typing import no_type_check

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from srdyn import threads
from srdyn.lanes import WIDTH, add, compiled, load, mul, mul_add, sigmoid, splat, store, sub, total

TAPS = 4
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
        _shared(lambda part: _convolve(x_rows[part], w, y_rows[part]), y_rows)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        dx, dweight, ring = torch.empty_like(x), torch.zeros_like(weight), torch.empty_like(weight)
        _convolve_back(*_arrays(x, weight, dy.contiguous(), dx, dweight, ring))
        return dx, dweight


class _GatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, gate, weight, eps):
        ctx.save_for_backward(x, gate, weight)
        ctx.eps = eps
        y = torch.empty_like(x)
        x_rows, gate_rows, y_rows = _rows(x, gate, y)
        _shared(lambda part: _gate_norm(x_rows[part], gate_rows[part], *_arrays(weight), y_rows[part], eps), y_rows)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        x, gate, weight = ctx.saved_tensors
        dx, dgate, dweight = torch.empty_like(x), torch.empty_like(x), torch.zeros_like(weight)
        known = (*_rows(x, gate), *_arrays(weight), *_rows(dy.contiguous()))
        _gate_norm_back(*known, *_rows(dx, dgate), *_arrays(dweight), ctx.eps)
        return dx, dgate, dweight, None


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps):
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        y = torch.empty_like(x)
        x_rows, y_rows = _rows(x, y)
        _shared(lambda part: _normalise(x_rows[part], *_arrays(weight), y_rows[part], eps), y_rows)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        dx, dweight = torch.empty_like(x), torch.zeros_like(weight)
        _normalise_back(*_rows(x), *_arrays(weight), *_rows(dy.contiguous(), dx), *_arrays(dweight), ctx.eps)
        return dx, dweight, None


class _L2Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale, eps):
        ctx.save_for_backward(x)
        ctx.options = scale, eps
        y = torch.empty_like(x)
        x_rows, y_rows = _rows(x, y)
        _shared(lambda part: shorten(x_rows[part], y_rows[part], scale, eps), y_rows)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        dx = torch.empty_like(x)
        _shorten_back(*_rows(x, dy.contiguous(), dx), *ctx.options)
        return dx, None, None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        y = torch.empty_like(up)
        gate_rows, up_rows, y_rows = _rows(gate, up, y)
        _shared(lambda part: _swiglu(gate_rows[part], up_rows[part], y_rows[part]), y_rows)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        gate, up = ctx.saved_tensors
        dgate, dup = torch.empty_like(gate), torch.empty_like(up)
        _swiglu_back(*_rows(gate, up, dy.contiguous(), dgate, dup))
        return dgate, dup


@compiled
@no_type_check
def _convolve(x, weight, y):
    B, T, D = x.shape
    for b in range(B):
        for t in range(T):
            at = (b * T + t) * D
            for d in range(0, D, WIDTH):
                s = splat(np.float32(0))
                for w in range(max(0, TAPS - 1 - t), TAPS):
                    s = mul_add(load(weight, w * D + d), load(x, at + (w - TAPS + 1) * D + d), s)
                store(y, at + d, mul(s, sigmoid(s)))


@compiled
@no_type_check
def _convolve_back(x, weight, dy, dx, dweight, ring):
    """`ring` holds the gradient before SiLU of the last four tokens."""
    B, T, D = x.shape
    zero, one = splat(np.float32(0)), splat(np.float32(1))
    for b in range(B):
        for t in range(T + TAPS - 1):
            at = (b * T + t) * D
            for d in range(0, D, WIDTH):
                ds = zero
                if t < T:
                    first = max(0, TAPS - 1 - t)
                    s = zero
                    for w in range(first, TAPS):
                        s = mul_add(load(weight, w * D + d), load(x, at + (w - TAPS + 1) * D + d), s)
                    p = sigmoid(s)
                    ds = mul(mul(load(dy, at + d), p), mul_add(s, sub(one, p), one))
                    for w in range(first, TAPS):
                        product = mul_add(ds, load(x, at + (w - TAPS + 1) * D + d), load(dweight, w * D + d))
                        store(dweight, w * D + d, product)
                store(ring, (t % TAPS) * D + d, ds)
                if t >= TAPS - 1:
                    s = zero
                    for w in range(TAPS):
                        s = mul_add(load(weight, (TAPS - 1 - w) * D + d), load(ring, ((t + w + 1) % TAPS) * D + d), s)
                    store(dx, at + (1 - TAPS) * D + d, s)


@compiled
@no_type_check
def _inverse_length(x, at, D, eps):
    squares = splat(np.float32(0))
    for d in range(0, D, WIDTH):
        squares = mul_add(load(x, at + d), load(x, at + d), squares)
    return np.float32(1) / np.sqrt(total(squares) + np.float32(eps))


@compiled
@no_type_check
def _inverse_rms(x, at, D, eps):
    return np.sqrt(np.float32(D)) * _inverse_length(x, at, D, np.float32(D) * np.float32(eps))


@compiled
@no_type_check
def shorten(x, y, scale, eps) -> None:
    """y [N, D] = `l2norm` of x [N, D], for compiled code; y may be x."""
    N, D = x.shape
    for n in range(N):
        at = n * D
        factor = splat(np.float32(scale) * _inverse_length(x, at, D, eps))
        for d in range(0, D, WIDTH):
            store(y, at + d, mul(load(x, at + d), factor))


@compiled
@no_type_check
def _shorten_back(x, dy, dx, scale, eps):
    N, D = x.shape
    for n in range(N):
        at = n * D
        inverse = _inverse_length(x, at, D, eps)
        inner = splat(np.float32(0))
        for d in range(0, D, WIDTH):
            inner = mul_add(load(x, at + d), load(dy, at + d), inner)
        along = splat(-total(inner) * inverse * inverse)
        factor = splat(np.float32(scale) * inverse)
        for d in range(0, D, WIDTH):
            store(dx, at + d, mul(factor, mul_add(load(x, at + d), along, load(dy, at + d))))


@compiled
@no_type_check
def _gate_norm(x, gate, weight, y, eps):
    N, D = x.shape
    for n in range(N):
        at = n * D
        scale = splat(_inverse_rms(x, at, D, eps))
        for d in range(0, D, WIDTH):
            z = load(gate, at + d)
            normed = mul(mul(load(x, at + d), scale), load(weight, d))
            store(y, at + d, mul(normed, mul(z, sigmoid(z))))


@compiled
@no_type_check
def _gate_norm_back(x, gate, weight, dy, dx, dgate, dweight, eps):
    N, D = x.shape
    one = splat(np.float32(1))
    for n in range(N):
        at = n * D
        scale = splat(_inverse_rms(x, at, D, eps))
        inner = splat(np.float32(0))
        for d in range(0, D, WIDTH):
            z, g = load(gate, at + d), load(dy, at + d)
            p, unit = sigmoid(z), mul(load(x, at + d), scale)
            passed = mul(g, mul(z, p))
            store(dweight, d, mul_add(passed, unit, load(dweight, d)))
            passed = mul(passed, load(weight, d))
            inner = mul_add(passed, unit, inner)
            store(dx, at + d, passed)
            slope = mul(p, mul_add(z, sub(one, p), one))
            store(dgate, at + d, mul(mul(g, slope), mul(unit, load(weight, d))))
        mean = splat(-total(inner) / np.float32(D))
        for d in range(0, D, WIDTH):
            unit = mul(load(x, at + d), scale)
            store(dx, at + d, mul(scale, mul_add(unit, mean, load(dx, at + d))))


@compiled
@no_type_check
def _normalise(x, weight, y, eps):
    N, D = x.shape
    one = splat(np.float32(1))
    for n in range(N):
        at = n * D
        scale = splat(_inverse_rms(x, at, D, eps))
        for d in range(0, D, WIDTH):
            store(y, at + d, mul(mul(load(x, at + d), scale), add(one, load(weight, d))))


@compiled
@no_type_check
def _normalise_back(x, weight, dy, dx, dweight, eps):
    N, D = x.shape
    one = splat(np.float32(1))
    for n in range(N):
        at = n * D
        scale = splat(_inverse_rms(x, at, D, eps))
        inner = splat(np.float32(0))
        for d in range(0, D, WIDTH):
            g, unit = load(dy, at + d), mul(load(x, at + d), scale)
            store(dweight, d, mul_add(g, unit, load(dweight, d)))
            inner = mul_add(mul(g, add(one, load(weight, d))), unit, inner)
        mean = splat(-total(inner) / np.float32(D))
        for d in range(0, D, WIDTH):
            unit = mul(load(x, at + d), scale)
            passed = mul(load(dy, at + d), add(one, load(weight, d)))
            store(dx, at + d, mul(scale, mul_add(unit, mean, passed)))


@compiled
@no_type_check
def _swiglu(gate, up, y):
    for n in range(0, gate.size, WIDTH):
        z = load(gate, n)
        store(y, n, mul(mul(z, sigmoid(z)), load(up, n)))


@compiled
@no_type_check
def _swiglu_back(gate, up, dy, dgate, dup):
    one = splat(np.float32(1))
    for n in range(0, gate.size, WIDTH):
        z, g = load(gate, n), load(dy, n)
        p = sigmoid(z)
        store(dup, n, mul(g, mul(z, p)))
        store(dgate, n, mul(mul(g, load(up, n)), mul(p, mul_add(z, sub(one, p), one))))
