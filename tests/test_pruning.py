import copy
import functools
import json
import math
import shutil
import types

import numpy as np
import pytest
import small
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from srdyn import ablation, architectures, export, models, pruning, states
from srdyn.architectures import linear_cache, recipe
from srdyn.kernels import recurrence
from srdyn.loading import files, memory

LINEAR, SOFTMAX = "linear_attention", "full_attention"
FAMILIES = {
    "hybrid": (small.qwen3_next, [LINEAR, LINEAR, SOFTMAX, LINEAR], {}),
    "pure": (small.qwen3_next, [LINEAR, LINEAR], {}),
    "three values a key": (small.qwen3_next, [LINEAR, SOFTMAX], {"linear_num_value_heads": 6}),
    "a key each": (small.qwen3_next, [LINEAR, LINEAR], {"linear_num_key_heads": 4}),
    "qwen35": (small.qwen35, [LINEAR, SOFTMAX, LINEAR], {}),
    "qwen35, three values a key": (small.qwen35, [LINEAR, LINEAR], {"linear_num_value_heads": 6}),
}
TOKENS = torch.randint(0, small.SIZES["vocab_size"], (2, 70), generator=torch.Generator().manual_seed(2))


@functools.cache
def model(family):
    build, kinds, sizes = FAMILIES[family]
    with pytest.MonkeyPatch.context() as patch:
        for name, size in sizes.items():
            patch.setitem(small.SIZES, name, size)
        return models.from_hf(build(kinds), name=family, seed=3)


def masks(family):
    """Of every layer all heads, none, or any. The model is built before anything is drawn."""
    L, H, _, _ = model(family).grid
    layer = st.sampled_from(([True] * H, [False] * H)) | st.lists(st.booleans(), min_size=H, max_size=H)
    return st.lists(layer, min_size=L, max_size=L).map(torch.tensor)


def masked(whole, keep):
    """A stock copy in which nothing comes out of the heads that go."""
    return models.from_hf(small.unread(whole.hf, ~keep), name="masked")


def mask(family, *rows):
    """Keep these heads of each layer."""
    keep = torch.zeros(model(family).grid[:2], dtype=torch.bool)
    for layer, heads in enumerate(rows):
        keep[layer, heads] = True
    return keep


def fed(hf, lengths):
    """Logits and cache after reading TOKENS in pieces of these lengths."""
    cache, start, logits = linear_cache.empty(hf), 0, []
    for length in lengths:
        places = torch.arange(start, start + length)[None]
        piece = hf(TOKENS[:, start : start + length], past_key_values=cache, use_cache=True, position_ids=places)
        logits.append(piece.logits)
        start += length
    return torch.cat(logits, 1), cache


def parameters(hf):
    return sum(parameter.numel() for parameter in hf.parameters())


def weights_of(whole, heads):
    """How many numbers a layer needs for these heads."""
    (_, H, K, V), M = whole.grid, whole.hf.config.hidden_size
    keys = len({head // (H // whole.hf.config.linear_num_key_heads) for head in heads})
    channels = 2 * K * keys + V * len(heads)
    inputs, gates, outputs = channels + V * len(heads), 2 * len(heads), V * len(heads)
    return M * (inputs + gates + outputs) + 4 * channels + gates + V if heads else 0


@pytest.mark.parametrize("family", FAMILIES)
def test_the_smaller_model_computes_what_the_masked_one_does_from_less(family):
    whole = model(family)
    everything = tuple(range(whole.grid.H))

    @settings(max_examples=4, deadline=None)
    @given(masks(family))
    @example(torch.zeros(whole.grid[:2], dtype=torch.bool))
    def check(keep):
        pruned = pruning.prune_heads(whole, keep)
        expected = masked(whole, keep).hf(TOKENS).logits
        bounds = {"rtol": 0, "atol": 1e-4}
        torch.testing.assert_close(pruned.hf(TOKENS, use_cache=False).logits, expected, **bounds)
        in_pieces, _ = fed(pruned.hf, [33, 1, 36])
        torch.testing.assert_close(in_pieces, expected, **bounds)
        stepped, cache = fed(pruned.hf, [1] * 9)
        torch.testing.assert_close(stepped, expected[:, :9], **bounds)
        both = models.state_bytes(pruned), memory.cache_bytes(pruned.hf, 9)
        assert linear_cache.held_bytes(cache) == tuple(2 * size for size in both)
        assert pruned.grid == whole.grid
        assert [layer.index for layer in pruned.layers] == [layer.index for layer in whole.layers]
        assert [list(layer.heads) for layer in pruned.layers] == [row.nonzero()[:, 0].tolist() for row in keep]
        saved = sum(weights_of(whole, everything) - weights_of(whole, layer.heads) for layer in pruned.layers)
        assert parameters(pruned.hf) == parameters(whole.hf) - saved

    check()


@pytest.mark.parametrize("family", ["hybrid", "qwen35, three values a key"])
def test_pruning_twice_is_pruning_once(family):
    @settings(max_examples=4, deadline=None)
    @given(masks(family), masks(family))
    def check(first, second):
        once = pruning.prune_heads(model(family), first & second)
        twice = pruning.prune_heads(pruning.prune_heads(model(family), first), first & second)
        assert twice.layers == once.layers
        assert twice.hf.config.to_dict() == once.hf.config.to_dict()
        weights, again = once.hf.state_dict(), twice.hf.state_dict()
        assert weights.keys() == again.keys()
        assert all(torch.equal(weight, again[name]) for name, weight in weights.items())
        assert torch.equal(once.hf(TOKENS).logits, twice.hf(TOKENS).logits)

    check()


def test_loaded_weights_lie_where_computed_ones_do(tmp_path):
    """As views of the mapped file they would not, so that products may differ in their last bits."""
    family = "qwen35, three values a key"
    pruned = pruning.prune_heads(model(family), mask(family, [], [2]))
    loaded = models.load(pruning.save(pruned, tmp_path / "pruned"), device="cpu")
    for one in (pruned, loaded):
        assert {parameter.data_ptr() % 64 for parameter in one.hf.parameters()} == {0}


def test_what_is_saved_says_what_was_kept_and_prunes_again(tmp_path, tokenizer):
    whole = models.from_hf(copy.deepcopy(model("hybrid").hf), tokenizer, name="whole")
    whole.hf.config.srdyn_seed = 3
    folder = pruning.save(pruning.prune_heads(whole, mask("hybrid", [0, 3], [], [1, 2, 3])), tmp_path / "pruned")
    assert json.loads((folder / "config.json").read_text())["srdyn_kept"] == {"0": [0, 3], "1": [], "3": [1, 2, 3]}
    loaded = models.load(folder)
    assert loaded.seed == 3
    assert loaded.tokenizer("a line of text") == tokenizer("a line of text")
    less = mask("hybrid", [3], [], [1, 3])
    assert torch.equal(
        pruning.prune_heads(loaded, less).hf(TOKENS).logits, pruning.prune_heads(whole, less).hf(TOKENS).logits
    )


def test_saving_replaces_what_it_saved_and_nothing_else(tmp_path):
    (tmp_path / "model").mkdir()
    for _ in range(2):
        pruning.save(model("pure"), tmp_path / "model")
    assert models.load(tmp_path / "model").layers == model("pure").layers
    (tmp_path / "model" / "thesis.txt").write_text("precious")
    shutil.copytree(files.data_dir() / "models" / "hybrid", tmp_path / "hybrid")
    for folder, named in ((tmp_path / "model", r"thesis\.txt"), (tmp_path / "hybrid", r"log\.csv")):
        before = files.content_hash(folder)
        with pytest.raises(FileExistsError, match=named):
            pruning.save(model("pure"), folder)
        assert files.content_hash(folder) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hybrid", "model"]


def test_a_failed_save_leaves_the_model_that_stood_there(tmp_path, monkeypatch):
    folder = pruning.save(model("pure"), tmp_path / "model")
    before = files.content_hash(folder)
    broken = copy.deepcopy(model("pure"))

    def fail(path, **_):
        path.mkdir()
        raise OSError("disk full")

    broken.hf.save_pretrained = fail
    with pytest.raises(OSError, match="disk full"):
        pruning.save(broken, folder)
    assert files.content_hash(folder) == before
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("save", [pruning.save, export.save])
def test_a_disk_too_small_for_all_weights_is_told_before_anything_is_written(save, tmp_path, monkeypatch):
    wanted = 4 * parameters(model("pure").hf)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=wanted - 1))
    with pytest.raises(OSError, match=f"no space left for .*/model, which wants {wanted:,} bytes"):
        save(model("pure"), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_the_old_model_is_untouched_and_shares_nothing():
    whole = model("hybrid")
    before = {name: weight.clone() for name, weight in whole.hf.state_dict().items()}
    logits = whole.hf(TOKENS).logits
    pruned = pruning.prune_heads(whole, mask("hybrid", [0, 1, 3], [], [0, 1, 2, 3]))
    with torch.no_grad():
        for parameter in pruned.hf.parameters():
            parameter.fill_(0.1)
    after = whole.hf.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())
    assert torch.equal(whole.hf(TOKENS).logits, logits)
    assert not hasattr(whole.hf.config, "srdyn_kept")


@pytest.mark.parametrize("family", ["hybrid", "qwen35, three values a key"])
def test_the_inputs_of_a_ragged_layer_feed_the_reference_rule(family):
    pruned = pruning.prune_heads(model(family), mask(family, [0, 1, 3], []))
    _, expected = recurrence.gated_delta_rule(*states.inputs(pruned, TOKENS, 0), positions=[9, 70])
    found = states.trace(pruned, TOKENS, [9, 70], measure=lambda state: state.flatten(2))[0][:, :, [0, 1, 3]]
    torch.testing.assert_close(found, expected.flatten(3).double(), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"linear layer 1 of .* holds no heads"):
        states.inputs(pruned, TOKENS, 1)


GENERATE = [("hybrid", ([], [0, 1, 2], [3])), ("hybrid", ([], [], [])), ("pure", ([], [0, 1, 3]))]
GENERATE += [("pure", ([1], [])), ("pure", ([], [])), ("qwen35", ([1, 2, 3], []))]


@pytest.mark.parametrize(("family", "rows"), GENERATE)
def test_generation_with_a_cache_equals_generation_without(family, rows):
    hf, prompt = pruning.prune_heads(model(family), mask(family, *rows)).hf, TOKENS[:, :9]
    for options in ({}, {"num_beams": 3}):
        generate = functools.partial(hf.generate, prompt, max_new_tokens=5, do_sample=False, **options)
        assert torch.equal(generate(), generate(use_cache=False))


def test_an_ablation_inside_a_pruned_model_is_a_further_pruning():
    pruned = pruning.prune_heads(model("hybrid"), mask("hybrid", [0, 1, 3], [], [2, 3]))
    less = mask("hybrid", [0, 3], [], [2])
    for ablated in (pruned, models.from_hf(copy.deepcopy(pruned.hf), name="twin")):
        with ablation.ablate_heads(ablated, mask("hybrid", [1], [], [3])):
            logits = ablated.hf(TOKENS).logits
        torch.testing.assert_close(logits, pruning.prune_heads(pruned, less).hf(TOKENS).logits, rtol=0, atol=1e-4)


def test_an_ablation_of_the_old_model_is_not_taken_over():
    everything = torch.ones(3, 4, dtype=torch.bool)
    keep = mask("hybrid", [0, 1, 3], [0, 1, 2, 3], [])
    with ablation.ablate_heads(model("hybrid"), everything):
        pruned = pruning.prune_heads(model("hybrid"), keep)
    assert torch.equal(pruned.hf(TOKENS).logits, pruning.prune_heads(model("hybrid"), keep).hf(TOKENS).logits)


def test_a_copy_is_independent():
    pruned = pruning.prune_heads(model("hybrid"), mask("hybrid", [0, 1, 3], [], [1]))
    twin, logits = copy.deepcopy(pruned.hf), pruned.hf(TOKENS).logits
    assert torch.equal(twin(TOKENS).logits, logits)
    for site in architectures.sites(twin):
        for parameter in site.mixer.parameters():
            parameter.data.zero_()
    assert not torch.equal(twin(TOKENS).logits, logits)
    assert torch.equal(pruned.hf(TOKENS).logits, logits)


@pytest.mark.parametrize("family", ["hybrid", "qwen35"])
def test_wrapping_twice_shares_keys_once_on_any_device(family, monkeypatch):
    pruned = pruning.prune_heads(model(family), mask(family, [0, 1, 3], [1, 2, 3]))
    logits = pruned.hf(TOKENS).logits
    assert torch.equal(models.from_hf(pruned.hf, name="again").hf(TOKENS).logits, logits)
    monkeypatch.setattr(recipe, "by_device", lambda on_cpu, elsewhere: elsewhere)
    assert torch.equal(models.from_hf(pruned.hf, name="elsewhere").hf(TOKENS).logits, logits)


def test_a_mask_of_another_shape_or_type_is_refused():
    with pytest.raises(ValueError, match=r"keep must be a bool tensor \[L, H\] = \[3, 4\] for hybrid, got .*\[4, 3\]"):
        pruning.prune_heads(model("hybrid"), torch.ones(4, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"keep must be a bool tensor .* got torch.int64"):
        pruning.prune_heads.__wrapped__(model("hybrid"), torch.ones(3, 4, dtype=torch.int64))


def test_a_head_that_is_gone_cannot_be_kept():
    pruned = pruning.prune_heads(model("hybrid"), mask("hybrid", [0], [0, 2], [0]))
    with pytest.raises(ValueError, match=r"decoder layer 1 holds the heads \[0, 2\].*got \[0, 1, 2\]"):
        pruning.prune_heads(pruned, mask("hybrid", [0], [0, 1, 2], [0]))


def test_the_saturation_score_is_equation_14():
    generator = torch.Generator().manual_seed(4)
    rank, norm = (torch.rand(3, 5, generator=generator, dtype=torch.float64) * scale for scale in (8, 100))
    rank[1, 2] = norm[1, 2] = torch.nan
    score = pruning.saturation_score(rank, norm, 8, alpha=0.3)
    for layer, head in np.ndindex(3, 5):
        largest = max(float(n) for n in norm.flatten() if not n.isnan())
        expected = 0.3 * float(rank[layer, head]) / 8 + 0.7 * float(norm[layer, head]) / largest
        assert float(score[layer, head]) == pytest.approx(expected, rel=1e-12, nan_ok=True)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), alpha=st.floats(0, 1), scale=st.floats(1e-3, 1e3), gone=st.integers(0, 5))
def test_saturation_lies_between_0_and_1_and_knows_no_unit_of_the_norm(seed, alpha, scale, gone):
    rank, norm = 8 * torch.rand(2, 2, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rank[0, :gone] = norm[0, :gone] = torch.nan
    score = pruning.saturation_score(rank, norm, 8, alpha)
    assert torch.equal(score.isnan(), rank.isnan())
    assert ((score.nan_to_num() >= 0) & (score.nan_to_num() <= 1 + 1e-12)).all()
    again = pruning.saturation_score(rank, scale * norm, 8, alpha)
    torch.testing.assert_close(again, score, rtol=1e-12, atol=1e-12, equal_nan=True)
    fuller = pruning.saturation_score(rank, norm.clamp(min=0.5 * norm.nan_to_num().max()), 8, alpha)
    assert (fuller - score >= -1e-12).logical_or(score.isnan()).all()


def test_states_at_zero_have_no_saturation():
    zero = torch.zeros(2, 3)
    assert torch.equal(pruning.saturation_score(zero, zero, 1), zero)
    assert pruning.saturation_score(zero * torch.nan, zero * torch.nan, 8).isnan().all()


@pytest.mark.parametrize(
    ("rank", "norm", "d", "alpha", "message"),
    [
        (torch.ones(2, 3), torch.ones(2, 3), 8, 1.5, "alpha, the weight of the rank"),
        (torch.ones(2, 3), torch.ones(2, 3), 8, -0.5, "alpha, the weight of the rank"),
        (9 * torch.ones(2, 3), torch.ones(2, 3), 8, 0.5, "got a rank of 9.0 with d = 8"),
        (torch.zeros(2, 3), torch.ones(2, 3), 0, 0.5, "d, the most that a rank can be, must be 1 or more, got 0"),
        (torch.ones(2, 3), torch.ones(3, 2), 8, 0.5, r"same heads, got \[2, 3\] and \[3, 2\]"),
    ],
)
def test_scores_that_mean_nothing_are_refused(rank, norm, d, alpha, message):
    with pytest.raises(ValueError, match=message):
        pruning.saturation_score.__wrapped__(rank, norm, d, alpha)


fractions = st.floats(0, 1, allow_subnormal=False)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), L=st.integers(1, 4), H=st.integers(1, 9), fraction=fractions)
def test_the_highest_scores_go(seed, L, H, fraction):
    """Minus the score lets the lowest go; NaN marks heads that were pruned away."""
    score = torch.rand(L, H, generator=torch.Generator().manual_seed(seed))
    score[0, : H // 2] = torch.nan
    for s in (score, -score):
        gone = ~pruning.select(s, fraction, per_layer=True) & ~s.isnan()
        for row, chosen in zip(s, gone, strict=True):
            known = row[~row.isnan()]
            n = max(round(fraction * len(known)), int(fraction > 0))
            assert sorted(row[chosen].tolist()) == sorted(known.tolist())[len(known) - n :]
        keep = pruning.select(s, fraction, generator=torch.Generator().manual_seed(seed))
        assert not keep[s.isnan()].any()
        known = s[~s.isnan()]
        assert sorted(s[keep].tolist()) == sorted(known.tolist())[: len(known) - round(fraction * len(known))]


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 10**6), groups=st.integers(1, 3), whole=st.integers(1, 3), tp=st.sampled_from([1, 2, 4]),
    uniform=st.booleans(), fraction=st.floats(0, 1),
)  # fmt: skip
def test_blocks_stay_whole_and_groups_and_layers_alike_and_in_each_the_highest_go(
    seed, groups, whole, tp, uniform, fraction
):
    score = torch.rand(2, groups * 4 * whole, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    keep = pruning.select(score, fraction, per_layer=True, groups=groups, whole=whole, tp=tp, uniform=uniform)
    blocks, means = keep.view(2, groups, 4, whole), score.view(2, groups, 4, whole).mean(-1)
    kept = blocks.any(-1)
    assert torch.equal(kept, blocks.all(-1))
    assert (means.masked_fill(~kept, -1).amax(-1) < means.masked_fill(kept, 2).amin(-1)).all()
    left = kept.sum(-1)
    if uniform:
        step = math.lcm(groups, tp) // groups
        assert set(left.flatten().tolist()) <= {*range(step, 5, step)}
        assert abs(int(left[0, 0]) - (1 - fraction) * 4) <= max(step / 2, step - (1 - fraction) * 4) + 1e-9
    else:
        assert (left == 4 - max(round(fraction * 4), int(fraction > 0))).all()
    assert left.min() == left.max()


def test_every_group_loses_its_share():
    score = torch.tensor([[0.9, 0.8, 0.2, 0.1], [0.5, 0.4, 0.7, 0.6]])
    keep = pruning.select(score, 0.5, groups=2)
    assert keep.tolist() == [[False, True, False, True], [False, True, False, True]]
    for options in ({"groups": 3}, {"groups": 0}, {"whole": 0}, {"tp": 0}):
        with pytest.raises(ValueError, match=f"4 heads do not lie in {options.get('groups', 1)} groups"):
            pruning.select(score, 0.5, **options)


@pytest.mark.parametrize("per_layer", [False, True])
def test_ties_go_in_order_or_at_random(per_layer):
    score = torch.zeros(3, 8)
    score[1] = -1.0
    in_order = pruning.select(score, 0.25, per_layer=per_layer)
    gone = [[0, 1], [0, 1], [0, 1]] if per_layer else [[0, 1, 2, 3, 4, 5], [], []]
    assert [(~row).nonzero()[:, 0].tolist() for row in in_order] == gone
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([pruning.select(score, 0.25, per_layer=per_layer, generator=generator) for _ in range(400)])
    assert ((~draws).sum((1, 2)) == 6).all()
    share = (~draws).double().mean(0)
    expected = torch.full((3, 8), 0.25) if per_layer else torch.tensor([[0.375], [0.0], [0.375]]).expand(3, 8)
    # Four standard deviations of a share of 400 draws.
    torch.testing.assert_close(share, expected.double(), rtol=0, atol=0.1)
    again = pruning.select(score, 0.25, per_layer=per_layer, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again, draws[0])


@pytest.mark.parametrize("fraction", [-0.1, 1.1])
def test_a_fraction_lies_between_0_and_1(fraction):
    with pytest.raises(ValueError, match="fraction, of the heads that go"):
        pruning.select(torch.zeros(1, 2), fraction)
