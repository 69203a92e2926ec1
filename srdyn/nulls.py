"""States without learning.

Random unit keys and Gaussian values go through the gated delta rule with decays and write strengths taken from a model,
so that whatever these states show as well cannot be credited to what the model learned to write.

The blocked form of the delta rule is that of Yang et al., Parallelizing Linear Transformers with the Delta Rule over
Sequence Length, NeurIPS 2024, https://arxiv.org/abs/2406.06484.
"""

import math

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from srdyn import spectra
from srdyn.kernels import recurrence

BLOCK = 64
"""Tokens drawn at a time; part of what a seed means, since keys and values alternate by block."""
_Gate = Float[Tensor, "*batch T H"]
_Writes = tuple[Float64[Tensor, "N t"], Float64[Tensor, "N t K"], Float64[Tensor, "N t V"]]
"""Log-decay summed from the start of a block, keys, and what is really written: β (v − S̃ᵀk)."""


def decay_only(
    decays: _Gate, K: int, V: int, positions: recurrence.Positions, *, beta: _Gate | float, generator: torch.Generator
) -> Float64[Tensor, "*batch C H D"]:
    """Singular values at `positions` of states that only their decays and write strengths shape.

    `decays` holds the log-decay g of every token, `beta` the write strength of every token or one for all. A head whose
    decays are NaN throughout was pruned away and gets a NaN spectrum. The draw at a position does not depend on which
    others are asked for. Raises ValueError for positions that do not increase within 1 … T, g > 0, beta outside 0 … 2.
    """
    *batch, T, H = decays.shape
    wanted = recurrence.checked_positions(positions, T)
    strengths = torch.as_tensor(beta, dtype=torch.float64, device=decays.device).expand(decays.shape)
    removed = decays.isnan().all(-2)
    pruned = removed[..., None, :]
    if not ((decays <= 0) & decays.isfinite() | pruned).all():
        raise ValueError("decays must be finite and at most 0; only a head that was pruned away may be NaN, throughout")
    if not ((strengths >= 0) & (strengths <= 2) | pruned).all():
        raise ValueError("beta must lie between 0 and 2 at every token")
    given = (torch.where(pruned, 0.0, x).mT for x in (decays, strengths))
    g, strength = (x.reshape(-1, T).double() for x in given)  # [N, T]
    state, sigma = g.new_zeros(g.shape[0], K, V), []
    for start in range(0, wanted[-1], BLOCK):
        block = slice(start, start + BLOCK)
        writes = _random_block(state, g[:, block], strength[:, block], generator)
        for position in (p for p in wanted if start < p <= start + BLOCK):
            snapshot = _state_after(state, writes, position - start).reshape(*batch, H, K, V)
            sigma.append(spectra.singular_values(snapshot).masked_fill(removed[..., None], torch.nan))
        state = _state_after(state, writes, BLOCK)
    return torch.stack(sigma, dim=-3)


def predicted_rank(log_decay: Float[Tensor, "*batch"], d: int, eps: float = spectra.EPS) -> Float64[Tensor, "*batch"]:
    """min(d, ln(1/ε)/(−g)): rank under constant decay and unrelated keys, our heuristic. ValueError for g > 0."""
    if (log_decay > 0).any():
        raise ValueError(f"g is a log-decay and must be at most 0, got {log_decay.max().item()}")
    return (math.log(1 / eps) / log_decay.double().abs()).clamp(max=d)


def _random_block(
    state: Float64[Tensor, "N K V"], g: Float64[Tensor, "N t"], beta: Float64[Tensor, "N t"], generator: torch.Generator
) -> _Writes:
    """Draw a block of keys and values, and solve for what they write given the state before it.

    Token i writes w_i = β_i (v_i − e^{G_i} S₀ᵀk_i − Σ_{j<i} e^{G_i − G_j} (k_i·k_j) w_j): a unit triangular system.
    """
    (N, t), (_, K, V) = g.shape, state.shape
    where = {"generator": generator, "device": generator.device}
    keys, values = (torch.randn(N, BLOCK, width, **where).to(state)[:, :t] for width in (K, V))
    keys = keys / keys.norm(dim=-1, keepdim=True)
    decay = g.cumsum(-1)
    # Above the diagonal the differences are positive, might overflow and are not used.
    pairwise = (decay[:, :, None] - decay[:, None, :]).clamp(max=0).exp()
    system = beta[..., None] * pairwise * (keys @ keys.mT)
    target = beta[..., None] * (values - decay.exp()[..., None] * (keys @ state))
    return decay, keys, torch.linalg.solve_triangular(system, target, upper=False, unitriangular=True)


def _state_after(state: Float64[Tensor, "N K V"], writes: _Writes, tokens: int) -> Float64[Tensor, "N K V"]:
    """The state when the first `tokens` writes of a block have been made."""
    decay, keys, values = (x[:, :tokens] for x in writes)
    remaining = (decay[:, -1:] - decay).exp()
    return decay[:, -1, None, None].exp() * state + (remaining[..., None] * keys).mT @ values
