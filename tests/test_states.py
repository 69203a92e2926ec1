import copy
import functools
import weakref
from unittest import mock

import families
import pytest
import small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from IPython import display
from torch import nn
from transformers.models.qwen3_next import modeling_qwen3_next

from srdyn import ablation, architectures, models, pruning, spectra, states
from srdyn.architectures import rebinding
from srdyn.loading import processes

ODD = [1, 2, 63, 64, 65, 77, 128, 131, 149, 150]


def whole(state):
    return state.flatten(2)


@pytest.mark.parametrize("route", ["forward", "segments"])
def test_states_are_those_of_a_float64_loop_over_the_captured_inputs(tiny, tokens, route):
    traced = states.trace(tiny, tokens, ODD, measure=whole, route=route)
    for layer in range(tiny.grid.L):
        expected = small.by_loop(states.inputs(tiny, tokens, layer), ODD).flatten(3)
        scale = expected.norm(dim=-1)
        assert scale.min() > 0
        assert ((traced[layer] - expected).norm(dim=-1) / scale).max() < 1e-5


def test_axes_are_named_by_the_grid(tiny_hybrid, tokens):
    sigma = states.trace(tiny_hybrid, tokens, ODD)
    L, H, K, V = tiny_hybrid.grid
    assert (L, H, K, V) == (3, 4, 8, 12)
    assert sigma.shape == (L, 2, len(ODD), H, min(K, V))
    assert sigma.dtype == torch.float64
    rank = spectra.effective_rank(sigma)
    assert (rank <= torch.tensor(ODD).clamp(max=8)[:, None]).all()
    assert rank.max() == 8


@pytest.mark.parametrize("positions", [[64, 128], ODD, list(range(1, 151))])
def test_the_traced_pass_has_the_logits_of_an_untraced_one_bit_for_bit(tiny, tokens, positions):
    seen = []
    untraced = tiny.hf(tokens).logits
    with states.tapped(tiny, positions, lambda layer, position, state: seen.append((layer, position))):
        traced = tiny.hf(tokens).logits
    assert torch.equal(traced, untraced)
    assert seen == [(layer, position) for layer in range(tiny.grid.L) for position in positions]


def test_a_state_does_not_depend_on_the_other_positions(tiny_hybrid, tokens):
    among_many = states.trace(tiny_hybrid, tokens, ODD, measure=whole)
    for c, position in enumerate(ODD):
        assert torch.equal(states.trace(tiny_hybrid, tokens, [position], measure=whole)[:, :, 0], among_many[:, :, c])


@functools.cache
def hybrid():
    return models.from_hf(small.qwen3_next(["linear_attention", "full_attention", "linear_attention"]), name="own")


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), T=st.integers(1, 90), data=st.data())
def test_a_state_holds_no_more_than_was_read_and_nothing_of_what_comes_later(seed, T, data):
    tokens = torch.randint(0, 64, (1, T), generator=torch.Generator().manual_seed(seed))
    position = data.draw(st.integers(1, T))
    state = states.trace(hybrid(), tokens, [position], measure=whole)
    before = states.trace(hybrid(), tokens[:, :position], [position], measure=whole)
    # Attention over more or fewer tokens differs in the last bits, which later layers amplify.
    assert (state - before).norm() <= 1e-5 * before.norm()
    rank = spectra.effective_rank(states.trace(hybrid(), tokens, [position]))
    assert rank.max() <= spectra.rank_bound([position], hybrid().grid.D)[0]


def test_states_are_dropped_once_measured(tokens):
    model = models.from_hf(small.qwen3_next(["linear_attention", "full_attention"]), name="tiny")
    alive, most = weakref.WeakSet(), 0

    def visit(layer, position, state):
        nonlocal most
        alive.add(state)
        most = max(most, len(alive))

    with torch.no_grad(), states.tapped(model, range(1, 151), visit):
        model.hf(tokens)
    assert most <= 2


def test_a_tapped_pass_keeps_its_gradients(tiny_pure, tokens):
    seen = []
    with states.tapped(tiny_pure, [3, 70], lambda layer, position, state: seen.append(state.requires_grad)):
        tiny_pure.hf(tokens, use_cache=False).logits.sum().backward()
    assert all(seen)
    site = architectures.sites(tiny_pure.hf)[0]
    tapped = site.mixer.A_log.grad.clone()
    tiny_pure.hf.zero_grad()
    tiny_pure.hf(tokens, use_cache=False).logits.sum().backward()
    torch.testing.assert_close(tapped, site.mixer.A_log.grad)


def test_snapshots_are_copies(tiny_pure, tokens):
    taken = list(states.snapshots(tiny_pure, tokens, [3, 70]))
    assert [(layer, position) for layer, position, _ in taken] == [
        (layer, position) for position in (3, 70) for layer in range(3)
    ]
    assert not torch.equal(taken[0][2], taken[3][2])
    assert taken[0][2].shape == (2, 4, 8, 12)


def test_gates_of_a_traced_pass_are_those_of_any_other(tiny, tokens):
    expected = states.gates(tiny, tokens)
    heads = torch.zeros(tiny.grid.L, tiny.grid.H, dtype=torch.bool)
    heads[-1, 1] = True
    with states.gates_of(tiny, *tokens.shape) as first, states.gates_of(tiny, *tokens.shape) as second:
        traced = states.trace(tiny, tokens, ODD)
        with ablation.ablate_heads(tiny, heads):
            states.trace(tiny, tokens, ODD)
    assert torch.equal(traced, states.trace(tiny, tokens, ODD))
    assert all(torch.equal(x, y) for found in (first, second) for x, y in zip(found, expected, strict=True))


@pytest.mark.parametrize("positions", [[], [0, 3], [151], [5, 5], [7, 3]])
def test_positions_must_increase_within_the_context(tiny_hybrid, tokens, positions):
    for route in ("forward", "segments"):
        with pytest.raises(ValueError, match="positions must"):
            states.trace(tiny_hybrid, tokens, positions, route=route)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.full((1, 4), -1), "vocabulary"),
        (torch.zeros(0, 4, dtype=torch.long), "at least one sequence"),
        (torch.zeros(1, 0, dtype=torch.long), "at least one token"),
        (torch.zeros(4, dtype=torch.long), r"integers \[B, T\]"),
        (torch.zeros(1, 4), "integers"),
        (torch.zeros(1, 4, dtype=torch.bool), "integers"),
        (torch.zeros(1, 4, dtype=torch.complex64), "integers"),
    ],
)
def test_tokens_must_be_a_filled_matrix_within_the_vocabulary(tiny_hybrid, wrong, message):
    with pytest.raises(ValueError, match=message):
        states.checked_tokens(tiny_hybrid, wrong)


@pytest.mark.parametrize("read", [states.gates, lambda model, tokens: states.trace(model, tokens, [1])])
def test_every_reader_checks_its_tokens(tiny_hybrid, read):
    with pytest.raises(ValueError, match="vocabulary of tiny-hybrid; got 64 … 64"):
        read(tiny_hybrid, torch.full((1, 4), 64))


@pytest.mark.parametrize("route", ["forward", "segments"])
def test_a_broken_state_is_named(tiny_hybrid, tokens, route):
    mixer = architectures.sites(tiny_hybrid.hf)[2].mixer
    mixer.A_log.data[1] = torch.nan
    with pytest.raises(ValueError, match=r"linear layer 2 \(decoder layer 3\), head 1, position 7"):
        states.trace(tiny_hybrid, tokens, [7, 9], route=route, measure=whole)


@pytest.mark.parametrize("route", ["forward", "segments"])
def test_a_state_of_lower_precision_is_refused(tiny_pure, tokens, route):
    mixer = architectures.sites(tiny_pure.hf)[0].mixer
    exact = rebinding.meaning(mixer, "torch_chunk_gated_delta_rule")

    def rounded(*qkv, **options):
        output, state = exact(*qkv, **options)
        return output, state.to(torch.bfloat16)

    rebinding.bind(mixer, {"torch_chunk_gated_delta_rule": rounded})
    with pytest.raises(ValueError, match="bfloat16"):
        states.trace(tiny_pure, tokens, [64], route=route, measure=whole)


def everything(hf):
    """What a trace must leave as it was: forwards, hooks, modes, gradient mode."""
    parts = list(hf.modules())
    hooks = [(list(part._forward_hooks), list(part._forward_pre_hooks)) for part in parts]
    own = [vars(part).get("forward") for part in parts]
    return own, hooks, [part.training for part in parts], torch.is_grad_enabled()


@pytest.mark.parametrize("route", ["forward", "segments"])
def test_everything_is_restored_after_an_exception(tiny_hybrid, tokens, route):
    class Stop(Exception):
        pass

    def stop(state):
        raise Stop

    tiny_hybrid.hf.train()
    tiny_hybrid.hf.model.norm.eval()
    before, logits = everything(tiny_hybrid.hf), tiny_hybrid.hf(tokens).logits
    with pytest.raises(Stop):
        states.trace(tiny_hybrid, tokens, [7], measure=stop, route=route)
    assert everything(tiny_hybrid.hf) == before
    assert torch.equal(tiny_hybrid.hf(tokens).logits, logits)


def test_dropout_is_off_while_a_model_in_training_is_traced(tiny_hybrid, tokens):
    calm = states.trace(tiny_hybrid, tokens, [150])
    tiny_hybrid.hf.config.attention_dropout = 0.5
    for layer in tiny_hybrid.hf.model.layers:
        if hasattr(layer, "self_attn"):
            layer.self_attn.attention_dropout = 0.5
    tiny_hybrid.hf.train()
    assert torch.equal(states.trace(tiny_hybrid, tokens, [150]), calm)
    assert tiny_hybrid.hf.training


def test_autocast_does_not_reach_the_states(tiny_hybrid, tokens):
    calm = states.trace(tiny_hybrid, tokens, [150])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(states.trace(tiny_hybrid, tokens, [150]), calm)


def test_a_copy_is_traced_with_its_own_weights(tiny_hybrid, tokens):
    twin = models.from_hf(copy.deepcopy(tiny_hybrid.hf), name="twin")
    for parameter in twin.hf.parameters():
        nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(5))
    before = states.trace(tiny_hybrid, tokens, [9])
    assert not torch.equal(states.trace(twin, tokens, [9]), before)
    assert torch.equal(states.trace(tiny_hybrid, tokens, [9]), before)


def test_a_tapped_model_reads_whole_sequences_only(tiny_hybrid, tokens):
    cache = tiny_hybrid.hf(tokens, use_cache=True).past_key_values
    with states.tapped(tiny_hybrid, [1], lambda *_: None), pytest.raises(ValueError, match="whole sequences"):
        tiny_hybrid.hf(tokens[:, :5], past_key_values=cache)


def test_the_modelling_file_is_left_alone_while_a_model_is_tapped(tiny_hybrid, tokens):
    stock = modeling_qwen3_next.torch_chunk_gated_delta_rule
    with states.tapped(tiny_hybrid, [1], lambda *_: None):
        assert modeling_qwen3_next.torch_chunk_gated_delta_rule is stock


def test_inputs_of_all_layers_come_in_one_pass(tiny, tokens, monkeypatch):
    passes = []
    tiny.hf.get_decoder().register_forward_hook(lambda *_: passes.append(1))
    lengths = states.from_inputs(tiny, tokens, lambda read: read.v.norm(dim=-1))
    assert len(passes) == 1
    for layer in range(tiny.grid.L):
        assert torch.equal(lengths[layer], states.inputs(tiny, tokens, layer).v.norm(dim=-1))


def test_a_layer_without_heads_reads_nothing(tiny_pure, tokens):
    keep = torch.tensor([[True] * 4, [False] * 4, [True] * 4])
    taken = states.from_inputs(pruning.prune_heads(tiny_pure, keep), tokens, lambda read: read.v.shape[2])
    assert taken == [4, None, 4]


@pytest.mark.parametrize("name", ["qwen3_next", "qwen3_next, pure", "mamba2", "fla gated_deltanet"])
def test_watching_a_generation_leaves_its_output_and_tells_the_ranks_of_the_cache(name, caplog):
    model = families.model(families.named(name))
    prompt = torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(0))
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "return_dict_in_generate": True, "output_logits": True}
    options |= {"do_sample": False}
    unwatched = model.hf.generate(prompt, **options)
    with caplog.at_level("INFO", logger="srdyn.states"), states.watch(model) as seen:
        written = model.hf.generate(prompt, **options)
    assert torch.equal(written.sequences, unwatched.sequences)
    assert all(torch.equal(a, b) for a, b in zip(written.logits, unwatched.logits, strict=True))
    assert seen.positions == [*range(9, 17)]
    assert len(caplog.messages) == 8
    sigma = states.trace(model, written.sequences, seen.positions, route="segments")
    assert torch.equal(seen.stacked(), spectra.effective_rank(sigma))
    model.hf.generate(prompt, max_new_tokens=4)  # nobody watches any more
    assert len(seen.ranks) == 8


def test_a_watch_looks_now_and_then_begins_anew_with_a_cache_and_knows_what_was_pruned(tiny_hybrid, tokens, caplog):
    keep = torch.ones(3, 4, dtype=torch.bool)
    keep[0, 2] = keep[1] = False
    model = pruning.prune_heads(tiny_hybrid, keep)
    with caplog.at_level("INFO", logger="srdyn.states"), states.watch(model, every=3) as seen:
        model.hf(tokens, use_cache=False)
        assert seen.positions == []
        cache = model.hf(tokens[:, :4], use_cache=True).past_key_values
        model.hf(tokens[:, 4:9], past_key_values=cache)
        assert seen.positions == [4, 9]
        model.generate(tokens[:, :20], max_new_tokens=4, min_new_tokens=4)
        model.generate(tokens[:1, :10], max_new_tokens=8, min_new_tokens=8)
    assert seen.positions == [10, 13, 16]
    assert seen.stacked().shape == (3, 1, 3, 4)
    assert torch.equal(~seen.ranks[0][:, 0].isnan(), keep)
    assert seen.stacked().nan_to_num().max() > 1
    assert caplog.messages[-1].startswith("after 16 tokens, ranks of 0 to 8: ")
    marks = caplog.messages[-1].partition(": ")[2]
    assert [marks[2], marks[5:9], len(marks)] == [" ", "    ", 14]


def test_in_a_notebook_a_watch_is_drawn_in_one_place(tiny_pure, tokens, monkeypatch):
    place = mock.Mock()
    monkeypatch.setattr(processes, "in_notebook", lambda: True)
    monkeypatch.setattr(display, "display", lambda shown, display_id: place if display_id else None)
    with states.watch(tiny_pure) as seen:
        tiny_pure.generate(tokens[:, :20], max_new_tokens=4, min_new_tokens=4)
    drawn = [call.args[0].data.splitlines() for call in place.update.call_args_list]
    assert [lines[0] for lines in drawn] == [f"after {n} tokens, ranks of 0 to 8" for n in seen.positions]
    assert [len(line) for line in drawn[-1][1:]] == [4, 4, 4]


def test_a_mark_tells_the_mean_rank_of_a_head():
    ranks = torch.tensor([[[0, 1, 5, 8, torch.nan], [0, 1, 3, 8, torch.nan]], [[8] * 5, [8] * 5]]).double()
    assert states._marks(ranks, 8) == ["▁▂▅█ ", "█████"]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_tokens_of_any_integer_type_are_the_same_tokens(tiny_hybrid, tokens, dtype):
    read = states.checked_tokens(tiny_hybrid, tokens.to(dtype))
    assert read.dtype == torch.int64
    assert torch.equal(read, tokens)


@pytest.mark.parametrize("opened", [states.watch, lambda model: states.tapped(model, [4], lambda *_: None)])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_refused_and_a_mask_without_any_is_none(tiny_hybrid, tokens, opened, side):
    mask = torch.ones_like(tokens)
    with opened(tiny_hybrid):
        tiny_hybrid.hf(tokens, attention_mask=mask)
    mask[0, slice(0, 3) if side == "left" else slice(-3, None)] = 0
    with opened(tiny_hybrid), pytest.raises(ValueError, match="padding is no text"):
        tiny_hybrid.hf(tokens, attention_mask=mask)
    tiny_hybrid.hf(tokens, attention_mask=mask)  # elsewhere it is nobody's business
