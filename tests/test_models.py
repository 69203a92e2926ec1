import copy
import json
import math
import textwrap

import pytest
import small
import torch
from safetensors.torch import load_file, save_file
from transformers.models.qwen3_next import modeling_qwen3_next

import srdyn
from srdyn import models, pruning
from srdyn.loading import devices, files


def changed(folder, change):
    """The weights of a folder after a change of their dictionary."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def folder(tiny_hybrid, tmp_path):
    """A checkpoint as the reference models are stored: float16, without a tokenizer."""
    stored = copy.deepcopy(tiny_hybrid.hf).to(torch.float16)
    stored.config.srdyn_seed = 7
    stored.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_a_saved_model_loads_and_runs_as_it_is(tiny_hybrid, folder, tokens):
    model = models.load(folder)
    assert model.name == "tiny"
    assert model.seed == 7
    assert model.tokenizer is None
    assert model.hf.dtype == torch.float32
    assert model.grid == tiny_hybrid.grid == models.HeadGrid(L=3, H=4, K=8, V=12)
    assert model.layers[2] == models.Layer(index=3, heads=(0, 1, 2, 3))
    rounded = copy.deepcopy(tiny_hybrid.hf)
    for parameter in rounded.parameters():
        parameter.data = parameter.to(torch.float16).float()
    assert torch.equal(model.hf(tokens).logits, rounded(tokens).logits)


def test_precision_and_device_can_be_chosen(folder):
    model = models.load(str(folder), device="cpu", dtype=torch.bfloat16)
    assert model.hf.dtype == torch.bfloat16
    assert model.hf.device == torch.device("cpu")


@pytest.mark.parametrize(
    ("stored", "device", "loaded"),
    [
        (torch.bfloat16, "cpu", torch.float32),
        (torch.bfloat16, "cuda", torch.bfloat16),
        (torch.float16, "cuda", torch.float32),
        (None, "cuda", torch.float32),
    ],
)
def test_float16_saves_space_only_and_bfloat16_stays_on_a_gpu(stored, device, loaded):
    assert devices.precision(stored, torch.device(device)) == loaded


@pytest.mark.parametrize("name", ["./nowhere", "data/models/nowhere", "/nowhere", "~/nowhere", "README.md"])
def test_what_is_no_folder_is_named(name):
    with pytest.raises(FileNotFoundError, match=r"(nowhere|README\.md) is not a folder"):
        models.load(files.root() / name if name == "README.md" else name)


@pytest.mark.parametrize("offload", [None, "disk"])
def test_missing_weights_are_an_error_not_a_random_start(folder, offload):
    changed(folder, lambda weights: weights.pop("model.layers.0.linear_attn.A_log"))
    message = r"lacks weights of the model it describes: \['model\.layers\.0\.linear_attn\.A_log'\]"
    with pytest.raises(ValueError, match=message):
        models.load(folder, device="cpu", offload=offload)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_finite_numbers_are_named(folder, value):
    changed(folder, lambda weights: weights["model.layers.0.linear_attn.norm.weight"][1].fill_(value))
    with pytest.raises(ValueError, match=r"no finite numbers, in 1 tensors: model\.layers\.0\.linear_attn\.norm"):
        models.load(folder)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"2": [0]}, r"kept in the layers 0, 1, 3 of this model, not in \['2'\]"),
        ({"3": [0, 4]}, r"decoder layer 3 holds the heads \[0, 1, 2, 3\].*got \[0, 4\]"),
        ({"3": [1, 0]}, r"in increasing order, got \[1, 0\]"),
        ({"3": [0, 0, 1]}, r"in increasing order, got \[0, 0, 1\]"),
    ],
)
def test_a_map_of_kept_heads_that_does_not_fit_the_model_is_refused(folder, kept, message):
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"srdyn_kept": kept}))
    with pytest.raises(ValueError, match=message):
        models.load(folder)


def test_a_pruned_model_of_missing_weights_is_refused_too(tiny_hybrid, tmp_path):
    keep = torch.tensor([[True, False, True, True], [False] * 4, [True] * 4])
    folder = pruning.save(pruning.prune_heads(tiny_hybrid, keep), tmp_path / "pruned")
    assert not any(".layers.1.linear_attn." in name for name in load_file(folder / "model.safetensors"))
    with pytest.raises(ValueError, match=r"lacks weights.*layers\.0\.linear_attn\.conv1d"):
        models.load(changed(folder, lambda weights: weights.pop("model.layers.0.linear_attn.conv1d.weight")))


def test_other_models_are_unaffected(tiny_hybrid, tokens, monkeypatch):
    class Stock(Exception):
        pass

    def stock(*_, **__):
        raise Stock

    other = small.qwen3_next(["linear_attention"])
    expected = tiny_hybrid.hf(tokens).logits
    assert all("forward" not in vars(part) for part in other.modules())
    monkeypatch.setattr(modeling_qwen3_next, "torch_chunk_gated_delta_rule", stock)
    monkeypatch.setattr(modeling_qwen3_next, "causal_conv1d_fn", lambda x, *_, **__: x)
    with pytest.raises(Stock):
        other(tokens, use_cache=False)
    assert torch.equal(tiny_hybrid.hf(tokens).logits, expected)


def test_the_use_that_the_package_shows_runs_as_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(files.root())
    shown = textwrap.dedent(srdyn.__doc__.split("repository:")[1])
    exec(shown.replace("build/smaller", str(tmp_path / "smaller")), found := {})
    assert found["sigma"].shape == (6, 2, 4, 8, 64)
    assert not torch.equal(found["logits"], found["model"].logits(found["tokens"]))
    assert models.load(tmp_path / "smaller").layers == found["smaller"].layers
    assert capsys.readouterr().out.startswith("The key of")


def test_a_model_answers_as_it_stands_and_is_left_as_it_was(tiny, tokens):
    with torch.no_grad():
        expected = tiny.hf(tokens).logits
    tiny.hf.train()
    found = tiny.logits(tokens)
    assert torch.equal(found, expected)
    assert not found.requires_grad
    assert tiny.hf.training


def test_generation_returns_what_it_was_given(tiny_hybrid, tokens):
    expected = tiny_hybrid.hf.generate(tokens, max_new_tokens=4, do_sample=False)
    assert torch.equal(tiny_hybrid.generate(tokens, max_new_tokens=4), expected)
    beams = tiny_hybrid.generate(tokens, max_new_tokens=4, num_beams=3)
    assert torch.equal(beams, tiny_hybrid.hf.generate(tokens, max_new_tokens=4, do_sample=False, num_beams=3))
    with pytest.raises(ValueError, match="tiny-hybrid has no tokenizer"):
        tiny_hybrid.generate("Once")
