"""Which rows, columns and channels of a layer's weights belong to some of its heads."""

from collections.abc import Sequence

import torch
from jaxtyping import Int64
from torch import Tensor, nn


def blocks(heads: Sequence[int], size: int = 1) -> Int64[Tensor, " rows"]:
    """Numbers of the rows of some heads where each head has `size` of them, head after head."""
    return (torch.tensor(heads, dtype=torch.int64)[:, None] * size + torch.arange(size)).flatten()


def taken(parameter: nn.Parameter, places: Int64[Tensor, " kept"], *, axis: int = 0) -> nn.Parameter:
    """The parameter with these places of one axis only."""
    picked = parameter.detach().index_select(axis, places.to(parameter.device))
    return nn.Parameter(picked, requires_grad=parameter.requires_grad)


def cut(owner: nn.Module, name: str, rows: Int64[Tensor, " rows"]) -> None:
    """Leave a part, in place, these of its rows: a parameter, a projection, a convolution, a norm, a number of them."""
    part = getattr(owner, name)
    if isinstance(part, int):
        setattr(owner, name, len(rows))
        return
    if isinstance(part, nn.Parameter):
        setattr(owner, name, taken(part, rows))
        return
    for vector, kept in list(part.named_parameters(recurse=False)):
        setattr(part, vector, taken(kept, rows))
    if isinstance(part, nn.Linear):
        part.out_features = len(rows)
    elif isinstance(part, nn.Conv1d):
        part.in_channels = part.out_channels = part.groups = len(rows)
    if hasattr(part, "hidden_size"):
        part.hidden_size = len(rows)
