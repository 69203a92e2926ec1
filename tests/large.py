"""A Qwen3-Next checkpoint of several gigabytes, written a layer at a time, traced and cut with little memory.

`python tests/large.py write FOLDER` makes it, `trace FOLDER` and `cut FOLDER` read it.
"""

import itertools
import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import core_model_loading

from srdyn import export, models, pruning, states
from srdyn.loading import checkpoints, streaming

LAYERS, EXPERTS = 32, 64
SIZES = {
    "hidden_size": 1024, "intermediate_size": 2048, "vocab_size": 8192, "num_attention_heads": 8,
    "num_key_value_heads": 2, "head_dim": 128, "linear_num_key_heads": 4, "linear_num_value_heads": 8,
    "linear_key_head_dim": 128, "linear_value_head_dim": 128, "num_experts_per_tok": 10,
    "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512, "pad_token_id": None,
}  # fmt: skip
POSITIONS = [1, 64, 128, 256]


def write(folder: Path, *, layers: int = LAYERS, experts: int = EXPERTS, sizes: dict = SIZES) -> int:
    """Random weights in bfloat16, a file for each layer; returns their bytes. Memory holds one layer at a time."""
    config = transformers.Qwen3NextConfig(
        num_hidden_layers=layers, num_experts=experts, dtype="bfloat16", architectures=["Qwen3NextForCausalLM"], **sizes
    )
    config.save_pretrained(folder)
    hf = checkpoints.outline(config, dtype=torch.bfloat16)
    generator, index = torch.Generator().manual_seed(0), {}
    for part, own in itertools.groupby(hf.named_parameters(), lambda item: streaming.part_of(item[0])):
        drawn = {name: _drawn(name, parameter.shape, generator) for name, parameter in own}
        stored = core_model_loading.revert_weight_conversion(hf, drawn)
        file = f"model-{part}.safetensors"
        save_file({name: value.contiguous() for name, value in stored.items()}, folder / file, {"format": "pt"})
        index |= dict.fromkeys(stored, file)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    text = json.dumps({"metadata": {"total_size": size}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)
    return size


def _drawn(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    if name.endswith("A_log"):
        return (1 + 15 * torch.rand(shape, generator=generator)).log().bfloat16()
    if name.endswith("dt_bias"):
        return torch.full(shape, -5.0, dtype=torch.bfloat16)
    return torch.randn(shape, generator=generator, dtype=torch.bfloat16) * 0.03


def trace(folder: Path) -> torch.Tensor:
    """Singular values of two sequences, the weights read from disk."""
    model = models.load(folder, device="cpu", offload="disk")
    return states.trace(model, tokens(model), POSITIONS)


def cut(folder: Path) -> dict[str, int]:
    """Half of the heads are cut out of what is on disk, into FOLDER/cut; bytes written, and what memory that took."""
    model = models.load(folder, device="cpu", offload="disk")
    before = peak()
    keep = pruning.select(torch.zeros(model.grid[:2]), 0.5, uniform=True, **export.choices(model))
    out = export.save(pruning.prune_heads(model, keep), folder / "cut")
    return {"written": sum(path.stat().st_size for path in out.glob("*.safetensors")), "took": peak() - before}


def tokens(model: models.Model) -> torch.Tensor:
    """What is read."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, model.hf.config.vocab_size, (2, POSITIONS[-1]), generator=generator)


def peak() -> int:
    """Most bytes that were resident in this process at a time."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


if __name__ == "__main__":
    what, folder = sys.argv[1], Path(sys.argv[2])
    if what == "write":
        print(f"{write(folder) / 1e9:.2f} GB written, {peak() / 1e9:.2f} GB resident at most")
    elif what == "cut":
        print(json.dumps(cut(folder)))
    else:
        sigma = trace(folder)
        print(json.dumps({"shape": list(sigma.shape), "finite": bool(sigma.isfinite().all()), "peak": peak()}))
