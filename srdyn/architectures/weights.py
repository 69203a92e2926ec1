"""Layers and parameters cut down, in place, to some of their channels."""

from collections.abc import Sequence

import torch
from jaxtyping import Int64
from torch import Tensor, nn

Places = Int64[Tensor, " kept"]


def places(heads: Sequence[int], size: int = 1) -> Places:
    """Numbers of the channels of some heads where each head has `size` of them, head after head."""
    return (torch.tensor(heads, dtype=torch.int64)[:, None] * size + torch.arange(size)).flatten()


def taken(parameter: nn.Parameter, kept: Places, *, axis: int = 0) -> nn.Parameter:
    """A parameter of its own with these places along one axis."""
    values = parameter.detach().index_select(axis, kept.to(parameter.device))
    return nn.Parameter(values, requires_grad=parameter.requires_grad)


def cut_outputs(linear: nn.Linear, kept: Places) -> None:
    """Leave a projection these of its outputs."""
    linear.weight, linear.out_features = taken(linear.weight, kept), len(kept)
    if linear.bias is not None:
        linear.bias = taken(linear.bias, kept)


def cut_inputs(linear: nn.Linear, kept: Places) -> None:
    """Leave a projection these of its inputs."""
    linear.weight, linear.in_features = taken(linear.weight, kept, axis=1), len(kept)


def cut_channels(convolution: nn.Conv1d, kept: Places) -> None:
    """Leave a depthwise convolution these of its channels."""
    convolution.weight = taken(convolution.weight, kept)
    if convolution.bias is not None:
        convolution.bias = taken(convolution.bias, kept)
    convolution.in_channels = convolution.out_channels = convolution.groups = len(kept)
