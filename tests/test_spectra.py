import sys
import types

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from srdyn import spectra

few = settings(max_examples=15, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def orthogonal(generator, rows, columns):
    return torch.linalg.qr(torch.randn(rows, columns, generator=generator, dtype=torch.float64)).Q


def planted(sigma, K, V, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sigma = torch.as_tensor(sigma, dtype=torch.float64)
    return orthogonal(generator, K, len(sigma)) @ torch.diag(sigma) @ orthogonal(generator, V, len(sigma)).T


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_planted_spectrum_is_recovered(dtype):
    sigma = [3.0, 1.0, 0.5, 3.3e-4, 2.7e-4, 1e-5]
    measured = spectra.singular_values(planted(sigma, 12, 9).to(dtype))
    assert measured.dtype == torch.float64
    assert measured.shape == (9,)
    # A state stored in float32 is off by up to 6e-8 of its largest entry, far below the 1e-5 of the smallest value.
    torch.testing.assert_close(measured[:6], torch.tensor(sigma, dtype=torch.float64), rtol=0, atol=1e-6)
    assert spectra.effective_rank(measured) == 4  # 3.3e-4 is above, 2.7e-4 below 1e-4 of 3
    assert spectra.effective_rank(measured, 1e-5) == 5
    assert spectra.effective_rank(measured, 0.4) == 1


def test_equality_does_not_count():
    sigma = torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64)
    assert spectra.effective_rank(sigma, 0.5) == 1


def test_norms_against_numpy():
    states = np.random.default_rng(0).normal(size=(2, 3, 7, 5))
    sigma = spectra.singular_values(torch.from_numpy(states))
    singular = np.linalg.svd(states, compute_uv=False)
    np.testing.assert_allclose(spectra.nuclear_norm(sigma), np.linalg.norm(states, "nuc", axis=(-2, -1)), rtol=1e-12)
    frobenius, spectral = (np.linalg.norm(states, order, axis=(-2, -1)) for order in ("fro", 2))
    np.testing.assert_allclose(spectra.stable_rank(sigma), (frobenius / spectral) ** 2, rtol=1e-12)
    p = singular / singular.sum(-1, keepdims=True)
    np.testing.assert_allclose(spectra.entropy_rank(sigma), np.exp(-(p * np.log(p)).sum(-1)), rtol=1e-12)


RANKS = (spectra.effective_rank, spectra.stable_rank, spectra.entropy_rank)


def test_a_zero_state_has_rank_zero_and_a_flat_spectrum_d_by_every_measure():
    sigma = spectra.singular_values(torch.zeros(2, 4, 3))
    assert [measure(sigma).tolist() for measure in (*RANKS, spectra.nuclear_norm)] == [[0.0, 0.0]] * 4
    assert not spectra.uncertain(sigma).any()
    flat = torch.full((6,), 0.3, dtype=torch.float64)
    assert [measure(flat).item() for measure in RANKS] == pytest.approx([6, 6, 6])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lower_precision_is_refused_with_the_reason_which_is_true(dtype):
    with pytest.raises(ValueError, match="bfloat16 lifts its effective rank from 4 to 41"):
        spectra.singular_values(torch.ones(3, 3, dtype=dtype))
    state = planted(0.1 ** np.arange(64), 128, 128, seed=1).float()
    exact, rounded = (spectra.effective_rank(spectra.singular_values(x)) for x in (state, state.bfloat16().float()))
    assert exact in (4, 5)  # 1e-4 itself is on the threshold
    assert rounded > 8 * exact


def test_finite_states_whose_sum_is_not_are_measured():
    states = torch.full((2, 3, 3), 3e38)
    torch.testing.assert_close(spectra.singular_values(states), spectra.reference(states), rtol=0, atol=1e25)


class Elsewhere(torch.Tensor):
    """A tensor of this machine that says it lies on a GPU."""

    kind = "cuda"
    device = property(lambda self: torch.device(self.kind))
    is_cuda = property(lambda self: self.kind == "cuda")


class Apple(Elsewhere):
    kind = "mps"

    def cpu(self):
        return self.as_subclass(torch.Tensor)

    def double(self):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")


def test_a_gpu_without_triton_takes_the_slower_route_and_says_so_once(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "triton", None)  # importing it raises, as where there is none
    spectra._kernel.cache_clear()
    states = planted([1.0, 0.1, 1e-3], 6, 5).float().expand(3, -1, -1)
    for _ in range(2):
        measured = spectra.singular_values(states.as_subclass(Elsewhere))
        torch.testing.assert_close(measured.as_subclass(torch.Tensor), spectra.reference(states), rtol=0, atol=0)
    spectra._kernel.cache_clear()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no Triton here" in caplog.text


def test_a_gpu_with_triton_takes_the_kernel_up_to_its_width(monkeypatch):
    asked = []

    def singular_values(states):
        asked.append(list(states.shape))
        return spectra.reference(states)

    kernel = types.SimpleNamespace(WIDEST=128, singular_values=singular_values)
    monkeypatch.setattr(spectra, "_kernel", lambda: kernel)
    for width in (128, 129):
        spectra.singular_values(torch.ones(2, width, 3).as_subclass(Elsewhere))
    assert asked == [[2, 128, 3]]


def test_states_on_a_gpu_without_float64_are_measured_on_the_cpu():
    states = planted([1.0, 0.1, 1e-3], 6, 5).float()
    measured = spectra.singular_values(states.as_subclass(Apple))
    assert type(measured) is torch.Tensor
    torch.testing.assert_close(measured, spectra.singular_values(states), rtol=0, atol=0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_bad_number_is_named_by_its_batch_index(value):
    states = torch.ones(2, 3, 4, 5)
    states[1, 2, 0, 3] = value
    with pytest.raises(ValueError, match=r"1 of 6 states.*\(1, 2\) of \(2, 3\)"):
        spectra.singular_values(states)


def test_removed_heads_stay_nan():
    sigma = spectra.singular_values(torch.ones(2, 3, 4, 5))
    sigma[1, 2] = torch.nan
    for measure in (*RANKS, spectra.nuclear_norm):
        assert measure(sigma).isnan().nonzero().tolist() == [[1, 2]]
    assert not spectra.uncertain(sigma)[1, 2].any()


@few
@given(seed=seeds, scale=st.floats(1e-12, 1e12), rank=st.integers(1, 6))
def test_ranks_do_not_change_with_scale_or_rotation(seed, scale, rank):
    generator = torch.Generator().manual_seed(seed)
    state = planted(0.05 ** np.arange(rank), 9, 6, seed)  # powers of 0.05 keep clear of the thresholds
    turned = scale * orthogonal(generator, 9, 9) @ state @ orthogonal(generator, 6, 6)
    sigma, other = spectra.singular_values(state), spectra.singular_values(turned)
    assert spectra.effective_rank(sigma) == spectra.effective_rank(other) == min(rank, 4)
    torch.testing.assert_close(spectra.stable_rank(other), spectra.stable_rank(sigma), rtol=1e-9, atol=0)
    torch.testing.assert_close(spectra.entropy_rank(other), spectra.entropy_rank(sigma), rtol=1e-9, atol=0)
    torch.testing.assert_close(spectra.nuclear_norm(other), scale * spectra.nuclear_norm(sigma), rtol=1e-9, atol=0)


@few
@given(values=st.lists(st.floats(0, 1, allow_subnormal=False), min_size=1, max_size=8), eps=st.floats(1e-6, 0.5))
def test_ranks_lie_between_1_and_d_and_a_higher_threshold_counts_no_more(values, eps):
    sigma = torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
    measures = (spectra.stable_rank, spectra.entropy_rank, lambda x: spectra.effective_rank(x, eps))
    least = float(sigma[0] > 0)
    for rank in (measure(sigma) for measure in measures):
        assert least * (1 - 1e-12) <= rank <= len(values) * (1 + 1e-12)
    assert spectra.effective_rank(sigma, 1.5 * eps) <= spectra.effective_rank(sigma, eps) <= (sigma > 0).sum()
    assert spectra.nuclear_norm(sigma) >= sigma[0] * spectra.stable_rank(sigma) * (1 - 1e-12)


def test_rank_bound_is_the_smaller_of_tokens_and_dimension():
    assert spectra.rank_bound([1, 5, 64, 65, 2048], 64).tolist() == [1, 5, 64, 64, 64]
    assert spectra.rank_bound(torch.tensor([3, 9]), 4).tolist() == [3, 4]


def test_uncertainty_band_is_one_percent_at_the_defaults():
    sigma = torch.tensor([2.0, 2.03e-4, 2.01e-4, 2e-4, 1.99e-4, 1.97e-4], dtype=torch.float64)
    assert spectra.uncertain(sigma).tolist() == [False, False, True, True, True, False]
    near = torch.tensor([1.0, 0.5 + 1.4e-6, 0.5 + 1.6e-6, 0.5 - 1.4e-6, 0.5 - 1.6e-6], dtype=torch.float64)
    assert spectra.uncertain(near, 0.5).tolist() == [False, True, False, True, False]  # the threshold moves: ± 1.5e-6


@few
@given(seed=seeds)
def test_an_error_within_the_band_changes_no_certain_count(seed):
    generator = torch.Generator().manual_seed(seed)
    state = planted(torch.logspace(0, -5, 16), 20, 16, seed)
    error = torch.randn(20, 16, generator=generator, dtype=torch.float64)
    error *= 1e-6 / torch.linalg.matrix_norm(error, 2)
    sigma = spectra.singular_values(state)
    moved = spectra.effective_rank(spectra.singular_values(state + error)) - spectra.effective_rank(sigma)
    assert moved.abs() <= spectra.uncertain(sigma).sum()


@pytest.mark.parametrize("eps", [0.0, 1.0, 2.0, -1e-4, torch.nan])
def test_a_threshold_outside_0_to_1_is_refused(eps):
    sigma = torch.ones(3, dtype=torch.float64)
    for measure in (spectra.effective_rank, spectra.uncertain):
        with pytest.raises(ValueError, match="between 0 and 1"):
            measure(sigma, eps)
