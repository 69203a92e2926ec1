"""The compiled transition rules meet the oracle, their gradients those of its float64 loop."""

import pytest
import torch

from srdyn.kernels import recurrence, transition

B, H, K, V = 2, 4, 48, 40


def drawn(*, tokens=70, key_heads=H):
    generator = torch.Generator().manual_seed(tokens)
    normal = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    keys = lambda heads: torch.nn.functional.normalize(normal(B, tokens, heads, K), dim=-1)  # noqa: E731
    g = -torch.rand(B, tokens, H, K, generator=generator) * 0.3
    beta = torch.rand(B, tokens, H, generator=generator)
    return keys(key_heads), keys(key_heads), normal(B, tokens, H, V), g, beta, keys(H), normal(B, H, K, V)


def calls(**options):
    q, k, v, g, beta, extra, state = drawn(**options)
    return {
        "rwkv7": ((q, k, v, g, -extra, 0.5 * extra), state),
        "kimi_delta_rule": ((q, k, v, g, beta), state),
        "gated_linear_attention": ((q, k, v, g), state),
    }


@pytest.mark.parametrize("rule", ["rwkv7", "kimi_delta_rule", "gated_linear_attention"])
@pytest.mark.parametrize("tokens", [1, 70])
def test_outputs_and_last_state_meet_the_oracle(rule, tokens):
    inputs, state = calls(tokens=tokens)[rule]
    outputs, last = getattr(transition, rule)(*inputs, initial_state=state)
    exact, states = getattr(recurrence, rule)(*(x.double() for x in inputs), initial_state=state.double())
    torch.testing.assert_close(outputs.double(), exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(last.double(), states[:, -1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rule", ["rwkv7", "kimi_delta_rule", "gated_linear_attention"])
def test_gradients_meet_the_oracle(rule):
    inputs, state = calls(tokens=70)[rule]
    ours = [x.clone().requires_grad_() for x in (*inputs, state)]
    theirs = [x.double().requires_grad_() for x in (*inputs, state)]
    outputs, last = getattr(transition, rule)(*ours[:-1], initial_state=ours[-1])
    exact, states = getattr(recurrence, rule)(*theirs[:-1], initial_state=theirs[-1])
    weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0))
    (outputs * weights).sum().add(last.sum()).backward()
    (exact * weights.double()).sum().add(states[:, -1].sum()).backward()
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x.grad.double(), y.grad, rtol=2e-5, atol=2e-5 * float(y.grad.abs().max()))


def test_value_heads_share_key_heads():
    inputs, state = calls(tokens=33, key_heads=2)["kimi_delta_rule"]
    outputs, _ = transition.kimi_delta_rule(*inputs, initial_state=state)
    exact, _ = recurrence.kimi_delta_rule(*(x.double() for x in inputs), initial_state=state.double())
    torch.testing.assert_close(outputs.double(), exact, rtol=1e-5, atol=1e-5)


def test_refuses_what_it_cannot_do():
    inputs, _ = calls(tokens=3)["rwkv7"]
    with pytest.raises(ValueError, match="runs on the CPU"):
        transition.rwkv7(*(x.to("meta") for x in inputs))
