import inspect

import pytest
import torch
from test_scan import drawn, numpy_loop, relative
from transformers.models.qwen3_next import modeling_qwen3_next as qwen3_next

from srdyn import models
from srdyn.architectures import linear_cache
from srdyn.kernels import decode, scan
from srdyn.loading import reference


def stepped(q, k, v, g, beta, state):
    """Outputs token by token, each from the state that the one before it left, and the last state."""
    outputs = []
    for t in range(v.shape[1]):
        now = [x[:, t : t + 1] for x in (q, k, v, g, beta)]
        output, state = decode.gated_delta_rule(*now, initial_state=state, output_final_state=True)
        outputs.append(output)
    return torch.cat(outputs, 1), state


@pytest.mark.parametrize("shape", [{"key": 96, "value": 64}, {"key": 32, "value": 160, "key_heads": 4}, {"key": 48}])
def test_steps_meet_a_float64_loop_and_have_the_bits_of_a_pass(shape):
    inputs = drawn(tokens=7, **shape)
    expected, states = numpy_loop(*inputs)
    whole, last = scan.gated_delta_rule(*inputs[:5], initial_state=inputs[5], output_final_state=True)
    outputs, state = stepped(*inputs[:5], inputs[5].clone())
    assert torch.equal(outputs, whole)
    assert torch.equal(state, last)
    # seven steps of float32 arithmetic
    assert relative(outputs, expected) < 1e-6
    assert relative(state, states[:, -1]) < 1e-6


def test_the_state_changes_in_place_only_where_nobody_needs_it():
    *inputs, state = drawn(tokens=1, key=64)
    before, options = state.clone(), {"output_final_state": True}
    _, last = decode.gated_delta_rule(*inputs, initial_state=state, **options)
    assert last is state
    assert not torch.equal(state, before)
    assert decode.gated_delta_rule(*inputs, initial_state=before.clone())[1] is None
    once, differentiated = last.clone(), before.clone().requires_grad_()
    for given in (differentiated, before.mT.contiguous().mT):
        _, other = decode.gated_delta_rule(*inputs, initial_state=given, **options)
        assert torch.equal(given, before)
        assert torch.equal(other, once)
    outputs, _ = decode.gated_delta_rule(*inputs, initial_state=differentiated, **options)
    assert torch.autograd.grad(outputs.sum(), differentiated)[0].abs().max() > 0


def test_stands_in_for_transformers():
    stock = inspect.unwrap(qwen3_next.torch_recurrent_gated_delta_rule)
    *inputs, state = drawn(tokens=1, key=64)
    inputs[0] *= 3  # so that the l2norm inside has something to do
    named = dict(zip(("g", "beta"), inputs[3:], strict=True)) | {"output_final_state": True, "cu_seqlens": None}
    options = named | {"use_qk_l2norm_in_kernel": True}
    theirs = stock(*inputs[:3], initial_state=state.clone(), **options)
    ours = decode.gated_delta_rule(*inputs[:3], initial_state=state, **options)
    assert max(relative(a, b) for a, b in zip(ours, theirs, strict=True)) < 1e-6  # one step of float32
    with pytest.raises(ValueError, match="cu_seqlens"):
        decode.gated_delta_rule(*inputs[:3], initial_state=state, **options | {"cu_seqlens": torch.tensor([0, 1])})


@pytest.mark.parametrize(("channels", "width"), [(48, 4), (48, 2), (40, 4)])
def test_the_convolution_of_one_token_is_that_of_transformers(channels, width):
    stock = inspect.unwrap(qwen3_next.causal_conv1d_update)
    generator = torch.Generator().manual_seed(0)
    window, weight = (torch.randn(*shape, channels, width, generator=generator) for shape in ((3,), ()))
    windows = window, window.clone()
    update = decode.convolution(stock)
    for _ in range(3):
        new = torch.randn(3, 1, channels, generator=generator).transpose(1, 2)
        ours, theirs = update(new, windows[0], weight, None, "silu"), stock(new, windows[1], weight, None, "silu")
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)  # a sum of at most four float32
        assert torch.equal(*windows)


@pytest.mark.parametrize("other", ["bfloat16", "two tokens", "no activation", "bias", "gradient", "longer window"])
def test_what_is_not_compiled_is_left_to_transformers(other):
    asked = []

    def stock(*arguments):
        asked.append(arguments)
        return arguments[0]

    given = [
        torch.ones(2, 16, 1 + (other == "two tokens")),
        torch.ones(2, 16, 4 + (other == "longer window")),
        torch.ones(16, 4),
    ]
    given = [x.bfloat16() if other == "bfloat16" else x for x in given]
    given[2].requires_grad_(other == "gradient")
    given += [torch.ones(16) if other == "bias" else None, None if other == "no activation" else "silu"]
    update = decode.convolution(stock)
    update(*given)
    assert asked == [tuple(given)]
    with torch.no_grad():
        update(*given)
    assert len(asked) == (1 if other == "gradient" else 2)


def test_a_model_decodes_as_it_reads():
    model = models.from_hf(reference.initialise("pure", seed=0, layers=2, hidden=32, head=32), name="tiny")
    tokens = torch.randint(0, 1024, (2, 6), generator=torch.Generator().manual_seed(1))
    cache = linear_cache.empty(model.hf)
    with torch.no_grad():
        whole = model.hf(tokens, use_cache=False).logits
        parts = [tokens[:, :3], *tokens[:, 3:].split(1, dim=1)]
        steps = [model.hf(part, past_key_values=cache, use_cache=True).logits for part in parts]
    # products of one row and of many round differently
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=0, atol=1e-5 * whole.abs().max().item())
