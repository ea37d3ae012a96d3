"""Semantic label maps: from the values that files hold to class ids."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mask2former.data.image_io import ImageReadError, read_label_map, read_pixels, whole_numbers
from mask2former.utils.label_images import colors_to_ids

# Class id by colour, as R + 256 G + 65536 B.
Palette = Mapping[int, int]
# Class id by value of a file; other values stand for themselves.
ValueMap = Mapping[int, int]

IGNORE_LABEL = 255
# The largest value of 16 bits.
_LARGE_IGNORE_LABEL = 65535
# Largest magnitude of an id. Colours that have no meaning become smaller numbers.
_LARGEST = 1 << 24


@dataclass(frozen=True)
class LabelCode:
    """Meaning of the pixels of label maps.

    Attributes:
        palette: Class ids of colours.
        grey_is_id: Whether an RGB image with three equal channels holds ids, which is so if the list of classes has no
            colours.
        values: Class ids of values; others stand for themselves.
    """

    palette: Palette = field(default_factory=dict)
    grey_is_id: bool = True
    values: ValueMap = field(default_factory=dict)

    def read(self, path: str | Path) -> tuple[NDArray[np.int32], bool]:
        """Read the class of each pixel of a label map.

        Args:
            path: Image with one channel, which holds ids, or RGB image with colours. An opaque alpha channel means
                nothing.

        Returns:
            Ids [H, W], in which unknown colours are negative numbers (see `label_text`), and whether training and
            evaluation can read the file as it is.

        Raises:
            ImageReadError: The file is missing or damaged, or is neither kind of image.
        """
        pixels = read_pixels(path)
        if pixels.ndim == 2:
            ids = _checked(whole_numbers(pixels, path), path)
            return replace_values(ids, self.values), pixels.dtype.kind in "ui" and int(ids.min(initial=0)) >= 0
        channels = pixels.shape[2] if pixels.ndim == 3 and pixels.dtype == np.uint8 else 0
        if channels == 2 and (pixels[:, :, 1] == 255).all():
            return replace_values(pixels[:, :, 0].astype(np.int32), self.values), False
        if channels < 3:
            raise ImageReadError(
                f"{path}: expected one channel of ids, or RGB; found {pixels.dtype} of shape {pixels.shape}"
            )
        colors = pixels[:, :, :3]
        if self.grey_is_id and (colors == colors[:, :, :1]).all():
            return replace_values(colors[:, :, 0].astype(np.int32), self.values), False
        found, places = np.unique(colors_to_ids(colors), return_inverse=True)
        ids = np.array([self.palette.get(color, -1 - _LARGEST - color) for color in found.tolist()], np.int32)
        return ids[places].reshape(pixels.shape[:2]), False


def _checked(ids: NDArray[Any], path: str | Path) -> NDArray[np.int32]:
    if ids.size and not -_LARGEST <= ids.min() <= ids.max() <= _LARGEST:
        raise ImageReadError(f"{path}: values from {ids.min()} to {ids.max()} are no class ids")
    return ids.astype(np.int32)


def is_color(label: int) -> bool:
    """Whether a result of `LabelCode.read` stands for an unknown colour."""
    return label < -_LARGEST


def label_text(label: int) -> str:
    """A result of `LabelCode.read` as text: an id, or the unknown colour that a number stands for."""
    color = -1 - _LARGEST - label
    return f"colour ({color & 255}, {color >> 8 & 255}, {color >> 16})" if is_color(label) else str(label)


def replace_values(labels: NDArray[Any], values: ValueMap) -> NDArray[Any]:
    """Class ids [H, W] of the values of a label map; values that are not in `values` stay."""
    if not values:
        return labels
    found, places = np.unique(labels, return_inverse=True)
    replaced = np.array([values.get(value, value) for value in found.tolist()], np.int32)
    return replaced[places].reshape(labels.shape)


def read_semantic_map(record: Mapping[str, Any], size: Sequence[int] | None = None) -> NDArray[Any]:
    """Read the class ids [H, W] of an image of a data set.

    Args:
        record: Dict of the data set, with `sem_seg_file_name` and, if values of the file stand for other classes,
            `sem_seg_values`.
        size: Height and width that the label map must have. Default: any.

    Raises:
        ImageReadError: The label map is missing or damaged, or has several channels or another size.
    """
    return replace_values(read_label_map(record["sem_seg_file_name"], size), record.get("sem_seg_values", {}))


def unused_value(ids: Collection[int]) -> int:
    """Value for void in label maps with these class ids: 255, or the largest of 16 bits if 255 is a class."""
    return next(value for value in (IGNORE_LABEL, _LARGE_IGNORE_LABEL, -1) if value not in ids)
