"""Weights that come and go give what weights that stay give, bit for bit; and memory holds one layer at a time."""

import accelerate
import families
import pytest
import torch
from safetensors.torch import load_file

from srdyn import ablation, export, models, pruning, states
from srdyn.loading import streaming

POSITIONS = [1, 64, 100, 150]
CONVERTED = ("qwen3_5_moe", "olmo_hybrid", "kimi_linear")
"""Families that store experts one by one, convolutions apart, both and other names."""


def saved(name, folder):
    """A random checkpoint in bfloat16, in several files."""
    families.named(name).build().to(torch.bfloat16).save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved("qwen3_5_moe", tmp_path_factory.mktemp("moe"))


@pytest.fixture(scope="module")
def stays(folder):
    return models.load(folder, device="cpu")


@pytest.fixture
def streams(folder):
    return models.load(folder, device="cpu", offload="disk")


@pytest.mark.parametrize("name", CONVERTED)
def test_every_parameter_is_what_transformers_loads(name, tmp_path):
    stock, place = type(families.model(families.named(name)).hf), saved(name, tmp_path / "it")
    whole = stock.from_pretrained(place, dtype=torch.float32)
    hf, report, shards = streaming.from_pretrained(stock, str(place), dtype=torch.float32)
    assert type(hf) is stock
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert all(parameter.device.type == "meta" for parameter in hf.parameters())
    for name, parameter in whole.named_parameters(remove_duplicate=False):
        assert torch.equal(shards[name], parameter), name
        assert shards[name].dtype == torch.float32
    for name, buffer in whole.named_buffers():
        assert torch.equal(hf.get_buffer(name), buffer), name


def test_a_trace_from_disk_is_the_one_from_memory(stays, streams, tokens):
    assert torch.equal(states.trace(streams, tokens, POSITIONS), states.trace(stays, tokens, POSITIONS))
    for ours, theirs in zip(states.gates(streams, tokens), states.gates(stays, tokens), strict=True):
        assert torch.equal(ours, theirs)
    assert streams.device == torch.device("cpu")
    assert all(parameter.device.type == "meta" for parameter in streams.hf.parameters())


def test_the_other_route_and_generation_are_the_same_too(stays, streams, tokens):
    whole, streamed = (states.trace(x, tokens, POSITIONS, route="segments") for x in (stays, streams))
    assert torch.equal(whole, streamed)
    options = {"max_new_tokens": 3, "do_sample": False}
    assert torch.equal(streams.hf.generate(tokens, **options), stays.hf.generate(tokens, **options))


def test_heads_are_ablated_alike(stays, streams, tokens):
    heads = torch.zeros(2, 4, dtype=torch.bool)
    heads[1, 2] = True
    logits = []
    for model in (stays, streams):
        with ablation.ablate_heads(model, heads):
            logits.append(model.hf(tokens).logits)
    assert torch.equal(*logits)
    assert not torch.equal(logits[0], stays.hf(tokens).logits)


def test_each_weight_is_read_once_whatever_the_number_of_positions(streams, tokens, monkeypatch):
    read = []
    original = streaming.Shards._read
    monkeypatch.setattr(streaming.Shards, "_read", lambda shards, key: read.append(key) or original(shards, key))
    states.trace(streams, tokens, range(1, 151, 7))
    shards = streams.hf.get_decoder().layers[0]._hf_hook.weights_map.dataset
    # The decoder alone is read; its head is the embedding.
    assert sorted(read) == sorted(shards.files)


def test_one_layer_is_held_at_a_time(streams, tokens):
    held = []
    layers = streams.hf.get_decoder().layers
    inside = lambda *_: held.append([next(x.parameters()).device.type for x in layers])  # noqa: E731
    for layer in layers:
        layer.mlp.register_forward_hook(inside)
    states.trace(streams, tokens, [150])
    assert held == [["cpu" if i == place else "meta" for i in range(3)] for place in range(3)]


def test_weights_kept_in_memory_come_as_those_on_disk_do(stays, folder, tokens):
    """What offload="cpu" does for a GPU, here from the CPU's memory to the CPU."""
    model = models.load(folder, device="cpu")
    streaming.attach(model.hf, model.hf.state_dict(), torch.device("cpu"))
    assert streaming.is_attached(model.hf)
    assert torch.equal(states.trace(model, tokens, POSITIONS), states.trace(stays, tokens, POSITIONS))


def test_a_pruned_model_streams(stays, tokens, tmp_path):
    keep = torch.tensor([[True, False, True, True], [False] * 4])
    place = pruning.save(pruning.prune_heads(stays, keep), tmp_path / "pruned")
    whole, streamed = models.load(place, device="cpu"), models.load(place, device="cpu", offload="disk")
    assert streamed.layers == whole.layers
    assert torch.equal(streamed.hf(tokens).logits, whole.hf(tokens).logits)


EXPORTED = ("kimi_linear", "zamba2", "falcon_h1, norm", "qwen3_5_moe", "fla gated_deltaproduct")


def tensors(folder):
    files = list(folder.glob("*.safetensors"))
    held = [load_file(path) for path in files]
    return {name: x for part in held for name, x in part.items()}, len(files)


@pytest.mark.filterwarnings("ignore:The correction_factor is set to 1")  # Comba, whenever one is built
@pytest.mark.filterwarnings("ignore:According to Bo")  # RWKV, whenever one is built
@pytest.mark.parametrize("family", families.FAMILIES, ids=str)
def test_a_model_on_disk_and_what_is_cut_out_of_it_are_those_in_memory(family, tmp_path):
    """Renamed, merged and shared weights, buffers, caches; what is cut, tensor for tensor, in both kinds of folder."""
    families.model(family).hf.save_pretrained(tmp_path / "whole")
    whole, streamed = (models.load(tmp_path / "whole", device="cpu", offload=offload) for offload in (None, "disk"))
    tokens, even = torch.randint(0, 64, (2, 70)), {}
    assert torch.equal(*(states.trace(model, tokens, [1, 40, 70]) for model in (whole, streamed)))
    assert torch.equal(*(model.logits(tokens) for model in (whole, streamed)))
    if family.id in EXPORTED:
        even = {export.save: pruning.select(torch.rand(whole.grid[:2]), 0.5, uniform=True, **export.choices(whole))}
    keep = family.keep(*whole.grid[:2], torch.Generator().manual_seed(0))
    for save, heads in (even | {pruning.save: keep}).items():
        inside, outside = (pruning.prune_heads(model, heads) for model in (whole, streamed))
        assert streaming.is_attached(outside.hf)
        assert torch.equal(inside.logits(tokens), outside.logits(tokens))
        ours, theirs = (save(model, tmp_path / model.hf.device.type) for model in (outside, inside))
        (found, n), (expected, one) = map(tensors, (ours, theirs))
        assert n > one == 1
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], x) and found[name].dtype == x.dtype for name, x in expected.items())
        assert (ours / "config.json").read_bytes() == (theirs / "config.json").read_bytes()
        assert torch.equal(*(models.load(place, device="cpu").logits(tokens) for place in (ours, theirs)))
    assert streaming.is_attached(streamed.hf)


def test_what_is_cut_twice_on_disk_is_what_is_cut_twice_in_memory(stays, streams, tokens):
    first = torch.tensor([[True, False, True, True], [True] * 4])
    second = torch.tensor([[True, False, False, True], [False, True, True, False]])
    twice = [pruning.prune_heads(pruning.prune_heads(model, first), second) for model in (stays, streams)]
    assert torch.equal(*(model.logits(tokens) for model in twice))


def test_an_interrupted_writing_leaves_no_folder(streams, tmp_path, monkeypatch):
    pruned = pruning.prune_heads(streams, torch.tensor([[True, True, False, False]] * 2))
    original = streaming.Shards._read

    def broken(shards, key):
        if ".layers.1." in key:
            raise KeyboardInterrupt
        return original(shards, key)

    monkeypatch.setattr(streaming.Shards, "_read", broken)
    with pytest.raises(KeyboardInterrupt):
        export.save(pruned, tmp_path / "cut")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert len(list(export.save(pruned, tmp_path / "cut").glob("*.safetensors"))) == 3 + 2  # layers, embedding, norm


@pytest.mark.parametrize("pruned", [False, True])
def test_hooks_as_accelerate_puts_them_on_several_gpus_change_nothing(stays, tokens, pruned):
    """accelerate wraps every module's forward when it shares a model out, mixers too."""
    model = pruning.prune_heads(stays, torch.ones(2, 4, dtype=torch.bool))
    accelerate.dispatch_model(model.hf, {"": "cpu"}, force_hooks=True)
    for part in model.hf.modules():
        accelerate.hooks.add_hook_to_module(part, accelerate.hooks.AlignDevicesHook(execution_device="cpu"))
    model = models.from_hf(model.hf, name="shared out")
    assert torch.equal(states.trace(model, tokens, POSITIONS), states.trace(stays, tokens, POSITIONS))
    heads = torch.tensor([[False] * 4, [False, True, False, False]])
    with ablation.ablate_heads(model, heads):
        logits = model.hf(tokens).logits
    with ablation.ablate_heads(stays, heads):
        assert torch.equal(logits, stays.hf(tokens).logits)
    assert torch.equal(model.hf(tokens).logits, stays.hf(tokens).logits)
    if pruned:
        ours, theirs = (pruning.prune_heads(x, ~heads).hf(tokens).logits for x in (model, stays))
        assert torch.equal(ours, theirs)
