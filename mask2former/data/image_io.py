"""Read photographs and label images from disk.

Photographs of all common kinds become 8-bit colour images; label images keep the numbers that are stored.
"""

import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from mask2former.utils.errors import UserError
from mask2former.utils.label_images import colors_to_ids

ChannelOrder = Literal["RGB", "BGR"]

# Raised by Pillow for files that are missing, truncated, damaged or no images.
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)

_Result = TypeVar("_Result")


class ImageReadError(UserError):
    """A file that cannot be read as an image; the message names the file and the cause."""


def read_image(path: str | Path, format: ChannelOrder = "RGB") -> NDArray[np.uint8]:
    """Read a photograph as uint8 [H, W, 3], upright (its EXIF orientation is applied).

    Grey images get three equal channels, palettes are looked up, CMYK is converted, an alpha channel is dropped,
    and 16-bit values are scaled to 8 bits.

    Raises:
        ImageReadError: The file is missing, damaged, or its pixels have no obvious 8-bit form.
        ValueError: `format` is neither "RGB" nor "BGR".
    """
    if format not in ("RGB", "BGR"):
        raise ValueError(f"image format is {format!r}, expected 'RGB' or 'BGR'")
    pixels = _decode(path, _upright_rgb)
    return pixels if format == "RGB" else np.ascontiguousarray(pixels[:, :, ::-1])


def to_rgb(image: str | Path | Image.Image | NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert an image in any form to uint8 RGB [H, W, 3].

    Args:
        image: Path (see `read_image`), Pillow image (converted in the same way), or pixels: uint8 RGB [H, W, 3], RGBA
            [H, W, 4] (alpha is dropped) or grey [H, W] or [H, W, 1].

    Raises:
        ImageReadError: The image cannot be read, or is an array of another type or shape.
    """
    if isinstance(image, Image.Image):
        try:
            return _upright_rgb(image)
        except _DECODING_ERRORS as error:
            raise ImageReadError(f"the given {type(image).__name__} can't be used ({error})") from error
    if isinstance(image, str | Path):
        return read_image(image)
    pixels = np.asarray(image)
    grey = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 1)
    if pixels.dtype != np.uint8 or not (grey or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))) or not pixels.size:
        raise ImageReadError(f"an array of {pixels.dtype} {list(pixels.shape)}: expected uint8, RGB [height, width, 3]")
    if grey:
        return np.repeat(pixels.reshape(*pixels.shape[:2], 1), 3, axis=2)
    return np.ascontiguousarray(pixels[:, :, :3])


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
    pixels = _decode(path, np.array)
    if size is not None and pixels.shape[:2] != tuple(size):
        raise ImageReadError(f"{path}: labels of {pixels.shape[:2]} pixels for an image of {tuple(size)}")
    return pixels


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width according to the header of an image file; nothing is decoded.

    Raises:
        ImageReadError: The file is missing or no image.
    """
    width, height = _decode(path, lambda image: image.size)
    return height, width


def _decode(path: str | Path, convert: Callable[[Image.Image], _Result]) -> _Result:
    try:
        with Image.open(path) as image:
            return convert(image)
    except FileNotFoundError as error:
        raise ImageReadError(f"{path}: no such file") from error
    except _DECODING_ERRORS as error:
        raise ImageReadError(f"{path}: can't be read as an image ({error})") from error


def _upright_rgb(image: Image.Image) -> NDArray[np.uint8]:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit grey at 255 instead of scaling it; older releases open it as 32-bit "I".
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ImageReadError(f"grey values from {values.min()} to {values.max()}, expected at most 16 bits")
        image = Image.fromarray(np.rint(values / 257).astype(np.uint8))
    elif image.mode == "F":
        raise ImageReadError("floating-point grey values have no fixed 8-bit range")
    elif image.mode == "P" and "transparency" in image.info:
        # When it converts these to RGB directly, Pillow warns that it ignores the transparency.
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))
