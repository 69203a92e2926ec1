import inspect

import numpy as np
import pytest
import torch
from transformers.models.kimi_linear import modeling_kimi_linear
from transformers.models.qwen3_next import modeling_qwen3_next

from srdyn.kernels import recurrence

B, T, Hk, H, K, V = 2, 70, 2, 6, 5, 7  # 70 tokens: more than one chunk of 64, not a multiple of it
POSITIONS = (1, 3, 33, 64, 65, 70)


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    q, k = (recurrence.l2norm(torch.randn(B, T, Hk, K, generator=generator, dtype=torch.float64)) for _ in range(2))
    v = torch.randn(B, T, H, V, generator=generator, dtype=torch.float64)
    g = -torch.rand(B, T, H, generator=generator, dtype=torch.float64)
    beta = torch.rand(B, T, H, generator=generator, dtype=torch.float64)
    initial = torch.randn(B, H, K, V, generator=generator, dtype=torch.float64)
    return q, k, v, g, beta, initial


def loop(q, k, v, *, g=None, beta=None, initial=None):
    """Every output and state, by index, in float64 numpy; without beta nothing is erased."""
    q, k, v = (x.double().numpy() for x in (q, k, v))
    (B, T, H, V), (Hk, K) = v.shape, k.shape[2:]
    outputs, states = np.zeros((B, T, H, V)), np.zeros((B, T, H, K, V))
    for b, h in np.ndindex(B, H):
        S = np.zeros((K, V)) if initial is None else initial[b, h].double().numpy()
        for t in range(T):
            key, query = k[b, t, h // (H // Hk)], q[b, t, h // (H // Hk)]
            if g is not None:
                S = np.exp(np.broadcast_to(g[b, t, h].double().numpy(), (K,)))[:, None] * S
            write = v[b, t, h] if beta is None else beta[b, t, h].item() * (v[b, t, h] - S.T @ key)
            S = S + np.outer(key, write)
            outputs[b, t, h], states[b, t, h] = S.T @ query / np.sqrt(K), S
    return outputs, states


def assert_same(result, expected):
    outputs, states = expected
    np.testing.assert_allclose(result[0], outputs, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(result[1], states[:, np.array(POSITIONS) - 1], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("with_initial", [False, True])
def test_gated_delta_rule_against_a_loop(inputs, with_initial):
    q, k, v, g, beta, initial = inputs
    initial = initial if with_initial else None
    result = recurrence.gated_delta_rule(q, k, v, g, beta, initial_state=initial, positions=POSITIONS)
    assert result[1].shape == (B, len(POSITIONS), H, K, V)
    assert_same(result, loop(q, k, v, g=g, beta=beta, initial=initial))


def test_other_rules_against_a_loop(inputs):
    q, k, v, g, beta, initial = inputs
    options = {"initial_state": initial, "positions": POSITIONS}
    channels = g[..., None] * torch.linspace(0.1, 2, K, dtype=torch.float64)
    expected = loop(q, k, v, g=channels, initial=initial)
    assert_same(recurrence.gated_linear_attention(q, k, v, channels, **options), expected)
    expected = loop(q, k, v, g=channels, beta=beta, initial=initial)
    assert_same(recurrence.kimi_delta_rule(q, k, v, channels, beta, **options), expected)
    written, expected = beta[..., None] * v, recurrence.state_space_dual(q, k, v, g, beta, **options)
    assert_same((expected[0] / K**0.5, expected[1]), loop(q, k, written, g=g, initial=initial))


@pytest.mark.parametrize("form", ["recurrent", "chunk"])
@pytest.mark.parametrize("rule", ["gated_delta_rule", "kimi_delta_rule"])
def test_a_rule_is_that_of_transformers(inputs, rule, form):
    q, k, v, g, beta, initial = inputs
    q, k = (x.repeat_interleave(H // Hk, dim=2) for x in (q, k))
    if rule == "gated_delta_rule":
        theirs = getattr(modeling_qwen3_next, f"torch_{form}_gated_delta_rule")
    else:
        theirs = getattr(modeling_kimi_linear, f"{form}_kimi_delta_attention")
        g = g[..., None] * torch.linspace(0.1, 2, K, dtype=torch.float64)
    outputs, state = inspect.unwrap(theirs)(q, k, v, g, beta, initial_state=initial, output_final_state=True)
    ours = getattr(recurrence, rule)(q, k, v, g, beta, initial_state=initial)
    # transformers computes in float32.
    torch.testing.assert_close(outputs.double(), ours[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state.double(), ours[1][:, 0], rtol=1e-5, atol=1e-5)


def test_l2norm_is_the_one_transformers_uses():
    x = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    torch.testing.assert_close(recurrence.l2norm(x), modeling_qwen3_next.l2norm(x, dim=-1, eps=1e-6), rtol=1e-6, atol=0)
    assert (recurrence.l2norm(x.double()).norm(dim=-1) <= 1).all()


def test_reading_in_two_parts_equals_reading_at_once(inputs):
    q, k, v, g, beta, initial = inputs
    whole = recurrence.gated_delta_rule(q, k, v, g, beta, initial_state=initial, positions=[29, T])
    before = initial.clone()
    head = recurrence.gated_delta_rule(*(x[:, :29] for x in (q, k, v, g, beta)), initial_state=initial)
    tail = recurrence.gated_delta_rule(*(x[:, 29:] for x in (q, k, v, g, beta)), initial_state=head[1][:, 0])
    assert torch.equal(torch.cat([head[0], tail[0]], 1), whole[0])
    assert torch.equal(torch.cat([head[1], tail[1]], 1), whole[1])
    assert torch.equal(initial, before)


def test_the_dtype_given_is_kept(inputs):
    outputs, states = recurrence.gated_delta_rule(*(x.float() for x in inputs[:5]))
    assert outputs.dtype == states.dtype == torch.float32


@pytest.mark.parametrize("positions", [[0, 4], [3, 3], [5, 4], [T + 1], []])
def test_bad_positions_are_refused(inputs, positions):
    with pytest.raises(ValueError, match=f"at most {T}"):
        recurrence.gated_delta_rule(*inputs[:5], positions=positions)


def test_value_heads_must_divide_among_key_heads(inputs):
    q, k, v, g, beta, _ = inputs
    with pytest.raises(ValueError, match="5 on 2"):
        recurrence.gated_delta_rule(q, k, v[:, :, :5], g[:, :, :5], beta[:, :, :5])
