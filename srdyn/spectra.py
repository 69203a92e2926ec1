"""Numbers of one spectrum.

Sun et al., State Rank Dynamics in Linear Attention LLMs, 2026, https://arxiv.org/abs/2602.02195 (Eq. 6).
Roy & Vetterli, The effective rank: a measure of effective dimensionality, EUSIPCO 2007 (entropy rank).
Rudelson & Vershynin, Sampling from large matrices, J. ACM 54(4), 2007 (stable rank).
"""

import functools
import importlib.util
import logging
import types
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor

from srdyn.kernels import singular_values_cpu

log = logging.getLogger(__name__)

EPS = 1e-4
"""Threshold of Eq. 6, relative to the largest singular value."""

FLOAT32_ERROR = 1e-6
"""Relative error, in units of σ₁, that a float32 forward pass leaves in a singular value next to the threshold.

No bound, but room: such values move by less, states as a whole by some times as much (notebook 07).
"""


def singular_values(states: Float[Tensor, "*batch K V"]) -> Float64[Tensor, "*batch D"]:
    """Singular values of every state, largest first, as float64, without gradients.

    On a CPU to 1e-13·σ₁; on CUDA up to 128 × 128 by Triton, to 1e-12·σ₁; elsewhere by `reference`, but on the CPU for
    Apple's GPUs, which have no float64. Raises ValueError for states below float32, and with NaN or infinity.
    """
    if states.dtype not in (torch.float32, torch.float64):
        why = "rounding a state once to bfloat16 lifts its effective rank from 4 to 41 at eps = 1e-4"
        raise ValueError(f"states must be float32 or float64, got {states.dtype}: {why}")
    if states.ndim < 2:
        raise ValueError(f"states must be matrices [*batch, K, V], got {list(states.shape)}")
    states = states.detach()
    # NaN and infinity survive a sum, which takes a fraction of the time of a look at every entry
    if not states.sum((-2, -1)).isfinite().all() and (bad := ~states.isfinite().all(-1).all(-1)).any():
        first = f"the first at batch index {tuple(bad.nonzero()[0].tolist())} of {tuple(bad.shape)}"
        raise ValueError(f"{int(bad.sum())} of {bad.numel()} states hold NaN or infinity, {first}")
    if states.device.type in ("cpu", "mps"):
        return singular_values_cpu.singular_values(states.cpu())
    kernel = _kernel() if states.is_cuda else None
    return kernel.singular_values(states) if kernel and max(states.shape[-2:]) <= kernel.WIDEST else reference(states)


def reference(states: Float[Tensor, "*batch K V"]) -> Float64[Tensor, "*batch D"]:
    """The same by torch.linalg in float64, which the faster forms must meet."""
    # A float32 decomposition, or a Gram matrix, would add singular values of its own near ε·σ₁.
    return torch.linalg.svdvals(states.double())


def effective_rank(sigma: Float64[Tensor, "*batch D"], eps: float = EPS) -> Float64[Tensor, "*batch"]:
    """How many singular values exceed ε·σ₁ (Eq. 6): 0 in a zero state, NaN for no head; ValueError unless 0 < ε < 1."""
    _require_threshold(eps)
    largest = sigma.amax(-1, keepdim=True)
    count = (sigma > eps * largest).sum(-1).double()
    return count.masked_fill(largest[..., 0].isnan(), torch.nan)


def nuclear_norm(sigma: Float64[Tensor, "*batch D"]) -> Float64[Tensor, "*batch"]:
    """Sum of the singular values."""
    return sigma.sum(-1)


def stable_rank(sigma: Float64[Tensor, "*batch D"]) -> Float64[Tensor, "*batch"]:
    """‖S‖_F² / σ₁², between 1 and D; 0 for a zero state. Not the paper's rank."""
    return _relative(sigma, sigma.amax(-1, keepdim=True)).square().sum(-1)


def entropy_rank(sigma: Float64[Tensor, "*batch D"]) -> Float64[Tensor, "*batch"]:
    """exp of the Shannon entropy of σ/Σσ, between 1 and D; 0 for a zero state. Not the paper's rank."""
    total = sigma.sum(-1, keepdim=True)
    rank = torch.special.entr(_relative(sigma, total)).sum(-1).exp()
    return rank.masked_fill(total[..., 0] == 0, 0.0)


def rank_bound(positions: Sequence[int] | Int[Tensor, " C"], d: int) -> Int64[Tensor, " C"]:
    """min(t, d), the most that a state of d × d can have as its rank after t tokens (Thm 3.1)."""
    return torch.as_tensor(positions, dtype=torch.int64).clamp(max=d)


def uncertain(sigma: Float64[Tensor, "*batch D"], eps: float = EPS) -> Bool[Tensor, "*batch D"]:
    """Which singular values lie so close to ε·σ₁ that another machine may count them differently.

    An error E of the state, ‖E‖₂ ≤ δσ₁ with δ = `FLOAT32_ERROR`, moves each σ by at most ‖E‖₂ (Weyl), the threshold by
    ε‖E‖₂, so the band is |σ − ε·σ₁| ≤ (1 + ε)·δσ₁: 1 % of `EPS`. Never true for zero or NaN spectra.
    Raises ValueError unless 0 < ε < 1.
    """
    _require_threshold(eps)
    largest = sigma.amax(-1, keepdim=True)
    return ((sigma - eps * largest).abs() <= (1 + eps) * FLOAT32_ERROR * largest) & (largest > 0)


@functools.cache
def _kernel() -> types.ModuleType | None:
    """What measures spectra on a GPU; None where there is no Triton, which is said once."""
    if importlib.util.find_spec("triton") is None:
        log.warning("no Triton here: spectra on this GPU come from torch.linalg in float64, which takes longer")
        return None
    from srdyn.kernels import singular_values_triton

    return singular_values_triton


def _relative(sigma: Float64[Tensor, "*batch D"], unit: Float64[Tensor, "*batch 1"]) -> Float64[Tensor, "*batch D"]:
    return sigma / unit.masked_fill(unit == 0, 1.0)


def _require_threshold(eps: float) -> None:
    if not 0 < eps < 1:
        raise ValueError(f"eps is relative to the largest singular value and must lie between 0 and 1, got {eps}")
