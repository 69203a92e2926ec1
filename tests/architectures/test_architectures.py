import copy
import importlib
import inspect

import pytest
import torch
from torch import nn

from srdyn import architectures
from srdyn.architectures import gated_deltanet, rebinding
from srdyn.kernels import decode, scan


def test_every_supported_class_exists_and_calls_what_its_recipe_names():
    table = architectures.supported()
    assert {"Qwen3NextGatedDeltaNet", "Mamba2Mixer"} <= set(table["mixer"].str.rsplit(".").str[-1])
    assert set(table["state"]) <= {"[B, H, K, V]", "[B, H, V, K]"}
    for name in table["mixer"]:
        module, cls = name.rsplit(".", 1)
        mixer = object.__new__(getattr(importlib.import_module(module), cls))
        known = architectures.recipe_for(type(mixer))
        called = inspect.unwrap(type(mixer).forward).__code__.co_names
        fused = [known.fused] if hasattr(known, "fused") else []
        assert {known.chunk_tap, known.step_tap, *known.convolutions, *fused} <= set(called)


def test_sites_are_the_linear_layers_in_decoder_order(tiny_hybrid):
    sites = architectures.sites(tiny_hybrid.hf)
    assert [site.index for site in sites] == [0, 1, 3]
    assert [site.mixer for site in sites] == [tiny_hybrid.hf.model.layers[i].linear_attn for i in (0, 1, 3)]


def test_the_class_decides_and_a_subclass_counts(tiny_pure):
    mixer = architectures.sites(tiny_pure.hf)[0].mixer

    class Custom(type(mixer)):
        pass

    assert architectures.recipe_for(Custom) is architectures.recipe_for(type(mixer)) is not None
    assert architectures.recipe_for(nn.Linear) is None


def test_a_class_has_one_recipe():
    with pytest.raises(ValueError, match="already has a recipe"):
        architectures.register(gated_deltanet.Qwen3Next())


def test_on_a_cpu_the_plain_functions_are_called_and_elsewhere_the_stock_ones(tiny_hybrid, monkeypatch):
    site = architectures.sites(tiny_hybrid.hf)[0]
    recipe, mixer = site.recipe, copy.deepcopy(site.mixer)
    del mixer.forward
    called = []
    stock = {name: recipe_stock(name, called) for name in recipe.cpu_functions(mixer)}
    assert len(stock) == 4
    monkeypatch.setattr(scan, "gated_delta_rule", stock[recipe.chunk_tap].__wrapped__)
    monkeypatch.setattr(decode, "gated_delta_rule", stock[recipe.step_tap].__wrapped__)
    monkeypatch.setattr(decode, "convolution", lambda plain: plain)
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


def test_functions_on_a_cpu_are_the_compiled_and_the_plain_ones_of_the_modelling_file(tiny_hybrid):
    site = architectures.sites(tiny_hybrid.hf)[0]
    module = inspect.getmodule(type(site.mixer))
    functions = site.recipe.cpu_functions(site.mixer)
    assert functions.pop(site.recipe.chunk_tap) is scan.gated_delta_rule
    assert functions.pop(site.recipe.step_tap) is decode.gated_delta_rule
    assert len(functions) == 2
    functions = {name: inspect.unwrap(function) for name, function in functions.items()}
    for name, function in functions.items():
        assert function.__module__ == module.__name__
        assert function is inspect.unwrap(getattr(module, name))
