"""Maps of ids in ground truth and predictions: read, checked, counted, written."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from mask2former.evaluation.errors import EvaluationError

Ids: TypeAlias = NDArray[np.integer]
_Read = TypeVar("_Read")


def read_ids(path: str | Path, size: Sequence[int]) -> Ids:
    """Read a map of ids [H, W], in the type that they are stored in.

    Args:
        path: a grey or palette image of 8 or 16 bits.
        size: the height and width that it must have.

    Raises:
        EvaluationError: the file is missing, damaged, has several channels, or has another size.
    """
    ids = _read(path, np.asarray)
    if ids.ndim != 2:
        raise EvaluationError(f"{path}: expected one label per pixel, found {ids.shape[-1]} channels")
    _require_size(path, ids, size)
    return ids.astype(np.uint8) if ids.dtype == np.bool_ else ids


def read_panoptic_ids(path: str | Path, size: Sequence[int]) -> NDArray[np.uint32]:
    """Read segment ids [H, W] from a picture in COCO's panoptic format, R + 256 G + 65536 B.

    Args:
        path: an image of 8-bit colours.
        size: the height and width that it must have.

    Raises:
        EvaluationError: the file is missing, damaged, has no colours, or has another size.
    """

    def decode(image: Image.Image) -> NDArray[np.uint32]:
        if image.mode not in ("RGB", "RGBA"):
            raise EvaluationError(f"{path}: expected a picture of 8-bit colours, found mode {image.mode}")
        # Four bytes a pixel are an integer, but for the last of them.
        pixels = np.frombuffer(image.tobytes("raw", "RGBX" if image.mode == "RGB" else "RGBA"), dtype="<u4")
        return pixels.reshape(image.height, image.width) & np.uint32(0xFFFFFF)

    ids = _read(path, decode)
    _require_size(path, ids, size)
    return ids


def _read(path: str | Path, decode: Callable[[Image.Image], _Read]) -> _Read:
    try:
        with Image.open(path) as image:
            return decode(image)
    except FileNotFoundError as error:
        raise EvaluationError(f"{path}: no such file") from error
    except EvaluationError:
        raise
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError) as error:
        raise EvaluationError(f"{path}: no label image: {error}") from error


def _require_size(path: str | Path, ids: Ids, size: Sequence[int]) -> None:
    if ids.shape != tuple(size):
        raise EvaluationError(f"{path}: {ids.shape} pixels, the prediction has {tuple(size)}")


def class_map(sem_seg: Tensor) -> NDArray[np.int16]:
    """The class of each pixel [H, W], from classes [H, W] or from scores [K, H, W], of which the highest counts."""
    classes = sem_seg if sem_seg.ndim == 2 else sem_seg.argmax(dim=0)
    return classes.cpu().numpy().astype(np.int16)


def common_runs(first: Ids, second: Ids) -> tuple[Ids, Ids, NDArray[np.int64]]:
    """Find where neither of two maps changes from one pixel to the next; far fewer runs than pixels are left to count.

    Args:
        first: [H, W].
        second: [H, W].

    Returns:
        Of each run, row after row: what `first` has there, what `second` has, and how many pixels it is long.
    """
    first, second = first.ravel(), second.ravel()
    changes = first[1:] != first[:-1]
    changes |= second[1:] != second[:-1]
    starts = np.concatenate([np.zeros(min(1, first.size), dtype=np.int64), np.flatnonzero(changes) + 1])
    return first[starts], second[starts], np.diff(starts, append=first.size)


def count_pairs(predicted: Ids, labels: Ids, pixels: NDArray[np.int64], classes: int) -> list[list[int]]:
    """Count the pixels of each pair of predicted class and label that occurs.

    Args:
        predicted: of each run, 0 to `classes` - 1.
        labels: of each run, 0 to `classes` - 1, and `classes` for what does not count.
        pixels: how long runs are.
        classes: how many there are.

    Returns:
        Rows (predicted class, label, pixels).
    """
    pairs = predicted.astype(np.int64) * (classes + 1) + labels
    # Sums of doubles are exact, up to more pixels than there are anywhere.
    counts = np.bincount(pairs, pixels, minlength=classes * (classes + 1)).astype(np.int64)
    counts = counts.reshape(classes, classes + 1)[:, :classes]
    found = np.nonzero(counts)
    return np.stack([*found, counts[found]], axis=1).tolist()


def add_pairs(counts: NDArray[np.int64], pairs: list[list[int]]) -> None:
    """Add rows of `count_pairs` to a table [predicted class, label], in place."""
    if pairs:
        predicted, labels, pixels = np.asarray(pairs, dtype=np.int64).T
        counts[predicted, labels] += pixels
