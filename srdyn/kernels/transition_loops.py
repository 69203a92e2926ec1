"""The compiled sweeps of `scan.rwkv7` over its state, forwards and backwards; layouts and limits as in `scan_loops`.

Forwards, one sweep per token over `PANEL` columns of the state, with r = Sᵀa read in the sweep before:

    S ← diag(w) S + b rᵀ + k vᵀ     o = Sᵀq     r = Sᵀa′, with a′ of the next token

Backwards, from the last token to the first with G, the gradient with respect to S; P is the state before the token.
Both lie transposed, `PANEL` rows of K, and the states of a block are rebuilt from the one stored before it and r:

    G ← G + q doᵀ     dq = S do     dk = G v     db = G r     dw = Σ G∘P     dv = Gᵀk     dr = Gᵀb
    da = P dr     G ← diag(w) G + a drᵀ
"""

import numpy as np

from srdyn.kernels.scan_loops import AHEAD, BLOCK, PANEL, fetch
from srdyn.kernels.simd import WIDTH, add, compiled, load, mul, mul_add, splat, store, total


@compiled
def forward(inputs, results, positions, scratch, first, last) -> None:
    """Runs the heads `first` to `last` of the B·H heads over all tokens.

    inputs: q, k [B, T, H, K], v [B, T, H, V], w, a, b [B, T, H, K]. results: state [B, H, K, V], the first in and the
    last out; outputs, r [B, T, H, V]; the states [B, C, H, K, V] after the tokens in `positions` (0 to T).
    """
    for pair in range(first, last):
        for column in range(0, inputs[2].shape[3], PANEL):
            _forward(inputs, results, positions, pair, column)


@compiled
def backward(known, gradients, scratch, first, last) -> None:
    """Fills the gradients of the heads `first` to `last` of the B·H heads.

    known: inputs, r, the states at every BLOCK-th position from 0, the gradient of the outputs. gradients: of q, k, v,
    w, a, b, all zero before; of the state, the last state's in and the first state's out.
    """
    H = known[0].shape[2]
    for pair in range(first, last):
        for column in range(0, known[2].shape[3], PANEL):
            _backward(known, gradients, scratch, pair // H, pair % H, column)


@compiled
def _forward(inputs, results, positions, pair, column):
    q, k, v, w, a, b = inputs
    state, out, read, captured = results
    T, H, K = q.shape[1:]
    V = v.shape[3]
    n, h = pair // H, pair % H
    top = pair * K * V + column
    zero = splat(np.float32(0))
    r0 = r1 = zero
    mark = 0
    for t in range(-1, T):
        now, coming, far = max(t, 0), min(t + 1, T - 1), min(t + AHEAD, T - 1)
        at = ((n * T + now) * H + h) * V + column
        values, keys = ((n * T + far) * H + h) * V + column, ((n * T + far) * H + h) * K
        fetch(v, out, read, values, PANEL)
        fetch(q, k, w, keys, K)
        fetch(a, b, b, keys, K)
        v0, v1 = load(v, at), load(v, at + WIDTH)
        o0 = o1 = p0 = p1 = zero
        for i in range(K):
            place = top + i * V
            x0, x1 = load(state, place), load(state, place + WIDTH)
            if t >= 0:
                decay, back = splat(w[n, t, h, i]), splat(b[n, t, h, i])
                key, query = splat(k[n, t, h, i]), splat(q[n, t, h, i])
                x0 = mul_add(key, v0, mul_add(back, r0, mul(decay, x0)))
                x1 = mul_add(key, v1, mul_add(back, r1, mul(decay, x1)))
                store(state, place, x0)
                store(state, place + WIDTH, x1)
                o0, o1 = mul_add(query, x0, o0), mul_add(query, x1, o1)
            asks = splat(a[n, coming, h, i])
            p0, p1 = mul_add(asks, x0, p0), mul_add(asks, x1, p1)
        if t >= 0:
            store(out, at, o0)
            store(out, at + WIDTH, o1)
            store(read, at, r0)
            store(read, at + WIDTH, r1)
        r0, r1 = p0, p1
        if mark < positions.size and positions[mark] == t + 1:
            captured[n, mark, h, :, column : column + PANEL] = state[n, h, :, column : column + PANEL]
            mark += 1


@compiled
def _backward(known, gradients, scratch, n, h, column):
    T = known[0].shape[1]
    slab, G = scratch[:2]
    checkpoints, dstate = known[7], gradients[6]
    G[:] = dstate[n, h, :, column : column + PANEL].T
    for block in range((T - 1) // BLOCK, -1, -1):
        first, stop = block * BLOCK, min(block * BLOCK + BLOCK, T)
        slab[0] = checkpoints[n, block, h, :, column : column + PANEL].T
        for t in range(first, stop):
            _rebuild(known, slab, n, t, h, column, t - first)
        for t in range(stop - 1, first - 1, -1):
            _token_back(known, gradients, scratch, n, t, h, column, t - first)
    dstate[n, h, :, column : column + PANEL] = G.T


@compiled
def _rebuild(known, slab, n, t, h, column, m):
    """slab[m + 1] = PANEL rows of Sᵀ after token t, from those before it."""
    _, k, v, w, _, b, read = known[:7]
    T, H, K = k.shape[1:]
    keys, before = ((n * T + t) * H + h) * K, m * PANEL * K
    for j in range(PANEL):
        value, r = splat(v[n, t, h, column + j]), splat(read[n, t, h, column + j])
        for i in range(0, K, WIDTH):
            row = before + j * K + i
            moved = mul_add(load(b, keys + i), r, mul(load(w, keys + i), load(slab, row)))
            store(slab, row + PANEL * K, mul_add(load(k, keys + i), value, moved))


@compiled
def _token_back(known, gradients, scratch, n, t, h, column, m):
    """Takes G from after token t to before it; slab[m] and slab[m + 1] are the states there."""
    q, k, v, _, _, b, read, _, do = known
    dq, dk, dv, dw, _, db, _ = gradients
    slab, G, columns, sums, _ = scratch
    T, H, K = q.shape[1:]
    keys, before = ((n * T + t) * H + h) * K, m * PANEL * K
    zero = splat(np.float32(0))
    for i in range(0, K, WIDTH):
        query, key, back = load(q, keys + i), load(k, keys + i), load(b, keys + i)
        to_q = to_k = to_b = to_w = zero
        for j in range(PANEL):
            o, row = splat(do[n, t, h, column + j]), j * K + i
            value, r = splat(v[n, t, h, column + j]), splat(read[n, t, h, column + j])
            x = mul_add(query, o, load(G, row))
            store(G, row, x)
            to_q = mul_add(load(slab, before + PANEL * K + row), o, to_q)
            to_k, to_b = mul_add(x, value, to_k), mul_add(x, r, to_b)
            to_w = mul_add(x, load(slab, before + row), to_w)
            store(columns, j * WIDTH, mul_add(x, key, zero if i == 0 else load(columns, j * WIDTH)))
            store(sums, j * WIDTH, mul_add(x, back, zero if i == 0 else load(sums, j * WIDTH)))
        for into, x in ((dq, to_q), (dk, to_k), (db, to_b), (dw, to_w)):
            store(into, keys + i, add(x, load(into, keys + i)))
    for j in range(PANEL):
        dv[n, t, h, column + j] = total(load(columns, j * WIDTH))
        sums[j, 0] = total(load(sums, j * WIDTH))
    _before_token(known, gradients, scratch, keys, before)


@compiled
def _before_token(known, gradients, scratch, keys, before):
    """da = P dr and G ← diag(w) G + a drᵀ, with dr in the first column of the sums."""
    w, a, da = known[3], known[4], gradients[4]
    slab, G, _, sums, _ = scratch
    K = G.shape[1]
    for i in range(0, K, WIDTH):
        decay, asks = load(w, keys + i), load(a, keys + i)
        to_a = load(da, keys + i)
        for j in range(PANEL):
            dr, row = splat(sums[j, 0]), j * K + i
            to_a = mul_add(load(slab, before + row), dr, to_a)
            store(G, row, mul_add(asks, dr, mul(decay, load(G, row))))
        store(da, keys + i, to_a)
