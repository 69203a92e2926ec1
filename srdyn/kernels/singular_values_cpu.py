"""Singular values of many small matrices on a CPU, compiled: eight matrices at a time, one in every vector lane.

LAPACK gives a 64 × 64 matrix to one core as a sequence of short scalar chains; eight of them side by side keep the
vector units busy. Householder reflections make a matrix bidiagonal, the implicitly shifted QR iteration makes it
diagonal. Both are backward stable: every value is off by a few units in the last place of the largest, as in LAPACK.

Golub & Kahan, Calculating the singular values and pseudo-inverse of a matrix, SIAM J. Numer. Anal. 2(2), 1965.
Golub & Van Loan, Matrix Computations, 4th ed. 2013, Alg. 5.4.2 and 8.6.1.
"""

import functools
import math

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from srdyn.kernels import simd, threads
from srdyn.kernels.simd import DOUBLES as WIDTH
from srdyn.kernels.simd import largest, load, mul_add, root, size, splat, store, where_less

BLOCK = 4
"""Rows and columns that are worked on together; K and V are filled up with zeros to multiples of it."""

ROUNDOFF = 2.0**-53
FLOOR = 2.0**-80
"""Diagonal entries are kept above this fraction of the largest: an exact zero would stop the iteration."""

SWEEPS = 30
"""Sweeps allowed per singular value; two is usual."""

_compiled = functools.partial(simd.compiled, flags=("contract", "nsz"))


def singular_values(matrices: Float[Tensor, "*batch K V"]) -> Float64[Tensor, "*batch D"]:
    """Singular values of finite float32 or float64 matrices on the CPU, largest first, without gradients.

    Off by less than 1e-13·σ₁ up to 128 × 128. Threads share the batch; each matrix has a lane of its own, so its values
    have the same bits whatever else the batch holds. Raises ArithmeticError where `SWEEPS` sweeps a value are too few.
    """
    *batch, K, V = matrices.shape
    tall = matrices.detach().flatten(0, -3) if batch else matrices.detach()[None]
    tall = (tall if K >= V else tall.mT).contiguous().numpy()
    sigma = np.zeros((len(tall), _filled(min(K, V))))
    if not all(threads.split(functools.partial(_run, tall, sigma), -(-len(tall) // WIDTH))):
        raise ArithmeticError(f"singular values not found within {SWEEPS} sweeps each: are all entries finite?")
    sigma = -np.sort(-sigma)[:, : min(K, V)]
    return torch.from_numpy(sigma).reshape(*batch, min(K, V))


@_compiled
def _filled(count):
    return -(-count // BLOCK) * BLOCK


@_compiled
def _run(matrices, sigma, first, last):
    """Fills sigma for the groups `first` to `last` of eight matrices; False where the iteration did not end."""
    M, N = _filled(matrices.shape[1]), sigma.shape[1]
    a, exponents = np.zeros(M * N * WIDTH), np.zeros(WIDTH, np.int64)
    d, e, w, u = np.zeros(N * WIDTH), np.zeros(N * WIDTH), np.zeros(N * WIDTH), np.zeros(N * WIDTH)
    v = np.zeros(M * WIDTH)
    found = True
    for group in range(first, last):
        _pack(matrices, group * WIDTH, N, a, exponents)
        for k in range(N):
            _reflect(a, M, N, k, d, e, v, w, u)
        found = _diagonalise(d, e, N) and found
        for lane in range(min(WIDTH, len(matrices) - group * WIDTH)):
            one, other = _powers(exponents[lane])
            for k in range(N):
                sigma[group * WIDTH + lane, k] = d[k * WIDTH + lane] * one * other
    return found


@_compiled
def _powers(exponent):
    """Two powers of two with 2^exponent as their product, which itself may lie outside float64."""
    half = exponent // 2
    return math.ldexp(1.0, half), math.ldexp(1.0, exponent - half)


@_compiled
def _pack(matrices, first, N, a, exponents):
    """Eight matrices into the lanes of a [M, N], filled up with zeros, the largest entry of each between 1/2 and 1."""
    count, rows, columns = matrices.shape
    a[:] = 0.0
    exponents[:] = 0
    for lane in range(min(WIDTH, count - first)):
        matrix, top = matrices[first + lane], 0.0
        for i in range(rows):
            for j in range(columns):
                top = max(top, abs(np.float64(matrix[i, j])))
        exponents[lane] = math.frexp(top)[1]
        one, other = _powers(-exponents[lane])
        for i in range(rows):
            for j in range(columns):
                a[(i * N + j) * WIDTH + lane] = np.float64(matrix[i, j]) * one * other


@_compiled
def _reflect(a, M, N, k, d, e, v, w, u):
    """Reflections from the left and the right that clear column k below, row k right of the bidiagonal.

    With v, u the reflections' vectors, τ, τ′ their factors: w = τ Aᵀv, z = τ′(A − v wᵀ)u, A ← A − v wᵀ − z uᵀ. Blocks
    start at multiples of `BLOCK`, so they touch rows and columns that are done, where v, w, u are zero or no matter.
    """
    zero, start = splat(0.0), (k + 1) // BLOCK * BLOCK
    rest = zero
    for i in range(k + 1, M):
        x = load(a, (i * N + k) * WIDTH)
        rest = mul_add(x, x, rest)
    beta, tau, inverse = _reflection(load(a, (k * N + k) * WIDTH), rest)
    store(d, k * WIDTH, size(beta))
    for i in range(start, k + 1):
        store(v, i * WIDTH, zero)
    for i in range(k + 1, M):
        store(v, i * WIDTH, load(a, (i * N + k) * WIDTH) * inverse)
    if k + 1 == N:
        return

    _times_rows(a, M, N, k, tau, v, w, u)
    for j in range(start, k + 1):
        store(w, j * WIDTH, zero)
        store(u, j * WIDTH, zero)
    rest = zero
    for j in range(k + 2, N):
        x = load(u, j * WIDTH)
        rest = mul_add(x, x, rest)
    beta, tau, inverse = _reflection(load(u, (k + 1) * WIDTH), rest)
    store(e, k * WIDTH, size(beta))
    store(u, (k + 1) * WIDTH, splat(1.0))
    along = load(w, (k + 1) * WIDTH)
    for j in range(k + 2, N):
        x = load(u, j * WIDTH) * inverse
        store(u, j * WIDTH, x)
        along = mul_add(load(w, j * WIDTH), x, along)
    _update(a, M, N, start, tau, along, v, w, u)


@_compiled
def _reflection(head, rest):
    """β, τ, 1/(x₀ − β) of the reflection that takes x to (β, 0 …); head = x₀, rest = x₁² + …; identity if rest = 0."""
    zero, one = splat(0.0), splat(1.0)
    norm = root(mul_add(head, head, rest))
    beta = where_less(zero, rest, where_less(head, zero, norm, zero - norm), head)
    tau = where_less(zero, rest, (beta - head) / where_less(zero, rest, beta, one), zero)
    inverse = where_less(zero, rest, one / where_less(zero, rest, head - beta, one), zero)
    return beta, tau, inverse


@_compiled
def _times_rows(a, M, N, k, tau, v, w, u):
    """w = τ (row k + Σ vᵢ row i), and u = row k − w, what the reflection leaves of row k."""
    for j in range((k + 1) // BLOCK * BLOCK, N, BLOCK):
        p = (k * N + j) * WIDTH
        y0, y1, y2, y3 = load(a, p), load(a, p + WIDTH), load(a, p + 2 * WIDTH), load(a, p + 3 * WIDTH)
        w0, w1, w2, w3 = y0, y1, y2, y3
        for i in range(k + 1, M):
            x, p = load(v, i * WIDTH), (i * N + j) * WIDTH
            w0 = mul_add(x, load(a, p), w0)
            w1 = mul_add(x, load(a, p + WIDTH), w1)
            w2 = mul_add(x, load(a, p + 2 * WIDTH), w2)
            w3 = mul_add(x, load(a, p + 3 * WIDTH), w3)
        p = j * WIDTH
        w0, w1, w2, w3 = tau * w0, tau * w1, tau * w2, tau * w3
        store(w, p, w0)
        store(w, p + WIDTH, w1)
        store(w, p + 2 * WIDTH, w2)
        store(w, p + 3 * WIDTH, w3)
        store(u, p, y0 - w0)
        store(u, p + WIDTH, y1 - w1)
        store(u, p + 2 * WIDTH, y2 - w2)
        store(u, p + 3 * WIDTH, y3 - w3)


@_compiled
def _update(a, M, N, start, tau, along, v, w, u):
    """A ← A − v wᵀ − z uᵀ with z = τ (A u − v (w·u)), four rows at a time, which stay in the first-level cache."""
    zero, row = splat(0.0), N * WIDTH
    for i in range(start, M, BLOCK):
        z0, z1, z2, z3 = zero, zero, zero, zero
        for j in range(start, N):
            x, p = load(u, j * WIDTH), (i * N + j) * WIDTH
            z0 = mul_add(load(a, p), x, z0)
            z1 = mul_add(load(a, p + row), x, z1)
            z2 = mul_add(load(a, p + 2 * row), x, z2)
            z3 = mul_add(load(a, p + 3 * row), x, z3)
        p = i * WIDTH
        v0, v1 = zero - load(v, p), zero - load(v, p + WIDTH)
        v2, v3 = zero - load(v, p + 2 * WIDTH), zero - load(v, p + 3 * WIDTH)
        z0, z1 = zero - tau * mul_add(v0, along, z0), zero - tau * mul_add(v1, along, z1)
        z2, z3 = zero - tau * mul_add(v2, along, z2), zero - tau * mul_add(v3, along, z3)
        for j in range(start, N):
            x, y, p = load(u, j * WIDTH), load(w, j * WIDTH), (i * N + j) * WIDTH
            store(a, p, mul_add(v0, y, mul_add(z0, x, load(a, p))))
            store(a, p + row, mul_add(v1, y, mul_add(z1, x, load(a, p + row))))
            store(a, p + 2 * row, mul_add(v2, y, mul_add(z2, x, load(a, p + 2 * row))))
            store(a, p + 3 * row, mul_add(v3, y, mul_add(z3, x, load(a, p + 3 * row))))


@_compiled
def _diagonalise(d, e, N):
    """Sweeps until every e is zero, which leaves the singular values in d; False if that takes too many."""
    zero, top = splat(0.0), splat(0.0)
    for k in range(N):
        top = where_less(top, load(d, k * WIDTH), load(d, k * WIDTH), top)
        if k + 1 < N:
            top = where_less(top, load(e, k * WIDTH), load(e, k * WIDTH), top)
    tolerance, floor = top * splat(ROUNDOFF), top * splat(FLOOR)
    for k in range(N):
        _store_above(floor, d, k, load(d, k * WIDTH))
    high = N - 1
    for _ in range(SWEEPS * N):
        first, last, f, g = _block(d, e, high, tolerance)
        high = int(largest(last))
        if high == 0:
            return True
        low = high - int(largest(where_less(zero, last, splat(float(high)) - first, zero)))
        _sweep(d, e, first, last, f, g, low, high, floor)
    return False


@_compiled
def _store_above(floor, d, k, x):
    x = size(x)
    store(d, k * WIDTH, where_less(x, floor, floor, x))


@_compiled
def _block(d, e, high, tolerance):
    """Where the last block without a negligible e begins and ends in each lane, and what its sweep starts from.

    That is the vector (f, g) for the first rotation: the first column of BᵀB, less the shift. The shift is the
    eigenvalue of the last 2 × 2 of BᵀB that lies nearest to its last entry (Wilkinson), or zero where the block is
    singular to working precision, so that one sweep splits the zero off.
    """
    zero, one = splat(0.0), splat(1.0)
    first, last, f, g, least, before = zero, zero, zero, zero, zero, zero
    e0, d1, e1, d2 = zero, zero, zero, zero
    for k in range(high):
        x, left, right = load(e, k * WIDTH), load(d, k * WIDTH), load(d, (k + 1) * WIDTH)
        x = where_less(tolerance, size(x), x, zero)
        store(e, k * WIDTH, x)
        joined = where_less(zero, size(x), one, zero)
        begins = where_less(zero, size(before), zero, joined)
        first = where_less(zero, begins, splat(float(k)), first)
        last = where_less(zero, joined, splat(k + 1.0), last)
        f, g = where_less(zero, begins, left, f), where_less(zero, begins, x, g)
        least = where_less(zero, begins, left, least)
        least = where_less(zero, joined, where_less(right, least, right, least), least)
        e0, e1 = where_less(zero, joined, before, e0), where_less(zero, joined, x, e1)
        d1, d2 = where_less(zero, joined, left, d1), where_less(zero, joined, right, d2)
        before = x
    corner, beside = mul_add(d2, d2, e1 * e1), d1 * e1
    half = splat(0.5) * (mul_add(d1, d1, e0 * e0) - corner)
    away = root(mul_add(half, half, beside * beside))
    away = where_less(half, zero, half - away, half + away)
    shift = corner - beside * beside / where_less(zero, size(away), away, one)
    shift = where_less(tolerance, least, shift, zero)
    return first, last, mul_add(f, f, zero - shift), f * g


@_compiled
def _sweep(d, e, first, last, f, g, low, high, floor):
    """One QR step on rows `first` to `last` of each lane; lanes that are not at it pass through unchanged."""
    zero, one = splat(0.0), splat(1.0)
    dk, ek, before = load(d, low * WIDTH), load(e, low * WIDTH), zero
    for k in range(low, high):
        at = splat(float(k))
        inside = where_less(at, first, zero, where_less(at, last, one, zero))
        d_next, e_next = load(d, (k + 1) * WIDTH), load(e, (k + 1) * WIDTH)
        c, s, above = _rotation(f, g)
        if k > low:
            store(e, (k - 1) * WIDTH, where_less(first, at, where_less(at, last, above, before), before))
        f1, e1 = mul_add(c, dk, s * ek), mul_add(c, ek, zero - s * dk)
        c1, s1, diagonal = _rotation(f1, s * d_next)
        f2, d2 = mul_add(c1, e1, s1 * (c * d_next)), mul_add(c1, c * d_next, zero - s1 * e1)
        _store_above(floor, d, k, where_less(zero, inside, diagonal, dk))
        # the rotation of rows reaches e_next unless the block ends here
        within = where_less(zero, inside, where_less(splat(k + 1.0), last, one, zero), zero)
        f, g = where_less(zero, inside, f2, f), where_less(zero, inside, s1 * e_next, g)
        before, ek = where_less(zero, inside, f2, ek), where_less(zero, within, c1 * e_next, e_next)
        dk = where_less(zero, inside, d2, d_next)
    store(e, (high - 1) * WIDTH, before)
    _store_above(floor, d, high, dk)


@_compiled
def _rotation(f, g):
    """c, s, r with c·f + s·g = r ≥ 0 and c·g − s·f = 0; the identity if both are zero."""
    zero, one = splat(0.0), splat(1.0)
    square = mul_add(f, f, g * g)
    r = root(square)
    inverse = one / where_less(zero, square, r, one)
    return where_less(zero, square, f * inverse, one), g * inverse, r
