"""Tests of the kernels in Triton's interpreter, which has to be chosen before Triton is imported: see test_kernels."""

import numpy as np
import pytest
import torch

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


def error(states):
    found, expected = singular_values_triton.singular_values(states), torch.linalg.svdvals(states.double())
    assert found.dtype == torch.float64
    assert found.shape == expected.shape
    largest = expected[..., :1]
    return ((found - expected).abs() / torch.where(largest > 0, largest, 1.0)).max()


SQUARE = {
    "planted": planted([3.0, 3.3e-4, 1e-5]),
    "rank one": normal(3, 1) @ normal(1, 3),
    "zero": torch.zeros(3, 3, dtype=torch.float64),
    "repeated": planted([2.0, 2.0, 1e-4]),
    "zeros on the diagonal": torch.diag(torch.ones(2, dtype=torch.float64), 1),
    "denormal": 1e-42 * normal(3, 3),
}
EXACT = 1e-14
"""In units of σ₁: 56 halvings of a bound that is at most 2·σ₁, and sums of few numbers in float64."""


def test_six_kinds_of_state_in_one_batch():
    states = torch.stack(list(SQUARE.values())).float()
    assert error(states) < EXACT
    assert (singular_values_triton.singular_values(states)[2] == 0).all()


@pytest.mark.parametrize("shape", [(1, 1), (5, 2), (3, 18)])  # the blocks of 16 by 16 or 32 hold more, which is masked
def test_other_shapes(shape):
    assert error(normal(1, *shape)) < EXACT


def test_axes_and_strides():
    states = normal(2, 3, 4, 3).float()[:, 0, :, ::2]
    assert error(states) < EXACT
    assert torch.equal(
        singular_values_triton.singular_values(states.mT), singular_values_triton.singular_values(states)
    )
    assert singular_values_triton.singular_values(states[:0]).shape == (0, 2)
