"""Neighborhood attention as one fixed graph of common operators, for export; the size of the map may be symbolic.

Queries are cut into tiles inside their residue groups, as in `tiled`, but all tiles are computed together: one gather
collects the tiles of queries, one collects their windows of keys, and two matrix products with a softmax between them
compute the attention. All tiles of an axis have the same size; the last one is shifted inwards and computes some
queries twice. Tiles with the same relation to the border are of one kind, and each pair of kinds has its own bias, with
-inf for the keys to which a query does not attend.

Nothing depends on the values of tensors, and sizes are only used in integer arithmetic, so that ONNX and torch.export
can keep them symbolic. Memory grows with H * W * (tile + k)**2, less than `reference` needs for its copies of keys.

Shapes:
    B: images; n: heads; D: channels of a head; S: size of an axis; k: kernel size
    Y, X: tiles of a column and a row, of all residue groups; T, U: queries of a tile along Y and X; w, v: keys of its
    window along Y and X; L: distinct lengths of residue groups
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .reference import Call, bias_index
from .tiled import bias_table


class _Axis(NamedTuple):
    """Tiles of one axis.

    Attributes:
        queries: Positions of the queries of each tile [Y, T].
        keys: Positions of the keys of each tile [Y, w].
        bias: Rows (or columns) of the bias table for each kind of tile, 2k - 1 for masked keys: [kinds, T, w].
        kind: Kind of each tile [Y].
        tile: Tile that computes each position [S].
        place: Index of each position in its tile [S].
    """

    queries: Tensor
    keys: Tensor
    bias: Tensor
    kind: Tensor
    tile: Tensor
    place: Tensor


def forward(call: Call) -> Tensor:
    """Compute the attention of [B, H, W, n, D] tensors."""
    query, kernel_size = call.query, call.kernel_size
    height, width, heads, channels = query.shape[1:]
    rows = _axis(height, kernel_size, call.dilation, query.device)
    columns = _axis(width, kernel_size, call.dilation, query.device)
    queries = _tiles(query * call.scale, rows.queries, columns.queries)
    keys, values = (_tiles(x, rows.keys, columns.keys) for x in (call.key, call.value))
    # Adding a zero that depends on the data keeps programs that fold constants from storing the bias of all tiles.
    zero = (query[0, 0, 0, 0, :1] > float("inf")).to(query.dtype)
    bias = _bias(bias_table(call) + zero, rows, columns)
    attended = (queries @ keys.transpose(-1, -2) + bias).softmax(-1) @ values
    tile = rows.tile[:, None] * columns.keys.shape[0] + columns.tile
    place = rows.place[:, None] * columns.queries.shape[1] + columns.place
    index = tile * (rows.queries.shape[1] * columns.queries.shape[1]) + place
    output = attended.flatten(2, 3).index_select(2, index.flatten()).transpose(1, 2)
    return output.reshape(-1, height, width, heads, channels)


def pad_map(x: Tensor, smallest: int) -> Tensor:
    """Pad a map [B, H, W, C] with zeros at the bottom and right to `smallest` rows and columns; sizes may be symbolic.

    `F.pad` would decide during tracing whether the map needs padding.
    """
    for axis in (1, 2):
        size = x.shape[axis]
        position = torch.arange(torch.sym_max(size, smallest), device=x.device)
        inside = (position < size).to(x.dtype).view(-1, *[1] * (3 - axis))
        x = x.index_select(axis, position.clamp(max=size - 1)) * inside
    return x


def crop_map(x: Tensor, height: int, width: int) -> Tensor:
    """Crop a map [B, H, W, ...] at the bottom and right to `height` rows and `width` columns; sizes may be symbolic.

    Tracing would note whether a slice is contiguous, and so whether the map needed padding.
    """
    for axis, size in ((1, height), (2, width)):
        x = x.index_select(axis, torch.arange(size, device=x.device))
    return x


def _axis(size: int, kernel_size: int, dilation: int, device: torch.device) -> _Axis:
    length = (size + dilation - 1) // dilation  # of the first groups; the others have as many positions or one less
    tile, count, window, kinds = _cut(length, kernel_size)
    number = torch.arange(count, device=device)
    first_query = (number * tile).clamp(max=length - tile)
    first_key = (first_query - kernel_size // 2).clamp(max=length - window).clamp(min=0)
    queries = first_query[:, None] + torch.arange(tile, device=device)
    keys = first_key[:, None] + torch.arange(window, device=device)
    group = torch.arange(dilation, device=device)
    group_lengths = (size - group + dilation - 1) // dilation

    # The kinds are the first two and the last two tiles, or fewer; the second one stands for all tiles between them.
    kind = torch.arange(kinds, device=device)
    examples = torch.where(kind < 2, kind, kind + count - kinds).clamp(min=0, max=count - 1)
    kind_of_tile = torch.where(number < count - 2, number.clamp(max=1), number - count + kinds)
    # There are two lengths of groups, unless the size is known to give a single one.
    one_length = dilation == 1 or (isinstance(size, int) and size % dilation == 0)
    lengths = group_lengths[:1] if one_length else torch.stack([group_lengths[0], group_lengths[-1]])
    is_shorter = (group_lengths < length).long()

    position = torch.arange(size, device=device)
    coordinate = position // dilation
    tile_of_position = (coordinate // tile).clamp(max=count - 1)
    return _Axis(
        queries=_positions(queries, group, size, dilation),
        keys=_positions(keys, group, size, dilation),
        bias=bias_index(
            queries[examples][:, :, None], keys[examples][:, None, :], lengths[:, None, None, None], kernel_size
        ).flatten(0, 1),
        kind=(is_shorter[:, None] * kinds + kind_of_tile).flatten(),
        tile=position % dilation * count + tile_of_position,
        place=coordinate - first_query[tile_of_position],
    )


def _cut(length: int, kernel_size: int) -> tuple[int, int, int, int]:
    """Cut groups of `length` >= `kernel_size` positions into tiles.

    The last tile and the windows of the outer tiles are shifted inwards if they would reach outside.

    Returns:
        Queries per tile, number of tiles, keys per window and number of kinds of tiles.
    """
    half = kernel_size // 2
    # Small tiles waste few scores on keys outside the window of a query, but copy keys more often. Tiles of at least
    # this size see a border in the first and last two tiles only.
    largest = max(1, min(kernel_size - 1, max(half + 2, -(-3 * half // 2))))
    count = (length + largest - 1) // largest
    if not isinstance(length, int):
        # Only the number of tiles depends on a symbolic length, because symbols in products of sizes slow down an
        # export. Windows may then reach beyond a short axis, where keys are masked.
        return largest, count, largest + 2 * half, 4
    tile = (length + count - 1) // count
    return tile, count, min(tile + 2 * half, length), min(count, 4)


def _positions(coordinates: Tensor, group: Tensor, size: int, dilation: int) -> Tensor:
    """Turn coordinates in groups [tiles, N] into positions [groups * tiles, N], clamped to the last position."""
    return (coordinates * dilation + group[:, None, None]).flatten(0, 1).clamp(max=size - 1)


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
