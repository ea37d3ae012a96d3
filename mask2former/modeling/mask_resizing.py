"""Mask logits at the size of a result, made a strip of rows at a time: all of them may not fit in memory.

Shapes:
    Q: queries; N: some of them; h, w: height and width of the decoder's masks; H, W: height and width of the result
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .postprocessing.strips import first_largest

Size = tuple[int, int]

# How many values are made at once. On a CPU strips had better stay in its cache; a GPU is kept busy by 256 MiB of
# float32.
_VALUES_AT_ONCE_ON_CPU = 2**22
_VALUES_AT_ONCE = 2**26
# A strip has fewer, so that the rows that it is interpolated from, which strips share, are made in longer runs.
_STRIPS_PER_RUN = 8


class Resize(NamedTuple):
    """Cut a map at the bottom and at the right to `crop`, then resize it bilinearly to `size` (height, width each)."""

    crop: Size
    size: Size


class ResizedMasks:
    """Maps [Q, h, w] that are resized, in one step or several, only where somebody looks at them.

    Attributes:
        size: height and width of the result.
    """

    def __init__(self, masks: Tensor, steps: Sequence[Resize] = (), values_at_once: int | None = None) -> None:
        """Take maps and how to resize them.

        Args:
            masks: [Q, h, w].
            steps: one after the other; none leaves the maps as they are.
            values_at_once: how many values, about, to make at once; None: what suits the device.
        """
        if values_at_once is None:
            values_at_once = _VALUES_AT_ONCE_ON_CPU if masks.device.type == "cpu" else _VALUES_AT_ONCE
        self._masks = masks
        self._values_at_once = values_at_once
        self._steps = list(steps)
        self.size: Size = self._steps[-1].size if self._steps else (masks.shape[-2], masks.shape[-1])

    def strips(self, queries: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Maps of some queries [N], or of all, a strip of rows at a time: which rows, and the maps [N, rows, W].

        The values are those of `F.interpolate` but for the last bits: rows are interpolated after columns.
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


class _Whole:
    """Maps that are there."""

    def __init__(self, maps: Tensor) -> None:
        self._maps = maps
        self.count = len(maps)
        self.device = maps.device

    def rows(self, first: int, last: int) -> Tensor:
        return self._maps[:, first:last]


class _Resized:
    """Rows of maps after a step, to be asked for from the top down."""

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
        # Row by row where they are: to copy them first takes longer than to add them, but a GPU would wait for each.
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
        # Takes half the time, but a GPU would work through the rows one by one. The same row of all maps lies together
        # in memory, as strips read it.
        values = F.interpolate(maps.transpose(0, 1).flatten(0, 1)[None], size=self._width, mode="linear")[0]
        return values.view(last - first, self.count, self._width).transpose(0, 1)


_Rows = _Whole | _Resized


def _source_rows(source: int, result: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each row of the result, the row of the source above it, the one below, and the weight of the latter."""
    # In float32, as PyTorch has it.
    scale = np.float32(source) / np.float32(result)
    position = np.maximum((np.arange(result, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5), 0)
    above = np.minimum(position.astype(np.int64), source - 1)
    return above, np.minimum(above + 1, source - 1), position - above.astype(np.float32)
