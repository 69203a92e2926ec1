"""The compiled transition rules meet the oracle, their gradients those of its float64 loop."""

import pytest
import torch

from srdyn.kernels import recurrence, scan

B, H, K, V = 2, 4, 48, 40


def drawn(tokens):
    """By rule what it reads, keys of length one, and a state to start from; KDA's value heads share key heads."""
    generator = torch.Generator().manual_seed(tokens)
    normal = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    q, k, extra = (torch.nn.functional.normalize(normal(B, tokens, H, K), dim=-1) for _ in range(3))
    v, g = normal(B, tokens, H, V), -torch.rand(B, tokens, H, K, generator=generator) * 0.3
    beta, state = torch.rand(B, tokens, H, generator=generator), normal(B, H, K, V)
    return {
        "rwkv7": (q, k, v, g, -extra, 0.5 * extra, state),
        "kimi_delta_rule": (q[:, :, :2], k[:, :, :2], v, g, beta, state),
        "gated_linear_attention": (q, k, v, g, state),
    }


@pytest.mark.parametrize("rule", ["rwkv7", "kimi_delta_rule", "gated_linear_attention"])
@pytest.mark.parametrize("tokens", [1, 70])
def test_outputs_last_state_and_gradients_meet_the_oracle(rule, tokens):
    inputs = drawn(tokens)[rule]
    ours = [x.clone().requires_grad_() for x in inputs]
    theirs = [x.double().requires_grad_() for x in inputs]
    outputs, last = getattr(scan, rule)(*ours[:-1], initial_state=ours[-1])
    exact, states = getattr(recurrence, rule)(*theirs[:-1], initial_state=theirs[-1])
    torch.testing.assert_close(outputs.double(), exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(last.double(), states[:, -1], rtol=1e-5, atol=1e-5)
    weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0))
    (outputs * weights).sum().add(last.sum()).backward()
    (exact * weights.double()).sum().add(states[:, -1].sum()).backward()
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x.grad.double(), y.grad, rtol=2e-5, atol=2e-5 * float(y.grad.abs().max()))


def test_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="runs on the CPU"):
        scan.rwkv7(*(x.to("meta") for x in drawn(3)["rwkv7"][:-1]))
