"""Whatever is wrong with a checkpoint is said, with what to do, before weights are read."""

import json
import shutil
from collections import namedtuple

import httpx
import huggingface_hub
import pytest
import small
import torch
import transformers
from huggingface_hub import errors
from safetensors.torch import load_file

from srdyn import models
from srdyn.loading import checkpoints, devices, files

LOADERS = [models.load, models.check]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("whole") / "tiny"
    small.qwen3_next(["linear_attention", "full_attention"]).save_pretrained(place, max_shard_size="20KB")
    return place


@pytest.fixture
def broken(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "broken")


def stated(place, **changes):
    path = place / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def hub(monkeypatch):
    """A hub that answers each request with one error."""

    def answer(error):
        def get(*_, **__):
            raise error

        monkeypatch.setattr(transformers.utils.hub, "hf_hub_download", get)
        monkeypatch.setattr(transformers.utils.hub, "snapshot_download", get)

    return answer


def refusal(kind, status):
    request = httpx.Request("GET", "https://huggingface.co/some/model")
    return kind("no", response=httpx.Response(status, request=request))


@pytest.mark.parametrize("get", LOADERS)
def test_a_hub_name_without_network(monkeypatch, get):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=r"not in the local cache and the hub is out of reach.*`hf download some/model`"):
        get("some/model")


@pytest.mark.parametrize("get", LOADERS)
@pytest.mark.parametrize(
    ("kind", "status", "advice"),
    [
        (errors.GatedRepoError, 403, r"its owner asks for consent.*some/model, then run `hf auth login`"),
        (errors.RepositoryNotFoundError, 404, r"the hub knows no such repository, or it is private: check the name"),
    ],
)
def test_a_repository_that_the_hub_does_not_give(hub, get, kind, status, advice):
    hub(refusal(kind, status))
    with pytest.raises(OSError, match=rf"some/model is no folder .*cannot be loaded: {advice}"):
        get("some/model")


def test_a_folder_without_a_configuration(tmp_path):
    with pytest.raises(OSError, match=r"give a folder with config\.json and safetensors weights"):
        models.load(tmp_path)


def test_a_type_that_nobody_knows(broken):
    stated(broken, model_type="unheard_of")
    with pytest.raises(ValueError, match=r"is a 'unheard_of', which neither transformers .*supported\(\) lists"):
        models.load(broken)


@pytest.mark.parametrize("get", LOADERS)
def test_code_from_a_checkpoint_does_not_run(broken, get):
    (broken / "own.py").write_text("raise SystemExit")
    stated(broken, model_type="unheard_of", auto_map={"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"})
    with pytest.raises(ValueError, match="brings its own code, which srdyn does not run, for a 'unheard_of'"):
        get(broken)


def test_code_of_a_tokenizer_does_not_run(tmp_path):
    config = checkpoints.configuration(str(files.data_dir() / "models/rwkv7"))
    (tmp_path / "own.py").write_text("raise SystemExit")
    said = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match="has a broken tokenizer, take its files from where the weights come from"):
        checkpoints.tokenizer(str(tmp_path), config)


def test_a_model_without_linear_attention(tmp_path):
    transformers.LlamaConfig(hidden_size=8, num_attention_heads=2).save_pretrained(tmp_path / "llama")
    message = r"llama has no linear-attention layers; srdyn.architectures.supported\(\) lists what it knows"
    with pytest.raises(ValueError, match=message):
        models.load(tmp_path / "llama")
    [reason] = models.check(tmp_path / "llama").unsupported
    assert reason.startswith("llama has no linear-attention layers")


def test_a_model_that_is_no_language_model(tmp_path):
    transformers.ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="vit is no causal language model"):
        models.load(tmp_path)
    assert models.check(tmp_path).unsupported == (
        "vit is no causal language model, so it keeps no state while it reads",
    )


@pytest.mark.parametrize("offload", [None, "disk"])
def test_pickled_weights(broken, offload):
    for path in broken.glob("*.safetensors"):
        torch.save(load_file(path), path.with_suffix(".bin"))
        path.unlink()
    (broken / "model.safetensors.index.json").unlink()
    with pytest.raises(OSError, match=r"safetensors format, and it has only pickled weights \(model-.*\.bin\)"):
        models.load(broken, device="cpu", offload=offload)


@pytest.mark.parametrize("offload", [None, "disk"])
@pytest.mark.parametrize("left", [4, 100, -8])
def test_a_shard_that_is_cut_off(broken, offload, left):
    shard = sorted(broken.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:left])
    with pytest.raises(OSError, match=rf"{shard.name} is cut off or broken: it holds .* download or copy it again"):
        models.load(broken, device="cpu", offload=offload)


def test_a_shard_that_is_missing(broken):
    shard = sorted(broken.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(OSError, match=rf"{shard.name} is missing, although the checkpoint's index names it"):
        models.load(broken)


def test_too_little_memory(folder, monkeypatch):
    with pytest.raises(MemoryError, match=r'do not fit: cpu has 10 kB\. Pass offload="auto"'):
        models.load(folder, device="cpu", max_memory={"cpu": 10_000})
    with pytest.raises(MemoryError, match=r"do not fit: cpu has 10 kB\. Pass a smaller dtype"):
        models.load(folder, device="cpu", offload="auto", max_memory={"cpu": 10_000})
    monkeypatch.setattr(devices, "rooms", lambda: {"cpu": 10_000})
    assert "do not fit" in models.check(folder, device="cpu").unsupported[0]


def test_what_does_not_fit_is_streamed_when_allowed_and_it_is_said(folder, caplog):
    model = models.load(folder, device="cpu", offload="auto", max_memory={"cpu": 90_000})
    assert model.hf.device.type == "meta"
    assert "weights read from disk layer by layer" in caplog.text


def test_too_little_disk(folder, hub, monkeypatch):
    """The configuration is there, the weights are not, and the disk is too small for them."""
    config = checkpoints.configuration(str(folder))
    monkeypatch.setattr(checkpoints, "configuration", lambda *_, **__: config)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1000, 0, 1000))
    with pytest.raises(OSError, match=r"some/model takes 0\.0 GB on disk, and .* has 0\.0 GB free.*HF_HOME"):
        models.load("some/model", device="cpu")


def test_files_in_the_cache_are_looked_at_as_those_of_a_folder(folder, broken, monkeypatch):
    config = checkpoints.configuration(str(folder))
    monkeypatch.setattr(checkpoints, "configuration", lambda *_, **__: config)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: str(broken / "config.json"))
    shard = sorted(broken.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(OSError, match="is cut off"):
        models.load("some/model", device="cpu")
