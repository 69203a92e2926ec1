"""Matrix products in bfloat16 for training on a CPU that multiplies them faster than float32.

Inputs and results are rounded; sums, weights and everything between the products stay float32.
"""

import functools

import torch
from torch import Tensor, nn


def supported() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware."""
    return bool(torch.cpu.get_capabilities().get("avx512_bf16") or torch.cpu.get_capabilities().get("amx_bf16"))


def use_bfloat16(model: nn.Module) -> None:
    """Let linear layers without bias, of at least 64 outputs and inputs, multiply in bfloat16."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.bias is None and min(module.weight.shape) >= 64:
            module.forward = functools.partial(_forward, module)


def _forward(layer: nn.Linear, x: Tensor) -> Tensor:
    """Asks the layer, so that it follows its weight when that is tied or exchanged."""
    return _Product.apply(x, layer.weight)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        x16, weight16 = x.flatten(0, -2).bfloat16(), weight.bfloat16()
        ctx.save_for_backward(x16, weight16)
        ctx.shape = x.shape
        return (x16 @ weight16.T).float().view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        x16, weight16 = ctx.saved_tensors
        grad16 = grad.flatten(0, -2).bfloat16()
        return (grad16 @ weight16).float().view(ctx.shape), (grad16.T @ x16).float()
