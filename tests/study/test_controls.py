import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import seeded

from srdyn import ablation
from srdyn.study.trials import controls

NAN = float("nan")


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), power=st.integers(-9, 9))
def test_balance_knows_no_unit_and_turns_its_sign_with_the_sets(seed, power):
    decay = -torch.rand(3, 4, generator=seeded(seed)).double()
    heads = torch.tensor([[True, True, False, False]] * 3)
    others = ablation.matched_random(heads, generator=seeded(seed))
    found = controls.balance(heads, others, decay)
    assert controls.balance(heads, others, 2.0**power * decay) == found
    assert controls.balance(others, heads, decay) == -found


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), H=st.integers(2, 7), data=st.data())
def test_decay_matched_is_the_best_of_all_assignments(seed, H, data):
    heads = torch.tensor([data.draw(st.lists(st.booleans(), min_size=H, max_size=H))])
    decay = -torch.rand(1, H, generator=seeded(seed)).double()
    matched = controls.decay_matched(heads, decay, generator=seeded())
    assert matched.sum() == heads.sum()
    (chosen, others) = (row.nonzero()[:, 0].tolist() for row in (heads[0], ~heads[0]))
    spare = max(0, len(chosen) - len(others))
    assert (matched & heads).sum() == spare

    def distance(partners, partnered):
        return min(
            sum(abs(decay[0, a] - decay[0, b]) for a, b in zip(partnered, order, strict=True))
            for order in itertools.permutations(partners)
        )

    n = len(chosen) - spare
    best = min(
        distance(partners, partnered)
        for partners in itertools.combinations(others, n)
        for partnered in itertools.combinations(chosen, n)
    )
    partners = (matched & ~heads)[0].nonzero()[:, 0].tolist()
    kept = (matched & heads)[0].nonzero()[:, 0].tolist()
    assert distance(partners, [head for head in chosen if head not in kept]) == pytest.approx(float(best), abs=1e-12)


def test_decay_matched_stays_within_the_layer_and_off_pruned_heads():
    heads = torch.tensor([[True, False, False, False], [False, False, False, True]])
    decay = torch.tensor([[-1.0, NAN, -5, -4], [-1.0, -3, NAN, -2.5]])
    matched = controls.decay_matched(heads, decay, generator=seeded())
    assert matched.tolist() == [[False, False, False, True], [False, True, False, False]]
    with pytest.raises(ValueError, match="needs a decay, got NaN"):
        controls.decay_matched(~heads, decay, generator=seeded())


def test_decay_matched_breaks_ties_at_random():
    heads = torch.tensor([[True, False, False, False, False]])
    decay = torch.tensor([[-1.0, -2, -2, 0, -7]])
    draws = torch.stack([controls.decay_matched(heads, decay, generator=seeded(i)) for i in range(600)])
    expected = torch.tensor([0, 1 / 3, 1 / 3, 1 / 3, 0], dtype=torch.float64)
    torch.testing.assert_close(draws[:, 0].double().mean(0), expected, rtol=0, atol=0.08)


def test_balance_is_the_difference_in_pooled_standard_deviations():
    decay = torch.tensor([[-1.0, -2, -4, -8], [-0.5, -3, -1, -9]])
    heads = torch.tensor([[True, True, False, False], [True, False, False, False]])
    others = torch.tensor([[False, False, True, False], [False, True, True, False]])
    a, b = np.array([-1.0, -2, -0.5]), np.array([-4.0, -3, -1])
    expected = (a.mean() - b.mean()) / np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)
    assert controls.balance(heads, others, decay) == pytest.approx(expected)
    assert controls.balance(heads, heads, decay) == 0
    assert np.isnan(controls.balance(heads, others, torch.ones(2, 4)))
    with pytest.raises(ValueError, match="at least two heads in either set, got 1"):
        controls.balance(heads, others & (decay == -4), decay)
