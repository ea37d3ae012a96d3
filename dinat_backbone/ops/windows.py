"""Geometry of neighborhood attention along one axis: residue groups, windows, and the tiles that cover them.

Positions i of an axis of length L fall into `dilation` residue groups g = i mod dilation; within a group of n
positions, coordinate x attends the k coordinates s .. s + k - 1 with s = clamp(x - k // 2, 0, n - k)
(Hassani and Shi, "Dilated Neighborhood Attention Transformer", arXiv 2209.15001, section 3.1).
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class ResidueGroups:
    """Neighbouring residue groups `start` .. `stop - 1` of an axis, all of `length` positions."""

    start: int
    stop: int
    length: int


def residue_groups(size: int, dilation: int) -> list[ResidueGroups]:
    """Split the groups of an axis of `size` positions into runs of equal length (one run, or two)."""
    longer = size % dilation
    runs = [
        ResidueGroups(0, longer, size // dilation + 1),
        ResidueGroups(longer, dilation, size // dilation),
    ]
    return [run for run in runs if run.stop > run.start]


def window_start(coordinate: Tensor, length: int | Tensor, kernel_size: int) -> Tensor:
    """First key coordinate of each query coordinate in groups of `length` positions."""
    return torch.minimum((coordinate - kernel_size // 2).clamp(min=0), torch.as_tensor(length - kernel_size))


@dataclass(frozen=True)
class TilePattern:
    """Consecutive tiles `start` .. `stop - 1` of an axis whose queries see their keys in the same relative places."""

    start: int
    stop: int


@dataclass(frozen=True)
class TilePlan:
    """How the `length` queries of one axis are cut into `count` tiles of `tile` queries, `shift` of them before 0.

    Tile t holds queries t * tile - shift + (0 .. tile - 1); its keys lie in `window` coordinates that start `margin`
    before the first query. Queries and keys outside the axis are padding.
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
        """Keys copied into windows."""
        return self.count * self.window

    @property
    def scores(self) -> int:
        """Pairs of query and key computed, padding included."""
        return self.count * self.tile * self.window

    def patterns(self) -> list[TilePattern]:
        """Tiles at either end see the border; all between them look alike."""
        if self.count <= 2:
            return [TilePattern(t, t + 1) for t in range(self.count)]
        return [TilePattern(0, 1), TilePattern(1, self.count - 1), TilePattern(self.count - 1, self.count)]

    def relative_index(self, tile: int) -> Tensor:
        """Row (or column) of the bias table for each query and key of `tile`: [tile, window].

        y - x + k - 1 inside the query's window, and the extra index 2k - 1 ("masked") outside. A query that is
        padding is given all keys, so that its softmax, which nobody reads, stays finite.
        """
        first = tile * self.tile - self.shift
        query = torch.arange(first, first + self.tile)[:, None]
        key = torch.arange(first - self.margin, first - self.margin + self.window)[None, :]
        start = window_start(query, self.length, self.kernel_size)
        inside = (key >= start) & (key < start + self.kernel_size)
        index = torch.where(inside, key - query + self.kernel_size - 1, 2 * self.kernel_size - 1)
        padding = (query < 0) | (query >= self.length)
        return index.masked_fill(padding, self.kernel_size - 1)


@lru_cache(maxsize=1024)
def tile_plans(length: int, kernel_size: int, largest_tile: int) -> tuple[TilePlan, ...]:
    """All plans for an axis of `length` >= `kernel_size` queries with tiles of at most `largest_tile` queries.

    One tile over everything is always among them. With several tiles, a window of tile + 2 * (k // 2) keys around a
    tile holds all keys also at the border, where windows are pushed inwards, as long as the first and the last tile
    have more than k // 2 queries that are not padding.
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
