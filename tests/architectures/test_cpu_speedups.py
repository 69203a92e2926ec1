import copy

import pytest
import torch

from srdyn import models, pruning
from srdyn.architectures import cpu_speedups
from srdyn.loading import reference


@pytest.fixture
def model():
    return models.from_hf(reference.initialise("hybrid", seed=0, layers=4, hidden=64, head=16), name="tiny")


def loss_and_gradients(hf, tokens):
    hf.zero_grad()
    loss = hf(tokens, labels=tokens, use_cache=False).loss
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in hf.named_parameters()}


def test_the_faster_model_has_the_same_loss_and_gradients(model):
    tokens = torch.randint(0, 1024, (2, 37), generator=torch.Generator().manual_seed(0))
    fast = copy.deepcopy(model.hf)
    cpu_speedups.use(fast)
    loss, gradients = loss_and_gradients(model.hf, tokens)
    fast_loss, fast_gradients = loss_and_gradients(fast, tokens)
    torch.testing.assert_close(fast_loss, loss, rtol=1e-6, atol=0)
    for name, gradient in gradients.items():
        # float32 sums in another order, against the parameter's largest gradient
        torch.testing.assert_close(fast_gradients[name], gradient, rtol=0, atol=1e-5 * gradient.abs().max().item())


def test_bfloat16_products_change_the_loss_by_rounding_only(model):
    tokens = torch.randint(0, 1024, (2, 37), generator=torch.Generator().manual_seed(0))
    rounded = copy.deepcopy(model.hf)
    cpu_speedups.use(rounded, bfloat16=True)
    loss, _ = loss_and_gradients(model.hf, tokens)
    rounded_loss, _ = loss_and_gradients(rounded, tokens)
    assert not torch.equal(rounded_loss, loss)
    torch.testing.assert_close(rounded_loss, loss, rtol=1e-2, atol=0)


def test_other_models_are_untouched(model):
    before = {name: getattr(module, "forward", None) for name, module in model.hf.named_modules()}
    cpu_speedups.use(copy.deepcopy(model.hf))
    after = {name: getattr(module, "forward", None) for name, module in model.hf.named_modules()}
    assert before == after


def test_only_a_dense_qwen3_next_in_float32_on_a_cpu_fits(model, tiny_qwen35, tiny_pure):
    assert cpu_speedups.fit(model.hf)
    assert not cpu_speedups.fit(copy.deepcopy(model.hf).half())
    assert not cpu_speedups.fit(tiny_qwen35.hf)
    assert not cpu_speedups.fit(tiny_pure.hf)  # its heads are 12 wide


def test_a_pruned_model_does_not_fit(model):
    keep = torch.ones(model.grid.L, model.grid.H, dtype=torch.bool)
    keep[0, 0] = False
    assert not cpu_speedups.fit(pruning.prune_heads(model, keep).hf)
