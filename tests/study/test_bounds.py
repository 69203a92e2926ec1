import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from srdyn import spectra
from srdyn.kernels import recurrence
from srdyn.study.analysis import bounds

T, H, K, V = 48, 3, 6, 8
START = 8
"""Tokens that write a state at any strength, from which steps are bounded."""


def trajectory(seed, forgetting, beta_scale):
    """Nuclear and Frobenius norms after 1 … T tokens beside the gates and writes that made them, all `[T, H]`."""
    generator = torch.Generator().manual_seed(seed)
    q, k = (recurrence.l2norm(torch.randn(1, T, H, K, generator=generator, dtype=torch.float64)) for _ in range(2))
    v = torch.randn(1, T, H, V, generator=generator, dtype=torch.float64) * torch.rand(
        1, T, H, 1, generator=generator, dtype=torch.float64
    )
    g = -forgetting * torch.rand(1, T, H, generator=generator, dtype=torch.float64)
    beta = torch.rand(1, T, H, generator=generator, dtype=torch.float64)
    beta[:, START:] *= beta_scale
    _, states = recurrence.gated_delta_rule(q, k, v, g, beta, positions=range(1, T + 1))
    nuclear = spectra.nuclear_norm(spectra.singular_values(states[0]))
    return nuclear, torch.linalg.matrix_norm(states[0]), (g[0], beta[0], v[0].norm(dim=-1))


def steps(*case):
    """Nuclear norms from `START` on, and what bounds the steps between them."""
    nuclear, _, gates = trajectory(*case)
    radius = bounds.frobenius_bound(*gates)
    later = (gate[START:] for gate in gates)
    return nuclear[START - 1 :], bounds.step_bound(*later, nuclear[START - 1 : -1], radius[START - 1 : -1])


cases = given(seed=st.integers(0, 2**32 - 1), forgetting=st.sampled_from([0, 0.01, 3]), beta_scale=st.floats(0, 1))
few = settings(max_examples=25, deadline=None)


@few
@cases
def test_frobenius_bound_holds(seed, forgetting, beta_scale):
    _, frobenius, gates = trajectory(seed, forgetting, beta_scale)
    assert (frobenius <= bounds.frobenius_bound(*gates) * (1 + 1e-12)).all()


@few
@cases
def test_eq_13_holds_with_a_step_bounded_beforehand(seed, forgetting, beta_scale):
    nuclear, bound = steps(seed, forgetting, beta_scale)
    assert ((nuclear[1:] - nuclear[:-1]).norm(dim=-1) <= bound * (1 + 1e-12) + 1e-12).all()
    # Not torch.cosine_similarity, which treats lengths below 1e-8 as 1e-8; decayed states are shorter.
    direction = nuclear / nuclear.norm(dim=-1, keepdim=True)
    cosine = (direction[1:] * direction[:-1]).sum(-1)
    assert (cosine >= bounds.cosine_lower_bound(bound / nuclear[:-1].norm(dim=-1)) - 1e-12).all()


def test_slack_is_finite_and_the_bound_says_something():
    nuclear, bound = steps(0, 0.01, 0.2)
    step = (nuclear[1:] - nuclear[:-1]).norm(dim=-1)
    promised = bounds.cosine_lower_bound(bound / nuclear[:-1].norm(dim=-1))
    print(f"median slack: bound / step {(bound / step).median():.2f}; promised cosine {promised.median():.3f}")
    assert promised.median() > 0.5


def test_step_bound_is_reached():
    # From nothing, a write of strength β raises the norm by exactly β‖v‖; without a write, decay takes (1 − a)n.
    one = torch.ones(1, dtype=torch.float64)
    assert bounds.step_bound(-0.3 * one, 0.5 * one, 4 * one, 0 * one, 0 * one).item() == pytest.approx(2)
    forgotten = bounds.step_bound(-0.3 * one, 0 * one, 4 * one, 5 * one, 2 * one)
    assert forgotten.item() == pytest.approx(5 * (1 - torch.tensor(-0.3).exp().item()))
    # A rank-one state k uᵀ loses everything to a full erasure, and β(n + ‖v‖) to a write of strength β against u.
    assert bounds.step_bound(0 * one, one, 0 * one, 5 * one, 5 * one).item() == pytest.approx(5)
    assert bounds.step_bound(0 * one, 0.2 * one, 3 * one, 5 * one, 9 * one).item() == pytest.approx(0.2 * (5 + 3))


def test_cosine_bound_for_vectors_of_the_paper():
    q = torch.tensor([0.0, 0.5, 1.0, torch.inf], dtype=torch.float64)
    assert bounds.cosine_lower_bound(q).tolist() == pytest.approx([1, 1 / 3, 0, -1])


def windowed_keys(tokens, width, generator):
    """Unit keys that depend on the last four tokens alone, as behind a causal convolution."""
    embedding = torch.randn(int(tokens.max()) + 1, width, generator=generator, dtype=torch.float64)
    kernel = torch.randn(4, width, generator=generator, dtype=torch.float64)
    padded = torch.cat([embedding.new_zeros(3, width), embedding[tokens]])
    mixed = sum(kernel[i] * padded[i : i + len(tokens)] for i in range(4))
    return recurrence.l2norm(torch.nn.functional.silu(mixed))


@pytest.mark.parametrize("period", [1, 3, 8])
def test_a_repeated_block_bounds_the_rank_exactly(period):
    generator, width, length = torch.Generator().manual_seed(period), 24, 60
    tokens = torch.arange(period).repeat(length // period + 1)[:length]
    k = windowed_keys(tokens, width, generator)[None, :, None]
    v = torch.randn(1, length, 1, width, generator=generator, dtype=torch.float64)
    g, beta = (torch.full((1, length, 1), value, dtype=torch.float64) for value in (-0.02, 0.3))
    _, states = recurrence.gated_delta_rule(k, k, v, g, beta, positions=range(1, length + 1))
    rank = spectra.effective_rank(spectra.singular_values(states[0, :, 0]), 1e-9)
    assert rank.max() == bounds.periodic_rank_bound(period, 4)


@pytest.mark.parametrize(("g", "beta"), [(-1.0, 1.5), (-1.0, -0.5), (1.0, 1.0)])
def test_a_bound_refuses_gates_that_it_does_not_cover(g, beta):
    one = torch.ones(2, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="at most 0, write strengths between 0 and 1, got"):
        bounds.frobenius_bound(g * one, beta * one, one)
