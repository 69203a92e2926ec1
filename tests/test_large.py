"""A checkpoint of gigabytes is traced and cut with little memory, as its small twin is traced in memory."""

import json
import shutil
import subprocess
import sys

import large
import pytest
import torch

from srdyn import models, states

NARROW = {"hidden_size": 32, "intermediate_size": 48, "vocab_size": 64, "num_attention_heads": 2, "head_dim": 16}
NARROW |= {"linear_key_head_dim": 8, "linear_value_head_dim": 12, "num_experts_per_tok": 2}
NARROW |= {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}


def test_a_small_twin_is_traced_from_disk_as_in_memory(tmp_path):
    large.write(tmp_path, layers=4, experts=8, sizes=large.SIZES | NARROW)
    model = models.load(tmp_path, device="cpu")
    assert torch.equal(large.trace(tmp_path), states.trace(model, large.tokens(model), large.POSITIONS))


def test_cutting_what_is_on_disk_holds_about_a_layer(tmp_path):
    large.write(tmp_path, layers=8, experts=8, sizes=large.SIZES | {"hidden_size": 512, "vocab_size": 512})
    done = subprocess.run([sys.executable, large.__file__, "cut", tmp_path], check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["written"] > 2.5e8
    assert found["took"] < found["written"] / 4


@pytest.mark.slow
def test_six_gigabytes_are_traced_within_two_and_a_half(tmp_path):
    """Takes five minutes and 7 GB of disk, which are free again afterwards."""
    assert shutil.disk_usage(tmp_path).free > 8e9
    script = [sys.executable, large.__file__]
    try:
        subprocess.run([*script, "write", tmp_path], check=True)
        size = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
        done = subprocess.run([*script, "trace", tmp_path], check=True, capture_output=True, text=True)
    finally:
        shutil.rmtree(tmp_path)
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"{size / 1e9:.2f} GB of weights, {found['peak'] / 1e9:.2f} GB resident at most")
    assert size >= 6e9
    assert found["finite"]
    assert found["peak"] <= 2.5e9
