"""What makes a reference model read and train faster on a CPU, module by module, with the same results to rounding."""

import functools
import sys

import torch
from torch import nn

from srdyn import architectures
from srdyn.architectures import rebinding
from srdyn.kernels import fused, simd
from srdyn.kernels.bfloat16 import use_bfloat16

_FILE = "transformers.models.qwen3_next.modeling_qwen3_next"


def use(hf: nn.Module, *, bfloat16: bool = False) -> None:
    """Let this one model run the compiled forms of `fused`, if it is `fit`, and with `bfloat16` those of `bfloat16`.

    Any other runs as its class made it. The recurrence itself is compiled for every loaded model.
    """
    if bfloat16:
        use_bfloat16(hf)
    if not fit(hf):
        return
    for site in architectures.sites(hf):
        rebinding.bind(site.mixer, {"causal_conv1d_fn": fused.causal_conv1d_fn})
    file = sys.modules[_FILE]
    forwards = {
        file.Qwen3NextRMSNormGated: lambda norm, x, z: fused.gated_norm(x, z, norm.weight, eps=norm.variance_epsilon),
        file.Qwen3NextRMSNorm: lambda norm, x: fused.norm(x, norm.weight, eps=norm.eps),
        file.Qwen3NextMLP: lambda mlp, x: mlp.down_proj(fused.swiglu(mlp.gate_proj(x), mlp.up_proj(x))),
    }
    for module in hf.modules():
        forward = forwards.get(type(module))
        if forward is not None:
            module.forward = functools.partial(forward, module)


def fit(hf: nn.Module) -> bool:
    """Whether `use` knows this model: a whole Qwen3-Next on a CPU, float32, widths multiples of sixteen, no expert."""
    if any(site.recipe.is_pruned(site.mixer) for site in architectures.sites(hf)):
        return False
    file = sys.modules.get(_FILE)  # imported as soon as there is such a model
    if file is None or not isinstance(hf, file.Qwen3NextForCausalLM):
        return False
    if hf.device.type != "cpu" or hf.dtype != torch.float32:
        return False
    norms = (file.Qwen3NextRMSNormGated, file.Qwen3NextRMSNorm)
    widths = [len(module.weight) for module in hf.modules() if type(module) in norms]
    return not hf.config.num_experts and all(width % simd.WIDTH == 0 for width in widths)
