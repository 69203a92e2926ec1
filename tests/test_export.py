"""Exported models are read where srdyn cannot be imported, and compute there what the masked model does here."""

import functools
import json
import math
import subprocess
import sys

import families
import pytest
import torch
import transformers

from srdyn import ablation, export, models, pruning
from srdyn.loading import checkpoints, files

TOKENS = torch.randint(0, 64, (1, 40), generator=torch.Generator().manual_seed(0))
ALONE = """
import sys
sys.modules["srdyn"] = sys.modules["fla"] = None  # importing either raises
import torch, transformers

tokens, found = torch.load(sys.argv[1]), {}
for folder in sys.argv[3:]:
    build = transformers.AutoModelForCausalLM
    if transformers.AutoConfig.from_pretrained(folder).model_type == "glm5_next":
        build = transformers.AutoModelForImageTextToText
    hf, told = build.from_pretrained(folder, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"] and not told["mismatched_keys"], told
    with torch.no_grad():
        out = hf.eval()(tokens, use_cache=True)
    cache = getattr(out, "past_key_values", None) or out.cache_params
    held = [x for layer in cache.layers for name in ("conv_states", "recurrent_states")
            for place, x in getattr(layer, name, {}).items() if place == 0 and x is not None]
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    written = [hf.generate(tokens[:, :9], use_cache=use, **options) for use in (True, False)]
    found[folder] = out.logits, sum(x.numel() * x.itemsize for x in held), written
torch.save(found, sys.argv[2])
"""
TINY_EPS = {"mamba2": "layer_norm_epsilon", "bamba": "rms_norm_eps", "granitemoehybrid": "rms_norm_eps"}
TINY_EPS |= {"nemotron_h": "layer_norm_epsilon", "falcon_h1, norm": "rms_norm_eps"}
"""What an ordinary configuration cannot make larger for the norm over fewer heads alone, close to 0."""
WHOLE_GROUPS = {"zamba2": {"whole": 4}}  # whose ε is fixed: groups that go as a whole leave the others' norm as it is
STOCK = [
    "qwen3_next", "qwen3_5", "qwen3_5_moe", "qwen4_exp", "olmo_hybrid", "kimi_linear", "glm5_next", "mamba2", "bamba",
    "granitemoehybrid", "nemotron_h", "falcon_h1", "falcon_h1, norm", "zamba2",
]  # fmt: skip
REPEATED = ["qwen3_next", "qwen3_5", "olmo_hybrid"]
OF_FLA = ["fla gated_deltanet", "fla kda", "fla gated_deltaproduct", "fla comba"]


@functools.cache
def whole(name):
    [family] = [family for family in families.FAMILIES if family.id == name]
    hf = family.build()
    if name in TINY_EPS:
        config = hf.config
        setattr(config, TINY_EPS[name], 1e-12)
        again = type(hf)(config).eval()
        again.load_state_dict(hf.state_dict())
        hf = again
    return models.from_hf(hf, name=name)


def cut(model, fraction=0.5, **options):
    score = torch.rand(model.grid[:2], generator=torch.Generator().manual_seed(1))
    return pruning.select(score, fraction, uniform=True, **options)


def mask_of(name, *, repeated=False):
    model = whole(name)
    if repeated:
        return cut(model, 0.25)
    return cut(model, **WHOLE_GROUPS.get(name, export.choices(model)))


@pytest.fixture(scope="module")
def shipped():
    model = models.load(files.data_dir() / "models" / "hybrid", device="cpu")
    return model, cut(model, 0.25)


@pytest.fixture(scope="module")
def cases(tmp_path_factory, shipped):
    """(model, what it keeps, folder) by name, all written."""
    masks = {name: (whole(name), mask_of(name)) for name in STOCK}
    masks |= {f"{name}, keys repeated": (whole(name), mask_of(name, repeated=True)) for name in REPEATED}
    masks |= {"shipped": shipped}
    found = {}
    for name, (model, keep) in masks.items():
        folder = tmp_path_factory.mktemp("exports") / "model"
        found[name] = model, keep, export.save(pruning.prune_heads(model, keep), folder)
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory, cases):
    """What a process without srdyn makes of all of them: logits, bytes of the cache, two texts."""
    place = tmp_path_factory.mktemp("alone")
    torch.save(TOKENS, place / "tokens")
    folders = [str(folder) for *_, folder in cases.values()]
    command = [sys.executable, "-c", ALONE, place / "tokens", place / "found", *folders]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.load(place / "found")
    return dict(zip(cases, (found[folder] for folder in folders), strict=True))


EVERY = [*STOCK, *(f"{name}, keys repeated" for name in REPEATED), "shipped"]


@pytest.mark.parametrize("name", EVERY)
def test_without_srdyn_it_computes_what_the_masked_model_does(name, cases, alone):
    model, keep, _ = cases[name]
    with ablation.ablate_heads(model, ~keep):
        expected = model.logits(TOKENS)
    logits, held, (cached, uncached) = alone[name]
    # Relative to the largest logit where it exceeds 1: float32.
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * max(1.0, float(expected.abs().max())))
    assert torch.equal(cached, uncached)
    promised = export.realised(pruning.prune_heads(model, keep)).set_index("engine").loc["transformers"]
    assert held == promised["after"] < promised["before"]


@pytest.mark.parametrize("name", EVERY)
def test_its_configuration_has_the_family_s_own_keys(name, cases, tmp_path):
    model, _, folder = cases[name]
    model.hf.config.save_pretrained(tmp_path)
    ours, stock = (json.loads((place / "config.json").read_text()) for place in (folder, tmp_path))
    written = {"architectures", "dtype"}  # by any model that is saved
    assert {key for key in stock if not key.startswith("srdyn_")} | written == set(ours)
    assert not [path.name for path in folder.iterdir() if path.suffix not in (".json", ".md", ".safetensors")]


@pytest.mark.filterwarnings("ignore:The correction_factor is set to 1")  # Comba, whenever one is built
@pytest.mark.parametrize("name", OF_FLA)
def test_models_of_flash_linear_attention_too(name, tmp_path):
    for options in (export.choices(whole(name)), {}):
        keep = cut(whole(name), 0.25 if options == {} else 0.5, **options)
        loaded = models.load(export.save(pruning.prune_heads(whole(name), keep), tmp_path / "model"), device="cpu")
        with ablation.ablate_heads(whole(name), ~keep):
            expected = whole(name).logits(TOKENS)
        assert len(loaded.layers[0].heads) == loaded.grid.H == int(keep[0].sum())
        torch.testing.assert_close(loaded.logits(TOKENS), expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("bailing_hybrid", "one number for the heads of linear layers and of attention"),
        ("fla retnet", "decay by their place"),
        ("fla hgrn2", "width of all heads together"),
    ],
)
def test_a_family_that_cannot_say_it_is_refused_with_the_reason(name, reason):
    with pytest.raises(ValueError, match=reason):
        export.shape(whole(name))


def test_a_ragged_model_is_told_the_nearest_cut(tmp_path, tiny_hybrid):
    keep = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]]).bool()
    with pytest.raises(ValueError, match=r"keeps 1 to 3 heads.*nearest keeps 2 in each, pruning\.select\(score, 0\.5"):
        export.save(pruning.prune_heads(tiny_hybrid, keep), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_width_that_no_configuration_states_is_refused():
    model = whole("mamba2")  # 8 heads of 8 channels, twice the hidden size
    with pytest.raises(ValueError, match=r"no whole multiple \(expand\).*nearest keeps 4 in each"):
        export.shape(pruning.prune_heads(model, cut(model, 0.25, groups=2)))


def test_others_stop_at_a_pruned_folder_with_the_reason(tmp_path, tiny_hybrid):
    keep = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]]).bool()
    folder = pruning.save(pruning.prune_heads(tiny_hybrid, keep), tmp_path / "ragged")
    with pytest.raises(ValueError, match=checkpoints.PRUNED):
        transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert models.load(folder).layers[2].heads == (0,)


def test_a_folder_of_an_earlier_version_is_still_read(tmp_path, tiny_hybrid):
    keep = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]]).bool()
    folder = pruning.save(pruning.prune_heads(tiny_hybrid, keep), tmp_path / "ragged")
    stated = json.loads((folder / "config.json").read_text())
    stated["model_type"] = stated.pop(checkpoints.OWN_TYPE)
    (folder / "config.json").write_text(json.dumps(stated))
    assert [len(layer.heads) for layer in models.load(folder).layers] == [3, 2, 1]


def test_an_exported_model_says_what_it_is(tmp_path, shipped):
    model, keep = shipped
    folder = export.save(pruning.prune_heads(model, keep), tmp_path / "model")
    text = (folder / "README.md").read_text()
    assert "6 of 8 recurrent heads in each of 6 layers" in text
    assert "Not measured." in text
    assert (folder / "generation_config.json").is_file()
    again = models.load(folder)
    assert again.tokenizer("a line of text") == model.tokenizer("a line of text")


def test_an_engine_that_cannot_load_a_cut_saves_nothing(tiny_hybrid):
    ragged = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]]).bool()
    frame = export.realised(pruning.prune_heads(tiny_hybrid, ragged))
    assert frame["after"].isna().all()
    assert frame["lacks"].str.contains("one number for all").all()
    even = export.realised(pruning.prune_heads(tiny_hybrid, cut(tiny_hybrid, whole=2))).set_index("engine")
    assert math.isnan(even.loc["llama.cpp", "after"])  # 8 × 12 states
    assert even.loc["vLLM", "after"] < even.loc["vLLM", "before"]


def test_a_uniform_cut_keeps_equally_many_that_devices_can_share():
    score = torch.rand(3, 8, generator=torch.Generator().manual_seed(0))
    for options, left in (({}, 6), ({"tp": 4}, 8), ({"whole": 2}, 6), ({"groups": 4}, 8), ({"whole": 2, "tp": 2}, 8)):
        keep = pruning.select(score, 0.25, uniform=True, **options)
        # 6 lies as far from 4 as from 8, and Python rounds halves to even numbers.
        assert keep.sum(1).tolist() == [left] * 3
    pairs = pruning.select(score, 0.5, uniform=True, whole=2)
    assert torch.equal(pairs[:, ::2], pairs[:, 1::2])
    worst = score.unflatten(1, (-1, 2)).mean(-1).sort(dim=1).values[:, 1:2]
    assert torch.equal(pairs[:, ::2], score.unflatten(1, (-1, 2)).mean(-1) <= worst)


def test_a_layer_with_too_few_heads_is_told():
    score = torch.rand(2, 4)
    score[0, 1:] = torch.nan
    with pytest.raises(ValueError, match="fewer than 2"):
        pruning.select(score, 0.5, uniform=True, tp=2)
    assert pruning.select(score, 0.5, uniform=True).sum(1).tolist() == [1, 1]
    with pytest.raises(ValueError, match="blocks of 3"):
        pruning.select(score, 0.5, uniform=True, whole=3)


def test_the_page_on_serving_works_as_it_stands(tmp_path, monkeypatch):
    page = (files.root() / "notebooks" / "site" / "serve.md").read_text()
    by_hand, alone = (page.split(f"```{language}\n")[1].split("```")[0] for language in ("python", "py"))
    monkeypatch.chdir(files.root())
    exec(by_hand.replace("build/served", str(tmp_path / "served")), {})
    hidden = 'import sys\nsys.modules["srdyn"] = sys.modules["fla"] = None\n'
    code = hidden + alone.replace("build/served", str(tmp_path / "served"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith("The key of"), done.stderr[-2000:]
