import copy
import dataclasses
import functools
import math

import numpy as np
import pytest
import small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import logits, seeded

from srdyn import ablation, architectures, models, pruning, spectra, states
from srdyn.architectures import linear_cache

HYBRID = ["linear_attention", "linear_attention", "full_attention", "linear_attention"]
SOME = torch.tensor([[True, False, True, False], [False] * 4, [False, True, True, True]])
GONE = torch.zeros(3, 6, dtype=torch.bool)
GONE[1, [2, 4]] = True
"""Heads of a model that is `renumbered`, as if they had been pruned away."""
TURNED = torch.zeros(4, 3, dtype=torch.bool)
GENERATES = {"max_new_tokens": 8, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}


@functools.cache
def shared():
    """A hybrid for tests that draw many masks; whatever is done to it must undo itself."""
    return models.from_hf(small.qwen3_next(HYBRID), name="shared")


@functools.cache
def some_tokens():
    return torch.randint(0, 64, (2, 70), generator=torch.Generator().manual_seed(1))


def masks(model):
    L, H, _, _ = model.grid
    return st.lists(st.lists(st.booleans(), min_size=H, max_size=H), min_size=L, max_size=L).map(torch.tensor)


def read_by_token(hf, tokens):
    cache = linear_cache.empty(hf)
    return torch.cat([logits(hf, tokens[:, t : t + 1], past_key_values=cache) for t in range(tokens.shape[1])], 1)


def some_of(model):
    return SOME[: model.grid.L]


@settings(max_examples=15, deadline=None)
@given(heads=masks(shared()))
def test_an_ablated_head_is_one_that_nobody_reads(heads):
    model, tokens = shared(), some_tokens()
    before = logits(model.hf, tokens)
    expected = logits(small.unread(model.hf, heads), tokens)
    with ablation.ablate_heads(model, heads):
        torch.testing.assert_close(logits(model.hf, tokens), expected, rtol=0, atol=1e-5)
    assert heads.any() == ((before - expected).abs().max() > 1e-3)
    assert torch.equal(logits(model.hf, tokens), before)


def test_ablation_holds_token_by_token(tiny, tokens):
    heads, tokens = some_of(tiny), tokens[:, :12]
    expected = read_by_token(small.unread(tiny.hf, heads), tokens)
    with ablation.ablate_heads(tiny, heads):
        torch.testing.assert_close(read_by_token(tiny.hf, tokens), expected, rtol=0, atol=1e-5)


def test_ablation_holds_while_the_model_generates(tiny, tokens):
    heads = some_of(tiny)
    expected = small.unread(tiny.hf, heads).generate(tokens[:, :20], **GENERATES)
    intact = tiny.hf.generate(tokens[:, :20], **GENERATES)
    with ablation.ablate_heads(tiny, heads):
        found = tiny.hf.generate(tokens[:, :20], **GENERATES)
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(torch.stack(found.logits), torch.stack(expected.logits), rtol=0, atol=1e-5)
    assert (torch.stack(found.logits) - torch.stack(intact.logits)).abs().max() > 1e-3


@pytest.mark.parametrize("more", [1, 5])
def test_what_a_cache_brings_along_is_dropped(tiny_pure, tokens, more):
    cache = linear_cache.empty(tiny_pure.hf)
    logits(tiny_pure.hf, tokens[:, :9], past_key_values=cache)
    with ablation.ablate_heads(tiny_pure, SOME):
        logits(tiny_pure.hf, tokens[:, 9 : 9 + more], past_key_values=cache)
    for layer, row in enumerate(SOME):
        largest = cache.get_recurrent_state(layer, state_idx=0).abs().amax((0, 2, 3))
        assert torch.equal(largest == 0, row)


@pytest.mark.parametrize("route", ["forward", "segments"])
def test_a_trace_inside_finds_zero_states(tiny, tokens, route):
    heads, positions = some_of(tiny), [1, 30, 64, 100]
    with ablation.ablate_heads(tiny, heads):
        sigma = states.trace(tiny, tokens, positions, route=route)
    gone = heads[:, None, None].expand(sigma.shape[:-1])
    assert torch.equal(spectra.effective_rank(sigma) == 0, gone)
    assert (sigma[gone] == 0).all()


def test_a_pass_that_is_tapped_already_can_be_ablated(tiny_hybrid, tokens):
    zero = torch.zeros(3, 4, dtype=torch.bool)

    def visit(layer, position, state):
        zero[layer] = (state == 0).flatten(2).all(-1).all(0)

    with states.tapped(tiny_hybrid, [77], visit), ablation.ablate_heads(tiny_hybrid, SOME):
        logits(tiny_hybrid.hf, tokens)
    assert torch.equal(zero, SOME)


def test_gates_inside_are_those_of_the_first_layer_as_ever(tiny_hybrid, tokens):
    g, beta = states.gates(tiny_hybrid, tokens)
    with ablation.ablate_heads(tiny_hybrid, SOME):
        inside = states.gates(tiny_hybrid, tokens)
    assert torch.equal(inside[0][0], g[0])
    assert torch.equal(inside[1][0], beta[0])
    assert not torch.equal(inside[1][1], beta[1])


@settings(max_examples=6, deadline=None)
@given(outer=masks(shared()), inner=masks(shared()))
def test_blocks_nest(outer, inner):
    model, tokens = shared(), some_tokens()
    with ablation.ablate_heads(model, outer | inner):
        expected = logits(model.hf, tokens)
    with ablation.ablate_heads(model, outer):
        alone = logits(model.hf, tokens)
        with ablation.ablate_heads(model, inner):
            assert torch.equal(logits(model.hf, tokens), expected)
        assert torch.equal(logits(model.hf, tokens), alone)


def everything(model, tokens):
    """What must be as before, bit for bit: weights, forwards, hooks, logits."""
    parts = list(model.hf.modules())
    weights = {name: tensor.clone() for name, tensor in model.hf.state_dict().items()}
    forwards = [vars(part).get("forward") for part in parts]
    hooks = [(list(part._forward_hooks), list(part._forward_pre_hooks)) for part in parts]
    return weights, forwards, hooks, logits(model.hf, tokens)


INTERVENTIONS = [
    lambda model: ablation.ablate_heads(model, SOME),
    lambda model: ablation.truncate_states(model, 1, SOME, [5, 64]),
    lambda model: ablation.set_half_life(model, SOME, tokens=2.0),
    lambda model: ablation.attention_window(model, 3),
]


@pytest.mark.parametrize("intervene", INTERVENTIONS)
@pytest.mark.parametrize("error", [None, KeyError])
def test_everything_is_restored(tiny_hybrid, tokens, intervene, error):
    weights, forwards, hooks, before = everything(tiny_hybrid, tokens)
    raised = None
    try:
        with intervene(tiny_hybrid):
            assert (logits(tiny_hybrid.hf, tokens) - before).abs().max() > 1e-3
            if error is not None:
                raise error
    except KeyError as caught:
        raised = type(caught)
    assert raised == error
    now = everything(tiny_hybrid, tokens)
    assert now[1:3] == (forwards, hooks)
    assert torch.equal(now[3], before)
    assert weights.keys() == now[0].keys()
    assert all(torch.equal(weights[name], now[0][name]) for name in weights)


@pytest.mark.parametrize("intervene", INTERVENTIONS[:3])
def test_only_layers_with_a_chosen_head_are_touched(tiny_hybrid, intervene):
    mixers = [site.mixer for site in architectures.sites(tiny_hybrid.hf)]
    before = [vars(mixer)["forward"] for mixer in mixers]
    with intervene(tiny_hybrid):
        inside = [vars(mixer)["forward"] for mixer in mixers]
    assert [a is b for a, b in zip(before, inside, strict=True)] == [False, True, False]


def forgetful(hf, heads, factor):
    """A copy of the model in which these heads decay at `factor` times the rate, by its parameters."""
    hf = copy.deepcopy(hf)
    for site, row in zip(architectures.sites(hf), heads, strict=True):
        site.mixer.A_log.data[row] += math.log(factor)
    return hf


def test_a_factor_is_what_the_parameter_of_the_decay_makes(tiny, tokens):
    heads = some_of(tiny)
    other = forgetful(tiny.hf, heads, 4.0)
    expected, by_token = logits(other, tokens), read_by_token(other, tokens[:, :12])
    generated = other.generate(tokens[:, :20], **GENERATES)
    with ablation.set_half_life(tiny, heads, factor=0.25):
        torch.testing.assert_close(logits(tiny.hf, tokens), expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(read_by_token(tiny.hf, tokens[:, :12]), by_token, rtol=0, atol=1e-4)
        found = tiny.hf.generate(tokens[:, :20], **GENERATES)
    assert torch.equal(found.sequences, generated.sequences)
    torch.testing.assert_close(torch.stack(found.logits), torch.stack(generated.logits), rtol=0, atol=1e-4)


def test_half_lives_nest_from_the_outside_in(tiny_hybrid, tokens):
    own, before = states.gates(tiny_hybrid, tokens)[0][0], logits(tiny_hybrid.hf, tokens)
    first, both = SOME[0], SOME[0] & torch.tensor([True, False, False, False])
    inner = torch.zeros_like(SOME)
    inner[0] = both
    with ablation.set_half_life(tiny_hybrid, SOME, tokens=100):
        outer = logits(tiny_hybrid.hf, tokens)
        with ablation.set_half_life(tiny_hybrid, inner, factor=2), ablation.ablate_heads(tiny_hybrid, ~SOME):
            g = states.gates(tiny_hybrid, tokens)[0][0]
            sigma = states.trace(tiny_hybrid, tokens, [150])
        assert torch.equal(logits(tiny_hybrid.hf, tokens), outer)
    assert torch.equal(logits(tiny_hybrid.hf, tokens), before)
    expected = torch.where(first, -math.log(2) / 100, own)
    torch.testing.assert_close(g, torch.where(both, -math.log(2) / 200, expected))
    assert torch.equal((sigma == 0).all(-1)[:, 0, 0], ~SOME)


def test_after_an_infinite_half_life_nothing_is_forgotten(tiny_hybrid, tokens):
    with ablation.set_half_life(tiny_hybrid, SOME, tokens=math.inf):
        assert torch.equal((states.gates(tiny_hybrid, tokens)[0] == 0).all(2).all(1), SOME)


def test_a_pruned_copy_forgets_as_ever(tiny_hybrid, tokens):
    with ablation.set_half_life(tiny_hybrid, SOME, tokens=2.0):
        inside = pruning.prune_heads(tiny_hybrid, torch.ones_like(SOME))
    assert torch.equal(states.gates(inside, tokens)[0], states.gates(tiny_hybrid, tokens)[0])


def renumbered(model):
    """The model as if its four heads a layer were what is left of six."""
    layers = tuple(layer._replace(heads=(0, 2, 3, 5)) for layer in model.layers)
    return dataclasses.replace(model, grid=model.grid._replace(H=6), layers=layers)


def test_heads_keep_their_original_numbers(tiny_hybrid, tokens):
    heads = torch.zeros(3, 6, dtype=torch.bool)
    heads[:, [0, 5]] = True
    columns = torch.tensor([[True, False, False, True]] * 3)
    with ablation.ablate_heads(renumbered(tiny_hybrid), heads):
        found = logits(tiny_hybrid.hf, tokens)
    torch.testing.assert_close(found, logits(small.unread(tiny_hybrid.hf, columns), tokens), rtol=0, atol=1e-5)


GONE_TOLD = r"linear layer 1 of tiny-hybrid holds heads \[0, 2, 3, 5\], not \[4\]"
HALF_LIVES = [{}, {"tokens": 1, "factor": 1}, {"tokens": 0}, {"factor": -1}, {"tokens": math.nan}]


@pytest.mark.parametrize(
    ("intervene", "message"),
    [
        *((lambda m, x=x: ablation.set_half_life(m, SOME, **x), "tokens or factor, one of them") for x in HALF_LIVES),
        (lambda m: ablation.ablate_heads(renumbered(m), GONE), GONE_TOLD),
        (lambda m: ablation.truncate_states(renumbered(m), 1, GONE, [1]), GONE_TOLD),
        (lambda m: ablation.checked_heads(m, SOME.float()), r"\[3, 4\] for tiny-hybrid, got torch.float32 \[3, 4\]"),
        (lambda m: ablation.checked_heads(m, TURNED.flatten()), r"heads must be .* got torch.bool \[12\]"),
        (lambda m: ablation.ablate_heads(m, TURNED), r"got torch.bool \[4, 3\]"),
        (lambda m: ablation.truncate_states(m, 1, TURNED, [1]), r"got torch.bool \[4, 3\]"),
        (lambda m: ablation.truncate_states(m, -1, SOME, [3]), "rank must be 0 or more, got -1"),
        (lambda m: ablation.attention_window(m, 0), "1 token or more, got 0"),
    ],
)
def test_what_no_intervention_can_be_is_refused(tiny_hybrid, intervene, message):
    with pytest.raises(ValueError, match=message), intervene(tiny_hybrid):
        pass


@pytest.mark.parametrize("more", [1, 5])
@pytest.mark.parametrize("intervene", [lambda m: ablation.truncate_states(m, 1, SOME, [1]), INTERVENTIONS[3]])
def test_a_pass_that_goes_on_from_a_cache_is_refused(tiny_hybrid, tokens, intervene, more):
    with intervene(tiny_hybrid):
        cache = tiny_hybrid.hf(tokens[:, :9], use_cache=True).past_key_values
        with pytest.raises(ValueError, match="whole sequences: call the model without past_key_values"):
            tiny_hybrid.hf(tokens[:, 9 : 9 + more], past_key_values=cache)


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_truncation_is_what_rewriting_the_cache_does(tiny, tokens, rank):
    def cut(state):
        left, sigma, right = np.linalg.svd(state.astype(float), full_matrices=False)
        sigma[..., rank:] = 0
        return left * sigma[..., None, :] @ right

    expected = small.by_rewriting(tiny, tokens, some_of(tiny), [11, 64, 90], cut)
    with ablation.truncate_states(tiny, rank, some_of(tiny), [11, 64, 90]):
        found = logits(tiny.hf, tokens)
    assert (found - logits(tiny.hf, tokens)).abs().max() > 1e-2
    # Attention over a cache and over a whole sequence differ in the last bits, which later layers amplify.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_a_rank_that_no_state_exceeds_changes_nothing(tiny, tokens):
    everywhere = torch.ones(tiny.grid.L, tiny.grid.H, dtype=torch.bool)
    before = logits(tiny.hf, tokens)
    for rank in (8, 100):
        with ablation.truncate_states(tiny, rank, everywhere, [1, 50, 64, 149]):
            torch.testing.assert_close(logits(tiny.hf, tokens), before, rtol=0, atol=1e-4)


def test_truncation_at_the_last_token_leaves_the_logits_alone(tiny_hybrid, tokens):
    with ablation.truncate_states(tiny_hybrid, 0, SOME, [150]):
        cut = logits(tiny_hybrid.hf, tokens)
    assert torch.equal(cut, logits(tiny_hybrid.hf, tokens))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("window", [1, 4, 150])
def test_a_window_shows_what_a_truncated_input_shows(tiny_hybrid, tokens, window, attention):
    tiny_hybrid.hf.set_attn_implementation(attention)
    softmax, seen = tiny_hybrid.hf.model.layers[2].self_attn, {}

    def keep(module, arguments, options, output):
        seen.update(options, output=output[0])

    with softmax.register_forward_hook(keep, with_kwargs=True), ablation.attention_window(tiny_hybrid, window):
        logits(tiny_hybrid.hf, tokens)
    hidden, angles = seen["hidden_states"], seen["position_embeddings"]
    for t in (0, 1, 5, 149):
        part = slice(max(0, t + 1 - window), t + 1)
        here = tuple(angle[:, part] for angle in angles)
        triangle = torch.ones(t + 1, t + 1).tril().log()[part, part].clamp(min=torch.finfo().min)[None, None]
        with torch.no_grad():
            expected = softmax(hidden[:, part], position_embeddings=here, attention_mask=triangle)[0][:, -1]
        torch.testing.assert_close(seen["output"][:, t], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["tiny_hybrid", "tiny_qwen35"])
def test_a_window_as_long_as_the_sequence_changes_nothing(request, tokens, family, attention):
    model = request.getfixturevalue(family)
    model.hf.set_attn_implementation(attention)
    before = logits(model.hf, tokens)
    with ablation.attention_window(model, 150):
        torch.testing.assert_close(logits(model.hf, tokens), before, rtol=0, atol=1e-5)
    with ablation.attention_window(model, 149):
        changed = (logits(model.hf, tokens) - before).abs().amax((0, 2)) > 1e-5
    # The last token alone no longer sees the first.
    assert changed.nonzero()[:, 0].tolist() == [149]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_window_keeps_the_mask_of_the_padding(tiny_hybrid, tokens, attention):
    tiny_hybrid.hf.set_attn_implementation(attention)
    padding = torch.ones_like(tokens)
    padding[1, :40] = 0
    with ablation.attention_window(tiny_hybrid, 90):
        padded = logits(tiny_hybrid.hf, tokens, attention_mask=padding)
        alone = logits(tiny_hybrid.hf, tokens[1:, 40:])
    torch.testing.assert_close(padded[1:, 40:], alone, rtol=0, atol=1e-4)


def test_windows_nest_to_the_narrower(tiny_hybrid, tokens):
    with ablation.attention_window(tiny_hybrid, 3):
        expected = logits(tiny_hybrid.hf, tokens)
    for first, second in ((3, 20), (20, 3)):
        with ablation.attention_window(tiny_hybrid, first), ablation.attention_window(tiny_hybrid, second):
            assert torch.equal(logits(tiny_hybrid.hf, tokens), expected)


def test_a_window_needs_softmax_layers_that_take_a_mask(tiny_pure, tiny_hybrid):
    with pytest.raises(ValueError, match="tiny-pure has no softmax layers"), ablation.attention_window(tiny_pure, 3):
        pass
    tiny_hybrid.hf.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="attends with flash_attention_2"), ablation.attention_window(tiny_hybrid, 3):
        pass


def test_matched_random_draws_as_many_of_every_layer():
    heads = torch.tensor([[True, True, False, False, False], [True] * 5, [False] * 5])
    draws = torch.stack([ablation.matched_random(heads, generator=seeded(i)) for i in range(600)])
    assert (draws.sum(-1) == heads.sum(-1)).all()
    torch.testing.assert_close(draws[:, 0].double().mean(0), torch.full((5,), 0.4).double(), rtol=0, atol=0.08)
    assert torch.equal(
        ablation.matched_random(heads, generator=seeded(3)), ablation.matched_random(heads, generator=seeded(3))
    )


def test_truncated_states_in_float64(tiny_hybrid, tokens):
    """The first layer reads the same with and without truncation: a loop over its inputs tells its last state."""

    def cut(state):
        left, sigma, right = np.linalg.svd(state, full_matrices=False)
        state[:, [0, 2]] = (left[..., :2] * sigma[..., None, :2] @ right[..., :2, :])[:, [0, 2]]
        return state

    state = small.by_loop(states.inputs(tiny_hybrid, tokens, 0), (7, 120, 150), cut)[:, -1]
    cache = linear_cache.empty(tiny_hybrid.hf)
    with ablation.truncate_states(tiny_hybrid, 2, SOME, [7, 120, 150]):
        logits(tiny_hybrid.hf, tokens, past_key_values=cache)
    found = cache.get_recurrent_state(0, state_idx=0)
    torch.testing.assert_close(found.double(), state, rtol=0, atol=1e-5)
    rank = spectra.effective_rank(spectra.singular_values(found))
    assert (rank[:, SOME[0]] == 2).all()
    assert (rank[:, ~SOME[0]] > 2).all()
