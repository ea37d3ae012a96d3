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


class Result(Protocol):
    """A result in the making."""

    @property
    def queries(self) -> Tensor | None:
        """Those whose masks it wants, int64 [N], rising; None: all."""
        ...

    def add(self, rows: slice, logits: Tensor, probabilities: Tensor) -> None:
        """Take a strip of the masks [N, h, W]; it may be overwritten afterwards. Not called if N is 0."""
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
            if place is None:
                result.add(rows, logits, probabilities)
            else:
                result.add(rows, logits.index_select(0, place), probabilities.index_select(0, place))
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
    """Pixels in each mask of bool [N, h, W]: int32 [N]."""
    # Bytes are added several times as fast as bools.
    return masks.view(torch.uint8).flatten(1).sum(1, dtype=torch.int32)
