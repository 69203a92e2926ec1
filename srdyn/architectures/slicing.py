"""Which rows, columns and channels of a layer's weights belong to some of its heads."""

from collections.abc import Sequence

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from srdyn.architectures import recipe


def blocks(heads: Sequence[int], size: int = 1) -> Int64[Tensor, " rows"]:
    """Numbers of the rows of some heads where each head has `size` of them, head after head."""
    return (torch.tensor(heads, dtype=torch.int64)[:, None] * size + torch.arange(size)).flatten()


def channels(
    heads: recipe.Heads, *, value_heads: Sequence[int], key_heads: Sequence[int]
) -> Int64[Tensor, " channels"]:
    """Numbers of the channels that hold q and k of some key heads and v of some value heads, in a layer of `heads`."""
    all_keys = heads.key_heads * heads.K
    q = blocks(key_heads, heads.K)
    return torch.cat([q, all_keys + q, 2 * all_keys + blocks(value_heads, heads.V)])


def taken(parameter: nn.Parameter, places: Int64[Tensor, " kept"], *, axis: int = 0) -> nn.Parameter:
    """The parameter with these places of one axis only."""
    picked = parameter.detach().index_select(axis, places.to(parameter.device))
    return nn.Parameter(picked, requires_grad=parameter.requires_grad)


def cut_outputs(projection: nn.Linear, rows: Int64[Tensor, " rows"]) -> None:
    """Leave a projection, in place, these of its outputs."""
    projection.weight, projection.out_features = taken(projection.weight, rows), len(rows)
    if projection.bias is not None:
        projection.bias = taken(projection.bias, rows)


def cut_inputs(projection: nn.Linear, columns: Int64[Tensor, " columns"]) -> None:
    """Leave a projection, in place, these of its inputs."""
    projection.weight, projection.in_features = taken(projection.weight, columns, axis=1), len(columns)


def cut_channels(convolution: nn.Conv1d, kept: Int64[Tensor, " channels"]) -> None:
    """Leave a convolution of single channels, in place, these of them."""
    convolution.weight = taken(convolution.weight, kept)
    if convolution.bias is not None:
        convolution.bias = taken(convolution.bias, kept)
    convolution.in_channels = convolution.out_channels = convolution.groups = len(kept)
