"""Text on pictures: labels of segments that do not cover each other, and a font for every size."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mask2former.visualization.classes import Color

Box = tuple[float, float, float, float]

# Places that a label tries around its anchor, in steps of its own width and height: right there, then further away.
_PLACES = ((0, 0), (0, -1), (0, 1), (-0.5, 0), (0.5, 0), (0, -2), (0, 2), (-0.6, -1), (0.6, -1), (-0.6, 1), (0.6, 1))


@dataclass(frozen=True)
class Label:
    """A text in a coloured box; ``anchor`` (x, y) in pixels is its centre, ``room`` the free radius around it."""

    text: str
    color: Color
    anchor: tuple[int, int]
    room: float


@lru_cache(maxsize=16)
def font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as matplotlib ships it (Pillow has a font of every size since 10.1 only)."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)


def font_size(height: int, width: int) -> int:
    """Text height in pixels for a picture of this size: 14 at 640 x 480, 87 at 4000 x 3000."""
    return max(12, round(math.sqrt(height * width) / 40))


def draw_labels(picture: NDArray[np.uint8], labels: Sequence[Label]) -> NDArray[np.uint8]:
    """Write labels on an RGB picture [S, T, 3] and return the new one.

    Each takes the first place near its anchor where it covers no label written before; one that finds none is left
    out, because two texts over each other say less than one.
    """
    canvas = Image.fromarray(picture)
    pen = ImageDraw.Draw(canvas)
    size = font_size(*picture.shape[:2])
    taken: list[Box] = []
    for label in labels:
        box = _place(label, pen.textlength(label.text, font(size)) + 0.6 * size, 1.35 * size, canvas.size, taken)
        if box is None:
            continue
        taken.append(box)
        fill, ink = _contrast(label.color)
        pen.rounded_rectangle(box, radius=0.25 * size, fill=fill, outline=ink, width=max(1, size // 16))
        pen.text(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), label.text, fill=ink, font=font(size), anchor="mm")
    return np.array(canvas)


def _place(label: Label, width: float, height: float, canvas: tuple[int, int], taken: Sequence[Box]) -> Box | None:
    """First free box [x0, y0, x1, y1] for a label, inside the canvas (its width and height); None without one."""
    for step_x, step_y in _PLACES:
        left = label.anchor[0] + (step_x - 0.5) * width
        top = label.anchor[1] + (step_y - 0.5) * height
        left = min(max(left, 0), max(canvas[0] - 1 - width, 0))
        top = min(max(top, 0), max(canvas[1] - 1 - height, 0))
        box = (left, top, left + width, top + height)
        if not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
            return box
    return None


def _contrast(color: Color) -> tuple[Color, Color]:
    """Colour of the box and of the text on it, for a segment's colour: light text on dark, dark text on light."""
    red, green, blue = color
    light = 0.299 * red + 0.587 * green + 0.114 * blue > 140  # ITU-R BT.601 luma
    if light:
        return color, (0, 0, 0)
    return (red * 3 // 5, green * 3 // 5, blue * 3 // 5), (255, 255, 255)
