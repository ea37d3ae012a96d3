"""Read photographs and label maps from disk.

Photographs of every common kind come out as 8-bit colour; label maps come out as the numbers that are stored.
Nothing here knows what the numbers mean.
"""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from mask2former.utils.errors import UserError

ChannelOrder = Literal["RGB", "BGR"]

# What Pillow raises for files that are missing, cut off, damaged or no images at all.
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)

_Result = TypeVar("_Result")


class ImageReadError(UserError):
    """A file that can't be read as an image; the message names the file and the cause."""


def read_image(path: str | Path, format: ChannelOrder = "RGB") -> NDArray[np.uint8]:
    """Read a photograph as uint8 [H, W, 3], upright (its EXIF orientation is applied).

    Grey images get three equal channels, palettes are looked up, CMYK is converted, an alpha channel is dropped,
    and 16-bit values are scaled to 8 bits.

    Raises:
        ImageReadError: the file is missing, damaged, or holds something that has no obvious 8-bit form.
        ValueError: `format` is neither "RGB" nor "BGR".
    """
    if format not in ("RGB", "BGR"):
        raise ValueError(f"image format is {format!r}, expected 'RGB' or 'BGR'")
    pixels = _decode(path, _upright_rgb)
    return pixels if format == "RGB" else np.ascontiguousarray(pixels[:, :, ::-1])


def to_rgb(image: str | Path | Image.Image | NDArray[np.uint8]) -> NDArray[np.uint8]:
    """An image as uint8 RGB [H, W, 3], whatever it is given as.

    Args:
        image: a path (see `read_image`), a Pillow image (treated likewise), or pixels, uint8 RGB [H, W, 3], RGBA
            [H, W, 4] (alpha is dropped) or grey [H, W] or [H, W, 1].

    Raises:
        ImageReadError: it can't be read, or is an array of another type or shape.
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


def read_label_map(path: str | Path) -> NDArray[np.uint8] | NDArray[np.int32]:
    """Read a one-channel label image as the ids [H, W] it stores: uint8, or int32 where it has more than 8 bits.

    A palette image gives its indices, not its colours.

    Raises:
        ImageReadError: the file is missing or damaged, or has more than one channel.
    """
    labels = read_pixels(path)
    if labels.ndim != 2:
        raise ImageReadError(f"{path}: expected a label map with one channel, found shape {labels.shape}")
    return labels if labels.dtype == np.uint8 else labels.astype(np.int32)


def read_panoptic_png(path: str | Path) -> NDArray[np.uint8]:
    """Read the colours [H, W, 3] of a panoptic PNG in COCO's format; `targets.panoptic_ids` turns them into ids.

    Raises:
        ImageReadError: the file is missing or damaged, or isn't a colour image.
    """
    colors = read_pixels(path)
    if colors.ndim != 3 or colors.shape[2] < 3 or colors.dtype != np.uint8:
        raise ImageReadError(f"{path}: expected an 8-bit RGB panoptic PNG, found shape {colors.shape}")
    return colors[:, :, :3]


def read_pixels(path: str | Path) -> NDArray[Any]:
    """Read an image as it is stored, [H, W] or [H, W, channels], without any conversion.

    Raises:
        ImageReadError: the file is missing or damaged.
    """
    return _decode(path, np.array)


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width that an image file states; nothing is decoded.

    Raises:
        ImageReadError: the file is missing or no image.
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
    return np.array(_to_rgb(ImageOps.exif_transpose(image)))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit grey at 255 instead of scaling it; older releases open it as 32-bit "I".
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"grey values from {values.min()} to {values.max()}, expected at most 16 bits")
        return Image.fromarray(np.rint(values / 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point grey values have no fixed 8-bit range")
    if image.mode == "P" and "transparency" in image.info:
        # Straight to RGB, Pillow warns that it ignores the transparency.
        image = image.convert("RGBA")
    return image.convert("RGB")
