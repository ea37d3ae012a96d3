"""Mask logits at the size of a result, computed one strip of rows at a time because all of them may not fit in memory.

Shapes:
    Q: queries; N: some of them; h, w: height and width of the decoder's masks; H, W: height and width of the result
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]

# Number of values computed at once: on a CPU, what stays in the cache; on a GPU, 256 MiB of float32 keep it busy.
_VALUES_AT_ONCE_ON_CPU = 2**22
_VALUES_AT_ONCE = 2**26
# Strips are smaller than that, because they share the rows that they are interpolated from.
_STRIPS_PER_RUN = 8


class Resize(NamedTuple):
    """Cut a map at the bottom and at the right to `crop`, then resize it bilinearly to `size` (height, width each)."""

    crop: Size
    size: Size


class ResizedMasks:
    """Maps [Q, h, w] that are resized, in one step or several, only when they are read.

    Attributes:
        size: Height and width of the result.
    """

    def __init__(self, masks: Tensor, steps: Sequence[Resize] = (), values_at_once: int | None = None) -> None:
        """Set maps and resizing steps.

        Args:
            masks: Maps [Q, h, w].
            steps: Resizing steps in order; without any, the maps stay as they are.
            values_at_once: Approximate number of values to compute at once; None: a number that suits the device.
        """
        if values_at_once is None:
            values_at_once = _VALUES_AT_ONCE_ON_CPU if masks.device.type == "cpu" else _VALUES_AT_ONCE
        self._masks = masks
        self._values_at_once = values_at_once
        self._steps = list(steps)
        self.size: Size = self._steps[-1].size if self._steps else (masks.shape[-2], masks.shape[-1])

    def strips(self, queries: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Iterate over strips of rows: the rows, and the maps [N, rows, W] of some queries [N] or of all.

        Values are those of `F.interpolate` up to the last bits, because columns are interpolated before rows.
        """
        masks = self._masks if queries is None else self._masks.index_select(0, queries)
        source: _Rows = _Whole(masks)
        for step in self._steps:
            source = _Resized(source, step, self._values_at_once)
        height, width = self.size
        rows = max(1, self._values_at_once // _STRIPS_PER_RUN // max(1, len(masks) * width))
        for first in range(0, height, rows):
            last = min(first + rows, height)
            yield slice(first, last), source.rows(first, last)


def class_map(scores: ResizedMasks) -> Tensor:
    """The index of the highest of resized scores for each pixel: int64 [H, W]."""
    return torch.cat([first_largest(strip) for _, strip in scores.strips()])


def first_largest(maps: Tensor) -> Tensor:
    """The index of the largest of maps [N, ...] for each pixel, the first of several equal ones: int64 [...]."""
    if maps.device.type != "cpu":
        return maps.max(0).indices
    # `max` with indices goes value by value, and the values of a pixel may share few cache lines. These passes over
    # contiguous numbers are 1.5 to 4 times as fast.
    is_largest = torch.eq(maps, maps.amax(0), out=torch.empty_like(maps))
    from_last = torch.arange(len(maps) - 1, -1, -1, dtype=maps.dtype).view(-1, *[1] * (maps.dim() - 1))
    return len(maps) - 1 - is_largest.mul_(from_last).amax(0).long()


class _Whole:
    """Rows of maps that are not resized."""

    def __init__(self, maps: Tensor) -> None:
        self._maps = maps
        self.count = len(maps)
        self.device = maps.device

    def rows(self, first: int, last: int) -> Tensor:
        return self._maps[:, first:last]


class _Resized:
    """Rows of maps after a resizing step, read from the top down."""

    def __init__(self, source: "_Rows", step: Resize, values_at_once: int) -> None:
        self.count, self.device = source.count, source.device
        self._source = source
        (self._height, self._crop_width), (height, self._width) = step
        self._same_height = height == self._height
        self._run_length = values_at_once // max(1, self.count * max(self._width, self._crop_width))
        self._above, self._below, weight = _source_rows(self._height, height)
        self._indices = torch.from_numpy(np.stack([self._above, self._below])).to(self.device)
        self._weight = torch.from_numpy(weight)[:, None].to(self.device)
        self._run = range(0)
        self._run_values = torch.empty(0)

    def rows(self, first: int, last: int) -> Tensor:
        """Rows of all maps: [Q, last - first, width]."""
        if self._same_height:
            return self._resize_columns(first, last)
        start, end = int(self._above[first]), int(self._below[last - 1]) + 1
        if start < self._run.start or end > self._run.stop:
            self._run = range(start, min(max(end, start + self._run_length), self._height))
            self._run_values = self._resize_columns(self._run.start, self._run.stop)
        weight = self._weight[first:last].to(self._run_values.dtype)
        if self.device.type != "cpu":
            above, below = self._indices[:, first:last] - self._run.start
            above, below = (self._run_values.index_select(1, row) for row in (above, below))
            return above.lerp_(below, weight)
        # Row by row in place, because copying rows takes longer than adding them; on a GPU each row would be a call.
        above, below = (
            [self._run_values[:, row : row + 1] for row in rows[first:last] - self._run.start]
            for rows in (self._above, self._below)
        )
        between = [torch.lerp(*pair) for pair in zip(above, below, weight, strict=True)]
        return between[0] if len(between) == 1 else torch.cat(between, 1)

    def _resize_columns(self, first: int, last: int) -> Tensor:
        maps = self._source.rows(first, last)[:, :, : self._crop_width]
        if self._crop_width == self._width:
            return maps
        if self.device.type != "cpu":
            return F.interpolate(maps[None], size=(last - first, self._width), mode="bilinear")[0]
        # Half the time of bilinear on a CPU, but slow on a GPU. Strips read the same row of all maps: it is contiguous.
        values = F.interpolate(maps.transpose(0, 1).flatten(0, 1)[None], size=self._width, mode="linear")[0]
        return values.view(last - first, self.count, self._width).transpose(0, 1)


_Rows = _Whole | _Resized


def _source_rows(source: int, result: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each row of the result: the source row above, the source row below, and the weight of the latter."""
    # float32, as in PyTorch.
    scale = np.float32(source) / np.float32(result)
    position = np.maximum((np.arange(result, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5), 0)
    above = np.minimum(position.astype(np.int64), source - 1)
    return above, np.minimum(above + 1, source - 1), position - above.astype(np.float32)
