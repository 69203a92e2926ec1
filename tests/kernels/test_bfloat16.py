import copy

import pytest
import torch
from torch import nn

from srdyn.kernels import bfloat16

ROUNDING = 2.0**-8  # of a bfloat16: eight bits of mantissa


def layers():
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "wide": nn.Linear(64, 96, bias=False),
            "narrow": nn.Linear(64, 16, bias=False),
            "thin": nn.Linear(16, 64, bias=False),
            "biased": nn.Linear(64, 64),
        }
    )


def test_products_are_those_of_rounded_inputs():
    model = layers()
    bfloat16.use_bfloat16(model)
    x = torch.randn(2, 3, 64)
    ours, weight = model["wide"](x), model["wide"].weight
    exact = x.bfloat16().double() @ weight.bfloat16().double().T
    size = x.abs().double() @ weight.abs().double().T
    assert ours.dtype == torch.float32
    assert ours.shape == (2, 3, 96)
    assert ((ours - exact).abs() <= ROUNDING * exact.abs() + 64 * 2.0**-24 * size).all()
    assert not torch.equal(ours, x @ weight.T)
    # Against float32: each factor is off by half a rounding, and the result once more.
    assert ((ours - x @ weight.T).abs() <= 1.5 * ROUNDING * size).all()


def test_gradients_are_those_of_float32_up_to_rounding():
    model, plain = layers(), layers()
    bfloat16.use_bfloat16(model)
    inputs = [torch.randn(4, 5, 64, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2)]
    pull = torch.randn(4, 5, 96)
    for layer, x in ((model["wide"], inputs[0]), (plain["wide"], inputs[1])):
        (layer(x) * pull).sum().backward()
    for ours, exact in (
        (inputs[0].grad, inputs[1].grad),
        (model["wide"].weight.grad, plain["wide"].weight.grad),
    ):
        assert ours.dtype == torch.float32
        assert ours.shape == exact.shape
        assert (ours - exact).norm() < ROUNDING * exact.norm()
        assert not torch.equal(ours, exact)


@pytest.mark.parametrize("name", ["narrow", "thin", "biased"])
def test_other_layers_stay_as_they_are(name):
    model, plain = layers(), layers()
    bfloat16.use_bfloat16(model)
    x = torch.randn(3, plain[name].in_features)
    assert torch.equal(model[name](x), plain[name](x))


def test_the_layer_follows_its_weight_and_its_copy():
    model = layers()
    bfloat16.use_bfloat16(model)
    x, twin = torch.randn(2, 64), copy.deepcopy(model)
    before = twin["wide"](x)
    model["wide"].weight = nn.Parameter(torch.zeros(96, 64))
    assert (model["wide"](x) == 0).all()
    assert torch.equal(twin["wide"](x), before)
    assert set(model.state_dict()) == set(layers().state_dict())
