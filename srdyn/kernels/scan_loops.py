"""The compiled sweeps of the gated delta rule over its state, forwards and backwards.

Every token is computed alone and in order, so any position is exact and a pass cut anywhere continues with the same
bits, which a chunked form cannot promise. Forwards, one sweep per token over `PANEL` columns of the state, which stay
in the first-level cache while all tokens pass:

    e = v − exp(g)·r     u = β e     S ← exp(g)·S + k uᵀ     o = Sᵀq     r = Sᵀk′, with k′ the key of the next token

Backwards, from the last token to the first with G, the gradient with respect to S; the states of a block of `BLOCK`
tokens are rebuilt from the one stored before it and the stored e. There S and G lie transposed, `PANEL` rows of K, so
that sums over the values run down the rows:

    G ← exp(g′)·(G + k′ dr′ᵀ) + q doᵀ     du = Gᵀk     dr = −β du     dβ = du·e     dv = β du
    dq = S do     dk = G u + exp(g′)·S dr′ (of the next token)     dg′ = ⟨exp(g′)·(G + k′ dr′ᵀ), S⟩

Arrays are C-contiguous float32, K and V multiples of `PANEL`. The first index of `place` is b, then h, hk.
"""

import numpy as np

from srdyn.kernels.simd import WIDTH, add, compiled, load, mul, mul_add, prefetch, splat, store, sub, total

PANEL = 32
BLOCK = 32
AHEAD = 3
"""Tokens by which memory is asked for before it is needed."""


@compiled
def forward(inputs, results, positions, scratch, first, last) -> None:
    """Runs the heads `first` to `last` of the B·H heads over all tokens.

    inputs: q, k [B, T, Hk, K], v [B, T, H, V], exp(g), beta [B, T, H]. results: state [B, H, K, V], the first in and
    the last out; outputs, e [B, T, H, V]; the states [B, C, H, K, V] after the tokens in `positions` (0 to T).
    """
    for pair in range(first, last):
        _forward(inputs, results, positions, pair)


@compiled
def backward(known, gradients, scratch, first, last) -> None:
    """Fills the gradients of the key heads `first` to `last` of B·Hk and of the value heads that share them.

    known: inputs, e, the states at every BLOCK-th position from 0, the gradient of the outputs. gradients: of q, k, v,
    g, beta, all zero before; of the state, the last state's in and the first state's out.
    """
    H, Hk = known[2].shape[2], known[0].shape[2]
    group = H // Hk
    for pair in range(first, last):
        for h in range(pair % Hk * group, (pair % Hk + 1) * group):
            _backward(known, gradients, scratch, pair // Hk, h)


@compiled
def fetch(a, b, c, first, size) -> None:
    """Asks for the memory of `size` numbers of three arrays, from place `first` on."""
    for n in range(0, size, WIDTH):
        prefetch(a, first + n)
        prefetch(b, first + n)
        prefetch(c, first + n)


@compiled
def _forward(inputs, results, positions, pair):
    q, k, v, decay, beta = inputs
    state, out, error, captured = results
    T, Hk, K = q.shape[1:]
    H, V = v.shape[2:]
    b, h = pair // H, pair % H
    hk = h // (H // Hk)
    zero = splat(np.float32(0))
    for column in range(0, V, 32):
        top = pair * K * V + column
        r0 = r1 = zero
        mark = 0
        for t in range(-1, T):
            now, coming = max(t, 0), min(t + 1, T - 1)
            at = ((b * T + now) * H + h) * V + column
            a = splat(np.float32(1))
            u0 = u1 = zero
            if t >= 0:
                a, strength = splat(decay[b, t, h]), splat(beta[b, t, h])
                e0, e1 = sub(load(v, at), mul(a, r0)), sub(load(v, at + 16), mul(a, r1))
                store(error, at, e0)
                store(error, at + 16, e1)
                u0, u1 = mul(strength, e0), mul(strength, e1)
            far = min(t + AHEAD, T - 1)
            fetch(v, error, out, ((b * T + far) * H + h) * V + column, PANEL)
            fetch(k, q, q, ((b * T + far) * Hk + hk) * K, K)
            o0 = o1 = r0 = r1 = zero
            for i in range(K):
                place = top + i * V
                key, query, next_key = splat(k[b, now, hk, i]), splat(q[b, now, hk, i]), splat(k[b, coming, hk, i])
                s0 = mul_add(key, u0, mul(a, load(state, place)))
                s1 = mul_add(key, u1, mul(a, load(state, place + 16)))
                store(state, place, s0)
                store(state, place + 16, s1)
                o0, o1 = mul_add(query, s0, o0), mul_add(query, s1, o1)
                r0, r1 = mul_add(next_key, s0, r0), mul_add(next_key, s1, r1)
            if t >= 0:
                store(out, at, o0)
                store(out, at + 16, o1)
            if mark < positions.size and positions[mark] == t + 1:
                captured[b, mark, h, :, column : column + PANEL] = state[b, h, :, column : column + PANEL]
                mark += 1


@compiled
def _backward(known, gradients, scratch, b, h):
    _, k, _, decay, beta, error, checkpoints, _ = known
    slab, G = scratch[:2]
    T, Hk, K = k.shape[1:]
    hk = h // (beta.shape[2] // Hk)
    dstate = gradients[5]
    for column in range(0, dstate.shape[3], PANEL):
        G[:] = dstate[b, h, :, column : column + PANEL].T
        scratch[4][:] = 0
        for block in range((T - 1) // BLOCK, -1, -1):
            first = block * BLOCK
            _rebuild(slab, checkpoints[b, block, h], (k, decay, beta, error), (b, h, hk, column, first))
            _tokens_back(known, gradients, scratch, (b, h, hk, column, first), min(first + BLOCK, T))
        _tokens_back(known, gradients, scratch, (b, h, hk, column, -1), 0)
        dstate[b, h, :, column : column + PANEL] = G.T


@compiled
def _rebuild(slab, checkpoint, inputs, place):
    """slab[n] = PANEL rows of Sᵀ, from `column` on, after token `first` + n − 1."""
    k, decay, beta, error = inputs
    b, h, hk, column, first = place
    T, Hk, K = k.shape[1:]
    slab[0] = checkpoint[:, column : column + PANEL].T
    for n in range(min(BLOCK, T - first)):
        t = first + n
        a = splat(decay[b, t, h])
        keys = ((b * T + t) * Hk + hk) * K
        for j in range(PANEL):
            u = splat(beta[b, t, h] * error[b, t, h, column + j])
            row = (n * PANEL + j) * K
            for i in range(0, K, 16):
                store(slab, row + PANEL * K + i, mul_add(load(k, keys + i), u, mul(a, load(slab, row + i))))


@compiled
def _tokens_back(known, gradients, scratch, place, stop):
    """Takes G past the tokens `stop` − 1 down to `first`, whose states the slab holds; token −1 is the state given."""
    q, k, _, decay, beta, error, _, do = known
    dq, dk, dv, dg, dbeta, _ = gradients
    slab, G, lanes_of_du, _, columns = scratch
    b, h, hk, column, first = place
    T, Hk, K = q.shape[1:]
    H, V = do.shape[2:]
    zero = splat(np.float32(0))
    for t in range(stop - 1, first - 1, -1):
        now, coming = max(t, 0), min(t + 1, T - 1)
        at = ((b * T + now) * H + h) * V + column
        for n in range(0, PANEL, WIDTH):
            # before the first token nothing is read and nothing written
            store(columns, PANEL + n, load(do, at + n) if t >= 0 else zero)
            u = mul(splat(beta[b, now, h]), load(error, at + n))
            store(columns, 2 * PANEL + n, u if t >= 0 else zero)
        far = max(t - AHEAD, 0)
        fetch(do, error, dv, ((b * T + far) * H + h) * V + column, PANEL)
        fetch(q, k, dq, ((b * T + far) * Hk + hk) * K, K)
        fetch(dk, dk, dk, ((b * T + far) * Hk + hk) * K, K)
        a = decay[b, coming, h] if t < T - 1 else np.float32(1)
        rows = ((b * T + now) * Hk + hk) * K, ((b * T + coming) * Hk + hk) * K
        top = (t - max(first, 0) + 1) * PANEL * K
        inner = _step((slab, top), G, a, (q, k, rows[0], rows[1]), (dq, dk), columns, lanes_of_du)
        if t < T - 1:
            dg[b, coming, h] += inner
        if t >= 0:
            strength = beta[b, t, h]
            for n in range(0, PANEL, WIDTH):
                for j in range(n, n + WIDTH):
                    columns[0, j] = total(load(lanes_of_du, j * WIDTH))
                du = load(columns, n)
                dbeta[b, t, h] += total(mul(du, load(error, at + n)))
                dr = mul(splat(-strength), du)
                store(columns, n, dr)
                store(dv, at + n, sub(zero, dr))


@compiled
def _step(states, G, decay, tokens, gradients, columns, lanes_of_du):
    """G ← decay·(G + k′dr′ᵀ) + q doᵀ for the token at `now`, where a prime marks the token after it, at `coming`.

    Adds S do to dq, G u to dk, decay·S dr′ to dk′; leaves the lane sums of Gᵀk; returns ⟨decay·(G + k′dr′ᵀ), S⟩.
    """
    slab, top = states
    q, k, now, coming = tokens
    dq, dk = gradients
    K = G.shape[1]
    a = splat(decay)
    zero = splat(np.float32(0))
    inner = zero
    for i in range(0, K, 32):
        p0, p1 = mul(a, load(k, coming + i)), mul(a, load(k, coming + i + 16))
        q0, q1, k0, k1 = load(q, now + i), load(q, now + i + 16), load(k, now + i), load(k, now + i + 16)
        dq0 = dq1 = dk0 = dk1 = y0 = y1 = zero
        for j in range(PANEL):
            dr, do, u = splat(columns[0, j]), splat(columns[1, j]), splat(columns[2, j])
            row = top + j * K + i
            s0, s1 = load(slab, row), load(slab, row + 16)
            x0 = mul_add(p0, dr, mul(a, load(G, j * K + i)))
            x1 = mul_add(p1, dr, mul(a, load(G, j * K + i + 16)))
            inner = mul_add(x1, s1, mul_add(x0, s0, inner))
            x0, x1 = mul_add(q0, do, x0), mul_add(q1, do, x1)
            store(G, j * K + i, x0)
            store(G, j * K + i + 16, x1)
            dq0, dq1 = mul_add(s0, do, dq0), mul_add(s1, do, dq1)
            y0, y1 = mul_add(s0, dr, y0), mul_add(s1, dr, y1)
            dk0, dk1 = mul_add(x0, u, dk0), mul_add(x1, u, dk1)
            before = zero if i == 0 else load(lanes_of_du, j * 16)
            store(lanes_of_du, j * 16, mul_add(x1, k1, mul_add(x0, k0, before)))
        for n, y, dk_, dq_ in ((0, y0, dk0, dq0), (16, y1, dk1, dq1)):
            store(dk, coming + i + n, mul_add(a, y, load(dk, coming + i + n)))
            store(dk, now + i + n, add(dk_, load(dk, now + i + n)))
            store(dq, now + i + n, add(dq_, load(dq, now + i + n)))
    return total(inner)
