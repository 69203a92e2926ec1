"""Exported models are read where srdyn cannot be imported, and compute there what the masked model does here."""

import functools
import json
import math
import subprocess
import sys

import families
import pytest
import safetensors
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
        use = hf.generation_config.use_cache is not False
        out = hf.eval()(tokens, **({"use_cache": True} if use else {}))
    cache = getattr(out, "past_key_values", None) or getattr(out, "cache_params", None)
    held = [x for layer in (cache.layers if cache else []) for name in ("conv_states", "recurrent_states")
            for place, x in getattr(layer, name, {}).items() if place == 0 and x is not None]
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    written = [hf.generate(tokens[:, :9], use_cache=x, **options) for x in (use, False)]
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
OF_FLA = [
    "fla gated_deltanet", "fla kda", "fla gated_deltaproduct", "fla comba", "fla delta_net", "fla gla", "fla rwkv6",
]  # fmt: skip
RAGGED = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]]).bool()
"""Of `tiny_hybrid`."""
REFUSED = {
    "bailing_hybrid": "one number for the heads of linear layers and of attention",
    "fla retnet": "decay by their place",
    "fla hgrn2": "together as wide as its hidden size",
    "fla rwkv7": "together as wide as its hidden size",
}
GROUPED = ["mamba2", "bamba", "granitemoehybrid", "nemotron_h", "falcon_h1, norm"]


def assert_is_masked(logits, model, keep, *, tokens=TOKENS, tolerance=1e-5, least=1.0):
    """Relative to the largest logit where it exceeds `least`: float32."""
    with ablation.ablate_heads(model, ~keep):
        expected = model.logits(tokens)
    atol = tolerance * max(least, float(expected.abs().max()))
    torch.testing.assert_close(logits, expected, rtol=0, atol=atol)


@functools.cache
def whole(name):
    hf = families.named(name).build()
    if name in TINY_EPS:
        config = hf.config
        setattr(config, TINY_EPS[name], 1e-12)
        again = type(hf)(config).eval()
        again.load_state_dict(hf.state_dict())
        hf = again
    if name == "kimi_linear":  # as its published checkpoints say it, where vLLM reads it
        hf.config.linear_attn_config = {"num_heads": 4, "head_dim": 8, "kda_layers": [1, 3], "full_attn_layers": [2]}
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
    pure = models.load(files.data_dir() / "models" / "pure", device="cpu")
    masks |= {"shipped": shipped, "shipped, pure": (pure, cut(pure, 0.25))}
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


EVERY = [*STOCK, *(f"{name}, keys repeated" for name in REPEATED), "shipped", "shipped, pure"]


@pytest.mark.parametrize("name", EVERY)
def test_without_srdyn_it_computes_what_the_masked_model_does(name, cases, alone):
    model, keep, _ = cases[name]
    logits, held, (cached, uncached) = alone[name]
    assert_is_masked(logits, model, keep)
    assert torch.equal(cached, uncached)
    promised = export.realised(pruning.prune_heads(model, keep)).set_index("engine").loc["transformers"]
    if name == "shipped, pure":  # transformers 5.23 asks attention how much its cache has read, and there is none
        assert "attention, to read through a cache (0)" in promised["lacks"]
        assert (held, math.isnan(promised["after"])) == (0, True)
    else:
        assert held == promised["after"] < promised["before"]


@pytest.mark.parametrize("name", EVERY)
def test_its_configuration_has_the_family_s_own_keys(name, cases, tmp_path):
    model, _, folder = cases[name]
    model.hf.config.save_pretrained(tmp_path)
    ours, stock = (json.loads((place / "config.json").read_text()) for place in (folder, tmp_path))
    written = {"architectures", "dtype"}  # by any model that is saved
    assert {key for key in stock if not key.startswith("srdyn_")} | written == set(ours)
    for key, part in stock.items():
        assert not isinstance(part, dict) or set(part) | {"dtype"} == set(ours[key]) | {"dtype"}
    assert not [path.name for path in folder.iterdir() if path.suffix not in (".json", ".md", ".safetensors")]


def wide(c, heads, keys, K, V):
    """Rows of queries, keys, values together, of values alone, and the head numbers themselves."""
    return {"qkv": 2 * c[keys] * c[K] + c[heads] * c[V], "k": c[keys] * c[K], "v": c[heads] * c[V], "h": c[heads]}


def gated(c):
    return wide(c, *(f"linear_{x}" for x in ("num_value_heads", "num_key_heads", "key_head_dim", "value_head_dim")))


def kimi(c):
    heads, K = (c["linear_attn_config"][x] for x in ("num_heads", "head_dim"))
    return {"qkv": 3 * heads * K, "k": heads * K, "v": heads * K, "h": heads, "K": K}


def dual(c, *, width, groups, state, heads):
    """Of Mamba-2's families: how wide all heads are, the convolution, all that is projected in."""
    states = 2 * c[groups] * c[state]
    return {"i": width(c), "conv": width(c) + states, "in": 2 * width(c) + states + c[heads], "h": c[heads]}


def of(expand):
    return lambda c: c[expand] * c["hidden_size"]


BAMBA = {"groups": "mamba_n_groups", "state": "mamba_d_state", "heads": "mamba_n_heads"}
SSM = {
    "in_proj.weight": ("in", "D"),
    "conv1d.weight": ("conv", 1, 4),
    "out_proj.weight": ("D", "i"),
    "norm.weight": "i",
}
SSM |= dict.fromkeys(("A_log", "D", "dt_bias"), "h")
KDA = dict.fromkeys(("q_proj.weight", "k_proj.weight", "v_proj.weight"), ("k", "D")) | {"o_proj.weight": ("D", "v")}
KDA |= dict.fromkeys(("q_conv1d.weight", "k_conv1d.weight", "v_conv1d.weight"), ("k", 1, 4))
LOADERS = {
    "qwen3_next": ("model.layers.0.linear_attn.", gated, {
        "in_proj_qkvz.weight": ("qkv+v", "D"), "in_proj_ba.weight": ("h+h", "D"), "conv1d.weight": ("qkv", 1, 4),
        "A_log": "h", "dt_bias": "h", "out_proj.weight": ("D", "v"),
    }),
    "qwen3_5": ("model.layers.0.linear_attn.", gated, {
        "in_proj_qkv.weight": ("qkv", "D"), "in_proj_z.weight": ("v", "D"), "in_proj_b.weight": ("h", "D"),
        "in_proj_a.weight": ("h", "D"), "conv1d.weight": ("qkv", 1, 4), "A_log": "h", "out_proj.weight": ("D", "v"),
    }),
    "olmo_hybrid": ("model.layers.0.linear_attn.", gated, {
        "q_proj.weight": ("k", "D"), "k_proj.weight": ("k", "D"), "v_proj.weight": ("v", "D"), "A_log": "h",
        "g_proj.weight": ("v", "D"), "a_proj.weight": ("h", "D"), "b_proj.weight": ("h", "D"),
        "o_proj.weight": ("D", "v"),
        "q_conv1d.weight": ("k", 1, 4), "k_conv1d.weight": ("k", 1, 4), "v_conv1d.weight": ("v", 1, 4),
    }),
    "kimi_linear": ("model.layers.0.self_attn.", kimi, KDA | {
        "b_proj.weight": ("h", "D"), "f_b_proj.weight": ("k", "K"), "g_b_proj.weight": ("v", "K"), "dt_bias": "k",
        "A_log": (1, 1, "h", 1),
    }),
    "mamba2": ("backbone.layers.0.mixer.", functools.partial(
        dual, width=of("expand"), groups="n_groups", state="state_size", heads="num_heads"), SSM),
    "bamba": ("model.layers.0.mamba.", functools.partial(dual, width=of("mamba_expand"), **BAMBA), SSM),
    "granitemoehybrid": ("model.layers.0.mamba.", functools.partial(dual, width=of("mamba_expand"), **BAMBA), SSM),
    "falcon_h1, norm": ("model.layers.0.mamba.", functools.partial(
        dual, width=lambda c: c["mamba_d_ssm"], **BAMBA), SSM),
    "nemotron_h": ("backbone.layers.0.mixer.", functools.partial(
        dual, width=lambda c: c["mamba_num_heads"] * c["mamba_head_dim"], groups="n_groups", state="ssm_state_size",
        heads="mamba_num_heads"), SSM),
    "zamba2": ("model.layers.0.mamba.", functools.partial(
        dual, width=of("mamba_expand"), groups="mamba_ngroups", state="mamba_d_state", heads="n_mamba_heads"), SSM),
}  # fmt: skip
"""What loaders of vLLM and SGLang make of config.json: a layer's tensors and their shapes in its numbers; D: hidden."""


@pytest.mark.parametrize("name", [*LOADERS, *(f"{name}, keys repeated" for name in REPEATED)])
def test_files_are_what_the_engines_loaders_expect(name, cases):
    prefix, numbers, tensors = LOADERS[name.removesuffix(", keys repeated")]
    *_, folder = cases[name]
    stated = json.loads((folder / "config.json").read_text())
    known = numbers(stated) | {"D": stated["hidden_size"]}
    size = lambda x: sum(known[part] for part in x.split("+")) if isinstance(x, str) else x  # noqa: E731
    with safetensors.safe_open(folder / "model.safetensors", framework="pt") as opened:
        names = set(opened.keys())
        for tensor, shape in tensors.items():
            expected = [size(x) for x in ((shape,) if isinstance(shape, str) else shape)]
            assert opened.get_slice(prefix + tensor).get_shape() == expected, tensor
    assert not any(".0.block_sparse_moe.gate_proj" in x for x in names)  # vLLM's Kimi Linear: `mlp` where it is dense


@pytest.mark.parametrize("name", GROUPED)
def test_whole_groups_need_no_smaller_epsilon(name, tmp_path):
    model = models.from_hf(families.named(name).build(), name=name)
    keep = cut(model, 0.5, whole=4) if export.choices(model)["groups"] > 1 else torch.ones(model.grid[:2]).bool()
    loaded = models.load(export.save(pruning.prune_heads(model, keep), tmp_path / "model"), device="cpu")
    assert_is_masked(loaded.logits(TOKENS), model, keep)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The correction_factor is set to 1")
@pytest.mark.filterwarnings("ignore:According to Bo")
@pytest.mark.parametrize("name", OF_FLA)
def test_flash_linear_attention_s_own_kernels_compute_it_too(name, tmp_path):
    keep = cut(whole(name), **export.choices(whole(name)))
    folder = export.save(pruning.prune_heads(whole(name), keep), tmp_path / "model")
    [(logits, _, (cached, uncached))] = families.by_kernels(folder, tokens=TOKENS[:, :7], new=3)
    assert_is_masked(logits, whole(name), keep, tokens=TOKENS[:, :7])
    assert torch.equal(cached, uncached)


@pytest.mark.filterwarnings("ignore:The correction_factor is set to 1")  # Comba, whenever one is built
@pytest.mark.filterwarnings("ignore:According to Bo")  # RWKV, whenever one is built
@pytest.mark.parametrize("name", OF_FLA)
def test_models_of_flash_linear_attention_too(name, tmp_path):
    for options in (export.choices(whole(name)), {}):
        keep = cut(whole(name), 0.25 if options == {} else 0.5, **options)
        loaded = models.load(export.save(pruning.prune_heads(whole(name), keep), tmp_path / "model"), device="cpu")
        assert len(loaded.layers[0].heads) == loaded.grid.H == int(keep[0].sum())
        assert_is_masked(loaded.logits(TOKENS), whole(name), keep, tolerance=2e-5, least=0.0)


@pytest.mark.filterwarnings("ignore:According to Bo")
@pytest.mark.parametrize("name", REFUSED)
def test_a_family_that_cannot_say_it_is_refused_with_the_reason(name):
    with pytest.raises(ValueError, match=REFUSED[name]):
        export.shape(whole(name))


def test_every_family_is_written_or_refused():
    known = {*STOCK, *OF_FLA, "qwen3_next, pure", *REFUSED}
    missing = "STOCK, OF_FLA or REFUSED here has it, and srdyn/architectures/counts.py its class"
    assert known == {family.id for family in families.FAMILIES}, missing


def test_a_ragged_model_is_told_the_nearest_cut(tmp_path, tiny_hybrid):
    with pytest.raises(ValueError, match=r"keeps 1 to 3 heads.*nearest keeps 2 in each, pruning\.select\(score, 0\.5"):
        export.save(pruning.prune_heads(tiny_hybrid, RAGGED), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_width_that_no_configuration_states_is_refused():
    model = whole("mamba2")  # 8 heads of 8 channels, twice the hidden size
    with pytest.raises(ValueError, match=r"no whole multiple \(expand\).*nearest keeps 4 in each"):
        export.shape(pruning.prune_heads(model, cut(model, 0.25, groups=2)))


def test_others_stop_at_a_pruned_folder_with_the_reason(tmp_path, tiny_hybrid):
    folder = pruning.save(pruning.prune_heads(tiny_hybrid, RAGGED), tmp_path / "ragged")
    with pytest.raises(ValueError, match=checkpoints.PRUNED):
        transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert models.load(folder).layers[2].heads == (0,)


def test_a_folder_of_an_earlier_version_is_still_read(tmp_path, tiny_hybrid):
    folder = pruning.save(pruning.prune_heads(tiny_hybrid, RAGGED), tmp_path / "ragged")
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
    frame = export.realised(pruning.prune_heads(tiny_hybrid, RAGGED))
    assert frame["after"].isna().all()
    assert frame["lacks"].str.contains("one number for all").all()
    even = export.realised(pruning.prune_heads(tiny_hybrid, cut(tiny_hybrid, whole=2))).set_index("engine")
    assert math.isnan(even.loc["llama.cpp", "after"])  # 8 × 12 states
    assert even.loc["vLLM", "after"] < even.loc["vLLM", "before"]
    stock = sum(x.numel() * x.itemsize for x in tiny_hybrid.hf.parameters())
    assert (even["weights_before"] == stock).all()
    assert (even["weights_after"] < stock).all()


def test_a_uniform_cut_keeps_equally_many_that_devices_can_share():
    score = torch.rand(3, 8, generator=torch.Generator().manual_seed(0))
    for options, left in (({}, 6), ({"tp": 4}, 8), ({"whole": 2}, 6), ({"groups": 4}, 8), ({"whole": 2, "tp": 2}, 8)):
        keep = pruning.select(score, 0.25, uniform=True, **options)
        # 6 lies as far from 4 as from 8, and Python rounds halves to even numbers.
        assert keep.sum(1).tolist() == [left] * 3


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
