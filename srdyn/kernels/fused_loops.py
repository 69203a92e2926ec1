"""The compiled sweeps behind `fused`, forwards and backwards: flat float32 arrays, last axis a multiple of sixteen."""

import numpy as np

from srdyn.kernels.simd import WIDTH, add, compiled, load, mul, mul_add, sigmoid, splat, store, sub, total

TAPS = 4


@compiled
def convolve(x, weight, y) -> None:
    """y [B, T, D] = SiLU of the causal convolution of x with the taps [4, D]."""
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
def convolve_back(x, weight, dy, dx, dweight) -> None:
    """Gradients of `convolve`: dx, and dweight added to."""
    B, T, D = x.shape
    ring = np.empty((TAPS, D), np.float32)  # the gradient before SiLU of the last four tokens
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
def _inverse_length(x, at, D, eps):
    squares = splat(np.float32(0))
    for d in range(0, D, WIDTH):
        squares = mul_add(load(x, at + d), load(x, at + d), squares)
    return np.float32(1) / np.sqrt(total(squares) + np.float32(eps))


@compiled
def _inverse_rms(x, at, D, eps):
    return np.sqrt(np.float32(D)) * _inverse_length(x, at, D, np.float32(D) * np.float32(eps))


@compiled
def shorten(x, y, scale, eps) -> None:
    """y [N, D] = `fused.l2norm` of x [N, D], for compiled code; y may be x."""
    N, D = x.shape
    for n in range(N):
        at = n * D
        factor = splat(np.float32(scale) * _inverse_length(x, at, D, eps))
        for d in range(0, D, WIDTH):
            store(y, at + d, mul(load(x, at + d), factor))


@compiled
def shorten_back(x, dy, dx, scale, eps) -> None:
    """The gradient of `shorten`."""
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
def gate_norm(x, gate, weight, y, eps) -> None:
    """y = `fused.gated_norm` of the rows of x."""
    N, D = x.shape
    for n in range(N):
        at = n * D
        scale = splat(_inverse_rms(x, at, D, eps))
        for d in range(0, D, WIDTH):
            z = load(gate, at + d)
            normed = mul(mul(load(x, at + d), scale), load(weight, d))
            store(y, at + d, mul(normed, mul(z, sigmoid(z))))


@compiled
def gate_norm_back(x, gate, weight, dy, dx, dgate, dweight, eps) -> None:
    """Gradients of `gate_norm`: dx, dgate, and dweight added to."""
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
def normalise(x, weight, y, eps) -> None:
    """y = `fused.norm` of the rows of x."""
    N, D = x.shape
    one = splat(np.float32(1))
    for n in range(N):
        at = n * D
        scale = splat(_inverse_rms(x, at, D, eps))
        for d in range(0, D, WIDTH):
            store(y, at + d, mul(mul(load(x, at + d), scale), add(one, load(weight, d))))


@compiled
def normalise_back(x, weight, dy, dx, dweight, eps) -> None:
    """Gradients of `normalise`: dx, and dweight added to."""
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
def swiglu(gate, up, y) -> None:
    """y = `fused.swiglu` of gate and up."""
    for n in range(0, gate.size, WIDTH):
        z = load(gate, n)
        store(y, n, mul(mul(z, sigmoid(z)), load(up, n)))


@compiled
def swiglu_back(gate, up, dy, dgate, dup) -> None:
    """Gradients of `swiglu`."""
    one = splat(np.float32(1))
    for n in range(0, gate.size, WIDTH):
        z, g = load(gate, n), load(dy, n)
        p = sigmoid(z)
        store(dup, n, mul(g, mul(z, p)))
        store(dgate, n, mul(mul(g, load(up, n)), mul(p, mul_add(z, sub(one, p), one))))
