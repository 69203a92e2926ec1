import pytest

from srdyn.loading import engines

QWEN = engines.Sizes("Qwen3NextGatedDeltaNet", 36, 32, 16, 128, 128, 4, 1024, 2, 2)


@pytest.mark.parametrize(
    ("heads", "keys", "tp", "float32", "bfloat16"),
    [
        (32, 16, 1, 74.2, 38.2), (24, 12, 1, 56.2, 29.2), (16, 8, 1, 37.1, 19.1), (16, 16, 1, 38.2, 20.2),
        (8, 4, 1, 19.1, 10.1), (32, 16, 8, 9.6, 5.1), (16, 16, 8, 5.1, 2.8), (8, 8, 8, 2.8, 1.7),
    ],
)  # fmt: skip
def test_vllm_pads_states_to_its_pages(heads, keys, tp, float32, bfloat16):
    """Qwen3-Next-80B, as worked out by hand from vLLM's source, in MiB of a sequence on a device."""
    sizes = QWEN._replace(heads=heads, keys=keys)
    for itemsize, expected in ((4, float32), (2, bfloat16)):
        found = engines.state_bytes(sizes, tp=tp, state_itemsize=itemsize)["vLLM"] / 2**20
        assert found == pytest.approx(expected, abs=0.06)


@pytest.mark.parametrize(("heads", "block"), [(32, 528), (48, 784)])
def test_vllm_s_logs_tell_the_same_blocks(heads, block):
    """ "Setting attention block size to 528 tokens" of Qwen3.5-4B (vLLM issue #40696), and 784 of Qwen3.5-27B."""
    sizes = engines.Sizes("Qwen3_5GatedDeltaNet", 48, heads, 16, 128, 128, 4, 2 * 4 * 256, 4, 2)
    assert engines.state_bytes(sizes)["vLLM"] == 48 * block * 2 * 4 * 256 * 2


def test_llama_cpp_s_log_tells_the_same_bytes():
    """ "size = 748.12 MiB ... S (f32): 720.00 MiB" of a Qwen3.5-27B geometry, with four rows more for drafts."""
    sizes = engines.Sizes("Qwen3_5GatedDeltaNet", 48, 48, 16, 128, 128, 4, 2 * 4 * 256, 4, 2)
    assert engines.state_bytes(sizes)["llama.cpp"] * 5 == 748.125 * 2**20


def test_kimi_linear_s_states_are_float32_in_vllm():
    kimi = engines.Sizes("KimiLinearDeltaAttention", 1, 32, 32, 128, 128, 4, 0, 0, 2)
    assert engines.state_bytes(kimi, state_itemsize=2) == engines.state_bytes(kimi)


def test_a_state_of_its_own_is_counted_as_transformers_has_it():
    assert engines.state_bytes(QWEN)["transformers"] == 36 * (8192 * 4 * 2 + 32 * 128 * 128 * 4)
    assert engines.state_bytes(QWEN)["llama.cpp"] == 36 * 4 * (32 * 128 * 128 + 3 * 8192)
    assert engines.state_bytes(QWEN)["SGLang"] == 36 * (3 * 8192 * 2 + 32 * 128 * 128 * 4)


@pytest.mark.parametrize(
    ("change", "tp", "engine", "asks"),
    [
        ({"keys": 32}, 1, "vLLM", "more than 1 head a key"),
        ({"keys": 32}, 1, "SGLang", "more than 1 head a key"),
        ({"heads": 24, "keys": 16}, 1, "transformers", "keys divide heads"),
        ({"heads": 24, "keys": 8}, 1, "SGLang", "1, 2 or 4 heads a key"),
        ({"heads": 12, "keys": 6}, 4, "vLLM", "4 devices divide heads and keys"),
        ({"V": 64}, 1, "llama.cpp", "square states"),
        ({"mixer": "KimiLinearDeltaAttention"}, 1, "llama.cpp", "takes the number of heads"),
        ({"attention": 0}, 1, "transformers", "attention, to read through a cache"),
    ],
)
def test_what_an_engine_asks_for_in_vain_is_named(change, tp, engine, asks):
    vain = engines.demands(QWEN._replace(**change), tp=tp).query("not ok and engine == @engine")
    assert vain["asks"].str.startswith(asks).any()
    assert engines.demands(QWEN)["ok"].all()


def test_groups_that_devices_do_not_divide_are_held_by_each():
    """vLLM's and SGLang's `extra_groups_for_head_shards`: as many groups as devices."""
    one = engines.Sizes("Mamba2Mixer", 1, 8, 1, 16, 4, 4, 0, 0, 2)
    found = engines.state_bytes(one, tp=4)
    assert found["SGLang"] == found["vLLM"] == (3 * (2 * 4 * 16 + 8 * 4) * 2 + 8 * 16 * 4 * 4) // 4
