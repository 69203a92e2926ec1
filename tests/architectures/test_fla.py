"""Models of flash-linear-attention on a CPU: what `test_families` does not ask."""

import copy
import importlib

import families
import pytest
import torch
import torch.nn.functional as F

from srdyn import ablation, architectures, models, pruning, states
from srdyn.architectures import rebinding
from srdyn.architectures.fla import ops

pytestmark = [
    pytest.mark.filterwarnings("ignore:According to Bo"),
    pytest.mark.filterwarnings("ignore:The correction_factor is set to 1"),
]
TOKENS = torch.randint(0, 64, (2, 11), generator=torch.Generator().manual_seed(3))
CLOSE = {"rtol": 0, "atol": 1e-4}
"""Logits here are of the order of 10; Triton's interpreter and torch sum in another order, which changes 2e-5."""


def loaded(stem, kind, **sizes):
    return models.from_hf(families.fla(stem, kind, **sizes), name=kind)


def delta_net(**sizes):
    return loaded("GatedDeltaNet", "gated_deltanet", **families.SHARED_KEYS | sizes)


def logits(model, tokens=TOKENS, **options):
    with torch.no_grad():
        return model.hf(tokens, **options).logits


def test_logits_and_states_are_those_of_the_triton_kernels(tmp_path):
    tokens, names = TOKENS[:1, :5], ("fla gated_deltanet", "fla kda", "fla gla")
    for name in names:
        families.named(name).build().save_pretrained(tmp_path / name)
    found = families.by_kernels(*(tmp_path / name for name in names), tokens=tokens)
    for name, (expected, last, _) in zip(names, found, strict=True):
        model = models.load(tmp_path / name, device="cpu")
        with torch.no_grad():
            first = model.hf(tokens[:, :3], use_cache=True)
            rest = model.hf(tokens[:, 3:], past_key_values=first.past_key_values, use_cache=True)
        torch.testing.assert_close(torch.cat([first.logits, rest.logits], 1), expected, **CLOSE)
        for site, state in zip(architectures.sites(model.hf), last, strict=True):
            ours = site.recipe.stored(rest.past_key_values, site.index)
            torch.testing.assert_close(ours, state.float(), rtol=0, atol=1e-5 * float(state.abs().max()))


def test_models_that_srdyn_did_not_load_stay_as_they_are():
    other = families.fla("GatedDeltaNet", "gated_deltanet", **families.SHARED_KEYS)
    classes = {type(module) for module in other.modules()}
    before = {cls: (cls.forward, dict(cls.forward.__globals__)) for cls in classes}
    loss = other.criterion
    model = delta_net()
    assert logits(model).isfinite().all()
    assert all("forward" not in vars(module) for module in other.modules())
    for cls, (forward, names) in before.items():
        assert cls.forward is forward
        assert {name: forward.__globals__[name] for name in names} == names
    assert other.criterion is loss is None
    with pytest.raises(RuntimeError, match="0 active drivers"), torch.no_grad():
        other(TOKENS)


def test_a_copy_and_a_second_wrapping_change_nothing():
    model = delta_net()
    again = models.from_hf(copy.deepcopy(model.hf), name="again")
    assert torch.equal(logits(again), logits(model))


def test_padded_and_packed_sequences_are_refused():
    model, mask = delta_net(), torch.ones_like(TOKENS)
    assert torch.equal(logits(model, attention_mask=mask), logits(model))
    mask[0, :4] = 0
    for options in ({"attention_mask": mask}, {"cu_seqlens": torch.tensor([0, 5, 11])}):
        with pytest.raises(ValueError, match="without padding"):
            logits(model, TOKENS[: len(mask)], **options)
    with states.tapped(model, [2], lambda *_: None), pytest.raises(ValueError, match="padding is no text"):
        logits(model, attention_mask=mask)


@pytest.mark.parametrize("fused", [False, True])
def test_a_loss_and_its_gradients_are_torchs(fused):
    kind = {"fuse_cross_entropy": not fused, "fuse_linear_cross_entropy": fused}
    with pytest.warns(UserWarning, match="fuse_linear") if fused else pytest.MonkeyPatch.context():
        model = delta_net(**kind)
    labels = TOKENS.clone()
    labels[0, :3] = -100
    loss = model.hf(TOKENS, labels=labels).loss
    shifted = logits(model)[:, :-1].flatten(0, 1)
    torch.testing.assert_close(loss, F.cross_entropy(shifted, labels[:, 1:].flatten()))
    loss.backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in model.hf.parameters())


VARIANTS = [
    ("GatedDeltaNet", "gated_deltanet", dict(num_heads=4, head_dim=8, allow_neg_eigval=True, use_gate=False)),
    ("GatedDeltaNet", "gated_deltanet", families.SHARED_KEYS | dict(attnres_block_size=2, hidden_act="swish")),
    ("KDA", "kda", families.SHARED_KEYS | dict(safe_gate=True, lower_bound=-5.0, allow_neg_eigval=True)),
    ("DeltaNet", "delta_net", dict(num_heads=4, use_beta=False, use_gate=True, qk_norm="sum", qk_activation="elu")),
    ("GLA", "gla", dict(num_heads=4, use_short_conv=True, clamp_min=-0.1, use_output_gate=False)),
    ("RetNet", "retnet", dict(num_heads=4, use_short_conv=True, attn_mode="parallel", intermediate_size=48)),
    ("GatedDeltaProduct", "gated_deltaproduct", dict(num_heads=4, head_dim=8, num_householder=3)),
    ("Comba", "comba", families.SHARED_KEYS | dict(use_inner_decay=False, use_output_correction=False)),
    ("HGRN2", "hgrn2", dict(expand_ratio=8, use_short_conv=True, use_lower_bound=False)),
    ("RWKV6", "rwkv6", dict(num_heads=4, proj_low_rank_dim=4, gate_low_rank_dim=4, fuse_norm=False)),
    ("RWKV7", "rwkv7", dict(head_dim=8, fuse_norm=False)),
]


def checked(model, keep):
    """Both routes agree, and what was cut out does what was ablated."""
    tokens = TOKENS.repeat(1, 7)[:, :66]  # more than the 64 that are read by the function for single tokens
    whole, cut = (states.trace(model, tokens, [3, 66], route=route) for route in ("forward", "segments"))
    torch.testing.assert_close(whole, cut, rtol=0, atol=1e-5 * float(whole.max()))
    with ablation.ablate_heads(model, ~keep):
        ablated = logits(model, tokens)
    assert (ablated - logits(model, tokens)).abs().max() > 100 * CLOSE["atol"]
    smaller = pruning.prune_heads(model, keep)
    torch.testing.assert_close(logits(smaller, tokens), ablated, **CLOSE)
    return smaller


@pytest.mark.parametrize(("stem", "kind", "sizes"), VARIANTS, ids=[kind for _, kind, _ in VARIANTS])
def test_other_settings_of_a_family_do_as_well(stem, kind, sizes):
    model = loaded(stem, kind, **sizes)
    keep = torch.ones(3, model.grid.H, dtype=torch.bool)
    keep[1:, 1], keep[2] = False, False
    smaller = checked(model, keep)
    keep[1, 2] = False
    again, at_once = (pruning.prune_heads(each, keep) for each in (smaller, model))
    torch.testing.assert_close(logits(again), logits(at_once), **CLOSE)


def test_a_layer_of_simple_gla_is_studied_in_another_model():
    hf = families.fla("GLA", "gla", num_heads=4)
    layer = importlib.import_module("fla.layers.simple_gla").SimpleGatedLinearAttention
    torch.manual_seed(1)
    for place, block in enumerate(hf.model.layers):
        block.attn = layer(hidden_size=32, num_heads=4, num_kv_heads=2, expand_k=0.5, layer_idx=place).eval()
    keep = torch.ones(3, 4, dtype=torch.bool)
    keep[1, 1:], keep[2] = False, False
    model = models.from_hf(hf, name="simple_gla")
    assert architectures.sites(hf)[0].recipe.chunk_tap == "chunk_simple_gla"
    checked(model, keep)


def test_the_first_layer_of_rwkv7_keeps_what_later_ones_mix_in():
    model = loaded("RWKV7", "rwkv7", head_dim=8)
    keep = torch.ones(3, 4, dtype=torch.bool)
    keep[0, 2] = False
    with pytest.raises(ValueError, match=r"decoder layer 1 keeps the heads \[2\]"):
        pruning.prune_heads(model, keep)


def test_retention_keeps_the_decay_of_a_head_when_others_go():
    model = loaded("RetNet", "retnet", num_heads=4, intermediate_size=48)
    keep = torch.tensor([[True, False, False, True]] * 3)
    g = states.gates(pruning.prune_heads(model, keep), TOKENS)[0]
    assert torch.equal(g[..., keep[0]], states.gates(model, TOKENS)[0][..., keep[0]])
    assert g[..., ~keep[0]].isnan().all()


@pytest.mark.parametrize(
    ("stem", "kind", "sizes", "reason"),
    [
        ("HGRN", "hgrn", {}, "is a vector"),
        ("Mom", "mom", {"num_heads": 2, "head_dim": 8}, "wrong logits"),
        ("GSA", "gsa", {"num_heads": 2, "num_slots": 4}, "two states"),
    ],
)
def test_other_models_are_refused_with_the_reason(stem, kind, sizes, reason, tmp_path):
    families.fla(stem, kind, **sizes).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=reason):
        models.load(tmp_path, device="cpu")


def test_every_twin_stands_for_something_that_is_called():
    """A name that flash-linear-attention no longer uses would be a twin that nobody calls."""
    called = set()
    for family in (each for each in families.FAMILIES if each.needs_fla):
        for module in families.model(family).hf.modules():
            if type(module).__module__.startswith("fla."):
                called |= set(rebinding.names(module))
    assert not set(ops.FUNCTIONS) - called - {"l2norm"}
