import copy
import inspect

import conftest
import families
import pytest
import torch
import transformers
from torch import nn
from transformers.models.kimi_linear import modeling_kimi_linear

from srdyn import architectures, models, pruning, rebinding, scan, states
from srdyn.architectures import qwen


def test_every_supported_class_exists_and_calls_what_its_recipe_names():
    table = architectures.supported()
    assert set(table["mixer"].str.rsplit(".").str[-1]) == {
        "Qwen3NextGatedDeltaNet",
        "Qwen3_5GatedDeltaNet",
        "Qwen3_5MoeGatedDeltaNet",
        "Qwen4ExpTextGatedDeltaNet",
        "OlmoHybridGatedDeltaNet",
        "KimiLinearDeltaAttention",
        "Glm5NextTextLinearAttention",
        "BailingHybridDeltaAttention",
    }
    assert set(table["state"]) == {"[B, H, K, V]"}


def test_sites_are_the_linear_layers_in_decoder_order(tiny_hybrid):
    sites = architectures.sites(tiny_hybrid.hf)
    assert [site.index for site in sites] == [0, 1, 3]
    assert [site.mixer for site in sites] == [tiny_hybrid.hf.model.layers[i].linear_attn for i in (0, 1, 3)]


def test_the_class_decides_and_a_subclass_counts(tiny_pure):
    mixer = architectures.sites(tiny_pure.hf)[0].mixer

    class Custom(type(mixer)):
        pass

    derived = copy.deepcopy(mixer)
    derived.__class__ = Custom
    assert architectures.adapter_for(derived) is architectures.adapter_for(mixer)
    assert architectures.adapter_for(nn.Linear(2, 2)) is None


def test_a_class_has_one_recipe():
    with pytest.raises(ValueError, match="already has a recipe"):
        architectures.register(qwen.Qwen3Next())


@pytest.mark.parametrize("moe", ["", "Moe"])
def test_a_model_that_also_sees_is_studied_and_loads_as_its_text_part(moe, tokens, tmp_path):
    whole = models.from_hf(seeing(moe), name="seeing")
    assert whole.hf.get_decoder() is whole.hf.model.language_model
    forward, segments = (states.trace(whole, tokens, [1, 77], route=route) for route in ("forward", "segments"))
    torch.testing.assert_close(forward, segments, rtol=1e-4, atol=1e-6)
    keep = torch.tensor([[True, False, True, True], [False] * 4])
    for model in (whole, pruning.prune_heads(whole, keep)):
        loaded = models.load(pruning.save(model, tmp_path / "saved"), device="cpu")
        assert type(loaded.hf).__name__ == f"Qwen3_5{moe}ForCausalLM"
        assert loaded.layers == model.layers
        assert torch.equal(loaded.hf(tokens).logits, model.hf(tokens).logits)


def seeing(moe):
    text = getattr(transformers, f"Qwen3_5{moe}TextConfig")(
        **conftest.SIZES | (families.EXPERTS if moe else {}) | families.layers([families.LINEAR, "full_attention"] * 2)
    )
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 32}
    config = getattr(transformers, f"Qwen3_5{moe}Config")(text_config=text.to_dict(), vision_config=vision)
    return families.random(getattr(transformers, f"Qwen3_5{moe}ForConditionalGeneration"), config)


def test_a_decoder_without_a_head_is_traced(tokens):
    seeing = families.glm5_next()
    decoder = models.from_hf(copy.deepcopy(seeing.model.language_model), name="decoder")
    assert type(decoder.hf) is transformers.Glm5NextTextModel
    expected = states.trace(models.from_hf(seeing, name="seeing"), tokens, [1, 77])
    for route in ("forward", "segments"):
        torch.testing.assert_close(states.trace(decoder, tokens, [1, 77], route=route), expected, rtol=1e-4, atol=1e-6)


def test_on_a_cpu_the_plain_functions_are_called_and_elsewhere_the_stock_ones(tiny_hybrid, monkeypatch):
    site = architectures.sites(tiny_hybrid.hf)[0]
    recipe, mixer = site.recipe, copy.deepcopy(site.mixer)
    del mixer.forward
    called = []
    stock = {name: recipe_stock(name, called) for name in recipe.cpu_functions(mixer)}
    assert len(stock) == 4
    monkeypatch.setattr(scan, "gated_delta_rule", stock[recipe.chunk_tap].__wrapped__)
    rebinding.bind(mixer, stock)
    recipe.make_runnable(mixer)
    for name in stock:
        rebinding.meaning(mixer, name)(torch.zeros(1, device="meta"))
        rebinding.meaning(mixer, name)(torch.zeros(1))
    assert called == [entry for name in stock for entry in (f"stock {name}", f"plain {name}")]


def recipe_stock(name, called):
    def plain(x):
        called.append(f"plain {name}")

    def stock(x):
        called.append(f"stock {name}")

    stock.__wrapped__ = plain
    return stock


def test_functions_on_a_cpu_are_the_scan_and_the_plain_ones_of_the_modelling_file(tiny_hybrid):
    site = architectures.sites(tiny_hybrid.hf)[0]
    module = inspect.getmodule(type(site.mixer))
    functions = site.recipe.cpu_functions(site.mixer)
    assert functions.pop(site.recipe.chunk_tap) is scan.gated_delta_rule
    assert len(functions) == 3
    for name, function in functions.items():
        assert function.__module__ == module.__name__
        assert function is inspect.unwrap(getattr(module, name))


def test_many_tokens_of_kimi_are_read_one_by_one_on_a_cpu():
    site = architectures.sites(families.kimi_linear())[0]
    functions = site.recipe.cpu_functions(site.mixer)
    assert functions[site.recipe.chunk_tap] is inspect.unwrap(modeling_kimi_linear.recurrent_kimi_delta_attention)


def test_a_write_overshoots_only_where_olmo_lets_it(tokens):
    hf = families.olmo_hybrid()
    model = models.from_hf(hf, name="olmo")
    _, twice = states.gates(model, tokens)
    assert 1 < twice.max() < 2
    for site in architectures.sites(hf):
        site.mixer.allow_neg_eigval = False
    _, once = states.gates(model, tokens)
    torch.testing.assert_close(twice[0], 2 * once[0], rtol=0, atol=0)
    torch.testing.assert_close(once[0], states.inputs(model, tokens, 0).beta, rtol=1e-6, atol=0)


def test_without_a_bound_the_decay_is_that_of_kimi(tokens):
    bounded = models.from_hf(families.bailing_hybrid(), name="bounded")
    gate = architectures.sites(bounded.hf)[0].mixer.forget_gate
    assert states.inputs(bounded, tokens, 0).g.min() >= gate.lower_bound
    gate.safe_gate = False
    g, _ = states.gates(bounded, tokens)
    torch.testing.assert_close(g[0], states.inputs(bounded, tokens, 0).g.mean(-1), rtol=1e-6, atol=0)
