"""Mask logits at the size of a result, made a few queries or a few rows at a time: all of them may not fit in memory.

Shapes:
    Q: queries; h, w: height and width of the decoder's masks; H, W: height and width of the result
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]

# How many values are made at once. On a CPU they had better stay in its cache (measured: four times as many take 1.5
# times as long); a GPU is kept busy by 256 MiB of float32.
_VALUES_AT_ONCE_ON_CPU = 2**22
_VALUES_AT_ONCE = 2**26


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
            values_at_once: how many values of the result, about, to make at once; None: what suits the device.
        """
        if values_at_once is None:
            values_at_once = _VALUES_AT_ONCE_ON_CPU if masks.device.type == "cpu" else _VALUES_AT_ONCE
        self._masks = masks
        self._values_at_once = values_at_once
        self._steps: list[Resize] = []
        self.size: Size = (masks.shape[-2], masks.shape[-1])
        self._largest = self.size[0] * self.size[1]
        for step in steps:
            # A step that changes nothing would cost time.
            if not step.crop == step.size == self.size:
                self._steps.append(step)
            self.size = step.size
            self._largest = max(self._largest, step.size[0] * step.size[1])

    def select(self, queries: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Whole maps of some queries [N], in groups: which of them, and their maps [group, H, W]."""
        group = max(1, self._values_at_once // self._largest)
        for first in range(0, len(queries), group):
            chosen = slice(first, min(first + group, len(queries)))
            maps = self._masks[queries[chosen]]
            for (height, width), size in self._steps:
                maps = _bilinear(maps[:, :height, :width], size)
            yield chosen, maps

    def strips(self) -> Iterator[tuple[slice, Tensor]]:
        """Maps of all queries, a strip of rows at a time: which rows, and the maps [Q, rows, W].

        The same as `select` but for the last bits: rows are interpolated after columns.
        """
        height, width = self.size
        rows = max(1, self._values_at_once // max(1, len(self._masks) * width))
        for first in range(0, height, rows):
            last = min(first + rows, height)
            yield slice(first, last), self._rows(len(self._steps), first, last)

    def _rows(self, num_steps: int, first: int, last: int) -> Tensor:
        """Rows of all maps after so many steps: [Q, last - first, width]."""
        if num_steps == 0:
            return self._masks[:, first:last]
        (height, width), size = self._steps[num_steps - 1]
        if height == size[0]:
            source = self._rows(num_steps - 1, first, last)[:, :, :width]
            return _bilinear(source, (last - first, size[1]))
        above, weight = _source_rows(height, size[0], first, last)
        below = (above + 1).clamp(max=height - 1)
        start, end = int(above[0]), int(below[-1]) + 1
        source = self._rows(num_steps - 1, start, end)[:, :, :width]
        source = _bilinear(source, (end - start, size[1]))
        above, below, weight = (x.to(source.device) for x in (above - start, below - start, weight.to(source.dtype)))
        return torch.lerp(source[:, above], source[:, below], weight[:, None])


def class_map(scores: ResizedMasks) -> Tensor:
    """The index of the highest of resized scores for each pixel: int64 [H, W]."""
    return torch.cat([strip.argmax(0) for _, strip in scores.strips()])


def _bilinear(maps: Tensor, size: Size) -> Tensor:
    if (maps.shape[-2], maps.shape[-1]) == size:
        return maps
    return F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]


def _source_rows(source: int, result: int, first: int, last: int) -> tuple[Tensor, Tensor]:
    """For rows of the result, the row of the source above each, and the weight of the row below that one."""
    # In float32, as PyTorch has it.
    scale = torch.tensor(source, dtype=torch.float32) / result
    position = ((torch.arange(first, last, dtype=torch.float32) + 0.5) * scale - 0.5).clamp(min=0)
    above = position.floor().clamp(max=source - 1)
    return above.long(), position - above
