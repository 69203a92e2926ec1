"""What makes a reference model read and train faster on a CPU, module by module, with the same results to rounding."""

import functools

import torch
from torch import nn
from transformers.models.qwen3_next import modeling_qwen3_next as qwen3_next

from srdyn import architectures
from srdyn.architectures import rebinding
from srdyn.kernels import fused, simd
from srdyn.kernels.bfloat16 import use_bfloat16


def use(hf: nn.Module, *, bfloat16: bool = False) -> None:
    """Let this one model run the compiled forms of `fused`, with `bfloat16` those of `bfloat16` too, if it is `fit`.

    Any other runs as transformers made it. The recurrence itself is compiled for every loaded model.
    """
    if not fit(hf):
        return
    for site in architectures.sites(hf):
        rebinding.bind(site.mixer, {"causal_conv1d_fn": fused.causal_conv1d_fn})
    for module in hf.modules():
        forward = _FORWARDS.get(type(module))
        if forward is not None:
            module.forward = functools.partial(forward, module)
    if bfloat16:
        use_bfloat16(hf)


def fit(hf: nn.Module) -> bool:
    """Whether `use` knows this model: a whole Qwen3-Next on a CPU, float32, widths multiples of sixteen, no expert."""
    if any(site.recipe.is_pruned(site.mixer) for site in architectures.sites(hf)):
        return False
    if not isinstance(hf, qwen3_next.Qwen3NextForCausalLM) or hf.device.type != "cpu" or hf.dtype != torch.float32:
        return False
    widths = [len(module.weight) for module in hf.modules() if type(module) in _NORMS]
    return not hf.config.num_experts and all(width % simd.WIDTH == 0 for width in widths)


_NORMS = (qwen3_next.Qwen3NextRMSNormGated, qwen3_next.Qwen3NextRMSNorm)
_FORWARDS = {
    _NORMS[0]: lambda norm, x, gate: fused.gated_norm(x, gate, norm.weight, eps=norm.variance_epsilon),
    _NORMS[1]: lambda norm, x: fused.norm(x, norm.weight, eps=norm.eps),
    qwen3_next.Qwen3NextMLP: lambda mlp, x: mlp.down_proj(fused.swiglu(mlp.gate_proj(x), mlp.up_proj(x))),
}
"""Forwards by class, of the module and what it reads."""
