import numpy as np
import pytest
import torch

from srdyn.kernels import singular_values_cpu


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def planted(sigma, count=3, seed=0):
    sigma = torch.as_tensor(np.array(sigma))
    left, right = (torch.linalg.qr(normal(count, len(sigma), len(sigma), seed=seed + n)).Q for n in (0, 1))
    return left * sigma @ right.mT


def bidiagonal(diagonal, beside):
    return torch.as_tensor(np.diag(np.array(diagonal, float)) + np.diag(np.array(beside, float), 1))[None]


def with_zeros(count, zeros):
    diagonal = np.ones(count)
    diagonal[zeros] = 0
    return bidiagonal(diagonal, np.ones(count - 1))


CASES = {
    "60 × 96": normal(9, 60, 96),
    "128 × 128": normal(3, 128, 128),
    "17 × 3": normal(8, 17, 3),
    "one row": normal(3, 1, 7),
    "one entry": normal(3, 1, 1),
    "zero": torch.zeros(2, 6, 4, dtype=torch.float64),
    "identity": torch.eye(10, dtype=torch.float64)[None],
    "rank one": normal(4, 20, 1) @ normal(4, 1, 33),
    "ones": torch.ones(2, 30, 30, dtype=torch.float64),
    "repeated": planted([3.0] * 8 + [1.0] * 8 + [1e-4] * 8),
    "graded": planted(np.logspace(0, -20, 40)),
    "clustered": planted(1 + 1e-9 * np.arange(24)),
    "a zero row and column": normal(3, 12, 12) * (torch.arange(12) != 7) * (torch.arange(12) != 4)[:, None],
    "zeros on the diagonal": with_zeros(30, [0, 11, 12, 29]),
    "every third zero": with_zeros(31, slice(0, 31, 3)),
    "nearly zero on the diagonal": bidiagonal([1, 1, 1e-17, 1, 1e-12, 1, 1], [1] * 6),
    "graded upwards": bidiagonal(np.logspace(-12, 0, 40), np.logspace(-12, 0, 40)[1:]),
    "denormal": 1e-310 * normal(3, 9, 8),
    "huge": 1e306 * normal(3, 9, 8).clamp(-50, 50),
}


@pytest.mark.parametrize("name", CASES)
def test_meets_lapack(name):
    found, expected = singular_values_cpu.singular_values(CASES[name]), torch.linalg.svdvals(CASES[name])
    # Both are backward stable: off by some units in the last place (1.1e-16) of σ₁ times a slowly growing function
    # of D; 7e-15 was the most in any case tried. A denormal σ₁ has few digits to be off by.
    unit = expected[..., :1].clamp(min=1e-295)
    assert (found - expected).div(unit).abs().max() < 1e-13
    assert (found.diff(dim=-1) <= 0).all()
    assert (found >= 0).all()


def test_well_conditioned_values_agree_each_to_1e_12():
    states = planted(np.linspace(1, 2, 64), count=9)
    torch.testing.assert_close(
        singular_values_cpu.singular_values(states), torch.linalg.svdvals(states), rtol=1e-12, atol=0
    )


def test_graded_rows_keep_the_ranks_of_lapack():
    states = normal(40, 24, 24) * torch.logspace(0, -9, 24)[:, None]
    found, expected = singular_values_cpu.singular_values(states), torch.linalg.svdvals(states)
    for eps in (1e-2, 1e-4, 1e-6):
        assert torch.equal((found > eps * found[:, :1]).sum(-1), (expected > eps * expected[:, :1]).sum(-1))


def test_float32_is_read_as_it_is():
    for states in (normal(5, 7, 9).float(), 1e-42 * normal(5, 7, 9).float()):
        assert torch.equal(
            singular_values_cpu.singular_values(states), singular_values_cpu.singular_values(states.double())
        )


def test_layout_does_not_matter():
    states = normal(3, 2, 5, 8)
    expected = singular_values_cpu.singular_values(states)
    assert expected.shape == (3, 2, 5)
    assert torch.equal(singular_values_cpu.singular_values(states.mT), expected)
    assert torch.equal(singular_values_cpu.singular_values(states.permute(3, 2, 0, 1).permute(2, 3, 1, 0)), expected)
    assert torch.equal(singular_values_cpu.singular_values(states[1, 1]), expected[1, 1])
    assert singular_values_cpu.singular_values(states[:0]).shape == (0, 2, 5)


def test_neither_threads_nor_neighbours_change_a_bit(threads):
    states = normal(45, 12, 10)
    states[3] = 0  # its lane is done long before the others
    threads(1)
    expected = singular_values_cpu.singular_values(states)
    for count in (2, 3, 5):
        threads(count)
        assert torch.equal(singular_values_cpu.singular_values(states), expected)
        assert torch.equal(singular_values_cpu.singular_values(states[5:]), expected[5:])
    assert torch.equal(singular_values_cpu.singular_values(states.flip(0)), expected.flip(0))


def test_says_so_when_it_does_not_end(monkeypatch):
    monkeypatch.setattr(singular_values_cpu, "_run", lambda *_: False)
    with pytest.raises(ArithmeticError, match="within 30 sweeps"):
        singular_values_cpu.singular_values(normal(1, 3, 3))
