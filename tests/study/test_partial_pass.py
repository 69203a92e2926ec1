"""Computations resumed at a layer: the same bits, and earlier layers really are not run."""

import pandas as pd
import pytest
import torch

from srdyn import ablation
from srdyn.study.trials import partial_pass


def only(model, axis, head):
    heads = torch.zeros(model.grid.L, model.grid.H, dtype=torch.bool)
    heads[axis, head] = True
    return heads


def reads(model, tokens):
    def run():
        with torch.inference_mode():
            sums = [model.hf(row[None], use_cache=False).logits.double().square().sum() for row in tokens]
        return pd.Series([float(value) for value in sums])

    return run


@pytest.fixture
def tokens(tokens):
    return tokens[:, :40]


def test_a_change_in_a_layer_gives_the_bits_of_a_whole_pass(tiny_hybrid, tokens):
    run = reads(tiny_hybrid, tokens)
    asked = partial_pass.Resumable(tiny_hybrid, run)
    pd.testing.assert_series_equal(asked.first, run(), check_exact=True)
    for axis in (*range(tiny_hybrid.grid.L), 0):  # back to the first as well
        with ablation.ablate_heads(tiny_hybrid, only(tiny_hybrid, axis, 1)):
            whole, resumed = run(), asked.from_layer(tiny_hybrid.layers[axis].index)
        pd.testing.assert_series_equal(resumed, whole, check_exact=True)
        assert not resumed.equals(asked.first)
    pd.testing.assert_series_equal(run(), asked.first, check_exact=True)


def test_earlier_layers_are_not_run(tiny_hybrid, tokens):
    asked, ran = partial_pass.Resumable(tiny_hybrid, reads(tiny_hybrid, tokens)), []
    last = tiny_hybrid.layers[-1].index
    asked.from_layer(last)
    mixers = [tiny_hybrid.hf.model.layers[layer.index].linear_attn for layer in tiny_hybrid.layers]
    hooks = [m.register_forward_hook(lambda module, *_: ran.append(module.layer_idx)) for m in mixers]
    asked.from_layer(last)
    for hook in hooks:
        hook.remove()
    assert set(ran) == {last}


def test_what_a_failing_run_replaced_is_put_back(tiny_hybrid, tokens):
    run, fails = reads(tiny_hybrid, tokens), [False]

    def sometimes():
        if fails[0]:
            tiny_hybrid.hf(tokens[:1], use_cache=False)
            raise ArithmeticError("on purpose")
        return run()

    asked = partial_pass.Resumable(tiny_hybrid, sometimes)
    fails[0] = True
    with pytest.raises(ArithmeticError):
        asked.from_layer(tiny_hybrid.layers[-1].index)
    pd.testing.assert_series_equal(run(), asked.first, check_exact=True)
