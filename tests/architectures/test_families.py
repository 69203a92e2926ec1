"""What holds for every family, shown on a tiny random model of each (`families.FAMILIES`)."""

import functools
import math
import subprocess
import sys
import textwrap

import families
import pytest
import torch

from srdyn import ablation, architectures, models, pruning, states
from srdyn.architectures import linear_cache
from srdyn.loading import memory

TOKENS = torch.randint(0, 64, (2, 70), generator=torch.Generator().manual_seed(2))  # more than one chunk of 64
POSITIONS = [*range(1, 7), 9, 64, 67, 70]  # token by token for longer than a convolution is wide
IDS = [family.id for family in families.FAMILIES]
WINDOWED = {"qwen3_next", "qwen3_5", "qwen3_5_moe", "olmo_hybrid", "kimi_linear", "bailing_hybrid"}
WINDOWED |= {"bamba", "granitemoehybrid"}
"""Families with plain softmax layers."""
INDEXED = {"qwen4_exp", "glm5_next"}
"""Families whose attention keeps an index as well, which is not counted."""
LOGITS = {"rtol": 0, "atol": 1e-4}
"""Logits of these models are of the order of 1; float32 sums in another order differ by 1e-6 … 1e-5."""


def whole(state):
    return state.flatten(2)


def logits(model, tokens=TOKENS, **options):
    with torch.no_grad():
        return model.hf(tokens, use_cache=False, **options).logits


def generated(model, **options):
    return model.hf.generate(TOKENS[:, :9], max_new_tokens=4, do_sample=False, **options)


@functools.cache
def pruned_models(family):
    """Heads to keep, as they are drawn and none at all, each with the model of these heads."""
    L, H, _, _ = families.model(family).grid
    drawn = family.keep(L, H, torch.Generator().manual_seed(4))
    assert any((~row).all() for row in drawn)
    kept = [drawn, torch.zeros(L, H, dtype=torch.bool)]
    return [(keep, pruning.prune_heads(families.model(family), keep)) for keep in kept]


def held(keep):
    return [tuple(row.nonzero()[:, 0].tolist()) for row in keep]


def assert_same_states(family, found, expected):
    """Tolerances are relative to the largest number of each layer's states."""
    for ours, theirs in zip(found, expected, strict=True):
        scale = float(theirs.nan_to_num().abs().max())
        torch.testing.assert_close(ours, theirs, rtol=0, atol=family.tolerance * scale, equal_nan=True)


def writes(read, H):
    """Write strength times key of every head, as the recurrence reads them."""
    k, beta = read.k, read.beta
    k = k.mean(2) if k.ndim == 5 else k
    return beta[..., None] * k.repeat_interleave(H // k.shape[2], dim=2)


@functools.cache
def traced(family, route="forward"):
    return states.trace(families.model(family), TOKENS, POSITIONS, measure=whole, route=route)


@functools.cache
def untouched(family):
    """What the model computes before anything is done to it."""
    return logits(families.model(family))


@pytest.fixture(scope="module")
def without_fla(tmp_path_factory):
    """What a process in which fla cannot be imported finds, by family: layers, recipe, logits, generated tokens.

    One process for all rows, since its imports take longer than the rest; for one of fla's models it may at last.
    """
    folder = tmp_path_factory.mktemp("without_fla")
    chosen = [family for family in families.FAMILIES if not family.needs_fla or family.id == "fla gated_deltanet"]
    for family in chosen:
        families.model(family).hf.save_pretrained(folder / family.id)
    script = """
        import sys, torch
        from pathlib import Path
        sys.modules["fla"] = None
        from srdyn import architectures, models
        tokens, found = torch.load(sys.argv[2]), {}
        for path in map(Path, sys.argv[3:]):
            if path.name.startswith("fla "):
                assert sys.modules.pop("fla") is None
            model = models.load(path, device="cpu")
            recipe = type(architectures.sites(model.hf)[0].recipe).__name__
            generated = model.hf.generate(tokens[:, :9], max_new_tokens=4, do_sample=False)
            with torch.no_grad():
                found[path.name] = (len(model.layers), recipe, model.hf(tokens, use_cache=False).logits, generated)
        torch.save(found, sys.argv[1])
    """
    torch.save(TOKENS, folder / "tokens")
    paths = [folder / name for name in ("found", "tokens", *(family.id for family in chosen))]
    subprocess.run([sys.executable, "-c", textwrap.dedent(script), *paths], check=True)
    return torch.load(folder / "found")


@pytest.mark.filterwarnings("ignore:The correction_factor is set to 1")  # Comba and
@pytest.mark.filterwarnings("ignore:According to Bo")  # RWKV, whenever one is built
@pytest.mark.parametrize("family", families.FAMILIES, ids=IDS)
class TestEveryFamily:
    def test_whole_segmented_and_token_by_token_states_are_the_same(self, family):
        assert_same_states(family, traced(family, "segments"), traced(family))

    def test_tracing_leaves_the_pass_as_it_is(self, family):
        model = families.model(family)
        with states.tapped(model, [5, 64], lambda *_: None):
            tapped = logits(model)
        if family.needs_fla:
            torch.testing.assert_close(tapped, untouched(family), **LOGITS)
        else:
            assert torch.equal(tapped, untouched(family))

    def test_inputs_give_the_state_by_the_rule_and_by_an_independent_loop(self, family):
        model = families.model(family)
        every = states.from_inputs(model, TOKENS, lambda read: read)
        for read, site, expected in zip(every, architectures.sites(model.hf), traced(family)[:, :, -1], strict=True):
            _, state = site.recipe.rule(*read)
            assert_same_states(family, whole(state[:, 0]).double(), expected)
            looped = family.last_state(*(x.double().numpy() for x in read))
            assert_same_states(family, whole(torch.from_numpy(looped)), expected)

    def test_gates_are_one_decay_and_one_strength_a_head(self, family):
        model = families.model(family)
        g, beta = states.gates(model, TOKENS)
        assert g.shape == beta.shape == (model.grid.L, *TOKENS.shape, model.grid.H)
        assert (g <= 0).all()
        for layer, read in enumerate(states.from_inputs(model, TOKENS, lambda read: read)):
            per_head = read.g if read.g.ndim == 3 else read.g.mean(-1)
            torch.testing.assert_close(g[layer], per_head, rtol=1e-6, atol=0)
            torch.testing.assert_close(beta[layer], read.beta, rtol=1e-6, atol=0)

    def test_an_ablated_model_computes_what_the_smaller_one_does(self, family):
        model, before = families.model(family), untouched(family)
        for keep, pruned in pruned_models(family):
            assert [layer.heads for layer in pruned.layers] == held(keep)
            with ablation.ablate_heads(model, ~keep):
                ablated = logits(model)
            torch.testing.assert_close(logits(pruned), ablated, **LOGITS)
            assert (ablated - before).abs().max() > 100 * LOGITS["atol"]
        assert torch.equal(logits(model), before)

    def test_heads_forget_as_asked_and_write_as_before(self, family):
        """By a factor in every layer, and after three tokens in all but the first."""
        model, before = families.model(family), untouched(family)
        sooner, fixed = torch.zeros(2, model.grid.L, model.grid.H, dtype=torch.bool)
        sooner[:, 3::4], fixed[1:, 1::4] = True, True
        if not all(site.recipe.has_decay for site in architectures.sites(model.hf)):
            with pytest.raises(ValueError, match="do not decay"), ablation.set_half_life(model, sooner, factor=0.25):
                pass
            return
        own, first = states.gates(model, TOKENS)[0], states.inputs(model, TOKENS, 0)
        with ablation.set_half_life(model, sooner, factor=0.25), ablation.set_half_life(model, fixed, tokens=3.0):
            g, found = states.gates(model, TOKENS)[0], states.trace(model, TOKENS, POSITIONS, measure=whole)
            segmented = states.trace(model, TOKENS[:, :9], POSITIONS[:7], measure=whole, route="segments")
            reads = states.from_inputs(model, TOKENS, lambda read: read)
            changed = logits(model)
        torch.testing.assert_close(g[0][..., 3::4], 4 * own[0][..., 3::4])
        assert torch.equal(g[0][..., ~sooner[0]], own[0][..., ~sooner[0]])
        assert (g[1][..., 1::4] + math.log(2) / 3).abs().max() < 1e-6
        assert_same_states(family, segmented, found[:, :, :7])
        for layer, read in enumerate(reads):
            per_head = read.g if read.g.ndim == 3 else read.g.mean(-1)
            torch.testing.assert_close(g[layer], per_head, rtol=1e-5, atol=1e-7)
            looped = family.last_state(*(x.double().numpy() for x in read))
            assert_same_states(family, whole(torch.from_numpy(looped)), found[layer, :, -1])
        torch.testing.assert_close(*(writes(read, model.grid.H) for read in (reads[0], first)), rtol=1e-5, atol=1e-7)
        assert not torch.equal(changed, before)
        assert torch.equal(logits(model), before)

    def test_a_softmax_window_is_cut_or_the_family_says_why_not(self, family):
        model, before = families.model(family), untouched(family)
        if family.id not in WINDOWED:
            why = "no softmax layers whose window could be cut"
            with pytest.raises(ValueError, match=why), ablation.attention_window(model, 3):
                pass
            return
        with ablation.attention_window(model, 3):
            narrowed = logits(model)
        torch.testing.assert_close(narrowed[:, :3], before[:, :3], **LOGITS)
        assert (narrowed - before).abs().max() > 100 * LOGITS["atol"]

    def test_a_pruned_model_holds_the_states_of_its_heads_alone(self, family):
        for keep, pruned in pruned_models(family):
            with ablation.ablate_heads(families.model(family), ~keep):
                expected = states.trace(families.model(family), TOKENS, [3, 64, 70], measure=whole)
                gates = states.gates(families.model(family), TOKENS)
            for x in (expected, *gates):
                x.movedim(3, 1)[~keep] = torch.nan
            for route in ("forward", "segments"):
                found = states.trace(pruned, TOKENS, [3, 64, 70], measure=whole, route=route)
                assert_same_states(family, found, expected)
            for ours, theirs in zip(states.gates(pruned, TOKENS), gates, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5, equal_nan=True)

    def test_bytes_are_those_that_a_cache_holds(self, family):
        for model in (*(pruned for _, pruned in pruned_models(family)), families.model(family)):
            site = architectures.sites(model.hf)[0]
            cache = site.recipe.empty_cache(model.hf)
            with torch.no_grad():
                model.hf(TOKENS, use_cache=True, **{site.recipe.cache_argument: cache})
            recurrent, whole_cache = linear_cache.held_bytes(cache)
            assert recurrent == len(TOKENS) * models.state_bytes(model)
            assert families.held_by_convolutions(cache) == len(TOKENS) * sum(
                site.recipe.conv_values(site.mixer) for site in architectures.sites(model.hf)
            )
            if family.id not in INDEXED:
                assert whole_cache == len(TOKENS) * memory.cache_bytes(model.hf, TOKENS.shape[1])
        if family.id not in INDEXED and not family.needs_fla:
            row = memory.ledger([TOKENS.shape[1]], configs={"it": model.hf.config}).iloc[0]
            in_float32 = row["state_bytes"] + 2 * (row["conv_bytes"] + row["kv_bytes"])
            assert in_float32 == memory.cache_bytes(families.model(family).hf, TOKENS.shape[1])

    def test_a_saved_model_loads_bit_for_bit(self, family, tmp_path):
        model = families.model(family)
        if family.needs_fla:  # others are loaded by the process without it
            model.hf.save_pretrained(tmp_path / "stock")
            loaded = models.load(tmp_path / "stock", device="cpu")
            assert loaded.layers == model.layers
            assert torch.equal(logits(loaded), untouched(family))
        for _, pruned in pruned_models(family):
            loaded = models.load(pruning.save(pruned, tmp_path / "pruned"), device="cpu")
            assert (loaded.grid, loaded.layers) == (pruned.grid, pruned.layers)
            assert type(loaded.hf) is type(pruned.hf)
            assert torch.equal(logits(loaded), logits(pruned))

    def test_a_pruned_model_generates_as_without_a_cache_and_as_the_ablated_one(self, family):
        for keep, pruned in pruned_models(family):
            tokens = generated(pruned)
            assert torch.equal(tokens, generated(pruned, use_cache=False))
            with ablation.ablate_heads(families.model(family), ~keep):
                assert torch.equal(tokens, generated(families.model(family)))

    def test_flash_linear_attention_makes_no_difference_on_a_cpu(self, family, without_fla):
        if family.id not in without_fla:
            pytest.skip("its modelling file is flash-linear-attention's")
        model = families.model(family)
        L, recipe, expected, tokens = without_fla[family.id]
        assert "fla.ops" in sys.modules
        assert (len(model.layers), type(architectures.sites(model.hf)[0].recipe).__name__) == (L, recipe)
        assert torch.equal(untouched(family), expected)
        assert torch.equal(generated(model), tokens)
