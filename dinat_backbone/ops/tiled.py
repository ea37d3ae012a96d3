"""Neighborhood attention as dense attention over tiles, in plain PyTorch, for every device.

Residue groups become batch, queries are cut into Ty x Tx tiles, and all keys of a tile lie in one Wy x Wx window; the
bias of a tile is gathered from `rpb`, with -inf at the keys that a query does not attend, and is shared by all tiles
that see the border alike. Work and memory grow linearly with the map. The backward pass computes probabilities again.

Shapes:
    B: batch; N: batch x residue groups; n: heads; D: channels of a head; k: kernel size
    H, W: height and width of the map; h, w: of one residue group
    Ny, Nx: tiles per column and row; Ty, Tx: queries of a tile; Wy, Wx: keys of its window
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .tiling import Tiling, chunk_elements
from .windows import ResidueGroups, residue_groups


class TiledNeighborhoodAttention(torch.autograd.Function):
    """The differentiable form: `apply(query, key, value, rpb, kernel_size, dilation, scale)`."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        """Compute `tiled_forward` and keep its inputs and output."""
        query, key, value, rpb, *ctx.settings = arguments
        output = tiled_forward(query, key, value, rpb, *ctx.settings)
        ctx.save_for_backward(query, key, value, rpb, output)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of query, key, value and rpb."""
        query, key, value, rpb, output = ctx.saved_tensors
        gradients = tiled_backward(query, key, value, rpb, output, gradient, *ctx.settings)
        return *gradients, None, None, None


def tiled_forward(
    query: Tensor, key: Tensor, value: Tensor, rpb: Tensor | None, kernel_size: int, dilation: int, scale: float
) -> Tensor:
    """Neighborhood attention of [B, H, W, n, D] tensors; see `neighborhood_attention_2d`."""
    output = torch.empty_like(query, memory_format=torch.contiguous_format)
    table = bias_table(rpb, kernel_size, query)
    for heads, view in _group_views(dilation, query, key, value, output):
        tiling = Tiling.choose(view[0], kernel_size)
        queries = tiling.queries(tiling.pad_queries(view[0]))
        keys, values = (tiling.windows(tiling.pad_keys(x)) for x in view[1:3])
        padded = tiling.empty_queries(view[0])
        outputs = tiling.queries(padded)
        for index, chunks in tiling.chunks(query.device):
            bias = _bias(table[heads], index)[None]
            for chunk in chunks:
                q, k, v = (_batch(x[chunk]) for x in (queries, keys, values))
                attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
                outputs[chunk] = attended.view(outputs[chunk].shape)
        view[3].copy_(tiling.crop_queries(padded, view[3]))
    return output


def tiled_backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rpb: Tensor | None,
    output: Tensor,
    gradient: Tensor,
    kernel_size: int,
    dilation: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of query, key, value [B, H, W, n, D] and rpb, given those of the output."""
    results = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (query, key, value)]
    table = bias_table(rpb, kernel_size, query)
    table_gradient = torch.zeros_like(table, dtype=_accumulator(query.dtype))
    # Softmax's backward needs, per query, the mean of the probabilities' gradients: sum(output * gradient).
    mean = (output * gradient).sum(-1, keepdim=True)
    for heads, view in _group_views(dilation, query, key, value, gradient, mean, *results):
        tiling = Tiling.choose(view[0], kernel_size)
        sources = [tiling.queries(tiling.pad_queries(view[i])) for i in (0, 3, 4)]
        sources += [tiling.windows(tiling.pad_keys(view[i])) for i in (1, 2)]
        padded_query = tiling.empty_queries(view[0])
        padded_keys = [tiling.empty_keys(x, _accumulator(x.dtype)).zero_() for x in view[1:3]]
        targets = [tiling.queries(padded_query), *(tiling.windows(x) for x in padded_keys)]
        for index, chunks in tiling.chunks(query.device):
            bias = _bias(table[heads], index)
            bias_gradient = torch.zeros_like(bias, dtype=table_gradient.dtype)
            for chunk in chunks:
                *parts, scores = _tile_gradients(*(_batch(x[chunk]) for x in sources), bias, scale)
                parts = [part.view(target[chunk].shape) for part, target in zip(parts, targets, strict=True)]
                targets[0][chunk] = parts[0]
                for part, target in zip(parts[1:], targets[1:], strict=True):
                    tiling.add_windows(target[chunk], part)
                bias_gradient += scores.sum(0, dtype=bias_gradient.dtype)
            if rpb is not None:
                table_gradient[heads] += _bias_gradient(bias_gradient, index, kernel_size)
        view[5].copy_(tiling.crop_queries(padded_query, view[5]))
        for result, padded in zip(view[6:], padded_keys, strict=True):
            result.copy_(tiling.crop_keys(padded, result))
    rpb_gradient = None if rpb is None else table_gradient[:, :-1, :-1].to(rpb.dtype)
    return results[0], results[1], results[2], rpb_gradient


def _tile_gradients(
    query: Tensor, gradient: Tensor, mean: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value and scores of a batch of tiles [t, n, queries or keys, D]."""
    scaled = query * scale
    scores = scaled @ key.transpose(-1, -2)
    probabilities = scores.add_(bias).softmax(-1)
    # In reduced precision this rounds the probabilities to what the forward pass multiplied the values with.
    score_gradient = (gradient @ value.transpose(-1, -2)).sub_(mean).mul_(probabilities)
    query_gradient = (score_gradient @ key).mul_(scale)
    key_gradient = score_gradient.transpose(-1, -2) @ scaled
    value_gradient = probabilities.transpose(-1, -2) @ gradient
    return query_gradient, key_gradient, value_gradient, score_gradient


def _group_views(dilation: int, *maps: Tensor) -> Iterator[tuple[slice, list[Tensor]]]:
    """Cut `maps` [B, H, W, n, D] into residue groups of one size and some heads, as views [B, gy, gx, n, h, w, D]."""
    batch, height, width, heads, channels = maps[0].shape
    step = max(1, chunk_elements(maps[0].device) // (batch * height * width * channels))
    for rows in residue_groups(height, dilation):
        for columns in residue_groups(width, dilation):
            views = [_group_view(x, rows, columns, dilation) for x in maps]
            for head in range(0, heads, step):
                some = slice(head, head + step)
                yield some, [view[:, :, :, some] for view in views]


def _group_view(x: Tensor, rows: ResidueGroups, columns: ResidueGroups, dilation: int) -> Tensor:
    x = x[:, rows.start :, columns.start :]
    x = x.unfold(1, rows.stop - rows.start, dilation).unfold(2, columns.stop - columns.start, dilation)
    return x.permute(0, 5, 6, 3, 1, 2, 4)


def _batch(tiles: Tensor) -> Tensor:
    """Copy a chunk of tiles [N, Ny, Nx, n, Ty, Tx, D] to a batch [t, n, queries or keys, D]."""
    return tiles.flatten(4, 5).flatten(0, 2)


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def bias_table(rpb: Tensor | None, kernel_size: int, like: Tensor) -> Tensor:
    """`rpb` (or zeros) with one more row and column of -inf, which masked keys point at: [n, 2k, 2k]."""
    size = 2 * kernel_size - 1
    table = like.new_zeros(like.shape[3], size, size) if rpb is None else rpb.to(like.dtype)
    return F.pad(table, (0, 1, 0, 1), value=float("-inf"))


def _bias(table: Tensor, index: tuple[Tensor, Tensor]) -> Tensor:
    """Bias of every query and key of a tile: [n, Ty * Tx, Wy * Wx]."""
    bias = table[:, index[0]][:, :, :, index[1]]  # [n, Ty, Wy, Tx, Wx]
    return bias.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _bias_gradient(gradient: Tensor, index: tuple[Tensor, Tensor], kernel_size: int) -> Tensor:
    """Sum the gradient of a `_bias` [n, Ty * Tx, Wy * Wx] into that of its table [n, 2k, 2k]."""
    (queries_y, keys_y), (queries_x, keys_x) = index[0].shape, index[1].shape
    gradient = gradient.view(-1, queries_y, queries_x, keys_y, keys_x).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    one_hot_y, one_hot_x = (F.one_hot(i.flatten(), 2 * kernel_size).to(gradient.dtype) for i in index)
    return one_hot_y.T @ (gradient @ one_hot_x)
