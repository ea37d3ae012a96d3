"""Maps of ids in ground truth and predictions: read, checked, counted, written."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from mask2former.evaluation.errors import EvaluationError
from mask2former.files import atomic_write


def read_ids(path: str | Path, size: Sequence[int]) -> NDArray[np.int64]:
    """Read a map of ids [H, W].

    Args:
        path: a grey or palette image of 8 or 16 bits.
        size: the height and width that it must have.

    Raises:
        EvaluationError: the file is missing, damaged, has several channels, or has another size.
    """
    try:
        with Image.open(path) as image:
            ids = np.asarray(image)
    except FileNotFoundError as error:
        raise EvaluationError(f"{path}: no such file") from error
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError) as error:
        raise EvaluationError(f"{path}: no label image: {error}") from error
    if ids.ndim != 2:
        raise EvaluationError(f"{path}: expected one label per pixel, found {ids.shape[-1]} channels")
    if ids.shape != tuple(size):
        raise EvaluationError(f"{path}: {ids.shape} pixels, the prediction has {tuple(size)}")
    return ids.astype(np.int64)


def class_map(sem_seg: Tensor) -> NDArray[np.int64]:
    """The class of each pixel [H, W], from classes [H, W] or from scores [K, H, W], of which the highest counts."""
    classes = sem_seg if sem_seg.ndim == 2 else sem_seg.argmax(dim=0)
    return classes.cpu().numpy().astype(np.int64)


def count_pairs(predicted: NDArray[np.int64], labels: NDArray[np.int64], classes: int) -> list[list[int]]:
    """Count the pixels of each pair of predicted class and label that occurs.

    Args:
        predicted: [H, W] of 0 to `classes` - 1.
        labels: [H, W], 0 to `classes` - 1, and `classes` for what does not count.
        classes: how many there are.

    Returns:
        Rows (predicted class, label, pixels).
    """
    counts = np.bincount((predicted * (classes + 1) + labels).ravel(), minlength=classes * (classes + 1))
    counts = counts.reshape(classes, classes + 1)[:, :classes]
    found = np.nonzero(counts)
    return np.stack([*found, counts[found]], axis=1).tolist()


def add_pairs(counts: NDArray[np.int64], pairs: list[list[int]]) -> None:
    """Add rows of `count_pairs` to a table [predicted class, label], in place."""
    if pairs:
        predicted, labels, pixels = np.asarray(pairs, dtype=np.int64).T
        counts[predicted, labels] += pixels


def write_png(path: Path, pixels: NDArray[Any]) -> Path:
    """Write a picture: bool [H, W], uint8 [H, W] or [H, W, 3], or uint16 [H, W]. Returns `path`."""
    with atomic_write(path, "wb") as file:
        # More compression takes twice the time and saves a quarter.
        Image.fromarray(pixels).save(file, format="PNG", compress_level=1)
    return path
