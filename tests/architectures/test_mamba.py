import copy
import functools
import importlib
import inspect

import families
import pytest
import torch
import transformers
from torch import nn
from transformers.models.mamba2 import modeling_mamba2

from srdyn import ablation, architectures, models, pruning, states
from srdyn.architectures import linear_cache, mamba, unsupported

TOKENS = torch.randint(0, 64, (2, 70), generator=torch.Generator().manual_seed(2))
POSITIONS = [1, 9, 16, 37, 70]
LOGITS = {"rtol": 0, "atol": 1e-4}
"""Logits of these models are of the order of 1; float32 sums in another order differ by 1e-6 … 1e-5."""
FAMILIES = {family.id: family for family in families.FAMILIES if family.last_state is families.dual}


def whole(state):
    return state.flatten(2)


def logits(hf, tokens=TOKENS, **options):
    with torch.no_grad():
        return hf(tokens, **({"use_cache": False} | options)).logits


def mask(model, *rows):
    """Keep these heads of the first layers and all of the others."""
    keep = torch.ones(model.grid[:2], dtype=torch.bool)
    for layer, heads in enumerate(rows):
        keep[layer] = torch.isin(torch.arange(model.grid.H), torch.tensor(heads, dtype=torch.long))
    return keep


@functools.cache
def built(build, **sizes):
    return models.from_hf(build(**sizes), name=build.__name__)


@pytest.fixture(params=FAMILIES)
def model(request):
    return families.model(FAMILIES[request.param])


def test_the_layers_compute_what_the_stock_ones_do(model):
    stock = copy.deepcopy(model.hf)
    for site in architectures.sites(stock):
        del site.mixer.forward
    torch.testing.assert_close(logits(model.hf), logits(stock), **LOGITS)


def test_an_ablation_holds_at_every_step_and_clears_what_the_cache_brings_along(model):
    family, out = architectures.sites(model.hf)[0].recipe, ~mask(model, [0, 1, 2, 4, 5, 6], [1, 6])
    cache = family.empty_cache(model.hf)
    logits(model.hf, TOKENS[:, :5], use_cache=True, **{family.cache_argument: cache})
    with ablation.ablate_heads(model, out):
        for t in range(5, 9):
            place = {} if family.cache_argument == "cache_params" else {"position_ids": torch.tensor([[t]])}
            logits(model.hf, TOKENS[:, t : t + 1], use_cache=True, **place, **{family.cache_argument: cache})
    for layer, site in enumerate(architectures.sites(model.hf)):
        empty = (family.stored(cache, site.index) == 0).flatten(2).all(-1)
        assert torch.equal(empty, out[layer].expand(2, -1))


@pytest.mark.parametrize("tokens", [TOKENS, TOKENS[:, :1]])
def test_an_ablated_head_has_no_output_not_even_its_skip(tokens):
    model, seen = built(families.mamba2), []
    mixer = architectures.sites(model.hf)[0].mixer
    hook = mixer.norm.register_forward_pre_hook(lambda _norm, arguments: seen.append(arguments[0]))
    with ablation.ablate_heads(model, ~mask(model, [0, 1, 2, 4, 5, 6, 7])):
        logits(model.hf, tokens)
    hook.remove()
    assert ((seen[0].unflatten(-1, (8, 8)) == 0).all(-1) == (torch.arange(8) == 3)).all()


@pytest.mark.parametrize("groups", [1, 2])
def test_a_smaller_norm_makes_up_for_the_channels_that_are_gone(groups):
    model = built(families.nemotron_h, groups=groups)
    pruned = pruning.prune_heads(model, mask(model, [0, 3, 6], [1]) if groups == 1 else mask(model, [0, 2, 3, 5, 6, 7]))
    before, after = (architectures.sites(one.hf)[0].mixer.norm for one in (model, pruned))
    narrower, heads = (8 / 3, [0, 3, 6]) if groups == 1 else (4 / 3, [0, 2, 3, 5, 6, 7])
    kept = before.weight.unflatten(0, (8, 6))[heads].flatten()
    torch.testing.assert_close(after.weight, kept * narrower**0.5)
    assert after.variance_epsilon == pytest.approx(narrower * before.variance_epsilon)
    assert after.group_size == before.group_size / narrower


def test_a_cut_that_leaves_the_norm_alone_is_wrong(monkeypatch):
    """That the norm is mended is seen in the logits."""
    model = built(families.bamba)
    keep = mask(model, [0, 3, 6])

    def unmended(self, mixer, channels, groups, narrower):
        exact(self, mixer, channels, groups, 1.0)

    with ablation.ablate_heads(model, ~keep):
        expected = logits(model.hf)
    exact = mamba.StateSpaceDual.cut_norm
    monkeypatch.setattr(mamba.StateSpaceDual, "cut_norm", unmended)
    assert (logits(pruning.prune_heads(model, keep).hf) - expected).abs().max() > 0.1


def test_pruning_twice_is_pruning_once():
    model = built(families.falcon_h1, mamba_rms_norm=True)
    first, second = mask(model, [0, 1, 3, 4, 5, 6], [], [4, 5, 6, 7]), mask(model, [1, 6], [], [5])
    once, twice = pruning.prune_heads(model, second), pruning.prune_heads(pruning.prune_heads(model, first), second)
    assert twice.layers == once.layers
    weights, again = once.hf.state_dict(), twice.hf.state_dict()
    assert weights.keys() == again.keys()
    for name, weight in weights.items():
        # A norm's weights are multiplied by one root or by two.
        torch.testing.assert_close(again[name], weight, rtol=1e-6 if name.endswith("mamba.norm.weight") else 0, atol=0)
    torch.testing.assert_close(logits(twice.hf), logits(once.hf), **LOGITS)


@pytest.mark.parametrize(
    ("heads", "numbers"), [([0], None), ([0, 4], None), ([1, 2, 4], "2 of group 0, 1 of group 1"), ([7], None)]
)
def test_groups_keep_equally_many_heads_or_none(heads, numbers):
    model = built(families.mamba2)
    if numbers is None:
        mixer = architectures.sites(pruning.prune_heads(model, mask(model, heads)).hf)[0].mixer
        assert (mixer.num_heads, mixer.n_groups) == (len(heads), len({head // 4 for head in heads}))
        return
    told = f"decoder layer 0 must keep equally many heads of each of its 2 .*{numbers}.*select\\(..., groups=2\\)"
    with pytest.raises(ValueError, match=told):
        pruning.prune_heads(model, mask(model, heads))


def test_biases_are_cut_with_their_rows_and_the_last_one_stays(tmp_path):
    model = built(families.mamba2, use_bias=True)
    for site in architectures.sites(model.hf):
        for bias in (site.mixer.in_proj.bias, site.mixer.out_proj.bias, site.mixer.conv1d.bias):
            nn.init.normal_(bias, generator=torch.Generator().manual_seed(0))
    keep = mask(model, [1, 2, 4, 7], [3], [])
    pruned = pruning.prune_heads(model, keep)
    with ablation.ablate_heads(model, ~keep):
        torch.testing.assert_close(logits(pruned.hf), logits(model.hf), **LOGITS)
    last = architectures.sites(pruned.hf)[2].mixer
    assert [name for name, weight in last.named_parameters() if weight.numel()] == ["out_proj.bias"]
    loaded = models.load(pruning.save(pruned, tmp_path / "pruned"), device="cpu")
    assert torch.equal(logits(loaded.hf), logits(pruned.hf))
    assert torch.equal(logits(pruning.prune_heads(loaded, keep).hf), logits(pruned.hf))


def test_multipliers_are_cut_and_saved_with_the_weights(tmp_path):
    model = built(families.falcon_h1)
    keep = mask(model, [1, 2, 4, 7], [])
    pruned = pruning.prune_heads(model, keep)
    loaded = models.load(pruning.save(pruned, tmp_path / "pruned"), device="cpu")
    mixers = [site.mixer for site in architectures.sites(loaded.hf)]
    multipliers = architectures.sites(model.hf)[0].mixer.mup_vector
    assert [len(mixer.mup_vector[0, 0]) for mixer in mixers] == [2 * 4 * 8 + 2 * 2 * 12 + 4, 0, multipliers.shape[-1]]
    assert set(mixers[0].mup_vector.unique().tolist()) == set(multipliers.unique().tolist())
    with ablation.ablate_heads(model, ~keep):
        torch.testing.assert_close(logits(loaded.hf), logits(model.hf), **LOGITS)


def test_without_a_norm_there_is_nothing_to_make_up_for():
    model = built(families.falcon_h1)
    pruned = pruning.prune_heads(model, mask(model, [1, 4]))
    assert isinstance(architectures.sites(pruned.hf)[0].mixer.norm, nn.Identity)


@pytest.mark.parametrize("build", [families.nemotron_h, families.zamba2])
def test_the_limit_of_the_step_size_binds_whole_sequences_and_no_single_token(build):
    """As in transformers, whose function for a single token knows no limit."""
    model = built(build, time_step_min=0.2)
    _, dt = states.gates(model, TOKENS)
    assert dt.min() == pytest.approx(0.2)
    read = states.inputs(model, TOKENS, 0)
    torch.testing.assert_close(dt[0], read.beta)
    last = torch.from_numpy(families.dual(*(x.double().numpy() for x in read)))
    traced = states.trace(model, TOKENS, POSITIONS, measure=whole)
    tolerance = {"rtol": 0, "atol": 1e-5 * float(traced.abs().max())}
    torch.testing.assert_close(traced[0, :, -1], whole(last), **tolerance)
    in_pieces = states.trace(model, TOKENS, [2, 4, 6], measure=whole, route="segments")
    torch.testing.assert_close(in_pieces, states.trace(model, TOKENS, [2, 4, 6], measure=whole), **tolerance)

    by_token = states.trace(model, TOKENS, [1, 2, 3], measure=whole, route="segments")
    assert (by_token - states.trace(model, TOKENS, [1, 2, 3], measure=whole))[
        :, :, 1:
    ].abs().max() > 0.01 * traced.max()
    stock = copy.deepcopy(model.hf)
    for site in architectures.sites(stock):
        del site.mixer.forward
    cache = linear_cache.empty(stock)
    for t in range(3):
        options = {"past_key_values": cache, "use_cache": True, "position_ids": torch.tensor([[t]])}
        logits(stock, TOKENS[:, t : t + 1], **options)
    stored = cache.get_recurrent_state(0).transpose(-1, -2)
    torch.testing.assert_close(by_token[0, :, -1], whole(stored).double(), **tolerance)


def test_training_takes_no_short_cut_around_the_recurrence(monkeypatch):
    def fused(projected, *_arguments, **_options):
        return torch.full((*projected.shape[:2], 32), torch.nan)

    monkeypatch.setattr(modeling_mamba2, "mamba2_split_conv1d_scan_combined", fused)
    hf = families.mamba2().train()
    assert hf(TOKENS).logits.isnan().all()
    model = models.from_hf(hf, name="training")
    trained = hf(TOKENS, use_cache=False).logits
    assert torch.equal(trained, logits(hf.eval()))
    trained.sum().backward()
    hf.train()
    out = ~mask(model, [1, 4])
    with ablation.ablate_heads(model, out):
        torch.testing.assert_close(
            hf(TOKENS, use_cache=False).logits, logits(pruning.prune_heads(model, ~out).hf), **LOGITS
        )


def test_states_are_cut_where_they_can_be_and_no_cache_is_read():
    model = built(families.granite)
    every = torch.ones(model.grid[:2], dtype=torch.bool)
    with ablation.truncate_states(model, 8, every, [30]):
        torch.testing.assert_close(logits(model.hf), logits(pruning.prune_heads(model, every).hf), **LOGITS)
    with ablation.truncate_states(model, 0, every, [30]):
        forgotten = logits(model.hf)
    assert torch.equal(forgotten[:, :16], logits(model.hf)[:, :16])
    assert not torch.allclose(forgotten[:, 30:], logits(model.hf)[:, 30:], atol=1e-2)
    cache = model.hf(TOKENS, use_cache=True).past_key_values
    with ablation.truncate_states(model, 1, every, [1]), pytest.raises(ValueError, match="whole sequences"):
        model.hf(TOKENS[:, :1], past_key_values=cache)


def test_chunk_by_chunk_is_the_stock_function():
    stock = inspect.unwrap(modeling_mamba2.mamba2_chunk_scan)
    generator = torch.Generator().manual_seed(0)
    x, state = torch.randn(2, 37, 4, 6, generator=generator), torch.randn(2, 4, 6, 5, generator=generator)
    dt, A = torch.rand(2, 37, 4, generator=generator), -torch.rand(4, generator=generator)
    B, C = torch.randn(2, 2, 37, 2, 5, generator=generator)
    options = {"D": torch.ones(4), "dt_softplus": True, "initial_states": state, "return_final_states": True}
    ours = mamba._chunk_by_chunk(stock)(x, dt, A, B, C, chunk_size=8, **options)
    torch.testing.assert_close(ours, stock(x, dt, A, B, C, chunk_size=8, **options), rtol=1e-5, atol=1e-5)
    alone = mamba._chunk_by_chunk(stock)(x, dt, A, B, C, chunk_size=8, **options | {"return_final_states": False})
    assert torch.equal(alone, ours[0])


def test_a_checkpoint_is_read_by_transformers_class_whatever_is_registered(tmp_path):
    built(families.mamba2).hf.save_pretrained(tmp_path / "stock")
    registered = type(transformers.AutoConfig.from_pretrained(tmp_path / "stock"))
    assert registered.__module__.startswith("fla.")
    loaded = models.load(tmp_path / "stock", device="cpu")
    assert type(loaded.hf) is modeling_mamba2.Mamba2ForCausalLM
    assert torch.equal(logits(loaded.hf), logits(built(families.mamba2).hf))
    registered(vocab_size=64).save_pretrained(tmp_path / "theirs")
    with pytest.raises(ValueError, match="mamba2 model of flash-linear-attention"):
        models.load(tmp_path / "theirs")


SMALL = families.SSM | families.SSM_ATTENTION | {"num_hidden_layers": 2, "head_dim": 16, "num_experts": 2}
REFUSED = {
    "Mamba": ("mamba", {}, "Mamba-1"),
    "FalconMamba": ("falcon_mamba", {}, "Mamba-1"),
    "Jamba": ("jamba", {"attn_layer_offset": 1, "attn_layer_period": 2, "mamba_dt_rank": 2}, "Mamba-1"),
    "Zamba": ("zamba", {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2}, "Mamba-1"),
    "Rwkv": ("rwkv", {}, "vector"),
    "RecurrentGemma": ("recurrent_gemma", {"num_hidden_layers": 3}, "vector"),
    "MiniMax": ("minimax", {"num_local_experts": 2}, "written into the layer"),
    "Zaya": ("zaya", {"num_query_groups": 1}, "last token's value"),
    "xLSTM": ("xlstm", {"num_heads": 2, "num_blocks": 2}, "stabiliser"),
}


@pytest.mark.parametrize("stem", REFUSED)
def test_other_recurrent_layers_are_refused_with_the_reason(stem):
    folder, sizes, reason = REFUSED[stem]
    module = importlib.import_module(f"transformers.models.{folder}")
    hf = getattr(module, f"{stem}ForCausalLM")(getattr(module, f"{stem}Config")(**SMALL | sizes))
    with pytest.raises(ValueError, match=f"{folder} cannot be studied: .*{reason}"):
        models.from_hf(hf, name=folder)


def test_every_refused_class_exists_and_has_no_recipe():
    for name in unsupported.REASONS:
        module, cls = name.rsplit(".", 1)
        assert inspect.isclass(getattr(importlib.import_module(module), cls))
    assert not set(unsupported.REASONS) & set(architectures.supported()["mixer"])


def test_a_recipe_of_the_users_own_lifts_the_refusal(monkeypatch):
    mixer = nn.Module()
    mixer.__class__ = type("MambaMixer", (nn.Module,), {"__module__": "transformers.models.mamba.modeling_mamba"})
    assert "Mamba-1" in architectures.refusal(mixer)
    monkeypatch.setitem(architectures._RECIPES, "transformers.models.mamba.modeling_mamba.MambaMixer", mamba.Mamba2())
    assert architectures.refusal(mixer) is None
