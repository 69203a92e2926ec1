"""The ledger agrees with the caches that models really fill, with published geometry, and with arithmetic."""

import importlib
import inspect
import math

import fla
import pytest
import torch
import transformers

from srdyn import models
from srdyn.loading import files, memory

KIB, MIB = 2**10, 2**20
DEFAULTS = {
    # layers with a state, with attention, heads, K, V, heads in all, MiB of states, KiB a token, break-even tokens
    "qwen3_next": (36, 12, 32, 128, 128, 1152, 72.0, 24.0, 3072),
    "qwen3_5_text": (24, 8, 32, 128, 128, 768, 48.0, 32.0, 1536),
    "qwen3_5_moe_text": (30, 10, 32, 128, 128, 960, 60.0, 20.0, 3072),
    "qwen4_exp_text": (30, 10, 32, 128, 128, 960, 60.0, 20.0, 3072),
    "olmo_hybrid": (24, 8, 30, 96, 192, 720, 50.6, 120.0, 432),
    "kimi_linear": (21, 6, 32, 128, 128, 672, 42.0, 6.8, 6372),
    "bailing_hybrid": (35, 7, 32, 128, 128, 1120, 70.0, 7.9, 9102),
    "glm5_next_text": (34, 11, 64, 128, 128, 2176, 136.0, 11.0, 12660),
    "bamba": (32, 0, 128, 256, 64, 4096, 256.0, 0.0, None),
    "granitemoehybrid": (32, 0, 128, 256, 64, 4096, 256.0, 0.0, None),
    "falcon_h1": (32, 32, 128, 256, 8, 4096, 32.0, 128.0, 256),
    "mamba2": (64, 0, 128, 128, 64, 8192, 256.0, 0.0, None),
    "nemotron_h": (1, 1, 128, 128, 64, 128, 4.0, 4.0, 1024),
    "zamba2": (54, 9, 8, 64, 640, 432, 67.5, 180.0, 384),
}
LENGTHS = [1, 50, 10**4, 10**7]
LINEAR, FULL = "linear_attention", "full_attention"
BASE = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 3, "pad_token_id": None}
BASE |= {"bos_token_id": 0, "eos_token_id": 0}
TINY = BASE | {"intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1}
KINDS = {"layer_types": [LINEAR, LINEAR, FULL]}
DELTA = KINDS | {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
DELTA |= {"linear_key_head_dim": 8, "linear_value_head_dim": 12}
KIMI = KINDS | {"linear_num_heads": 3, "linear_head_dim": 8, "num_key_value_heads": 2, "num_experts": 2}
KIMI |= {"kv_lora_rank": 10, "qk_rope_head_dim": 6, "qk_nope_head_dim": 8, "v_head_dim": 8}
KIMI |= {"mlp_layer_types": ["dense"] * 3}
BAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 2, "mamba_d_state": 6}
SMALL = {
    "Qwen3Next": DELTA | {"head_dim": 16, "mlp_only_layers": [0, 1, 2], "num_experts": 0},
    "OlmoHybrid": DELTA,
    "KimiLinear": KIMI,
    "BailingHybrid": KIMI,
    "Bamba": BAMBA | {"attn_layer_indices": [2]},
    "FalconH1": BAMBA | {"mamba_d_ssm": 64},
    "Mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 6, "n_groups": 2},
    "NemotronH": {"layers_block_type": [LINEAR, "mlp", FULL], "head_dim": 16}
    | {"mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 6, "n_groups": 2},
    "Zamba2": {"layers_block_type": [LINEAR, "hybrid", LINEAR], "num_key_value_heads": 2, "num_mem_blocks": 1}
    | {"n_mamba_heads": 8, "mamba_ngroups": 2, "mamba_d_state": 6},
}


@pytest.fixture(scope="module")
def table():
    return memory.ledger(LENGTHS)


@pytest.mark.parametrize("name", DEFAULTS)
def test_default_geometry_is_the_one_known(name, table):
    row = table[table["tokens"] == 1].set_index("model").loc[name]
    recurrent, attention, H, K, V, heads, state, per_token, even = DEFAULTS[name]
    assert (row["recurrent"], row["attention"], row["K"], row["V"]) == (recurrent, attention, K, V)
    assert row["heads"] == heads == recurrent * H
    # The known values are rounded to one digit, and to whole tokens.
    assert row["state_bytes"] / MIB == pytest.approx(state, abs=0.05)
    assert row["kv_bytes"] / KIB == pytest.approx(per_token, abs=0.051)
    assert math.isnan(row["break_even"]) if even is None else round(row["break_even"]) == even


@pytest.mark.parametrize("stem", SMALL)
def test_bytes_are_those_of_a_cache_that_a_model_filled(stem, monkeypatch):
    config = getattr(transformers, f"{stem}Config")(**(BASE if stem == "Mamba2" else TINY) | SMALL[stem])
    hf, tokens = small_model(stem, config, monkeypatch), torch.randint(0, 64, (1, 70))
    cache = transformers.DynamicCache(config=config)
    with torch.no_grad():
        hf(tokens, use_cache=True, **{"cache_params" if stem == "Mamba2" else "past_key_values": cache})
    row = memory.ledger([70], configs={stem: config}).iloc[0]
    assert [row["state_bytes"], row["conv_bytes"], row["kv_bytes"]] == held(cache)
    assert row["total_bytes"] == sum(held(cache)) == memory.cache_bytes(hf, 70)
    assert row["state_bytes"] == memory.state_bytes(hf)


def small_model(stem, config, monkeypatch):
    """In bfloat16, with the plain torch functions in place of those that need a GPU."""
    code = importlib.import_module(type(config).__module__.replace("configuration", "modeling"))
    for name, function in inspect.getmembers(code, inspect.isfunction):
        if "delta" in name or "causal_conv1d" in name:
            monkeypatch.setattr(code, name, inspect.unwrap(function))
    return getattr(code, f"{stem}ForCausalLM")(config).to(torch.bfloat16).eval()


def held(cache):
    """Bytes of states, of convolutions, of keys and values."""
    linear = [layer for layer in cache.layers if getattr(layer, "recurrent_states", {0: None})[0] is not None]
    attending = [layer for layer in cache.layers if getattr(layer, "keys", None) is not None]
    return [
        sum(layer.recurrent_states[0].nbytes for layer in linear),
        sum(layer.conv_states[0].nbytes for layer in linear),
        sum(layer.keys.nbytes + layer.values.nbytes for layer in attending),
    ]


@pytest.mark.parametrize("name", ["hybrid", "pure"])
def test_reference_models_cost_what_their_caches_do(name):
    model = models.load(files.data_dir() / "models" / name, device="cpu", dtype=torch.bfloat16)
    table = memory.ledger([0, 1, 777], configs={name: memory.families()[name]})
    assert table["total_bytes"].tolist() == [models.cache_bytes(model, tokens) for tokens in (0, 1, 777)]
    assert set(table["state_bytes"]) == {models.state_bytes(model)}


def test_the_papers_cut_of_qwen3_next_is_a_small_share_of_a_long_context():
    row = memory.ledger([32768], configs={"it": transformers.Qwen3NextConfig()}).iloc[0]
    assert (row["removed_heads"], row["heads"]) == (448, 1152)
    assert row["removed_bytes"] == 28 * MIB
    # 36 layers of 2·16·128 + 32·128 channels, 4 wide, 2 bytes each: 2.25 MiB of convolutions.
    assert row["freed"] == pytest.approx(28 / (72 + 2.25 + 24 * 32), rel=1e-12)


def test_by_default_a_row_for_each_model_and_length(table):
    assert table["model"].tolist() == [name for name in ("hybrid", "pure", *DEFAULTS) for _ in LENGTHS]
    assert table["tokens"].tolist() == LENGTHS * (2 + len(DEFAULTS))


def test_the_share_freed_falls_with_length_where_there_is_attention(table):
    for _, rows in table.groupby("model"):
        steps = rows["freed"].diff().dropna()
        assert (steps < 0).all() if rows["attention"].iloc[0] else (steps == 0).all()
    assert (table["freed"] <= table["removed_bytes"] / table["state_bytes"]).all()
    assert ((table["removed_heads"] - 0.389 * table["heads"]).abs() <= 0.5).all()


def test_at_break_even_keys_and_values_cost_what_the_states_do():
    table = memory.ledger([3072], configs={"it": transformers.Qwen3NextConfig()})
    assert table["break_even"].item() == 3072
    assert table["kv_bytes"].item() == table["state_bytes"].item()


def test_a_model_that_also_sees_images_counts_its_decoder():
    whole, text = transformers.Qwen3_5Config(), transformers.Qwen3_5TextConfig()
    rows = memory.ledger([7], configs={"it": whole}), memory.ledger([7], configs={"it": text})
    assert rows[0].equals(rows[1])


def test_an_impossible_share_is_refused():
    with pytest.raises(ValueError, match="between 0 and 1"):
        memory.ledger([1], removed=1.5)


def test_a_model_without_a_state_is_refused():
    with pytest.raises(ValueError, match=r"it \(LlamaConfig\) has no linear-attention layers"):
        memory.ledger([1], configs={"it": transformers.LlamaConfig(num_hidden_layers=1)})


def test_layers_with_a_window_are_refused():
    config = transformers.Qwen3NextConfig(num_hidden_layers=2, layer_types=[LINEAR, "sliding_attention"])
    with pytest.raises(ValueError, match="qwen3_next has sliding_attention layers"):
        memory.attention(config)


@pytest.mark.parametrize(("window", "kept"), [(None, 70), (16, 16)])
def test_layers_of_flash_linear_attention_that_attend_are_counted(window, kept):
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 3, "num_heads": 2, "head_dim": 8}
    attn = {"layers": [1], "num_heads": 4, "num_kv_heads": 2, "window_size": window}
    config = fla.models.GatedDeltaNetConfig(**sizes, attn=attn)
    assert memory.attention(config).values(70) == kept * 2 * 2 * 8
    assert memory.attention(fla.models.GatedDeltaNetConfig(**sizes)).values(70) == 0


def test_a_configuration_of_unknown_origin_is_refused():
    class OwnConfig(transformers.Qwen3NextConfig):
        pass

    with pytest.raises(ValueError, match="the cache of OwnConfig is not known"):
        memory.attention(OwnConfig())


@pytest.mark.parametrize(
    ("tokens", "removed", "message"),
    [([5, -1], 0.3, r"0 tokens or more, got \[5, -1\]"), ([1], 1.5, "between 0 and 1, got 1.5")],
)
def test_impossible_lengths_and_shares_are_refused(tokens, removed, message):
    with pytest.raises(ValueError, match=message):
        memory.ledger(tokens, removed=removed)
