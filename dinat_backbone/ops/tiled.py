"""Neighborhood attention as dense attention over tiles, in plain PyTorch, for every device.

Residue groups become part of the batch, queries are cut into Ty x Tx tiles, and all keys of a tile lie in one Wy x Wx
window. The bias of a tile is gathered from `rpb`, with -inf for the keys to which a query does not attend, and shared
by all tiles that see the border alike. Work and memory grow linearly with the map. The backward pass recomputes the
probabilities.

Shapes:
    B: images; N: images x residue groups; n: heads; D: channels of a head; k: kernel size
    H, W: height and width of the map; h, w: of one residue group; t: tiles of a chunk
    Ny, Nx: tiles per column and row; Ty, Tx: queries of a tile; Wy, Wx: keys of its window
"""

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .reference import Call
from .tiling import Tiling, residue_groups


def forward(call: Call) -> Tensor:
    """Compute the attention of [B, H, W, n, D] tensors."""
    return _Attention.apply(*call) if torch.is_grad_enabled() else _forward(call)


class _Attention(torch.autograd.Function):
    """The differentiable form; its arguments are those of a `Call`."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        ctx.settings = arguments[4:]
        output = _forward(Call(*arguments))
        ctx.save_for_backward(*arguments[:4], output)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, output = ctx.saved_tensors
        gradients = _backward(Call(*tensors, *ctx.settings), output, gradient)
        return *gradients, None, None, None, None


def _forward(call: Call) -> Tensor:
    output = torch.empty_like(call.query, memory_format=torch.contiguous_format)
    table = bias_table(call)
    for heads, (query, key, value, result) in _group_views(call.dilation, call.query, call.key, call.value, output):
        tiling = Tiling.choose(query, call.kernel_size)
        queries = tiling.queries(tiling.pad(query, margins=False))
        keys, values = (tiling.windows(tiling.pad(x, margins=True)) for x in (key, value))
        padded = tiling.empty(query, margins=False)
        outputs = tiling.queries(padded)
        for index, chunks in tiling.chunks(query.device):
            bias = _bias(table[heads], index)[None]
            for chunk in chunks:
                q, k, v = (_batch(x[chunk]) for x in (queries, keys, values))
                attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=call.scale)
                outputs[chunk] = attended.view(outputs[chunk].shape)
        result.copy_(tiling.crop(padded, result, margins=False))
    return output


def _backward(call: Call, output: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Compute the gradients of query, key, value and rpb from the gradient of the output."""
    inputs = call.query, call.key, call.value
    results = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs]
    table = bias_table(call)
    table_gradient = torch.zeros_like(table, dtype=_accumulator(table))
    # The backward pass of softmax needs, per query, the mean gradient of the probabilities: sum(output * gradient).
    mean = (output * gradient).sum(-1, keepdim=True)
    for heads, view in _group_views(call.dilation, *inputs, gradient, mean, *results):
        tiling = Tiling.choose(view[0], call.kernel_size)
        sources = [tiling.queries(tiling.pad(view[i], margins=False)) for i in (0, 3, 4)]
        sources += [tiling.windows(tiling.pad(view[i], margins=True)) for i in (1, 2)]
        padded_query = tiling.empty(view[0], margins=False)
        padded_keys = [tiling.empty(x, margins=True, dtype=_accumulator(x)).zero_() for x in view[1:3]]
        targets = [tiling.queries(padded_query), *(tiling.windows(x) for x in padded_keys)]
        for index, chunks in tiling.chunks(call.query.device):
            bias = _bias(table[heads], index)
            bias_gradient = torch.zeros_like(bias, dtype=table_gradient.dtype)
            for chunk in chunks:
                *parts, scores = _tile_gradients(*(_batch(x[chunk]) for x in sources), bias, call.scale)
                parts = [part.view(target[chunk].shape) for part, target in zip(parts, targets, strict=True)]
                targets[0][chunk] = parts[0]
                for part, target in zip(parts[1:], targets[1:], strict=True):
                    tiling.add_windows(target[chunk], part)
                bias_gradient += scores.sum(0, dtype=bias_gradient.dtype)
            if call.rpb is not None:
                table_gradient[heads] += _bias_gradient(bias_gradient, index, call.kernel_size)
        view[5].copy_(tiling.crop(padded_query, view[5], margins=False))
        for result, padded in zip(view[6:], padded_keys, strict=True):
            result.copy_(tiling.crop(padded, result, margins=True))
    rpb_gradient = None if call.rpb is None else table_gradient[:, :-1, :-1].to(call.rpb.dtype)
    return results[0], results[1], results[2], rpb_gradient


def _tile_gradients(
    query: Tensor, gradient: Tensor, mean: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradients of query, key, value and scores of a batch of tiles [t, n, queries or keys, D]."""
    scaled = query * scale
    scores = scaled @ key.transpose(-1, -2)
    probabilities = scores.add_(bias).softmax(-1)
    # In reduced precision this rounds the probabilities as the forward pass did before it multiplied the values.
    score_gradient = (gradient @ value.transpose(-1, -2)).sub_(mean).mul_(probabilities)
    query_gradient = (score_gradient @ key).mul_(scale)
    key_gradient = score_gradient.transpose(-1, -2) @ scaled
    value_gradient = probabilities.transpose(-1, -2) @ gradient
    return query_gradient, key_gradient, value_gradient, score_gradient


def _group_views(dilation: int, *maps: Tensor) -> Iterator[tuple[slice, list[Tensor]]]:
    """Yield some heads and views [B, gy, gx, n, h, w, D] of `maps` [B, H, W, n, D] for residue groups of one size."""
    batch, height, width, heads, channels = maps[0].shape
    # Elements of a map copied at a time: on a CPU few enough that the allocator reuses the memory.
    elements = 1 << 20 if maps[0].device.type == "cpu" else 1 << 28
    step = max(1, elements // (batch * height * width * channels))
    for rows, columns in product(residue_groups(height, dilation), residue_groups(width, dilation)):
        views = [
            x[:, rows.start :, columns.start :]
            .unfold(1, len(rows), dilation)
            .unfold(2, len(columns), dilation)
            .permute(0, 5, 6, 3, 1, 2, 4)
            for x in maps
        ]
        for head in range(0, heads, step):
            some = slice(head, head + step)
            yield some, [view[:, :, :, some] for view in views]


def _batch(tiles: Tensor) -> Tensor:
    """Copy a chunk of tiles [N, Ny, Nx, n, Ty, Tx, D] into a batch [t, n, queries or keys, D]."""
    return tiles.flatten(4, 5).flatten(0, 2)


def _accumulator(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def bias_table(call: Call) -> Tensor:
    """Return `rpb` (or zeros) with an additional row and column of -inf for masked keys: [n, 2k, 2k]."""
    size = 2 * call.kernel_size - 1
    query, rpb = call.query, call.rpb
    table = query.new_zeros(query.shape[3], size, size) if rpb is None else rpb.to(query.dtype)
    return F.pad(table, (0, 1, 0, 1), value=float("-inf"))


def _bias(table: Tensor, index: tuple[Tensor, Tensor]) -> Tensor:
    """Bias of every query and key of a tile: [n, Ty * Tx, Wy * Wx]."""
    bias = table[:, index[0]][:, :, :, index[1]]  # [n, Ty, Wy, Tx, Wx]
    return bias.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _bias_gradient(gradient: Tensor, index: tuple[Tensor, Tensor], kernel_size: int) -> Tensor:
    """Sum the gradient of a `_bias` [n, Ty * Tx, Wy * Wx] into the gradient of its table [n, 2k, 2k]."""
    (queries_y, keys_y), (queries_x, keys_x) = index[0].shape, index[1].shape
    gradient = gradient.view(-1, queries_y, queries_x, keys_y, keys_x).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    one_hot_y, one_hot_x = (F.one_hot(i.flatten(), 2 * kernel_size).to(gradient.dtype) for i in index)
    return one_hot_y.T @ (gradient @ one_hot_x)
