"""Small random models with L ≠ H and K ≠ V, and what else tests share."""

import copy as copies
import importlib
import itertools
import math
import os
import shutil
import warnings

import numpy as np
import pandas as pd
import pytest
import saved
import torch
import transformers

from srdyn import architectures, models
from srdyn.architectures import linear_cache
from srdyn.loading import files, reference
from srdyn.study.analysis import intervals
from srdyn.study.run import store, workers

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 8, "linear_value_head_dim": 12, "tie_word_embeddings": True, "pad_token_id": None,
}  # fmt: skip


def pytest_configure(config):
    # As errors, the warnings of its import would make transformers treat flash-linear-attention as not installed.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("fla.ops")


def qwen3_next(kinds, *, seed=0):
    torch.manual_seed(seed)
    every = list(range(len(kinds)))
    config = transformers.Qwen3NextConfig(
        **SIZES, num_hidden_layers=len(kinds), layer_types=kinds, mlp_only_layers=every, num_experts=0
    )
    return with_slow_decays(transformers.Qwen3NextForCausalLM(config))


def qwen35(kinds, *, seed=0):
    torch.manual_seed(seed)
    config = transformers.Qwen3_5TextConfig(**SIZES, num_hidden_layers=len(kinds), layer_types=kinds)
    return with_slow_decays(transformers.Qwen3_5ForCausalLM(config))


def with_slow_decays(hf):
    """Weights large enough for states to differ, A uniform in 1 … 16 and dt log-uniform in 1e-3 … 1e-1 (Mamba-2)."""
    for name, parameter in hf.named_parameters():
        if parameter.ndim == 2:
            parameter.data *= 4
        if name.endswith("A_log"):
            parameter.data = (1 + 15 * torch.rand_like(parameter)).log()
        if name.endswith("dt_bias"):
            dt = (math.log(1e-3) + torch.rand_like(parameter) * math.log(100)).exp()
            parameter.data = dt.expm1().log()
    return hf.eval()


def by_loop(inputs, positions, change=lambda state: state):
    """The gated delta rule token by token in float64 numpy: states [B, C, H, K, V] changed at the positions."""
    _, k, v, g, beta = (x.double().numpy() for x in inputs)
    k = np.repeat(k, v.shape[2] // k.shape[2], axis=2)
    state, kept = np.zeros((*v.shape[::2], k.shape[-1], v.shape[-1])), []
    for t in range(v.shape[1]):
        state = state * np.exp(g[:, t])[..., None, None]
        error = beta[:, t, :, None] * (v[:, t] - np.einsum("bhkv,bhk->bhv", state, k[:, t]))
        state = state + np.einsum("bhk,bhv->bhkv", k[:, t], error)
        if t + 1 in positions:
            state = change(state)
            kept.append(torch.from_numpy(state))
    return torch.stack(kept, 1)


@pytest.fixture(scope="session")
def tokenizer():
    """The reference models' own."""
    return transformers.AutoTokenizer.from_pretrained(files.data_dir() / "tokenizer")


@pytest.fixture
def tiny_hybrid():
    kinds = ["linear_attention", "linear_attention", "full_attention", "linear_attention"]
    return models.from_hf(qwen3_next(kinds), name="tiny-hybrid")


@pytest.fixture
def tiny_pure():
    return models.from_hf(qwen3_next(["linear_attention"] * 3), name="tiny-pure")


@pytest.fixture
def tiny_qwen35():
    kinds = ["linear_attention", "full_attention", "linear_attention"]
    return models.from_hf(qwen35(kinds), name="tiny-qwen35")


@pytest.fixture(params=["tiny_hybrid", "tiny_pure", "tiny_qwen35"])
def tiny(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def tokens():
    return torch.randint(0, SIZES["vocab_size"], (2, 150), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def threads():
    """Sets the number of torch's threads, for the length of a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """The folder of a tiny reference model whose states differ."""
    return saved.tiny(tmp_path_factory.mktemp("models") / "tiny", times=1.5)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def head_table(contexts, positions, **values):
    """A head table of one model from values [samples, contexts, layers, heads, positions]."""
    shape = np.broadcast_shapes(*map(np.shape, values.values()))
    places = {"sample": range(shape[0]), "context": contexts, "layer": range(shape[2]), "head": range(shape[3])}
    table = pd.MultiIndex.from_product([*places.values(), positions], names=[*places, "position"]).to_frame(index=False)
    columns = {name: np.broadcast_to(array, shape).ravel() for name, array in values.items()}
    return table.assign(model="m", kind="k", seed=0, source="model", document=table["sample"], **columns)


def unread(hf, heads):
    """A stock copy in which the readout of these heads is zero: what removing them must amount to."""
    hf = copies.deepcopy(hf)
    for site, row in zip(architectures.sites(hf), heads, strict=True):
        site.mixer.out_proj.weight.data.unflatten(1, (len(row), -1))[:, row] = 0
    return hf


def logits(hf, tokens, **options):
    with torch.no_grad():
        return hf(tokens, **options).logits


def by_rewriting(model, tokens, heads, cuts, change):
    """The logits of a pass over a cache whose states are changed by hand after each of the cuts."""
    cache, outputs = linear_cache.empty(model.hf), []
    for start, end in itertools.pairwise([0, *cuts, tokens.shape[1]]):
        places = torch.arange(start, end).expand(len(tokens), -1)
        outputs.append(logits(model.hf, tokens[:, start:end], past_key_values=cache, position_ids=places))
        for site, row in zip(architectures.sites(model.hf), heads, strict=True):
            held = cache.get_recurrent_state(site.index, state_idx=0)
            if row.any():
                held[:, row] = torch.from_numpy(change(held[:, row].numpy())).float()
    return torch.cat(outputs, 1)


@pytest.fixture(scope="session")
def browser():
    """The system's Chromium."""
    from playwright import sync_api

    if (chromium := shutil.which("chromium")) is None:
        pytest.skip("no browser here")
    with sync_api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])


@pytest.fixture
def visited(browser):
    """Opens a file in a window of its own; an error that it tells the console and whatever it asks the network fail."""
    told = []

    def visited(path, *, width=1280, **options):
        page = browser.new_context(viewport={"width": width, "height": 800}, **options).new_page()
        page.on("console", lambda message: told.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("request", lambda request: told.append(request.url) if request.url[:4] == "http" else None)
        page.goto(path.as_uri())
        return page

    yield visited
    for context in browser.contexts:
        context.close()
    assert told == []


@pytest.fixture(scope="module")
def few_resamples():
    """Intervals by a twentieth of the resamples, where what they hold is not the question."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intervals, "RESAMPLES", 50)
        yield


@pytest.fixture(scope="module")
def own_workers():
    """Processes that start in this module and end with it."""
    workers._pool.cache_clear()
    yield
    workers._pool().shutdown()
    workers._pool.cache_clear()


@pytest.fixture(scope="session")
def untrained(tokenizer):
    """A reference model at its start; tests leave it as it is."""
    hf = reference.initialise("hybrid", seed=0, layers=4, hidden=32, head=8)
    return models.from_hf(hf.eval(), tokenizer, name="untrained")


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A clone without any data, in which the reference run is at work."""
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("SRDYN_ROOT", str(tmp_path))
    monkeypatch.setenv("SRDYN_RUN", store.REFERENCE)
    return tmp_path


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of all that is committed, to be changed; a file there is a link until it is written."""
    for name in ("data", "figures", "notebooks"):
        shutil.copytree(files.root() / name, tmp_path / name, copy_function=os.symlink)
    shutil.copy(files.root() / "README.md", tmp_path)
    monkeypatch.setenv("SRDYN_ROOT", str(tmp_path))
    monkeypatch.setenv("SRDYN_RUN", store.REFERENCE)
    return tmp_path
