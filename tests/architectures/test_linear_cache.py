import copy

import pytest
import small
import torch
from transformers import DynamicCache, GenerationConfig

from srdyn import models, states
from srdyn.architectures import linear_cache


def greedy(hf, tokens, new):
    """Without a cache, the whole sequence read again for every token."""
    for _ in range(new):
        tokens = torch.cat((tokens, hf(tokens, use_cache=False).logits[:, -1:].argmax(-1)), 1)
    return tokens


def test_the_stock_cache_fails_in_a_model_of_linear_layers():
    """The day this passes, `linear_cache` can go."""
    hf = small.qwen3_next(["linear_attention"] * 2)
    with pytest.raises(ValueError, match="LinearAttention layers"):
        hf(torch.zeros(1, 3, dtype=torch.long), use_cache=True)


def test_generation_equals_greedy_choice_without_a_cache(tiny, tokens):
    prompt = tokens[:, :13]
    generated = tiny.hf.generate(prompt, max_new_tokens=6, do_sample=False)
    assert torch.equal(generated, greedy(tiny.hf, prompt, 6))


def test_a_cached_call_continues_without_positions(tiny_pure, tokens):
    whole = tiny_pure.hf(tokens)
    assert torch.equal(whole.logits, tiny_pure.hf(tokens, use_cache=False).logits)
    assert whole.past_key_values.get_seq_length() == tokens.shape[1]
    first = tiny_pure.hf(input_ids=tokens[:, :70], use_cache=True)
    second = tiny_pure.hf(tokens[:, 70:], past_key_values=first.past_key_values)
    assert second.past_key_values.get_seq_length() == tokens.shape[1]
    torch.testing.assert_close(second.logits, whole.logits[:, 70:], rtol=0, atol=1e-4)


def test_embeddings_are_counted_too(tiny_pure, tokens):
    embedded = tiny_pure.hf.get_input_embeddings()(tokens)
    assert tiny_pure.hf(inputs_embeds=embedded).past_key_values.get_seq_length() == tokens.shape[1]


@pytest.mark.parametrize("options", [{"use_cache": False}, {"generation_config": GenerationConfig(use_cache=False)}])
def test_generation_without_a_cache_is_left_alone(tiny_pure, tokens, options):
    prompt = tokens[:, :5]
    generated = tiny_pure.hf.generate(prompt, max_new_tokens=2, do_sample=False, **options)
    assert generated.shape[0] == 2


def test_beams_and_copies_generate(tiny_pure, tokens):
    twin, prompt = copy.deepcopy(tiny_pure.hf), tokens[:, :9]
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(0.5)
    beams = {"max_new_tokens": 4, "num_beams": 3, "do_sample": False}
    cached = twin.generate(prompt, **beams)
    assert torch.equal(cached, twin.generate(prompt, use_cache=False, **beams))
    assert twin.generate.__self__ is twin


def test_wrapping_twice_counts_once(tiny_pure, tokens):
    again = models.from_hf(tiny_pure.hf, name="again")
    assert again.hf(tokens).past_key_values.get_seq_length() == tokens.shape[1]
    assert torch.equal(states.trace(again, tokens, [77]), states.trace(tiny_pure, tokens, [77]))


def test_a_model_with_softmax_layers_keeps_its_own_cache(tiny_hybrid):
    assert not linear_cache.is_needed(tiny_hybrid.hf)
    assert "generate" not in vars(tiny_hybrid.hf)
    assert type(linear_cache.empty(tiny_hybrid.hf)) is DynamicCache
