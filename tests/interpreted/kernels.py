"""Tests of the kernels in Triton's interpreter, which has to be chosen before Triton is imported: see test_kernels."""

import numpy as np
import pytest
import torch

from srdyn import spectra
from srdyn.kernels import singular_values_triton


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def planted(sigma, seed=0):
    sigma = torch.as_tensor(np.array(sigma))
    left, right = (torch.linalg.qr(normal(len(sigma), len(sigma), seed=seed + n)).Q for n in (0, 1))
    return left * sigma @ right.T


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Memory that a kernel is handed to write holds NaN, so that what it leaves out shows."""
    empty = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *args, **options: empty(*args, **options).fill_(torch.nan))


def error(states, precision=torch.float32):
    found, expected = (
        singular_values_triton.singular_values(states, precision=precision),
        torch.linalg.svdvals(states.double()),
    )
    assert found.dtype == torch.float64
    assert found.shape == expected.shape
    largest = expected[..., :1]
    return ((found - expected).abs() / torch.where(largest > 0, largest, 1.0)).max()


SQUARE = {
    "planted": planted([3.0, 1.0, 0.5, 3.3e-4, 2.7e-4, 1e-5]),
    "rank one": normal(6, 1) @ normal(1, 6),
    "ones": torch.ones(6, 6, dtype=torch.float64),
    "zero": torch.zeros(6, 6, dtype=torch.float64),
    "repeated": planted([2.0, 2.0, 2.0, 1e-4, 1e-4, 1e-4]),
    "zeros on the diagonal": torch.diag(torch.ones(5, dtype=torch.float64), 1),
    "denormal": 1e-42 * normal(6, 6),
}


def test_seven_kinds_of_state_in_one_batch():
    states = torch.stack(list(SQUARE.values())).float()
    # float32 arithmetic is off by about 1e-7; the bound leaves room for the sums of 128 × 128
    assert error(states) < singular_values_triton.ERROR[torch.float32] / 10
    assert (singular_values_triton.singular_values(states)[3] == 0).all()


def test_20_by_36():  # what the blocks of 32 by 64 hold beyond is masked
    assert error(normal(1, 20, 36).float()) < singular_values_triton.ERROR[torch.float32] / 10


@pytest.mark.parametrize("shape", [(1, 1), (5, 2), (2, 5)])
def test_float64_is_as_exact_as_lapack(shape):
    # double the digits, double the halvings: 2^-56 of a bound that is at most 2·σ₁
    assert error(normal(1, *shape), torch.float64) < singular_values_triton.ERROR[torch.float64] / 100


def test_axes_and_strides():
    states = normal(2, 3, 4, 5).float()[:, 0, :, ::2]
    assert error(states) < 1e-6
    assert torch.equal(
        singular_values_triton.singular_values(states.mT), singular_values_triton.singular_values(states)
    )
    assert singular_values_triton.singular_values(states[:0]).shape == (0, 3)


def test_ranks_are_those_of_float64_where_float32_cannot_tell(caplog):
    apart, near = planted([1.0, 3e-2, 2e-4, 5e-5]), planted([1.0, 3e-2, 1e-4 * (1 + 1e-6), 1e-4 * (1 - 1e-6)])
    states = torch.stack([apart, near]).float()
    with caplog.at_level("INFO", logger="srdyn"):
        sigma, again = spectra.from_kernel(states)
    assert "1 of 2 spectra" in caplog.text
    assert again.tolist() == [False, True]
    assert torch.equal(spectra.effective_rank(sigma), spectra.effective_rank(spectra.reference(states)))
    assert spectra.from_kernel(states, thresholds=(3e-2,))[1].tolist() == [True, True]


def test_wider_states_are_refused():
    with pytest.raises(ValueError, match="at most 128, got 2 × 129"):
        singular_values_triton.singular_values(torch.zeros(1, 2, 129))
