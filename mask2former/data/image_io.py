"""Read photographs and label images from disk.

Photographs of all common kinds become 8-bit colour images (`photographs` does it, also for programs without PyTorch);
label images keep the numbers that are stored.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from detectron2.config import CfgNode
from numpy.typing import NDArray
from PIL import Image

from dinat_common.errors import ConfigError, UserError
from mask2former.data import photographs
from mask2former.data.photograph_files import DECODING_ERRORS, Photograph, PhotographError
from mask2former.data.photographs import ValueRange
from mask2former.utils.label_images import colors_to_ids

ChannelOrder = Literal["RGB", "BGR"]


class ImageReadError(UserError):
    """A file that cannot be read as an image; the message names the file and the cause."""


def configured_range(cfg: CfgNode) -> ValueRange | None:
    """The range of values that INPUT.VALUE_RANGE sets; see `read_image`.

    Raises:
        ConfigError: The key has a value that is no range.
    """
    try:
        return photographs.checked_range(cfg.INPUT.get("VALUE_RANGE", ()), "INPUT.VALUE_RANGE")
    except PhotographError as error:
        raise ConfigError(str(error)) from error


def read_image(
    path: str | Path, format: ChannelOrder = "RGB", value_range: ValueRange | None = None
) -> NDArray[np.uint8]:
    """Read a photograph as uint8 [H, W, 3], upright (its EXIF orientation is applied).

    Grey images get three equal channels, palettes are looked up, CMYK is converted, an alpha channel is dropped,
    and 16-bit values are scaled to 8 bits; see `photographs.to_rgb`.

    Args:
        path: Path of the photograph.
        format: Order of the channels.
        value_range: Values that become 0 and 255, for images with more than 8 bits. None: 0 and 65535 for 16-bit
            images; others are refused.

    Raises:
        ImageReadError: The file is missing, damaged or too large, or its pixels have no obvious 8-bit form.
        ValueError: `format` is neither "RGB" nor "BGR".
    """
    if format not in ("RGB", "BGR"):
        raise ValueError(f"image format is {format!r}, expected 'RGB' or 'BGR'")
    try:
        pixels = photographs.read_rgb(path, value_range)
    except PhotographError as error:
        raise ImageReadError(str(error)) from error
    return pixels if format == "RGB" else np.ascontiguousarray(pixels[:, :, ::-1])


def to_rgb(image: str | Path | Image.Image | NDArray[Any], value_range: ValueRange | None = None) -> NDArray[np.uint8]:
    """Convert an image in any form to uint8 RGB [H, W, 3].

    Args:
        image: Path (see `read_image`), Pillow image (converted in the same way), or pixels: RGB [H, W, 3], RGBA
            [H, W, 4] (alpha is dropped) or grey [H, W] or [H, W, 1]. Pixels are uint8, or are scaled to it by the rule
            for files.
        value_range: Values that become 0 and 255; see `read_image`.

    Raises:
        ImageReadError: The image cannot be read, or is an array of another type or shape.
    """
    if isinstance(image, str | Path):
        return read_image(image, value_range=value_range)
    name = f"the given {type(image).__name__}"
    try:
        if isinstance(image, Image.Image):
            return photographs.to_rgb(Photograph(name, image), value_range)
        pixels = np.asarray(image)
        grey = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 1)
        wide = pixels.dtype == np.uint16 or (value_range is not None and pixels.dtype.kind in "iuf")
        known = grey or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))
        if not known or not pixels.size or not (wide or pixels.dtype == np.uint8):
            raise ImageReadError(
                f"an array of {pixels.dtype} {list(pixels.shape)}: expected uint8, RGB [height, width, 3]"
            )
        if pixels.dtype == np.uint8:
            return photographs.three_channels(pixels)
        return photographs.to_rgb(Photograph(name, pixels, 1), value_range)
    except PhotographError as error:
        raise ImageReadError(str(error)) from error
    except DECODING_ERRORS as error:
        raise ImageReadError(f"{name} can't be used ({error})") from error


def read_label_map(path: str | Path, size: Sequence[int] | None = None) -> NDArray[np.uint8] | NDArray[np.int32]:
    """Read the ids [H, W] of a label image with one channel: uint8, or int32 if it has more than 8 bits.

    A palette image gives its indices, not its colours. See `read_pixels` for `size`.

    Raises:
        ImageReadError: The file is missing or damaged, or has several channels or another size.
    """
    labels = read_pixels(path, size)
    if labels.ndim != 2:
        raise ImageReadError(f"{path}: expected a label map with one channel, found shape {labels.shape}")
    return labels if labels.dtype == np.uint8 else whole_numbers(labels, path).astype(np.int32)


def whole_numbers(labels: NDArray[Any], path: str | Path) -> NDArray[Any]:
    """The given labels, which may be floats if all of them are whole numbers.

    Raises:
        ImageReadError: Some are not; the message begins with `path`.
    """
    if labels.dtype.kind == "f":
        broken = labels[~(np.isfinite(labels) & (labels == np.rint(labels)))]
        if broken.size:
            raise ImageReadError(f"{path}: a label map has whole numbers, found {broken[0]:g}")
    return labels


def read_panoptic_png(path: str | Path, size: Sequence[int] | None = None) -> NDArray[np.uint8]:
    """Read the colours [H, W, 3] of a panoptic PNG in COCO's format; `read_panoptic_ids` reads the ids they stand for.

    See `read_pixels` for `size`.

    Raises:
        ImageReadError: The file is missing or damaged, or is not a colour image, or has another size.
    """
    colors = read_pixels(path, size)
    if colors.ndim != 3 or colors.shape[2] < 3 or colors.dtype != np.uint8:
        raise ImageReadError(f"{path}: expected an 8-bit RGB panoptic PNG, found shape {colors.shape}")
    return colors[:, :, :3]


def read_panoptic_ids(path: str | Path, size: Sequence[int] | None = None) -> NDArray[np.uint32]:
    """Read the segment ids [H, W] of a panoptic PNG in COCO's format; see `read_panoptic_png`."""
    return colors_to_ids(read_panoptic_png(path, size))


def read_pixels(path: str | Path, size: Sequence[int] | None = None) -> NDArray[Any]:
    """Read an image as it is stored, [H, W] or [H, W, channels], without any conversion.

    Args:
        path: Path of the image.
        size: Height and width that the image must have. Default: any.

    Raises:
        ImageReadError: The file is missing or damaged, or has another size.
    """
    try:
        pixels = photographs.read_stored(path)
    except PhotographError as error:
        raise ImageReadError(str(error)) from error
    if size is not None and pixels.shape[:2] != tuple(size):
        raise ImageReadError(f"{path}: labels of {pixels.shape[:2]} pixels for an image of {tuple(size)}")
    return pixels


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width, upright, according to the header of an image file; nothing is decoded.

    Raises:
        ImageReadError: The file is missing or no image.
    """
    try:
        return photographs.read_size(path)
    except PhotographError as error:
        raise ImageReadError(str(error)) from error
