"""What the theorems promise before anything is measured.

Sun et al., State Rank Dynamics in Linear Attention LLMs, 2026, https://arxiv.org/abs/2602.02195 (Eq. 13).
The rank bound min(t, d) of Thm 3.1 is `spectra.rank_bound`.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def frobenius_bound(
    g: Float[Tensor, "*batch T H"], beta: Float[Tensor, "*batch T H"], value_norm: Float[Tensor, "*batch T H"]
) -> Float[Tensor, "*batch T H"]:
    """Bound f_t on ‖S_t‖_F after every token of the gated delta rule, from its gates and writes alone.

    Let ‖k‖ = κ ≤ 1, u = k/κ, S̃ = exp(g)·S and x = S̃ᵀu. The update leaves the part of S̃ orthogonal to u alone and turns
    x into (1 − βκ²)x + βκ²(v/κ). For 0 ≤ β ≤ 1 that is a convex combination, so its square is at most
    (1 − βκ²)‖x‖² + β‖v‖², and f_t² = exp(2g)·f_{t−1}² + β‖v‖² bounds ‖S_t‖_F² from f_0 = 0 on.
    Raises ValueError unless g ≤ 0 and 0 ≤ beta ≤ 1.
    """
    if not ((g <= 0).all() and (beta >= 0).all() and (beta <= 1).all()):
        largest = f"got {g.max().item()} and {beta.min().item()} to {beta.max().item()}"
        raise ValueError(f"the bound holds for log-decays of at most 0, write strengths between 0 and 1, {largest}")
    write = beta * value_norm.square()
    squared, bounds = torch.zeros_like(g[..., 0, :]), []
    for t in range(g.shape[-2]):
        squared = (2 * g[..., t, :]).exp() * squared + write[..., t, :]
        bounds.append(squared.sqrt())
    return torch.stack(bounds, -2)


def step_bound(
    g: Float[Tensor, "*batch H"],
    beta: Float[Tensor, "*batch H"],
    value_norm: Float[Tensor, "*batch H"],
    previous_norm: Float[Tensor, "*batch H"],
    previous_radius: Float[Tensor, "*batch H"],
) -> Float[Tensor, "*batch"]:
    """Bound B on the step ‖n(t) − n(t−1)‖₂ of the nuclear norms of H heads, known before token t is written.

    `previous_norm` is n(t−1), `previous_radius` any bound on ‖S_{t−1}‖₂, such as `frobenius_bound` one token earlier;
    the measured step is not used. With ‖k‖ ≤ 1, a = exp(g), n = n(t−1), r = min(previous_radius, n) and 0 ≤ β ≤ 1,
    S_t = (I − βkkᵀ)·aS + βkvᵀ gives, per head:

    - upward: ‖I − βkkᵀ‖₂ ≤ 1, so ‖S_t‖_* ≤ an + β‖v‖, a rise of at most β‖v‖ − (1 − a)n;
    - downward, by the triangle inequality: ‖S_t‖_* ≥ an − β‖kkᵀaS‖_* − β‖v‖ ≥ an − β(ar + ‖v‖);
    - downward, by projection: with P = I − kkᵀ/‖k‖², P S_t = P aS and ‖P‖₂ ≤ 1, so ‖S_t‖_* ≥ ‖P aS‖_* ≥ a(n − r).

    The fall is therefore at most (1 − a)n + min(ar, β(ar + ‖v‖)); a head's bound is the larger of rise and fall, and B
    is their length over heads.
    """
    forgotten = -torch.expm1(g) * previous_norm
    erased = g.exp() * torch.minimum(previous_radius, previous_norm)
    written = beta * value_norm
    fall = forgotten + torch.minimum(erased, beta * erased + written)
    return torch.maximum(written - forgotten, fall).norm(dim=-1)


def cosine_lower_bound(q: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """(1 − q)/(1 + q), the least cos(n(t), n(t−1)) for q = B/‖n(t−1)‖₂ (Eq. 13); −1 for infinite q."""
    return 2 / (1 + q) - 1


def periodic_rank_bound(period: int, conv_width: int) -> int:
    """Bound on the exact rank of a first-layer state when a block of `period` tokens repeats.

    Keys there depend on the last `conv_width` tokens only. Distinct windows: one for each of the conv_width − 1 tokens
    that still see the padding, `period` afterwards. The state's columns lie in the span of its keys, whatever the
    decay.
    """
    return period + conv_width - 1
