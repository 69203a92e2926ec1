"""States held in fewer bytes, against numpy and against a cache that is rewritten by hand."""

import functools

import numpy as np
import pytest
import torch
from small import by_rewriting, logits

from srdyn import ablation
from srdyn.kernels import rounding

PREFIX = 90


def state(seed=0, shape=(2, 3, 8, 6)):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * torch.logspace(-3, 2, 3)[:, None, None]


def on_grid(x, grid):
    """The nearest of the numbers on a grid, of two equally near ones the one at an even place."""
    order = np.abs(x[..., None] - grid)
    best = order.min(-1, keepdims=True)
    places = np.arange(len(grid))
    return grid[np.where(order == best, places + 0.5 * (places % 2) * (order == best), np.inf).argmin(-1)]


def e4m3():
    """Every finite float8 number with four bits of exponent and three of significand, by its definition."""
    small = [m / 8 * 2.0**-6 for m in range(8)]
    normal = [(1 + m / 8) * 2.0 ** (e - 7) for e in range(1, 16) for m in range(8) if (e, m) != (15, 7)]
    return np.array([-x for x in reversed(small[1:] + normal)] + small + normal)


def by_hand(x, form):
    found = np.zeros(x.shape)
    for place in np.ndindex(x.shape[:-2]):
        head = x[place].astype(np.float64)
        top = {"int8": 127, "int4": 7, "fp8": 448}[form]
        unit = np.abs(head).max() / top
        if form == "fp8":
            found[place] = on_grid(head / unit, e4m3()) * unit
        else:
            found[place] = np.rint(head / unit) * unit
    return found


def test_the_grid_of_float8_is_that_of_torch():
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
    assert sorted(set(every[every.isfinite()].tolist())) == e4m3().tolist()


@pytest.mark.parametrize("form", rounding.FORMATS)
def test_rounding_is_numpys(form):
    x = state()
    found = rounding.rounded(x, form).double().numpy()
    expected, unit = by_hand(x.numpy(), form), np.abs(x.numpy()).max((-2, -1), keepdims=True)
    # A number that lies between two of the grid to the last bit may fall to either.
    assert (np.abs(found - expected) <= 1e-6 * unit).mean() > 0.99
    step = {"int8": 0.5 / 127, "int4": 0.5 / 7, "fp8": 16 / 448}[form]  # half of the largest distance on the grid
    assert (np.abs(found - x.numpy()) <= (step + 1e-6) * unit).all()


def test_feedback_keeps_what_rounding_lost_in_four_bits():
    x = state()
    for form in ("int8", "fp8"):
        held = by_hand(x.numpy(), form)
        expected = held + by_hand(x.numpy() - held, "int4")
        found = rounding.rounded(x, form, feedback=True).double().numpy()
        unit = np.abs(x.numpy()).max((-2, -1), keepdims=True)
        assert (np.abs(found - expected) <= 1e-6 * unit).mean() > 0.97
        assert np.abs(found - x.numpy()).mean() < 0.2 * np.abs(held - x.numpy()).mean()


def test_zero_and_what_is_rounded_already_stay():
    assert not rounding.rounded(torch.zeros(1, 2, 4, 4), "int8").any()
    once = rounding.rounded(state(), "int8")
    torch.testing.assert_close(rounding.rounded(once, "int8"), once, rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="no format is called 'int3'; there are int8, fp8, int4"):
        rounding.rounded(state(), "int3")


def test_bytes_are_those_of_numbers_and_scales():
    assert rounding.head_bytes(64, 32) == 64 * 32 * 4
    assert rounding.head_bytes(64, 32, "int8") == 64 * 32 + 4
    assert rounding.head_bytes(64, 32, "int4") == 64 * 32 / 2 + 4
    assert rounding.head_bytes(64, 32, "fp8", feedback=True) == 64 * 32 * 1.5 + 8


def some_of(model):
    heads = torch.zeros(model.grid.L, model.grid.H, dtype=torch.bool)
    heads[:, 1:3], heads[1] = True, False
    return heads


@pytest.mark.parametrize("form", ["int8", "fp8"])
def test_a_pass_with_rounded_states_is_one_over_a_rounded_cache(tiny, tokens, form):
    heads, cuts = some_of(tiny), [11, 64, 90]
    expected = by_rewriting(tiny, tokens, heads, cuts, functools.partial(by_hand, form=form))
    with ablation.change_states(tiny, functools.partial(rounding.rounded, form=form), heads, cuts):
        found = logits(tiny.hf, tokens)
    plain = logits(tiny.hf, tokens)
    assert torch.equal(found[:, :11], plain[:, :11])
    error, effect = (found - expected).abs(), (found - plain).abs().max()
    # An entry between two of the grid may fall to either: of what rounding does, a small part in the mean.
    assert effect > 1e-4
    assert error.mean() < 0.05 * effect


@pytest.mark.parametrize("tail", [0, 7, 40])
def test_a_checkpoint_without_some_heads_is_a_cache_without_them_from_which_the_tail_is_read_again(tiny, tokens, tail):
    heads = some_of(tiny)
    expected = by_rewriting(tiny, tokens, heads, [PREFIX - tail], np.zeros_like)
    with ablation.change_states(tiny, torch.zeros_like, heads, [PREFIX - tail]):
        found = logits(tiny.hf, tokens)
    assert (found - logits(tiny.hf, tokens)).abs().max() > 1e-3
    # Attention over a cache and over a whole sequence differ in the last bits, which later layers amplify.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
