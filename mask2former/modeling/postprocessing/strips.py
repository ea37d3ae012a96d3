"""One pass over strips of mask logits for all results.

Shapes:
    Q: queries; N: some of them; H, W: height and width of the result; h: rows of a strip
"""

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor


class MaskSource(Protocol):
    """Mask logits of Q queries at the size of the result."""

    size: tuple[int, int]

    def strips(self, queries: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Masks of some queries [N], or of all, a strip of rows at a time: which rows, and the masks [N, h, W]."""
        ...


class Strip:
    """A strip of rows of masks as a result wants them; what it does not ask for is not picked out.

    Attributes:
        rows: which ones.
    """

    def __init__(self, rows: slice, logits: Tensor, probabilities: Tensor, queries: Tensor | None) -> None:
        """Take masks [Q, h, W], and the places among them of those wanted [N], or None for all."""
        self.rows = rows
        self._logits, self._probabilities, self._queries = logits, probabilities, queries

    @property
    def logits(self) -> Tensor:
        """[N, h, W]; not to be written to."""
        return self._logits if self._queries is None else self._logits.index_select(0, self._queries)

    @property
    def probabilities(self) -> Tensor:
        """[N, h, W]; not to be written to."""
        return self._probabilities if self._queries is None else self._probabilities.index_select(0, self._queries)


class Result(Protocol):
    """A result in the making."""

    @property
    def queries(self) -> Tensor | None:
        """Those whose masks it wants, int64 [N], rising; None: all."""
        ...

    def add(self, strip: Strip) -> None:
        """Take a strip of the masks; they may be overwritten afterwards. Not called if N is 0."""
        ...

    def finish(self) -> Any:
        """The result, after all strips."""
        ...


def infer(masks: MaskSource, *results: Result) -> list[Any]:
    """Make results in one pass over the masks."""
    wanted = [result for result in results if result.queries is None or len(result.queries)]
    union, places = _union([result.queries for result in wanted])
    for rows, logits in masks.strips(union) if wanted else ():
        probabilities = logits.sigmoid()
        for result, place in zip(wanted, places, strict=True):
            result.add(Strip(rows, logits, probabilities, place))
    return [result.finish() for result in results]


def _union(wanted: list[Tensor | None]) -> tuple[Tensor | None, list[Tensor | None]]:
    """The queries in any of some sets (None: all), and the places of each set in it (None: at every place)."""
    subsets = [queries for queries in wanted if queries is not None]
    if len(subsets) < len(wanted) or not subsets:
        return None, wanted
    union, places = torch.cat(subsets).unique(return_inverse=True)
    parts = places.split([len(queries) for queries in subsets])
    return union, [None if len(part) == len(union) else part for part in parts]


def count_pixels(masks: Tensor) -> Tensor:
    """Pixels in each mask of zeros and ones, float32 [N, h, W]: int64 [N]."""
    # Comparisons to numbers and their sums take a third of the time of those to bools, and are exact up to 2**24.
    return masks.flatten(1).sum(1).long()


def first_largest(maps: Tensor) -> Tensor:
    """The index of the largest of maps [N, ...] for each pixel, of the first one where several are: int64 [...]."""
    if maps.device.type != "cpu":
        return maps.max(0).indices
    # `max` with indices goes value by value, and all values of a pixel may share few lines of a cache. What follows
    # are passes over numbers that lie side by side: 1.5 to 4 times as fast.
    is_largest = torch.eq(maps, maps.amax(0), out=torch.empty_like(maps))
    from_last = torch.arange(len(maps) - 1, -1, -1, dtype=maps.dtype).view(-1, *[1] * (maps.dim() - 1))
    return len(maps) - 1 - is_largest.mul_(from_last).amax(0).long()
