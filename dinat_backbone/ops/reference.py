"""Neighborhood attention as its definition reads: gather every query's keys, for tests and for attention dropout."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .windows import window_start


def reference_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rpb: Tensor | None,
    kernel_size: int,
    dilation: int,
    scale: float,
    dropout_p: float = 0.0,
) -> Tensor:
    """Neighborhood attention of [B, H, W, n, D] tensors; memory grows with H * W * kernel_size ** 2.

    See `neighborhood_attention_2d`. With `dropout_p`, attention probabilities are dropped as in `F.dropout`.
    """
    rows, row_bias = _neighbors(query.shape[1], kernel_size, dilation)
    columns, column_bias = _neighbors(query.shape[2], kernel_size, dilation)
    index = (slice(None), rows[:, None, :, None], columns[None, :, None, :])
    scores = torch.einsum("bhwnd,bhwyxnd->bhwnyx", query, key[index]) * scale
    if rpb is not None:
        bias = rpb.to(scores.dtype)[:, row_bias[:, None, :, None], column_bias[None, :, None, :]]
        scores = scores + bias.permute(1, 2, 0, 3, 4)
    probabilities = scores.flatten(-2).softmax(-1).view_as(scores)
    probabilities = F.dropout(probabilities, dropout_p)
    return torch.einsum("bhwnyx,bhwyxnd->bhwnd", probabilities, value[index])


def _neighbors(size: int, kernel_size: int, dilation: int) -> tuple[Tensor, Tensor]:
    """Positions of the keys of each query along one axis, and their entries in the bias table: [size, kernel_size]."""
    position = torch.arange(size)
    group, coordinate = position % dilation, position // dilation
    length = (size - group + dilation - 1) // dilation
    first = window_start(coordinate, length, kernel_size)
    keys = first[:, None] + torch.arange(kernel_size)
    return keys * dilation + group[:, None], keys - coordinate[:, None] + kernel_size - 1
