import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import seeded

from srdyn import nulls, spectra
from srdyn.kernels import recurrence


def gates(*shape, seed=0):
    generator = seeded(seed)
    return -torch.rand(*shape, generator=generator), torch.rand(*shape, generator=generator)


def test_states_equal_the_recurrence_token_by_token():
    L, B, T, H, K, V, positions = 2, 3, 150, 4, 6, 5, (1, 2, 63, 64, 65, 128, 131, 150)
    g, beta = gates(L, B, T, H)
    generator, keys, values = seeded(7), [], []
    for _ in range(math.ceil(T / nulls.BLOCK)):
        keys.append(torch.randn(L * B * H, nulls.BLOCK, K, generator=generator))
        values.append(torch.randn(L * B * H, nulls.BLOCK, V, generator=generator))
    k, v = (torch.cat(x, 1)[:, :T].double().reshape(L * B, H, T, -1).transpose(1, 2) for x in (keys, values))
    k = k / k.norm(dim=-1, keepdim=True)
    flat = (x.double().reshape(L * B, T, H) for x in (g, beta))
    _, expected = recurrence.gated_delta_rule(k, k, v, *flat, positions=positions)
    sigma = nulls.decay_only(g, K, V, positions, beta=beta, generator=seeded(7))
    assert sigma.shape == (L, B, len(positions), H, 5)
    expected = spectra.singular_values(expected).reshape(L, B, len(positions), H, 5)
    torch.testing.assert_close(sigma, expected, rtol=1e-9, atol=1e-12)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), K=st.integers(1, 6), V=st.integers(1, 6), beta=st.floats(0, 2), T=st.integers(1, 70))
def test_ranks_of_random_writes_are_bounded_as_those_of_a_model_are(seed, K, V, beta, T):
    g, _ = gates(T, 2, seed=seed)
    positions = sorted({1, (T + 1) // 2, T})
    sigma = nulls.decay_only(g, K, V, positions, beta=beta, generator=seeded(seed))
    assert (spectra.effective_rank(sigma, 1e-10) <= spectra.rank_bound(positions, min(K, V))[:, None]).all()


def test_a_position_does_not_depend_on_the_others_nor_on_the_length():
    g, _ = gates(1, 200, 3)
    options = {"beta": 0.5}
    many = nulls.decay_only(g, 6, 4, range(1, 201), generator=seeded(), **options)
    one = nulls.decay_only(g[:, :131], 6, 4, [131], generator=seeded(), **options)
    torch.testing.assert_close(many[:, 130:131], one, rtol=1e-12, atol=1e-14)
    other = nulls.decay_only(g, 6, 4, [131], generator=seeded(1), **options)
    assert not torch.allclose(other, one)


def test_two_groups_of_decay_stratify_without_learning():
    # paper.md's null at d = 64: slow heads saturate, fast ones stay near ln(1/ε)/(−ln a).
    decay = torch.cat([torch.linspace(0.01, 0.2, 8), torch.linspace(0.98, 0.999, 8)])
    sigma = nulls.decay_only(decay.log().expand(2, 512, 16), 64, 64, [1, 512], beta=0.5, generator=seeded())
    rank = spectra.effective_rank(sigma)
    assert (rank[:, 0] == 1).all()
    assert (rank[:, 1, :8] <= 16).all()
    assert (rank[:, 1, 8:] >= 60).all()


def test_predicted_rank_is_near_the_null():
    decay = torch.tensor([0.3, 0.6, 0.75, 0.999], dtype=torch.float64)
    predicted = nulls.predicted_rank(decay.log(), 48)
    sigma = nulls.decay_only(decay.log().expand(4, 320, 4), 48, 48, [320], beta=0.5, generator=seeded())
    measured = spectra.effective_rank(sigma)[:, 0].mean(0)
    torch.testing.assert_close(measured, predicted, rtol=0.25, atol=2)
    assert nulls.predicted_rank(torch.zeros(1), 48).tolist() == [48]
    assert nulls.predicted_rank(torch.tensor([-math.log(10)]), 48, 1e-3).item() == pytest.approx(3)
    with pytest.raises(ValueError, match="at most 0"):
        nulls.predicted_rank(torch.tensor([0.1]), 48)


def test_a_head_that_was_removed_stays_nan():
    g, beta = gates(2, 1, 70, 3)
    g[1, :, :, 2] = beta[1, :, :, 2] = torch.nan
    sigma = nulls.decay_only(g, 4, 4, [5, 70], beta=beta, generator=seeded())
    assert sigma.isnan().all(-1).nonzero().tolist() == [[1, 0, 0, 2], [1, 0, 1, 2]]
    assert sigma.isnan().sum() == 2 * 4


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 0.1, -torch.inf])
def test_bad_gates_are_refused(bad):
    g, _ = gates(1, 10, 2)
    g[0, 3, 1] = bad
    with pytest.raises(ValueError, match="decays must be finite"):
        nulls.decay_only(g, 4, 4, [5], beta=0.5, generator=seeded())
    with pytest.raises(ValueError, match="beta must lie"):
        nulls.decay_only(gates(1, 10, 2)[0], 4, 4, [5], beta=2.5, generator=seeded())
    with pytest.raises(ValueError, match="at most 10"):
        nulls.decay_only(gates(1, 10, 2)[0], 4, 4, [11], beta=0.5, generator=seeded())
