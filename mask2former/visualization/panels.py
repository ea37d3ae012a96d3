"""Pictures put together, side by side under captions or on contact sheets, and put on disk."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mask2former.files import atomic_write
from mask2former.visualization.labels import font, font_size

_PAPER = (255, 255, 255)
_INK = (30, 30, 30)


def side_by_side(pictures: Mapping[str, NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Put pictures (RGB, any sizes) in a row, each under its caption (the key), at the height of the tallest.

    Raises:
        ValueError: There is no picture.
    """
    if not pictures:
        raise ValueError("no pictures to put side by side")
    height = max(picture.shape[0] for picture in pictures.values())
    scaled = [_scaled(picture, height / picture.shape[0]) for picture in pictures.values()]
    size = font_size(height, sum(picture.shape[1] for picture in scaled))
    gap, head = max(2, size // 2), 2 * size
    width = sum(picture.shape[1] for picture in scaled) + gap * (len(scaled) + 1)
    sheet = Image.new("RGB", (width, height + head + gap), _PAPER)
    pen = ImageDraw.Draw(sheet)
    left = gap
    for caption, picture in zip(pictures, scaled, strict=True):
        sheet.paste(Image.fromarray(picture), (left, head))
        pen.text((left, head / 2), caption, fill=_INK, font=font(size), anchor="lm")
        left += picture.shape[1] + gap
    return np.array(sheet)


def contact_sheet(pictures: Sequence[NDArray[np.uint8]], columns: int, width: int = 1920) -> NDArray[np.uint8]:
    """Put pictures (RGB, any sizes) into rows of ``columns``, on a sheet ``width`` pixels wide.

    Raises:
        ValueError: There is no picture, or ``columns`` is not positive.
    """
    if not pictures or columns < 1:
        raise ValueError(f"{len(pictures)} pictures in {columns} columns: expected at least one of each")
    cell = width // columns
    rows = []
    for start in range(0, len(pictures), columns):
        row = [_scaled(picture, cell / picture.shape[1]) for picture in pictures[start : start + columns]]
        band = np.full((max(picture.shape[0] for picture in row), cell * columns, 3), _PAPER, np.uint8)
        for index, picture in enumerate(row):
            band[: picture.shape[0], index * cell : (index + 1) * cell] = picture
        rows.append(band)
    return np.concatenate(rows)


def write_png(path: str | Path, picture: NDArray[np.uint8]) -> None:
    """Write an RGB picture, whole or not at all; folders are made where they are missing."""
    encoded = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1]
    with atomic_write(path, "wb") as file:
        file.write(encoded.tobytes())


def _scaled(picture: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    size = (max(1, round(picture.shape[1] * factor)), max(1, round(picture.shape[0] * factor)))
    scaled = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)
    return np.asarray(scaled, dtype=np.uint8)
