"""Tiles over the residue groups of a map: which queries and keys are computed together, as views without copies.

`TilePlan` cuts one axis of a residue group, `Tiling` combines the plans of both axes. Windows are those of
`reference.window_start`.

Shapes:
    B: images; N: images x residue groups; n: heads; D: channels of a head
    gy, gx: residue groups along an axis; h, w: height and width of a residue group
    Ny, Nx: tiles per column and row; Ty, Tx: queries of a tile; Wy, Wx: keys of its window
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, product

import torch
from torch import Tensor

from .reference import bias_index

# Larger tiles waste more time on keys outside the windows of their queries than they save on copies.
_LARGEST_TILE_SIDE = 16
# Copying a key and its value into a window takes about as long as computing this many scores.
_SCORES_PER_COPIED_KEY = 12


def residue_groups(size: int, dilation: int) -> list[range]:
    """Return the groups of an axis of `size` positions, as one or two ranges of groups with equally many positions."""
    longer = size % dilation
    return [groups for groups in (range(longer), range(longer, dilation)) if groups]


@dataclass(frozen=True)
class TilePlan:
    """Division of one axis with `length` queries into `count` tiles of `tile` queries.

    Tile t holds the queries t * tile - shift + (0 .. tile - 1); its keys lie in a window of `window` coordinates that
    begins `margin` before its first query. Queries and keys outside the axis are padding.
    """

    length: int
    kernel_size: int
    tile: int
    count: int
    shift: int
    window: int
    margin: int

    @property
    def keys(self) -> int:
        """Number of keys that are copied into windows."""
        return self.count * self.window

    @property
    def scores(self) -> int:
        """Number of pairs of a query and a key that are computed, including padding."""
        return self.count * self.tile * self.window

    def patterns(self) -> list[range]:
        """Return ranges of tiles whose queries see their keys in the same relative places.

        The first and the last tile see a border; all tiles between them are alike.
        """
        edges = sorted({0, min(1, self.count), max(1, self.count - 1), self.count})
        return [range(*edge) for edge in pairwise(edges)]

    def relative_index(self, tile: int) -> Tensor:
        """Row (or column) of the bias table for each query and key of a tile, see `bias_index`: [tile, window].

        Padding queries attend to all keys, so that their softmax, which is never read, stays finite.
        """
        first = tile * self.tile - self.shift
        query = torch.arange(first, first + self.tile)[:, None]
        key = torch.arange(first - self.margin, first - self.margin + self.window)[None, :]
        index = bias_index(query, key, self.length, self.kernel_size)
        padding = (query < 0) | (query >= self.length)
        return index.masked_fill(padding, self.kernel_size - 1)


@lru_cache(maxsize=1024)
def tile_plans(length: int, kernel_size: int, largest_tile: int = _LARGEST_TILE_SIDE) -> tuple[TilePlan, ...]:
    """Return all plans for an axis of `length` >= `kernel_size` queries with tiles of at most `largest_tile` queries.

    The plan with a single tile is always among them. With several tiles, a window of tile + 2 * (k // 2) keys around a
    tile contains all its keys, also at the border, where windows are shifted inwards, provided that the first and the
    last tile have more than k // 2 queries that are not padding.
    """
    half = kernel_size // 2
    plans = [TilePlan(length, kernel_size, length, 1, 0, length, 0)]
    for count in range(2, length // (half + 1) + 1):
        tile = -(-length // count)
        padding = count * tile - length
        shift = padding // 2
        if tile <= largest_tile and tile - (padding - shift) > half:
            plans.append(TilePlan(length, kernel_size, tile, count, shift, tile + 2 * half, half))
    return tuple(plans)


@dataclass(frozen=True)
class Tiling:
    """Tiles over residue groups of one size.

    Groups are views [B, gy, gx, n, h, w, D] of a map. Padded copies of them, [N, n, ...], hold whole tiles of queries,
    or, with margins around them, all keys that the windows cover.
    """

    vertical: TilePlan
    horizontal: TilePlan
    batch: int
    heads: int

    @classmethod
    def choose(cls, groups: Tensor, kernel_size: int) -> "Tiling":
        """Choose the pair of plans with the least work, counting scores and copied keys."""
        pairs = product(*(tile_plans(side, kernel_size) for side in groups.shape[4:6]))
        y, x = min(pairs, key=lambda p: p[0].scores * p[1].scores + _SCORES_PER_COPIED_KEY * p[0].keys * p[1].keys)
        return cls(y, x, batch=math.prod(groups.shape[:3]), heads=groups.shape[3])

    def empty(self, groups: Tensor, *, margins: bool, dtype: torch.dtype | None = None) -> Tensor:
        """Allocate a padded copy [N, n, Ny * Ty + margins, Nx * Tx + margins, D]."""
        rows, columns = (
            plan.count * plan.tile + 2 * plan.margin * margins for plan in (self.vertical, self.horizontal)
        )
        return groups.new_empty(self.batch, self.heads, rows, columns, groups.shape[-1], dtype=dtype)

    def crop(self, padded: Tensor, groups: Tensor, *, margins: bool) -> Tensor:
        """View the part of a padded copy that is not padding as [B, gy, gx, n, h, w, D]."""
        y, x = self.vertical, self.horizontal
        top, left = y.shift + y.margin * margins, x.shift + x.margin * margins
        return padded[:, :, top : top + y.length, left : left + x.length].unflatten(0, groups.shape[:3])

    def pad(self, groups: Tensor, *, margins: bool) -> Tensor:
        """Copy groups into a padded copy, with zeros around them."""
        padded = self.empty(groups, margins=margins)
        inner = self.crop(padded, groups, margins=margins)
        if inner.numel() < padded.numel():
            padded.zero_()
        inner.copy_(groups)
        return padded

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
        """Add to overlapping `windows`, a view of a padded copy, in place."""
        # Windows this many tiles apart do not overlap, so each addition writes an element at most once.
        apart_y, apart_x = (-(-plan.window // plan.tile) for plan in (self.vertical, self.horizontal))
        for row in range(min(apart_y, windows.shape[1])):
            for column in range(min(apart_x, windows.shape[2])):
                windows[:, row::apart_y, column::apart_x] += gradient[:, row::apart_y, column::apart_x]

    def chunks(self, device: torch.device) -> Iterator[tuple[tuple[Tensor, Tensor], Iterator[tuple[slice, ...]]]]:
        """Yield the bias-table indices of each kind of border (rows [Ty, Wy], columns [Tx, Wx]) and chunks of tiles.

        A chunk has enough scores to occupy a device; on a CPU it is small enough for the cache.
        """
        y, x = self.vertical, self.horizontal
        scores = 1 << 18 if device.type == "cpu" else 1 << 26
        limit = max(1, scores // (self.heads * y.tile * y.window * x.tile * x.window))
        for rows, columns in product(y.patterns(), x.patterns()):
            index = y.relative_index(rows.start).to(device), x.relative_index(columns.start).to(device)
            yield index, _split(range(self.batch), rows, columns, limit)


def _split(batch: range, rows: range, columns: range, limit: int) -> Iterator[tuple[slice, ...]]:
    """Cut tiles into chunks of at most `limit` tiles, whole rows if possible."""
    height, width = len(rows), len(columns)
    steps = max(1, limit // (width * height)), min(height, max(1, limit // width)), min(width, limit)
    sides = (batch, rows, columns)
    for starts in product(*(side[::step] for side, step in zip(sides, steps, strict=True))):
        yield tuple(
            slice(start, min(start + step, side.stop)) for start, step, side in zip(starts, steps, sides, strict=True)
        )
