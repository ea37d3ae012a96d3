"""Photographs that the page is given: what it accepts, in words for who looks at it, and the samples it offers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mask2former.data.image_io import ImageReadError, image_size, read_image
from mask2former.utils.errors import UserError

Rgb = NDArray[np.uint8]

# Photographs that come with scikit-image.
_SAMPLES = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png")
_SAMPLE_NAMES = {"chelsea": "cat", "motorcycle_left": "motorcycle"}
# A page of thumbnails stays quick to load.
_MOST_SAMPLES = 24


class PhotoError(UserError):
    """A photograph that the page does not take; the message is for the page, and names no path of the server."""


class SamplesError(UserError):
    """A folder that gives no samples; the message names it."""


@dataclass(frozen=True)
class Limits:
    """The largest photographs that are accepted: millions of pixels, and MiB of the file."""

    megapixels: float = 25.0
    megabytes: float = 50.0


@dataclass(frozen=True)
class Sample:
    """A photograph to try, and its name under the thumbnail."""

    file: Path
    name: str


def read_photo(path: str | Path, name: str, limits: Limits) -> Rgb:
    """Read a photograph as RGB [H, W, 3] if it is within the limits; its size is looked at before it is decoded.

    Args:
        path: where it lies.
        name: what its owner calls it.
        limits: what is accepted.

    Raises:
        PhotoError: it is gone, too large, damaged or no image.
    """
    path = Path(path)
    try:
        megabytes = path.stat().st_size / 2**20
    except OSError as error:
        raise PhotoError(f"{name} is no longer on the server. Upload it again.") from error
    if megabytes > limits.megabytes:
        raise PhotoError(
            f"{name} is too large: {_number(megabytes)} MB, at most {_number(limits.megabytes)} MB are accepted."
        )
    try:
        height, width = image_size(path)
        if height * width > limits.megapixels * 1e6:
            raise PhotoError(
                f"{name} is too large: {width} × {height} pixels are {_number(height * width / 1e6)} megapixels, "
                f"at most {_number(limits.megapixels)} are accepted. Make it smaller and try again."
            )
        return read_image(path)
    except ImageReadError as error:
        if isinstance(error.__cause__, Image.DecompressionBombError):
            message = f"{name} is too large: at most {_number(limits.megapixels)} megapixels are accepted."
            raise PhotoError(message) from error
        raise PhotoError(
            f"{name} can't be read as an image. Use a JPEG, PNG, WebP or TIFF file that opens in other programs."
        ) from error


def find_samples(folder: str | Path | None = None) -> list[Sample]:
    """The images in a folder, or without one the photographs that come with scikit-image, if that is installed.

    Raises:
        SamplesError: the folder is none, or holds no image.
    """
    if folder is None:
        package = find_spec("skimage")
        places = [] if package is None else package.submodule_search_locations or []
        return _named([file for place in places for name in _SAMPLES if (file := Path(place, "data", name)).is_file()])
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise SamplesError(f"{folder}: expected a folder with sample images")
    samples = _named(sorted(file for file in folder.iterdir() if file.is_file() and _is_image(file)))
    if not samples:
        raise SamplesError(f"{folder}: no image in it")
    return samples[:_MOST_SAMPLES]


def _named(files: Sequence[Path]) -> list[Sample]:
    return [Sample(file, _SAMPLE_NAMES.get(file.stem, file.stem)) for file in files]


def _is_image(file: Path) -> bool:
    try:
        image_size(file)
    except ImageReadError:
        return False
    return True


def _number(value: float) -> str:
    """A number as short as its size allows: 0.05, 3.2, 25, 130."""
    digits = max(0, 1 - math.floor(math.log10(value))) if 0 < value < 10 else 0
    return f"{value:.{digits}f}".rstrip("0").rstrip(".") if digits else f"{value:.0f}"
