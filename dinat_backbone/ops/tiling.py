"""Tiles over the residue groups of a map: which queries and keys are computed together, as views without copies.

Shapes:
    B: batch; N: batch x residue groups; n: heads; D: channels of a head
    h, w: height and width of a residue group
    Ny, Nx: tiles per column and row; Ty, Tx: queries of a tile; Wy, Wx: keys of its window
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .windows import TilePattern, TilePlan, tile_plans

# Larger tiles waste more on keys outside a query's window than they save on keys copied.
_LARGEST_TILE_SIDE = 16
# Copying a key and its value into a window takes about as long as computing this many scores.
_SCORES_PER_COPIED_KEY = 12


def chunk_scores(device: torch.device) -> int:
    """Scores computed at a time: enough to occupy a device; on a CPU few enough for its cache."""
    return 1 << 18 if device.type == "cpu" else 1 << 26


def chunk_elements(device: torch.device) -> int:
    """Map elements copied at a time: on a CPU so few that the allocator keeps the memory instead of asking for more."""
    return 1 << 20 if device.type == "cpu" else 1 << 28


@dataclass(frozen=True)
class Tiling:
    """Tiles over residue groups of one size; groups come as views [B, gy, gx, n, h, w, D], copies are [N, n, ...]."""

    vertical: TilePlan
    horizontal: TilePlan
    batch: int
    heads: int

    @classmethod
    def choose(cls, groups: Tensor, kernel_size: int) -> "Tiling":
        """Take the pair of plans that computes least, counting scores and keys copied."""
        height, width = groups.shape[4:6]
        pairs = [
            (y, x)
            for y in tile_plans(height, kernel_size, _LARGEST_TILE_SIDE)
            for x in tile_plans(width, kernel_size, _LARGEST_TILE_SIDE)
        ]
        y, x = min(pairs, key=lambda p: p[0].scores * p[1].scores + _SCORES_PER_COPIED_KEY * p[0].keys * p[1].keys)
        return cls(y, x, batch=math.prod(groups.shape[:3]), heads=groups.shape[3])

    def empty_queries(self, groups: Tensor) -> Tensor:
        """Memory [N, n, Ny * Ty, Nx * Tx, D] for whole tiles of queries like `groups`."""
        y, x = self.vertical, self.horizontal
        return groups.new_empty(self.batch, self.heads, y.count * y.tile, x.count * x.tile, groups.shape[-1])

    def crop_queries(self, padded: Tensor, groups: Tensor) -> Tensor:
        """The part of padded queries that is not padding, as [B, gy, gx, n, h, w, D]."""
        y, x = self.vertical, self.horizontal
        cropped = padded[:, :, y.shift : y.shift + y.length, x.shift : x.shift + x.length]
        return cropped.unflatten(0, groups.shape[:3])

    def pad_queries(self, groups: Tensor) -> Tensor:
        """Copy queries into whole tiles."""
        padded = self.empty_queries(groups)
        return _copy_between_zeros(groups, padded, self.crop_queries(padded, groups))

    def empty_keys(self, groups: Tensor, dtype: torch.dtype) -> Tensor:
        """Memory [N, n, Ny * Ty + margins, Nx * Tx + margins, D] for all that windows reach into."""
        y, x = self.vertical, self.horizontal
        rows, columns = y.count * y.tile + 2 * y.margin, x.count * x.tile + 2 * x.margin
        return groups.new_empty(self.batch, self.heads, rows, columns, groups.shape[-1], dtype=dtype)

    def crop_keys(self, padded: Tensor, groups: Tensor) -> Tensor:
        """The part of padded keys that is not padding, as [B, gy, gx, n, h, w, D]."""
        y, x = self.vertical, self.horizontal
        top, left = y.shift + y.margin, x.shift + x.margin
        return padded[:, :, top : top + y.length, left : left + x.length].unflatten(0, groups.shape[:3])

    def pad_keys(self, groups: Tensor) -> Tensor:
        """Copy keys between the margins."""
        padded = self.empty_keys(groups, groups.dtype)
        return _copy_between_zeros(groups, padded, self.crop_keys(padded, groups))

    def queries(self, padded: Tensor) -> Tensor:
        """View padded queries as tiles [N, Ny, Nx, n, Ty, Tx, D]."""
        y, x = self.vertical, self.horizontal
        tiles = padded.unflatten(3, (x.count, x.tile)).unflatten(2, (y.count, y.tile))
        return tiles.permute(0, 2, 4, 1, 3, 5, 6)

    def windows(self, padded: Tensor) -> Tensor:
        """View padded keys as the overlapping windows of all tiles: [N, Ny, Nx, n, Wy, Wx, D]."""
        y, x = self.vertical, self.horizontal
        return padded.unfold(2, y.window, y.tile).unfold(3, x.window, x.tile).permute(0, 2, 3, 1, 5, 6, 4)

    def add_windows(self, windows: Tensor, gradient: Tensor) -> None:
        """Add to overlapping `windows` (a view of a padded map) in place."""
        # Windows this many tiles apart do not overlap, so each addition writes an element at most once.
        apart_y, apart_x = (-(-plan.window // plan.tile) for plan in (self.vertical, self.horizontal))
        for row in range(min(apart_y, windows.shape[1])):
            for column in range(min(apart_x, windows.shape[2])):
                windows[:, row::apart_y, column::apart_x] += gradient[:, row::apart_y, column::apart_x]

    def chunks(self, device: torch.device) -> Iterator[tuple[tuple[Tensor, Tensor], Iterator[tuple[slice, ...]]]]:
        """For each kind of border: the bias-table indices (rows [Ty, Wy], columns [Tx, Wx]) and its chunks of tiles."""
        y, x = self.vertical, self.horizontal
        limit = max(1, chunk_scores(device) // (self.heads * y.tile * y.window * x.tile * x.window))
        for rows in y.patterns():
            for columns in x.patterns():
                index = y.relative_index(rows.start).to(device), x.relative_index(columns.start).to(device)
                yield index, _split(self.batch, rows, columns, limit)


def _split(batch: int, rows: TilePattern, columns: TilePattern, limit: int) -> Iterator[tuple[slice, ...]]:
    """Cut N x rows x columns of tiles into chunks of at most `limit` tiles, whole rows where possible."""
    height, width = rows.stop - rows.start, columns.stop - columns.start
    steps = max(1, limit // (width * height)), min(height, max(1, limit // width)), min(width, limit)
    for n in range(0, batch, steps[0]):
        for row in range(rows.start, rows.stop, steps[1]):
            for column in range(columns.start, columns.stop, steps[2]):
                row_end, column_end = min(row + steps[1], rows.stop), min(column + steps[2], columns.stop)
                yield slice(n, n + steps[0]), slice(row, row_end), slice(column, column_end)


def _copy_between_zeros(groups: Tensor, padded: Tensor, inner: Tensor) -> Tensor:
    """Copy `groups` to `inner`, a view of `padded`, and zero the rest of `padded`, which is returned."""
    if inner.numel() < padded.numel():
        padded.zero_()
    inner.copy_(groups)
    return padded
