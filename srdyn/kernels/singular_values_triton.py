"""Singular values of many small matrices on a GPU, one Triton program per matrix.

`_bidiagonalise` holds a matrix in registers and clears it by Householder reflections. `_bisect` then finds all singular
values of the bidiagonal at once, as eigenvalues of the Golub-Kahan tridiagonal, whose diagonal is zero and whose other
entries are d₁, e₁, d₂, e₂ …: the signs of its pivots at x tell how many values lie above x. They are two kernels, since
the second needs every entry in every lane, which takes a way through memory, and far fewer threads.

Golub & Kahan, Calculating the singular values and pseudo-inverse of a matrix, SIAM J. Numer. Anal. 2(2), 1965.
Demmel & Kahan, Accurate singular values of bidiagonal matrices, SIAM J. Sci. Stat. Comput. 11(5), 1990.
"""

import typing

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Float64
from torch import Tensor

WIDEST = 128
"""The largest K and V that fit the registers of one program; callers take `torch.linalg` for larger ones."""

_HALVINGS = 56
"""Of the interval that holds a singular value: one for each of float64's 53 binary digits, and three."""


def singular_values(matrices: Float[Tensor, "*batch K V"]) -> Float64[Tensor, "*batch D"]:
    """Singular values of finite float32 or float64 matrices, largest first, by float64 arithmetic to 1e-12·σ₁.

    K and V are at most `WIDEST`.
    """
    *shape, K, V = matrices.shape
    flat = matrices.detach().reshape(-1, K, V)
    tall = flat if K >= V else flat.mT
    batch, M, N = tall.shape
    # The power of two above the largest entry of each, as float64, which no float32 denormal escapes.
    exponents = tall.abs().amax((-2, -1)).double().frexp().exponent
    unit = torch.ldexp(torch.ones_like(exponents, dtype=torch.float64), exponents)
    d, e, sigma = (unit.new_empty(batch, N) for _ in range(3))
    if batch:
        rows, columns = (max(16, triton.next_power_of_2(size)) for size in (M, N))
        # 16 entries a thread; a program has 1 to 32 warps of 32 threads
        warps = max(1, rows * columns // 512)
        _bidiagonalise[(batch,)](tall, unit, d, e, *tall.stride(), M, N, rows, columns, num_warps=warps)
        _bisect[(batch,)](d, e, sigma, N, columns, _HALVINGS, num_warps=max(1, columns // 32))
    return (sigma * unit[:, None]).reshape(*shape, N)


@triton.jit
@typing.no_type_check
def _bidiagonalise(
    matrices, unit, d, e, stride, row_stride, column_stride, M, N, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """d, e of one matrix over its unit, M ≥ N; e ends in a zero."""
    matrix = tl.program_id(0).to(tl.int64)
    i, j = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    places = matrices + matrix * stride + i[:, None] * row_stride + j[None, :] * column_stride
    a = tl.load(places, mask=(i[:, None] < M) & (j[None, :] < N), other=0.0)
    # by a power of two: exact, also for a float32 denormal, which float64 holds as a normal number
    a = a.to(tl.float64) / tl.load(unit + matrix)
    diagonal, beside = tl.zeros([COLUMNS], a.dtype), tl.zeros([COLUMNS], a.dtype)
    for k in range(N):
        x = tl.sum(tl.where(j[None, :] == k, a, 0.0), 1)
        beta, tau, v = _reflection(x, i, k)
        diagonal = tl.where(j == k, beta, diagonal)
        w = tl.where(j > k, tau * tl.sum(a * v[:, None], 0), 0.0)
        y = tl.where(j > k, tl.sum(tl.where(i[:, None] == k, a, 0.0), 0) - w, 0.0)
        beta, tau, u = _reflection(y, j, k + 1)
        beside = tl.where(j == k, beta, beside)
        z = tau * (tl.sum(a * u[None, :], 1) - v * tl.sum(w * u, 0))
        a = a - v[:, None] * w[None, :] - z[:, None] * u[None, :]
    tl.store(d + matrix * N + j, diagonal, mask=j < N)
    tl.store(e + matrix * N + j, beside, mask=j < N)


@triton.jit
@typing.no_type_check
def _reflection(x, index, k):
    """β, τ, v with (1 − τ v vᵀ) x = β at `k` and 0 behind it, v = 1 at `k`; τ = 0 where nothing lies behind it."""
    head = tl.sum(tl.where(index == k, x, 0.0), 0)
    rest = tl.sum(tl.where(index > k, x * x, 0.0), 0)
    norm = tl.sqrt(head * head + rest)
    beta = tl.where(rest > 0, tl.where(head < 0, norm, -norm), head)
    tau = tl.where(rest > 0, (beta - head) / tl.where(rest > 0, beta, 1.0), 0.0)
    behind = tl.where(index > k, x / tl.where(rest > 0, head - beta, 1.0), 0.0)
    return beta, tau, tl.where(index == k, 1.0, behind)


@triton.jit
@typing.no_type_check
def _bisect(d, e, sigma, N, COLUMNS: tl.constexpr, HALVINGS: tl.constexpr):
    """The singular value number j of one bidiagonal in lane j, between zero and the largest row sum."""
    matrix = tl.program_id(0).to(tl.int64)
    d, e = d + matrix * N, e + matrix * N
    j = tl.arange(0, COLUMNS)
    diagonal = tl.abs(tl.load(d + j, mask=j < N, other=0.0))
    behind = tl.abs(tl.load(e + j, mask=j < N, other=0.0))
    before = tl.abs(tl.load(e + j - 1, mask=(j > 0) & (j < N), other=0.0))
    bound = tl.max(diagonal + tl.maximum(before, behind), 0)
    low, high = tl.zeros([COLUMNS], diagonal.dtype), tl.zeros([COLUMNS], diagonal.dtype) + bound
    for _ in range(HALVINGS):
        x = 0.5 * (low + high)
        pivot = tl.minimum(-x, -1e-30)
        negative = tl.full([COLUMNS], 1, tl.int32)
        for k in range(N):
            entry = tl.load(d + k)
            pivot = _next_pivot(pivot, x, entry)
            negative += tl.where(pivot < 0, 1, 0)
            entry = tl.load(e + k)
            pivot = _next_pivot(pivot, x, entry)
            negative += tl.where((pivot < 0) & (k < N - 1), 1, 0)
        # of the 2N eigenvalues ±σ, 2N − negative lie above x, all of them positive
        above = 2 * N - negative > j
        low, high = tl.where(above, x, low), tl.where(above, high, x)
    tl.store(sigma + matrix * N + j, 0.5 * (low + high), mask=j < N)


@triton.jit
@typing.no_type_check
def _next_pivot(pivot, x, entry):
    """The next pivot of LDLᵀ of the tridiagonal less x; one that vanishes counts as negative, an error far below x."""
    pivot = -x - entry * entry / pivot
    return tl.where(tl.abs(pivot) < 1e-30, -1e-30, pivot)
