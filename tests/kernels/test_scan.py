import inspect

import pytest
import torch
from test_recurrence import loop

from srdyn.kernels import recurrence, scan


def drawn(*, tokens, key_heads=2, heads=4, key=48, value=32, batch=2, decay=0.3, seed=0):
    """Inputs of the gated delta rule; keys are of length one, which keeps the state bounded."""
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(batch, tokens, key_heads, key, generator=generator) for _ in range(2))
    v = torch.randn(batch, tokens, heads, value, generator=generator)
    g = -decay * torch.rand(batch, tokens, heads, generator=generator)
    beta = torch.rand(batch, tokens, heads, generator=generator)
    state = torch.randn(batch, heads, key, value, generator=generator)
    return recurrence.l2norm(q), recurrence.l2norm(k), v, g, beta, state


def read(*inputs, positions=None, initial_state=None):
    """Outputs and the states at the positions, by calls that end there and at the last token."""
    outputs, states, start, state = [], [], 0, initial_state
    listed = recurrence.checked_positions(positions, inputs[0].shape[1])
    for end in dict.fromkeys([*listed, inputs[0].shape[1]]):
        part = [x[:, start:end] for x in inputs]
        output, state = scan.gated_delta_rule(*part, initial_state=state, output_final_state=True)
        outputs.append(output)
        states += [state] if end in listed else []
        start = end
    return torch.cat(outputs, 1), torch.stack(states, 1)


def numpy_loop(q, k, v, g, beta, state):
    return loop(q, k, v, g=g, beta=beta, initial=state)


def relative(x, reference):
    x, reference = (torch.as_tensor(y).double() for y in (x, reference))
    return float((x - reference).norm() / reference.norm())


@pytest.mark.parametrize("tokens", [1, 63, 100])
def test_every_position_meets_a_float64_loop(tokens):
    inputs = drawn(tokens=tokens)
    outputs, states = read(*inputs[:5], initial_state=inputs[5], positions=range(1, tokens + 1))
    expected, expected_states = numpy_loop(*inputs)
    # 100 steps of float32 arithmetic with contraction: a few units in the last place
    assert relative(outputs, expected) < 2e-6
    assert max(relative(states[:, c], expected_states[:, c]) for c in range(tokens)) < 2e-6


@pytest.mark.parametrize("cuts", [(1,), (31, 32), (5, 6, 77)])
def test_a_cut_pass_has_the_same_bits(cuts):
    *inputs, state = drawn(tokens=100)
    whole, last = scan.gated_delta_rule(*inputs, initial_state=state, output_final_state=True)
    outputs, states = read(*inputs, initial_state=state, positions=[*cuts, 100])
    assert torch.equal(outputs, whole)
    assert torch.equal(states[:, -1], last)


def read_by(rule, tokens):
    """What a rule reads, keys of length one, and a state to start from; value heads share the keys of delta rules."""
    *inputs, state = drawn(tokens=tokens, key=20 if tokens == 63 else 48, value=40)
    if rule == "gated_delta_rule":
        return *inputs, state
    k, v, beta = inputs[1], inputs[2], inputs[4]
    generator = torch.Generator().manual_seed(tokens)
    q, own, extra = recurrence.l2norm(torch.randn(3, *v.shape[:3], k.shape[3], generator=generator))
    g = -0.3 * torch.rand(own.shape, generator=generator)
    return {
        "rwkv7": (q, own, v, g, -extra, 0.5 * extra, state),
        "kimi_delta_rule": (inputs[0], k, v, g, beta, state),
        "gated_linear_attention": (q, own, v, g, state),
    }[rule]


@pytest.mark.parametrize("rule", ["gated_delta_rule", "rwkv7", "kimi_delta_rule", "gated_linear_attention"])
@pytest.mark.parametrize("tokens", [1, 63, 100])
def test_outputs_last_state_and_gradients_meet_the_float64_oracle(rule, tokens):
    inputs = [x.requires_grad_() for x in read_by(rule, tokens)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    asked = {"output_final_state": True} if rule == "gated_delta_rule" else {}
    found = getattr(scan, rule)(*inputs[:-1], initial_state=inputs[-1], **asked)
    outputs, states = getattr(recurrence, rule)(*exact[:-1], initial_state=exact[-1])
    wanted, generator = (outputs, states[:, -1]), torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=generator) for x in found]
    losses = [sum((x * y).sum() for x, y in zip(each, weights, strict=True)) for each in (found, wanted)]
    found += torch.autograd.grad(losses[0], inputs)
    wanted += torch.autograd.grad(losses[1], exact)
    for ours, theirs in zip(found, wanted, strict=True):
        assert relative(ours.detach(), theirs.detach()) < 1e-5
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule"])
def test_stands_in_for_transformers(name):
    from transformers.models.qwen3_next import modeling_qwen3_next

    theirs = inspect.unwrap(getattr(modeling_qwen3_next, name))
    inputs = [x.requires_grad_() for x in drawn(tokens=70)]
    with torch.no_grad():
        inputs[0] *= 3  # so that the l2norm inside has something to do
    results = []
    for function in (scan.gated_delta_rule, theirs):
        outputs, state = function(
            *inputs[:3], g=inputs[3], beta=inputs[4], initial_state=inputs[5], output_final_state=True,
            use_qk_l2norm_in_kernel=True, cu_seqlens=None,
        )  # fmt: skip
        results.append((outputs, state, *torch.autograd.grad(outputs.square().sum() + state.square().sum(), inputs)))
    # theirs is float32 as well, in another order
    assert max(relative(a.detach(), b.detach()) for a, b in zip(*results, strict=True)) < 1e-5


def test_final_state_only_on_request_and_dtype_of_the_query():
    *inputs, _ = drawn(tokens=3)
    outputs, state = scan.gated_delta_rule(*(x.bfloat16() for x in inputs))
    assert outputs.dtype == torch.bfloat16
    assert state is None


def test_number_of_threads_does_not_change_a_bit(monkeypatch, threads):
    monkeypatch.setattr(scan, "SHARED_FROM", 1)
    results = []
    for count in (1, 3):
        threads(count)
        inputs = [x.requires_grad_() for x in drawn(tokens=40, batch=3)]
        outputs, _ = scan.gated_delta_rule(*inputs[:5], initial_state=inputs[5])
        results.append((outputs, *torch.autograd.grad(outputs.square().sum(), inputs)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_denormals_become_zero_and_the_thread_keeps_its_own_mode():
    torch.set_flush_denormal(False)
    *inputs, state = drawn(tokens=12)
    inputs[2].zero_()
    inputs[3].fill_(-8.0)  # e^-96 is a denormal float32
    _, states = read(*inputs, initial_state=state, positions=[10, 12])
    assert states[:, 0].abs().max() > 0
    assert (states[:, 1] == 0).all()
    assert torch.tensor(1e-30) * torch.tensor(1e-10) > 0


def test_nan_and_infinity_are_not_hidden():
    inputs = drawn(tokens=20)
    inputs[2][0, 7, 1, 3] = float("nan")
    inputs[2][1, 5, 2, 4] = float("inf")
    outputs, _ = read(*inputs[:5], initial_state=inputs[5])
    assert outputs[0, 7:, 1, 3].isnan().all()
    assert not outputs[1, 5:, 2, 4].isfinite().any()
    assert outputs[0, :7].isfinite().all()


def test_refuses_what_it_cannot_do():
    *inputs, _ = drawn(tokens=3)
    with pytest.raises(ValueError, match="cu_seqlens"):
        scan.gated_delta_rule(*inputs, cu_seqlens=torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="multiple of key heads, got 4 on 3"):
        scan.gated_delta_rule(*(x.repeat(1, 1, 2, 1)[:, :, :3] for x in inputs[:2]), *inputs[2:])
    with pytest.raises(ValueError, match="runs on the CPU"):
        scan.rwkv7(*(x.to("meta") for x in read_by("rwkv7", 3)[:-1]))
