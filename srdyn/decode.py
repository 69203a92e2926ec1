"""One more token of a Gated DeltaNet layer on a CPU, compiled.

A step costs what reading and writing the state costs, once the states no longer fit the processor's caches. Both
functions stand in for transformers', which go over the state a dozen times, and change what the cache holds in place.
"""

import functools
from collections.abc import Callable
from typing import no_type_check

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from srdyn import lanes, scan, sweeps, threads
from srdyn.lanes import flush_denormals, load, mul, mul_add, restore_denormals, splat, store, sub

SHARED_FROM = 2**19
"""Numbers in a layer's states from which on starting threads pays."""


def gated_delta_rule(
    query: Float[Tensor, "B T Hk K"],
    key: Float[Tensor, "B T Hk K"],
    value: Float[Tensor, "B T H V"],
    g: Float[Tensor, "B T H"],
    beta: Float[Tensor, "B T H"],
    *,
    initial_state: Float[Tensor, "B H K V"] | None = None,
    use_qk_l2norm_in_kernel: bool = False,
    **options: object,
) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B H K V"] | None]:
    """`scan.gated_delta_rule` to the bit, but for one token without gradients `initial_state` becomes the last state.

    So the cache, which copies the state that it is given into its own, has nothing left to copy. Only a contiguous
    float32 state, K and V multiples of 32, is changed so; any other is left alone, as in `scan`. Raises as there.
    """
    inputs = (query, key, value, g, beta)
    if value.shape[1] != 1 or not _fits(initial_state) or _differentiated(*inputs, initial_state):
        options |= {"initial_state": initial_state, "use_qk_l2norm_in_kernel": use_qk_l2norm_in_kernel}
        return scan.gated_delta_rule(*inputs, **options)
    scan.require_unpacked(options)
    q, k, v, g, beta = scan.checked(*inputs, normalise=use_qk_l2norm_in_kernel)
    outputs = torch.empty_like(v)
    arrays = [x.detach().numpy() for x in (q, k, v, g.exp(), beta, initial_state, outputs)]
    most = 1 if initial_state.numel() < SHARED_FROM else None
    threads.split(functools.partial(_step, *arrays), initial_state.shape[0] * initial_state.shape[1], most=most)
    return outputs.to(query.dtype), initial_state if options.get("output_final_state") else None


def convolution(stock: Callable) -> Callable:
    """transformers' `causal_conv1d_update`, compiled for one token in float32 with SiLU, no bias, no gradients."""

    @functools.wraps(stock)
    def update(hidden_states: Tensor, conv_state: Tensor, weight: Tensor, bias=None, activation=None) -> Tensor:
        given = (hidden_states, conv_state, weight)
        plain = bias is None and activation == "silu" and hidden_states.shape[-1] == 1 and conv_state.is_contiguous()
        if not plain or any(x.dtype != torch.float32 for x in given) or _differentiated(*given):
            return stock(hidden_states, conv_state, weight, bias, activation)
        outputs = torch.empty(hidden_states.shape[:2])
        new = hidden_states[..., 0].contiguous()
        _shift(*(x.detach().numpy() for x in (conv_state, new, weight.T.contiguous(), outputs)))
        return F.silu(outputs, inplace=True)[..., None]

    return update


def _fits(state: Tensor | None) -> bool:
    plain = state is not None and state.dtype == torch.float32 and state.is_contiguous()
    return plain and not any(size % sweeps.PANEL for size in state.shape[2:])


def _differentiated(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


@lanes.compiled
@no_type_check
def _step(q, k, v, decay, beta, state, out, first, last):
    """The heads `first` to `last` of the B·H heads; the second walk over a panel finds it in the second-level cache."""
    before = flush_denormals()
    Hk, K = q.shape[2:]
    H, V = v.shape[2:]
    zero = splat(np.float32(0))
    for pair in range(first, last):
        b, h = pair // H, pair % H
        hk = h // (H // Hk)
        a, strength = splat(decay[b, 0, h]), splat(beta[b, 0, h])
        for column in range(0, V, 32):
            top, at = pair * K * V + column, pair * V + column
            r0 = r1 = zero
            for i in range(K):
                place, key = top + i * V, splat(k[b, 0, hk, i])
                r0, r1 = mul_add(key, load(state, place), r0), mul_add(key, load(state, place + 16), r1)
            u0 = mul(strength, sub(load(v, at), mul(a, r0)))
            u1 = mul(strength, sub(load(v, at + 16), mul(a, r1)))
            o0 = o1 = zero
            for i in range(K):
                place, key, query = top + i * V, splat(k[b, 0, hk, i]), splat(q[b, 0, hk, i])
                s0 = mul_add(key, u0, mul(a, load(state, place)))
                s1 = mul_add(key, u1, mul(a, load(state, place + 16)))
                store(state, place, s0)
                store(state, place + 16, s1)
                o0, o1 = mul_add(query, s0, o0), mul_add(query, s1, o1)
            store(out, at, o0)
            store(out, at + 16, o1)
    restore_denormals(before)


@lanes.compiled
@no_type_check
def _shift(window, new, weight, out):
    """The window [B, D, W] of each channel moves on by one token; out = its product with the taps [W, D]."""
    B, D, W = window.shape
    for b in range(B):
        for d in range(D):
            total = np.float32(0)
            for w in range(W - 1):
                x = window[b, d, w + 1]
                window[b, d, w] = x
                total += weight[w, d] * x
            window[b, d, W - 1] = new[b, d]
            out[b, d] = total + weight[W - 1, d] * new[b, d]
