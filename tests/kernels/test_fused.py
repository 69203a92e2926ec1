import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers.models.qwen3_next import modeling_qwen3_next as qwen3_next

from srdyn.kernels import fused


def gradients(function, inputs):
    """Outputs of `function`, then the gradients of a fixed weighted sum of them."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    outputs = function(*inputs)
    weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(7)).to(outputs)
    return outputs.detach(), *torch.autograd.grad((outputs * weights).sum(), inputs)


def drawn(*shapes, seed=0, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(*shape, generator=generator) for shape in shapes]


def assert_meets_float64(function, exact, inputs):
    found, wanted = gradients(function, inputs), gradients(exact, [x.double() for x in inputs])
    for a, b in zip(found, wanted, strict=True):
        # some hundred float32 operations on each number, none of which cancels much
        assert float((a - b).norm() / b.norm()) < 2e-6


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 33])
def test_convolution(tokens):
    def exact(x, weight):
        return F.silu(F.conv1d(x, weight[:, None], padding=3, groups=weight.shape[0])[..., :tokens])

    x, weight = drawn((2, tokens, 48), (48, 4))
    assert_meets_float64(lambda x, w: fused.causal_conv1d_fn(x, w, activation="silu"), exact, [x.mT, weight])
    assert fused.causal_conv1d_fn(x.mT, weight, activation="silu").mT.is_contiguous()


def test_convolution_refuses_other_forms():
    x, weight = drawn((1, 48, 5), (48, 4))
    for options in ({"activation": None}, {"activation": "silu", "bias": torch.zeros(48)}):
        with pytest.raises((ValueError, TypeError)):
            fused.causal_conv1d_fn(x, weight, **options)
    with pytest.raises(ValueError, match="3 taps"):
        fused.causal_conv1d_fn(x, weight[:, :3], activation="silu")


def test_norms_are_those_of_transformers():
    x, gate, weight = drawn((2, 5, 3, 48), (2, 5, 3, 48), (48,))
    plain, gated = (getattr(qwen3_next, f"Qwen3NextRMSNorm{kind}")(48, eps=1e-5) for kind in ("", "Gated"))
    plain.weight.data = gated.weight.data = weight

    def normed(x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)

    norm, gated_norm = (functools.partial(function, eps=1e-5) for function in (fused.norm, fused.gated_norm))
    assert_meets_float64(norm, lambda x, weight: (1 + weight) * normed(x), [x, weight])
    assert_meets_float64(gated_norm, lambda x, z, weight: weight * normed(x) * F.silu(z), [x, gate, weight])
    torch.testing.assert_close(norm(x, weight), plain(x).detach())
    torch.testing.assert_close(gated_norm(x, gate, weight), gated(x, gate).detach())


def test_l2norm():
    def exact(x):
        return 0.25 * x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)

    assert_meets_float64(lambda x: fused.l2norm(x, scale=0.25), exact, drawn((2, 5, 3, 48)))
    assert (fused.l2norm(torch.zeros(2, 16)) == 0).all()


def test_swiglu():
    assert_meets_float64(fused.swiglu, lambda gate, up: F.silu(gate) * up, drawn((2, 5, 48), (2, 5, 48), scale=10.0))


def test_sigmoid_over_its_whole_range():
    gate = torch.cat([torch.linspace(-120, 120, 16 * 4001), torch.tensor([float("nan"), float("inf")] * 8)])
    found = fused.swiglu(gate, torch.ones_like(gate))
    exact = F.silu(gate.double())
    assert found[-16].isnan()
    assert found[-15] == float("inf")
    finite, exact = found[:-16].double(), exact[:-16]
    normal = gate[:-16] > -80  # below it e^x leaves float32's normal range
    assert ((finite - exact).abs() <= 4e-7 * exact.abs())[normal].all()
    assert (finite[~normal].abs() < 1e-32).all()


@pytest.mark.slow
def test_sigmoid_on_a_processor_without_fused_multiply_add(tmp_path):
    code = "from test_fused import *; test_sigmoid_over_its_whole_range()"
    older = {"NUMBA_CPU_NAME": "generic", "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], env=os.environ | older, cwd=Path(__file__).parent, check=True)


def test_refuses_what_does_not_fit():
    for x in (torch.zeros(2, 20), torch.zeros(2, 32, dtype=torch.float64)):
        with pytest.raises(ValueError, match="multiple of 16"):
            fused.norm(x, torch.zeros(x.shape[-1]).to(x), eps=1e-6)
