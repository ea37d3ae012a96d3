"""Images as callers of a `Predictor` hold them: whether an object is one image or several, and the pixels of one.

One image is a path, a Pillow image, the bytes of a file, an open file, or pixels: NumPy, PyTorch, nested lists, or
anything else that NumPy can read. Several are a list, a tuple, an iterator, or pixels with four dimensions. What may
mean two things is refused.

Shapes:
    N: images; H, W: height and width; C: channels, 1 (grey), 3 (RGB) or 4 (RGBA, of which alpha is dropped)
"""

import io
import os
from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mask2former.data import photographs
from mask2former.data.image_io import ImageReadError, to_rgb
from mask2former.data.photograph_files import PhotographError, open_photograph
from mask2former.data.photographs import ValueRange
from mask2former.prediction.drawing import Rgb

_CHANNELS = (1, 3, 4)


def split(images: Any) -> tuple[list[Any], bool]:
    """The images that an object holds, and whether the object is an image itself.

    Raises:
        ImageReadError: The object is neither an image nor a sequence of images.
    """
    if _is_file(images):
        return [images], True
    if _is_pixels(images):
        pixels = _array(images)
        if pixels.dtype.kind in "OUS" and pixels.ndim == 1:
            return list(pixels.tolist()), False
        if pixels.ndim != 4:
            return [images], True
        return list(images if isinstance(images, torch.Tensor) else pixels), False
    if isinstance(images, Iterable) and not isinstance(images, Mapping | Set):
        return list(images), False
    raise _no_image(images)


def read_numbered(number: int, image: Any, value_range: ValueRange | None = None) -> Rgb:
    """Pixels of one of several images, see `read_image`; errors give its number."""
    try:
        return read_image(image, value_range)
    except ImageReadError as error:
        raise ImageReadError(f"image {number}: {error}") from error


def read_image(image: Any, value_range: ValueRange | None = None) -> Rgb:
    """Pixels of one image in any form, uint8 RGB [H, W, 3].

    Numbers from 0 to 255 of any integer type are taken as they are, floats from 0 to 1 are multiplied by 255, and
    booleans become black and white. The channels of pixels are last; those of a PyTorch tensor are first or last,
    whichever its shape says.

    Args:
        image: Image.
        value_range: Values that become 0 and 255, for all but 8-bit pixels; see `image_io.read_image`. None: as above.

    Raises:
        ImageReadError: The object is no image, or its pixels have no 8-bit form.
    """
    if isinstance(image, str | os.PathLike):
        return to_rgb(os.path.expanduser(os.fspath(image)), value_range)
    if isinstance(image, Image.Image):
        if not all(image.size):
            raise ImageReadError(f"the given {_kind(image)} has no pixels")
        return to_rgb(image, value_range)
    if _is_file(image):
        return _decoded(image, value_range)
    if _is_pixels(image):
        pixels = _array(image)
        if pixels.ndim == 0 and pixels.dtype.kind in "OU":
            return read_image(pixels.item(), value_range)
        pixels = _channels_last(pixels, first_is_usual=isinstance(image, torch.Tensor))
        is_scaled = value_range is not None and pixels.dtype.kind in "iuf"
        return to_rgb(pixels if is_scaled else _to_uint8(pixels), value_range)
    raise _no_image(image)


def _is_file(image: Any) -> bool:
    """Whether an object is a file, on the disk, in memory or open."""
    kinds = str | os.PathLike | Image.Image | bytes | bytearray
    return isinstance(image, kinds) or hasattr(image, "read") or (isinstance(image, memoryview) and image.ndim == 1)


def _is_pixels(image: Any) -> bool:
    """Whether NumPy can read an object; of lists, only those that hold lists of numbers, and not images."""
    depth, first = 0, image
    while isinstance(first, list | tuple) and first:
        first, depth = first[0], depth + 1
    if depth:
        return depth > 1 and isinstance(first, int | float | np.number)
    kinds = np.ndarray | torch.Tensor | memoryview
    return isinstance(image, kinds) or hasattr(image, "__array__") or hasattr(image, "__array_interface__")


def _no_image(image: Any) -> ImageReadError:
    given = str(image) if image is None or isinstance(image, int | float) else f"an object of type {_kind(image)}"
    hint = "; OpenCV returns None for files that it can't read" if image is None else ""
    return ImageReadError(
        f"{given}: expected a path, a Pillow image, the bytes of a file, or RGB pixels [height, width, 3]{hint}"
    )


def _kind(image: Any) -> str:
    return type(image).__name__


def _decoded(file: Any, value_range: ValueRange | None) -> Rgb:
    """Pixels of a file in memory or an open file."""
    name = getattr(file, "name", None)
    name = name if isinstance(name, str) else f"the given {_kind(file)}"
    try:
        if hasattr(file, "read"):
            if hasattr(file, "seekable") and file.seekable():
                file.seek(0)
            file = file.read()
        if isinstance(file, str):
            raise ImageReadError(f"{name}: opened as text; open it with mode 'rb'")
        return photographs.to_rgb(open_photograph(io.BytesIO(file), name), value_range)
    except PhotographError as error:
        raise ImageReadError(str(error)) from error
    except ImageReadError:
        raise
    # Decoders and objects that only resemble files raise errors of any kind.
    except Exception as error:
        raise ImageReadError(f"{name}: can't be read as an image ({_first_line(error)})") from error


def _array(image: Any) -> NDArray[Any]:
    try:
        if isinstance(image, torch.Tensor):
            # NumPy has no bfloat16, and half precision would round the products below.
            image = image.float() if image.dtype in (torch.bfloat16, torch.float16) else image
            return image.numpy(force=True)
        pixels = np.asarray(image)
        pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    # Objects of other packages raise errors of any kind.
    except Exception as error:
        raise ImageReadError(f"the given {_kind(image)} can't be used ({_first_line(error)})") from error
    return pixels


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _channels_last(pixels: NDArray[Any], *, first_is_usual: bool) -> NDArray[Any]:
    """Pixels [H, W] or [H, W, C] of pixels with the channels last or first.

    Args:
        pixels: Pixels of one image.
        first_is_usual: Whether channels are often first in arrays of this kind, so that a shape which fits both is
            refused. Otherwise they are last if the shape fits.
    """
    shape = list(pixels.shape)
    last, first = (pixels.ndim == 3 and shape[axis] in _CHANNELS for axis in (-1, 0))
    if last and first and first_is_usual:
        raise ImageReadError(
            f"a tensor of shape {shape}: its channels may be first or last; pass a NumPy array, whose channels are last"
        )
    if not pixels.size or not (pixels.ndim == 2 or last or first):
        raise ImageReadError(f"an array of {pixels.dtype} {shape}: expected RGB pixels [height, width, 3]")
    return pixels if last or pixels.ndim == 2 else pixels.transpose(1, 2, 0)


def _to_uint8(pixels: NDArray[Any]) -> NDArray[Any]:
    """Pixels as uint8; 16-bit values stay as they are, because `to_rgb` has the rule for them."""
    kind, what = pixels.dtype.kind, f"an array of {pixels.dtype} {list(pixels.shape)}"
    if pixels.dtype in (np.uint8, np.uint16):
        return pixels
    if kind == "b":
        return pixels * np.uint8(255)
    if kind not in "iuf":
        raise ImageReadError(f"{what}: expected numbers, uint8 from 0 to 255 or floats from 0 to 1")
    lowest, highest, limit = pixels.min(), pixels.max(), 1 if kind == "f" else 255
    # NaN is not between them.
    if not (lowest >= 0 and highest <= limit):
        expected = "floats from 0 to 1" if kind == "f" else "integers from 0 to 255"
        raise ImageReadError(f"{what} with values from {lowest:g} to {highest:g}: expected uint8, or {expected}")
    return np.rint(pixels * np.float64(255)).astype(np.uint8) if kind == "f" else pixels.astype(np.uint8)
