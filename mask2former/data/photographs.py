"""Photographs from files to 8-bit RGB: the one reading for training, evaluation, prediction and exported models.

    file -> `photograph_files.open_photograph` -> stored values and orientation -> `to_rgb`: 8 bits, upright RGB

This file imports nothing else of this project, because tools/onnx_infer.py loads both files by their paths, without
PyTorch. `mask2former.data.image_io` is its interface for the rest of the project.

Shapes:
    H, W: height and width; C: channels
"""

import logging
import math
import mmap
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from mask2former.data.photograph_files import (
    DECODING_ERRORS,
    Photograph,
    PhotographError,
    block_orientation,
    check_size,
    open_photograph,
)

Pixels = NDArray[np.uint8]
# Values that become 0 and 255.
ValueRange = tuple[float, float]

# 16-bit values below a quarter of their range give an image that is nearly black.
_DARK = 1 << 14
_OPTIONS = (
    'INPUT.VALUE_RANGE "{range}", or --value-range {words} of tools/dataset.py and tools/onnx_infer.py, sets the range'
)
_LOG = logging.getLogger(__name__)
# Memory that forked processes, such as the workers of a data loader, share.
_HINTED = mmap.mmap(-1, 1)


def read_rgb(path: str | Path, value_range: ValueRange | None = None) -> Pixels:
    """Read a photograph as uint8 RGB [H, W, 3], upright; see `to_rgb`.

    Raises:
        PhotographError: The file is missing, damaged or too large, or its values have no 8-bit form.
    """
    with _opened(path, values=True) as photo:
        return to_rgb(photo, value_range)


def read_stored(path: str | Path) -> NDArray[Any]:
    """Read an image without any conversion, [H, W] or [H, W, C]; only TIFF files are turned upright.

    Raises:
        PhotographError: The file is missing, damaged or too large.
    """
    with _opened(path, values=True) as photo:
        check_size(photo.name, *photo.size)
        return turn(np.array(photo.content), photo.orientation if photo.kind == "TIFF" else 1)


def read_size(path: str | Path) -> tuple[int, int]:
    """Read the height and width of a photograph, upright; nothing is decoded if Pillow knows the format.

    Raises:
        PhotographError: The file is missing or no image.
    """
    with _opened(path, values=False) as photo:
        return photo.size


@contextmanager
def _opened(path: str | Path, *, values: bool) -> Generator[Photograph, None, None]:
    """Open a file, and name it in all errors."""
    try:
        with open(path, "rb") as file:
            yield open_photograph(file, str(path), values=values)
    except FileNotFoundError as error:
        raise PhotographError(f"{path}: no such file") from error
    except PhotographError:
        raise
    except DECODING_ERRORS as error:
        raise PhotographError(f"{path}: can't be read as an image ({error})") from error


def to_rgb(photo: Photograph, value_range: ValueRange | None = None) -> Pixels:
    """Turn a photograph into uint8 RGB [H, W, 3], upright.

    Grey images get three equal channels, palettes are looked up, CMYK, YCbCr and LAB are converted, and an alpha
    channel is dropped. Animations and files with several pages give the first picture.

    Args:
        photo: Photograph.
        value_range: Values that become 0 and 255, for images with more than 8 bits; values outside are clipped. None:
            16-bit values are divided by 257, and numbers without a fixed range are refused.

    Raises:
        PhotographError: The file is too large, or its values have no 8-bit form.
    """
    check_size(photo.name, *photo.size)
    content = photo.content
    if isinstance(content, Image.Image) and content.mode[0] in "IF":
        content = np.asarray(content)
        content = content.astype(content.dtype.newbyteorder("="), copy=False)
        if content.dtype == np.int32 and photo.kind != "TIFF" and content.min() >= 0 and content.max() <= 0xFFFF:
            # Older releases of Pillow open 16-bit grey as 32-bit "I".
            content = content.astype(np.uint16)
    if value_range is None and photo.bits < 16:
        value_range = (0, (1 << photo.bits) - 1)
    pixels = _convert(content) if isinstance(content, Image.Image) else scale(content, photo.name, value_range)
    if photo.inverted:
        pixels = 255 - pixels
    orientation = photo.orientation
    if orientation == 0 and isinstance(photo.content, Image.Image):
        orientation = block_orientation(photo.content)
    return np.ascontiguousarray(turn(three_channels(pixels), orientation))


def scale(values: NDArray[Any], name: str, value_range: ValueRange | None) -> Pixels:
    """Scale values of any type to 8 bits, as `to_rgb` does; `name` is for messages.

    Raises:
        PhotographError: The type has no fixed range and `value_range` is None.
    """
    if value_range is not None:
        low, high = value_range
        if values.dtype == np.uint16:
            # A table of all values is faster than arithmetic on each pixel.
            return scale(np.arange(1 << 16, dtype=np.float64), name, value_range)[values]
        scaled = (values - np.float64(low)) * (255 / (high - low))
        return np.rint(np.clip(np.nan_to_num(scaled, posinf=255.0), 0, 255)).astype(np.uint8)
    if values.dtype == np.uint16:
        _hint_if_dark(values, name)
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    kind = "floating-point" if values.dtype.kind == "f" else values.dtype.name
    finite = values[np.isfinite(values)]
    found = [float(value) for value in (finite.min(), finite.max())] if finite.size else [0.0, 0.0]
    low, high = min(0, math.floor(found[0])), max(1, math.ceil(found[1]))
    raise PhotographError(
        f"{name}: {kind} values (here {found[0]:g} to {found[1]:g}) have no fixed 8-bit range; {_options(low, high)}"
    )


def _options(low: float, high: float) -> str:
    return _OPTIONS.format(range=f"({low}, {high})", words=f"{low} {high}")


def _hint_if_dark(values: NDArray[np.uint16], name: str) -> None:
    """Say once that an image is nearly black because its values use few of their 16 bits."""
    largest = 0 if _HINTED[0] else int(values.max())
    if 0 < largest < _DARK:
        _HINTED[0] = 1
        bits = max(8, largest.bit_length())
        _LOG.warning(
            "%s: its 16-bit values are at most %d, so it becomes nearly black; if the data have %d bits, %s",
            *(name, largest, bits, _options(0, (1 << bits) - 1)),
        )


def checked_range(values: Sequence[Any], source: str) -> ValueRange | None:
    """Check a range of values given by the user; None if there is none.

    Args:
        values: Two numbers, the lower first; or none.
        source: Name of the key or option, for the message.

    Raises:
        PhotographError: The values are no range.
    """
    if len(values) == 0:
        return None
    numbers = [float(value) for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(values) != 2 or len(numbers) != 2 or not -np.inf < numbers[0] < numbers[1] < np.inf:
        raise PhotographError(f"{source} is {tuple(values)}, expected two numbers, the lower first, such as (0, 4095)")
    return numbers[0], numbers[1]


def turn(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """View of stored pixels [H, W, ...] as the EXIF orientation says."""
    if orientation > 4:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels


def three_channels(pixels: Pixels) -> Pixels:
    """RGB [H, W, 3] of pixels [H, W] or [H, W, C]: one or two channels are grey (without and with alpha)."""
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    return np.repeat(pixels[:, :, :1], 3, axis=2) if pixels.shape[2] < 3 else np.ascontiguousarray(pixels[:, :, :3])


def _convert(image: Image.Image) -> Pixels:
    """RGB [H, W, 3] of a Pillow image with 8 bits per channel."""
    if image.mode == "LAB":
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(image, *profiles, outputMode="RGB") or image
    elif image.mode == "P" and "transparency" in image.info:
        # When it converts these to RGB directly, Pillow warns that it ignores the transparency.
        image = image.convert("RGBA")
    elif image.mode == "La":
        image = image.convert("LA")
    return np.array(image.convert("RGB"))
