"""What is told of a checkpoint before its weights are read is what the loaded model turns out to be."""

import pytest
import small
import torch
import transformers

from srdyn import models, pruning
from srdyn.architectures import linear_cache
from srdyn.loading import checkpoints, files, memory, report

GEOMETRY = files.data_dir() / "geometry"
KINDS = ["linear_attention", "full_attention", "linear_attention"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("it") / "tiny"
    small.qwen35(KINDS).save_pretrained(place)
    return place


def test_nothing_but_the_configuration_is_read(folder, tmp_path):
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    found = models.check(tmp_path, device="cpu")
    assert found.unsupported == ()
    assert found.family == "qwen3_5_text"


def test_the_report_is_what_the_model_turns_out_to_be(folder, tokens):
    found, model = models.check(folder, device="cpu"), models.load(folder, device="cpu")
    sizes = [parameter.nbytes for parameter in model.hf.parameters()]
    assert found.parameters == model.hf.num_parameters()
    assert found.weight_bytes == sum(sizes)
    assert found.linear == (report.Linear(2, "Qwen3_5GatedDeltaNet", 4, 8, 12),)
    assert found.heads == 8
    cache = linear_cache.empty(model.hf)
    model.hf(tokens[:1], past_key_values=cache, use_cache=True)
    assert (found.state_bytes, memory.cache_bytes(model.hf, 150)) == linear_cache.held_bytes(cache)
    assert str(found.placement).startswith("on cpu (")


def test_a_pruned_checkpoint_is_reported_as_pruned(folder, tmp_path):
    keep = torch.tensor([[True, False, True, False], [True] * 4])
    pruned = pruning.save(pruning.prune_heads(models.load(folder), keep), tmp_path / "pruned")
    found = models.check(pruned)
    assert [(kind.layers, kind.heads) for kind in found.linear] == [(1, 2), (1, 4)]
    assert found.state_bytes == 6 * 8 * 12 * 4
    assert found.parameters == models.load(pruned).hf.num_parameters()


def test_bytes_follow_the_dtype_and_the_largest_part_is_named(folder):
    whole, half = models.check(folder, device="cpu"), models.check(folder, device="cpu", dtype=torch.bfloat16)
    # The state stays float32, as do the parameters that transformers keeps so; there are none here.
    assert half.weight_bytes == whole.weight_bytes / 2
    assert half.layer_bytes == whole.layer_bytes / 2
    assert half.state_bytes == whole.state_bytes
    assert half.cache_bytes[2048] < whole.cache_bytes[2048]


def test_experts_that_a_token_does_not_reach_are_not_active(tmp_path):
    config = transformers.Qwen3NextConfig(**small.SIZES, num_hidden_layers=1, num_experts=8, num_experts_per_tok=2)
    hf = checkpoints.outline(config, dtype=torch.float32)
    experts = sum(x.numel() for name, x in hf.named_parameters() if ".experts." in name)
    config.save_pretrained(tmp_path)
    found = models.check(tmp_path)
    # Its one embedding is tied to the head, so that all of it is read.
    assert found.parameters - found.active == experts * 6 // 8


@pytest.mark.parametrize(
    ("name", "parameters", "heads", "mib"),
    [
        # Published: 80 B with 3 B active, 48 B with 3 B, 7 B, 4 B. Heads and states are those of architectures.md.
        ("Qwen3-Next-80B-A3B-Instruct", 80e9, 1152, 72.0),
        ("Kimi-Linear-48B-A3B-Instruct", 49e9, 640, 40.0),
        ("Olmo-Hybrid-7B", 7.4e9, 720, 50.625),
        ("Qwen3.5-4B", 4.2e9, 768, 48.0),
    ],
)
def test_published_sizes(name, parameters, heads, mib):
    found = models.check(GEOMETRY / name)
    assert found.parameters == pytest.approx(parameters, rel=0.01)
    assert found.heads == heads
    assert found.state_bytes == mib * 2**20
    config = checkpoints.configuration(str(GEOMETRY / name))
    # On a CPU all but the states, which are float32 in any case, take twice what they take in bfloat16.
    half = memory.cache_bytes(checkpoints.outline(config, dtype=torch.bfloat16), 2048)
    assert found.cache_bytes[2048] - found.state_bytes == 2 * (half - found.state_bytes)


def test_a_notebook_and_a_terminal_show_the_same(folder):
    found = models.check(folder, device="cpu")
    for text in (str(found), repr(found)):
        assert "2 Qwen3_5GatedDeltaNet layers of 4 heads, 8 × 12 each" in text
        assert "at 2048 tokens" in text


def test_layers_with_a_state_that_srdyn_does_not_know_are_named(folder):
    config = checkpoints.configuration(str(folder))
    hf = checkpoints.outline(config, dtype=torch.float32)
    hf.model.layers[2].linear_attn = torch.nn.Linear(2, 2)
    [reason] = report.unsupported_in(hf, "it")
    assert reason == "it has 2 layers with a state, of which srdyn knows 1"


def test_a_folder_without_tokenizer_files_is_told(folder, tmp_path):
    assert models.check(folder).notes[0].startswith("It has no tokenizer beside its weights")
    for name, content in (("config.json", (folder / "config.json").read_bytes()), ("tokenizer.json", b"{}")):
        (tmp_path / name).write_bytes(content)
    assert models.check(tmp_path).notes == ()


def test_a_cache_that_is_not_known_is_a_note_not_a_guess(folder, monkeypatch):
    monkeypatch.setattr(memory, "_ATTENDING", set())
    found = models.check(folder)
    assert found.cache_bytes == dict.fromkeys(report.LENGTHS)
    assert found.unsupported == ()
    assert "The size of its cache is not known: qwen3_5_text has full_attention layers" in found.notes[0]
    assert "note:" in str(found)
