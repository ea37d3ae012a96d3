"""Semantic label maps: ids, or colours that stand for them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mask2former.data.image_io import ImageReadError, read_pixels
from mask2former.utils.label_images import colors_to_ids

# Colour as R + 256 G + 65536 B -> id of the class.
Palette = Mapping[int, int]


def pack(color: tuple[int, int, int]) -> int:
    """A colour as the key of a `Palette`."""
    red, green, blue = color
    return red + 256 * green + 65536 * blue


def read_class_ids(path: str | Path, palette: Palette) -> tuple[NDArray[np.int32], bool]:
    """Read the class of each pixel, and whether colours say so.

    Args:
        path: an image of one channel, which holds ids, or of RGB with the colours of `palette`.
        palette: what colours mean; others become negative numbers, which `label_text` makes colours again.

    Returns:
        Ids [H, W], and whether they were colours.

    Raises:
        ImageReadError: the file is missing or damaged, or neither kind of image.
    """
    pixels = read_pixels(path)
    if pixels.ndim == 2 and pixels.dtype.kind in "bui":
        return pixels.astype(np.int32), False
    if pixels.ndim != 3 or pixels.shape[2] < 3 or pixels.dtype != np.uint8:
        raise ImageReadError(
            f"{path}: expected one channel of ids, or RGB; found {pixels.dtype} of shape {pixels.shape}"
        )
    found, places = np.unique(colors_to_ids(pixels[:, :, :3]), return_inverse=True)
    ids = np.array([palette.get(color, -1 - color) for color in found.tolist()], np.int32)
    return ids[places].reshape(pixels.shape[:2]), True


def label_text(label: int) -> str:
    """An id, or a colour that is none, in words."""
    if label >= 0:
        return str(label)
    color = -1 - label
    return f"colour ({color & 255}, {color >> 8 & 255}, {color >> 16})"
