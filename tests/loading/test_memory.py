"""The ledger agrees with the caches that models really fill, with published geometry, and with arithmetic."""

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


@pytest.mark.parametrize("name", ["hybrid", "pure"])
def test_reference_models_cost_what_their_caches_do(name):
    model = models.load(files.data_dir() / "models" / name, device="cpu", dtype=torch.bfloat16)
    table = memory.ledger([0, 1, 777], configs={name: memory.families()[name]})
    assert table["total_bytes"].tolist() == [memory.cache_bytes(model.hf, tokens) for tokens in (0, 1, 777)]
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


def test_a_model_that_also_sees_images_counts_its_decoder():
    whole, text = transformers.Qwen3_5Config(), transformers.Qwen3_5TextConfig()
    rows = memory.ledger([7], configs={"it": whole}), memory.ledger([7], configs={"it": text})
    assert rows[0].equals(rows[1])


@pytest.mark.parametrize(("window", "kept"), [(None, 70), (16, 16)])
def test_layers_of_flash_linear_attention_that_attend_are_counted(window, kept):
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 3, "num_heads": 2, "head_dim": 8}
    attn = {"layers": [1], "num_heads": 4, "num_kv_heads": 2, "window_size": window}
    config = fla.models.GatedDeltaNetConfig(**sizes, attn=attn)
    assert memory.attention(config).values(70) == kept * 2 * 2 * 8
    assert memory.attention(fla.models.GatedDeltaNetConfig(**sizes)).values(70) == 0


class OwnConfig(transformers.Qwen3NextConfig):
    pass


SLIDING = {"num_hidden_layers": 2, "layer_types": ["linear_attention", "sliding_attention"]}


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (lambda: memory.ledger([1], configs={"it": transformers.LlamaConfig(num_hidden_layers=1)}),
         r"it \(LlamaConfig\) has no linear-attention layers"),
        (lambda: memory.attention(transformers.Qwen3NextConfig(**SLIDING)), "qwen3_next has sliding_attention layers"),
        (lambda: memory.attention(OwnConfig()), "the cache of OwnConfig is not known"),
        (lambda: memory.ledger([5, -1]), r"0 tokens or more, got \[5, -1\]"),
        (lambda: memory.ledger([1], removed=1.5), "between 0 and 1, got 1.5"),
    ],
)  # fmt: skip
def test_what_cannot_be_counted_is_refused(count, message):
    with pytest.raises(ValueError, match=message):
        count()
