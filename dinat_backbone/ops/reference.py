"""The definition of neighborhood attention: its arguments, its windows, and a direct computation that gathers all keys.

Shapes:
    B: images; H, W: height and width of the map; n: heads; D: channels of a head; k: kernel size
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Call(NamedTuple):
    """Arguments of one call, after `neighborhood_attention_2d`, which describes them, has checked them."""

    query: Tensor
    key: Tensor
    value: Tensor
    rpb: Tensor | None
    kernel_size: int
    dilation: int
    scale: float
    dropout_p: float = 0.0


def why_no_dropout(call: Call) -> str | None:
    """Return the reason why all other backends refuse a call with attention dropout; None for calls without."""
    return "attention dropout is served by the backend 'reference' alone" if call.dropout_p > 0 else None


def window_start(coordinate: Tensor, length: int | Tensor, kernel_size: int) -> Tensor:
    """First key of each query along one axis.

    Positions i of an axis fall into `dilation` residue groups g = i mod dilation; within a group of n positions, the
    query at coordinate x attends to the k keys s .. s + k - 1 with s = clamp(x - k // 2, 0, n - k) (Hassani and Shi,
    "Dilated Neighborhood Attention Transformer", arXiv 2209.15001, section 3.1).

    Args:
        coordinate: Coordinates of the queries in their groups.
        length: Number of positions of the groups.
        kernel_size: Keys per query along the axis.
    """
    return torch.minimum((coordinate - kernel_size // 2).clamp(min=0), torch.as_tensor(length - kernel_size))


def forward(call: Call) -> Tensor:
    """Compute the attention of [B, H, W, n, D] tensors; memory grows with H * W * k ** 2.

    Probabilities are dropped as in `F.dropout`.
    """
    rows, row_bias = _neighbors(call.query.shape[1], call.kernel_size, call.dilation)
    columns, column_bias = _neighbors(call.query.shape[2], call.kernel_size, call.dilation)
    index = (slice(None), rows[:, None, :, None], columns[None, :, None, :])
    scores = torch.einsum("bhwnd,bhwyxnd->bhwnyx", call.query, call.key[index]) * call.scale
    if call.rpb is not None:
        bias = call.rpb.to(scores.dtype)[:, row_bias[:, None, :, None], column_bias[None, :, None, :]]
        scores = scores + bias.permute(1, 2, 0, 3, 4)
    probabilities = scores.flatten(-2).softmax(-1).view_as(scores)
    probabilities = F.dropout(probabilities, call.dropout_p)
    return torch.einsum("bhwnyx,bhwyxnd->bhwnd", probabilities, call.value[index])


def _neighbors(size: int, kernel_size: int, dilation: int) -> tuple[Tensor, Tensor]:
    """Positions of the keys of each query along one axis, and their entries in the bias table: [size, k] each."""
    position = torch.arange(size)
    group, coordinate = position % dilation, position // dilation
    length = (size - group + dilation - 1) // dilation
    first = window_start(coordinate, length, kernel_size)
    keys = first[:, None] + torch.arange(kernel_size)
    return keys * dilation + group[:, None], keys - coordinate[:, None] + kernel_size - 1
