"""Neighborhood attention as one fixed graph of common operators, for export: the size of the map may be symbolic.

Queries are cut into tiles inside their residue groups, as in `tiled`, but all tiles are computed together: one gather
makes tiles of queries, one makes their windows of keys, and two matrix products with a softmax between them attend.
All tiles of an axis have one size; the last one is moved inwards and computes some queries a second time. Tiles with
the same relation to the border share a kind, and each pair of kinds has its bias, with -inf at the keys that a query
does not attend.

Nothing depends on the values of tensors, and sizes only go through integer arithmetic, so that ONNX and torch.export
can keep them as unknowns. Memory grows with H * W * (tile + k)**2, less than `reference` needs for its copies of keys.

Shapes:
    B: batch; n: heads; D: channels of a head; S: size of an axis, k: kernel size
    Y, X: tiles of a column and a row, of all residue groups; T: queries of a tile; w: keys of a window
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .tiled import bias_table
from .windows import window_start


class _Axis(NamedTuple):
    """Tiles of one axis.

    Attributes:
        queries: positions [Y, T].
        keys: positions [Y, w].
        bias: kinds of tiles, as rows (or columns) of the bias table, 2k - 1 where masked: [kinds, T, w].
        kind: of each tile [Y].
        tile: which computes each position [S].
        place: of each position in its tile [S].
    """

    queries: Tensor
    keys: Tensor
    bias: Tensor
    kind: Tensor
    tile: Tensor
    place: Tensor


def exportable_forward(
    query: Tensor, key: Tensor, value: Tensor, rpb: Tensor | None, kernel_size: int, dilation: int, scale: float
) -> Tensor:
    """Neighborhood attention of [B, H, W, n, D] tensors; see `neighborhood_attention_2d`."""
    height, width, heads, channels = query.shape[1:]
    rows = _axis(height, kernel_size, dilation, query.device)
    columns = _axis(width, kernel_size, dilation, query.device)
    queries = _tiles(query * scale, rows.queries, columns.queries)
    keys, values = (_tiles(x, rows.keys, columns.keys) for x in (key, value))
    # Plus a zero that depends on the data: otherwise programs that fold constants would store the bias of all tiles.
    zero = (query[0, 0, 0, 0, :1] > float("inf")).to(query.dtype)
    bias = _bias(bias_table(rpb, kernel_size, query) + zero, rows, columns)
    attended = (queries @ keys.transpose(-1, -2) + bias).softmax(-1) @ values
    tile = rows.tile[:, None] * columns.keys.shape[0] + columns.tile
    place = rows.place[:, None] * columns.queries.shape[1] + columns.place
    index = tile * (rows.queries.shape[1] * columns.queries.shape[1]) + place
    output = attended.flatten(2, 3).index_select(2, index.flatten()).transpose(1, 2)
    return output.reshape(-1, height, width, heads, channels)


def pad_map(x: Tensor, smallest: int) -> Tensor:
    """Pad a map [B, H, W, C] with zeros at the bottom and right to `smallest` rows and columns; sizes may be symbolic.

    `F.pad` would decide while it is traced whether there is anything to pad.
    """
    for axis in (1, 2):
        size = x.shape[axis]
        position = torch.arange(torch.sym_max(size, smallest), device=x.device)
        inside = (position < size).to(x.dtype).view(-1, *[1] * (3 - axis))
        x = x.index_select(axis, position.clamp(max=size - 1)) * inside
    return x


def _axis(size: int, kernel_size: int, dilation: int, device: torch.device) -> _Axis:
    length = (size + dilation - 1) // dilation  # of the first groups; the others have one position less, or as many
    tile, count, window, kinds = _cut(length, kernel_size)
    number = torch.arange(count, device=device)
    first_query = (number * tile).clamp(max=length - tile)
    first_key = (first_query - kernel_size // 2).clamp(max=length - window).clamp(min=0)
    queries = first_query[:, None] + torch.arange(tile, device=device)
    keys = first_key[:, None] + torch.arange(window, device=device)
    group = torch.arange(dilation, device=device)
    group_lengths = (size - group + dilation - 1) // dilation

    # Kinds: the first two tiles and the last two (fewer where there are fewer), the second standing for all between.
    kind = torch.arange(kinds, device=device)
    examples = torch.where(kind < 2, kind, kind + count - kinds).clamp(min=0, max=count - 1)
    kind_of_tile = torch.where(number < count - 2, number.clamp(max=1), number - count + kinds)
    # Both lengths of groups, unless there is only one for sure.
    one_length = dilation == 1 or (isinstance(size, int) and size % dilation == 0)
    lengths = group_lengths[:1] if one_length else torch.stack([group_lengths[0], group_lengths[-1]])
    is_shorter = (group_lengths < length).long()

    position = torch.arange(size, device=device)
    coordinate = position // dilation
    tile_of_position = (coordinate // tile).clamp(max=count - 1)
    return _Axis(
        queries=_positions(queries, group, size, dilation),
        keys=_positions(keys, group, size, dilation),
        bias=_relative_index(queries[examples], keys[examples], lengths, kernel_size),
        kind=(is_shorter[:, None] * kinds + kind_of_tile).flatten(),
        tile=position % dilation * count + tile_of_position,
        place=coordinate - first_query[tile_of_position],
    )


def _cut(length: int, kernel_size: int) -> tuple[int, int, int, int]:
    """Queries of a tile, tiles, keys of a window and kinds of tiles for groups of `length` >= `kernel_size` positions.

    The last tile and the windows of the outer tiles are moved inwards where they would reach outside.
    """
    half = kernel_size // 2
    # Small tiles waste few scores on keys outside a query's window, and copy keys more often. No smaller than this, so
    # that a border reaches into two tiles at most.
    largest = max(1, min(kernel_size - 1, max(half + 2, -(-3 * half // 2))))
    count = (length + largest - 1) // largest
    if not isinstance(length, int):
        # Of a symbolic length only the number of tiles depends: unknowns in products of sizes make an export slow.
        # Windows may reach beyond a short axis then, where keys are masked.
        return largest, count, largest + 2 * half, 4
    tile = (length + count - 1) // count
    return tile, count, min(tile + 2 * half, length), min(count, 4)


def _positions(coordinates: Tensor, group: Tensor, size: int, dilation: int) -> Tensor:
    """Turn coordinates in groups [tiles, N] into positions [groups * tiles, N]; those outside into the last one."""
    return (coordinates * dilation + group[:, None, None]).flatten(0, 1).clamp(max=size - 1)


def _relative_index(queries: Tensor, keys: Tensor, lengths: Tensor, kernel_size: int) -> Tensor:
    """Entry of the bias table for queries [kinds, T] and keys [kinds, w] in groups of some lengths [L].

    Returns:
        [L * kinds, T, w], 2k - 1 outside a query's window.
    """
    query, key, length = queries[:, :, None], keys[:, None, :], lengths[:, None, None, None]
    start = window_start(query, length, kernel_size)
    inside = (key >= start) & (key < start + kernel_size)
    # A query that a shorter group does not have would look before the table; nobody reads its result.
    index = (key - query + kernel_size - 1).clamp(min=0)
    return torch.where(inside, index, 2 * kernel_size - 1).flatten(0, 1)


def _tiles(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Gather a map [B, H, W, n, D] at rows [Y, T] and columns [X, U] into tiles [B, n, Y * X, T * U, D]."""
    index = rows[:, None, :, None] * x.shape[2] + columns[:, None, :]
    tiles = x.flatten(1, 2).transpose(1, 2).index_select(2, index.flatten())
    shape = (rows.shape[0] * columns.shape[0], rows.shape[1] * columns.shape[1])
    return tiles.view(*tiles.shape[:2], *shape, x.shape[4])


def _bias(table: Tensor, rows: _Axis, columns: _Axis) -> Tensor:
    """Bias of all queries and keys: [n, Y * X, T * U, w * v]."""
    row, column = rows.bias[:, None, :, None, :, None], columns.bias[:, None, :, None, :]
    index = row * table.shape[2] + column  # [kinds, kinds, T, U, w, v]
    kinds = table.flatten(1).index_select(1, index.flatten()).view(-1, *index.shape)
    kinds = kinds.flatten(5, 6).flatten(3, 4).flatten(1, 2)
    kind = rows.kind[:, None] * columns.bias.shape[0] + columns.kind
    return kinds.index_select(1, kind.flatten())
