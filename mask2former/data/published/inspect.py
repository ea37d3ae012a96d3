"""Open one file and say what is wrong with it. Everything here runs in worker processes."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mask2former.data.image_io import ImageReadError, read_image, read_label_map, read_panoptic_ids

UNREADABLE = "can't be read"
OUTSIDE = "label ids outside of the table"
NOT_IN_JSON = "segments in the PNG that the JSON does not have"
NOT_IN_PNG = "segments in the JSON that the PNG does not have"
OTHER_AREA = "segments of another area in the JSON than in the PNG"


@dataclass(frozen=True)
class Task:
    """A file to open, and what it has to be."""

    path: str
    inspect: Callable[..., "Inspection"]
    arguments: tuple[Any, ...] = ()

    def __call__(self) -> "Inspection":
        """Do it."""
        return self.inspect(self.path, *self.arguments)


@dataclass(frozen=True)
class Inspection:
    """Height and width of a file's pixels (None where it can't be read), and problem -> details."""

    size: tuple[int, int] | None
    problems: Mapping[str, str]


def run(task: Task) -> Inspection:
    """Do a task; what can't be read is a problem of its own."""
    try:
        return task()
    except ImageReadError as error:
        return Inspection(None, {UNREADABLE: str(error)})


def inspect_image(path: str) -> Inspection:
    """A photograph, decoded to its end."""
    return Inspection(_size(read_image(path)), {})


def inspect_labels(path: str, allowed: Collection[int], divisor: int = 0) -> Inspection:
    """A label map.

    Args:
        path: of the image.
        allowed: the ids that pixels may have.
        divisor: ids from here on are this times their class, plus a number; 0: there are no such ids.
    """
    labels = read_label_map(path)
    found = np.unique(labels).astype(np.int64)
    if divisor:
        found = np.where(found >= divisor, found // divisor, found)
    outside = sorted({*found.tolist()}.difference(allowed))
    return Inspection(_size(labels), {OUTSIDE: f"ids {few(outside)}"} if outside else {})


def inspect_panoptic(path: str, segments: Mapping[int, int], hidden: Collection[int] = ()) -> Inspection:
    """A panoptic PNG against its JSON.

    Args:
        path: of the image.
        segments: id -> area in the JSON.
        hidden: ids of segments that may be smaller than the JSON says, or gone.
    """
    ids = read_panoptic_ids(path)
    return Inspection(_size(ids), segment_problems(segment_areas(ids), segments, hidden))


def segment_areas(ids: NDArray[np.integer]) -> dict[int, int]:
    """Id -> pixels of the segments of a panoptic segmentation [H, W]; 0 is void and left out."""
    values, counts = np.unique(ids, return_counts=True)
    found = dict(zip(values.tolist(), counts.tolist(), strict=True))
    found.pop(0, None)
    return found


def segment_problems(
    found: Mapping[int, int], segments: Mapping[int, int | None], hidden: Collection[int] = ()
) -> dict[str, str]:
    """Compare `segment_areas` of a PNG with id -> area of its JSON; see `inspect_panoptic`. Problem -> details."""
    problems = {}
    if more := sorted(found.keys() - segments.keys()):
        problems[NOT_IN_JSON] = f"ids {few(more)}"
    if lacking := sorted(segments.keys() - found.keys() - set(hidden)):
        problems[NOT_IN_PNG] = f"ids {few(lacking)}"
    if other := [i for i in found.keys() & segments.keys() if segments[i] != found[i] and i not in hidden]:
        problems[OTHER_AREA] = f"ids {few(sorted(other))}"
    return problems


def _size(pixels: NDArray[Any]) -> tuple[int, int]:
    return pixels.shape[0], pixels.shape[1]


def few(values: Sequence[int]) -> str:
    """The first of many numbers, as text."""
    return ", ".join(map(str, values[:5])) + (", ..." if len(values) > 5 else "")
