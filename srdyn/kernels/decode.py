"""One more token of a Gated DeltaNet layer on a CPU.

A step costs what reading and writing the state costs, once the states no longer fit the processor's caches. Both
functions stand in for transformers', which go over the state a dozen times, and change what the cache holds in place.
"""

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from srdyn.kernels import fused, scan, scan_loops
from srdyn.kernels.recurrence import Initial, Keys, PerHead, State, Values
from srdyn.kernels.simd import WIDTH, compiled, load, mul, sigmoid, store


def gated_delta_rule(
    query: Keys, key: Keys, value: Values, g: PerHead, beta: PerHead, *, initial_state: Initial = None,
    **options: object,
) -> tuple[Values, State | None]:  # fmt: skip
    """`scan.gated_delta_rule` to the bit, but for one token without gradients `initial_state` becomes the last state.

    So the cache, which copies the state that it is given into its own, has nothing left to copy. A state that is not
    contiguous float32, or whose K and V are no multiples of 32, is left alone, as in `scan`. Raises as there.
    """
    inputs = (query, key, value, g, beta)
    if value.shape[1] != 1 or not _fits(initial_state) or _differentiated(*inputs, initial_state):
        return scan.gated_delta_rule(*inputs, initial_state=initial_state, **options)
    scan.check(key, value, options)
    with torch.no_grad():
        ready = scan.ready(*inputs, options.get("use_qk_l2norm_in_kernel", False))
        outputs, *_ = scan.run_forward(scan_loops, ready, initial_state, np.arange(0))
    return outputs.to(query.dtype), initial_state if options.get("output_final_state") else None


def convolution(stock: Callable) -> Callable:
    """transformers' `causal_conv1d_update`, compiled for a token in float32: four taps, SiLU, no bias, no gradients.

    Channels are a multiple of 16, as the models have; anything else is left to `stock`.
    """

    @functools.wraps(stock)
    def update(hidden_states: Tensor, conv_state: Tensor, weight: Tensor, bias=None, activation=None) -> Tensor:
        given = (hidden_states, conv_state, weight)
        plain = bias is None and activation == "silu" and hidden_states.shape[-1] == 1 and conv_state.is_contiguous()
        fits = weight.shape[1] == conv_state.shape[2] == fused.TAPS and weight.shape[0] % WIDTH == 0
        if (
            not (plain and fits and weight.is_contiguous())
            or any(x.dtype != torch.float32 for x in given)
            or _differentiated(*given)
        ):
            return stock(hidden_states, conv_state, weight, bias, activation)
        outputs = torch.empty(hidden_states.shape[:2], dtype=torch.float32)
        _shift(*(x.detach().numpy() for x in (conv_state, hidden_states[..., 0], weight, outputs)))
        return outputs[..., None]

    return update


def _fits(state: Tensor | None) -> bool:
    plain = state is not None and state.dtype == torch.float32 and state.is_contiguous()
    return plain and not any(size % scan.PANEL for size in state.shape[2:])


def _differentiated(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


@compiled
def _shift(window, new, weight, out):
    """The window [B, D, 4] of each channel moves on by one token; out = SiLU of its product with the taps [D, 4]."""
    B, D, _ = window.shape
    for b in range(B):
        for d in range(D):
            x0, x1, x2, x3 = window[b, d, 1], window[b, d, 2], window[b, d, 3], new[b, d]
            window[b, d, 0], window[b, d, 1], window[b, d, 2], window[b, d, 3] = x0, x1, x2, x3
            out[b, d] = weight[d, 0] * x0 + weight[d, 1] * x1 + weight[d, 2] * x2 + weight[d, 3] * x3
        for d in range(b * D, (b + 1) * D, 16):
            x = load(out, d)
            store(out, d, mul(x, sigmoid(x)))
