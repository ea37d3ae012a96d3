"""Pictures of results: overlays with class names and scores, panels and contact sheets.

A picture is the image itself, or the image enlarged by a whole factor if text would not be legible at its size. Lines
and text grow with the picture. Colours depend only on the classes and the order of the segments, so pictures can be
compared; in a video they depend on the class and the `track_id` of an object, which stays the same in all frames.

Shapes:
    H, W: height and width of the image and of every mask; S, T: height and width of the picture; N: instances
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mask2former.data.classes import ClassTable, Color
from mask2former.prediction.text import TextLine, font_size

Rgb = NDArray[np.uint8]

# Pictures whose longer side is smaller are enlarged.
MIN_LONGER_SIDE = 640
# Share of a segment's colour in its area.
FILL = 0.5


@dataclass(frozen=True)
class Label:
    """A text in a coloured box; ``anchor`` (x, y) in pixels is its centre, ``room`` the free radius around it."""

    text: str
    color: Color
    anchor: tuple[int, int]
    room: float


@dataclass(frozen=True)
class Segment:
    """An area to draw: its mask, bool [H, W], colour, text (empty: none) and box (x, y, width, height; None: none)."""

    mask: NDArray[np.bool_]
    color: Color
    text: str
    box: Sequence[float] | None = None


def draw_panoptic(
    image: Rgb,
    panoptic: NDArray[np.integer],
    segments_info: Sequence[Mapping[str, Any]],
    classes: ClassTable,
    *,
    enlarge: bool = True,
) -> Rgb:
    """Draw a panoptic segmentation.

    Args:
        image: RGB [H, W, 3].
        panoptic: Segment ids [H, W]; ids that ``segments_info`` does not list stay undrawn.
        segments_info: Per segment ``id``, ``category_id`` (contiguous), ``isthing`` and, optionally, ``score`` and
            ``track_id``.
        classes: Names and colours of the category ids.
        enlarge: Whether small images are enlarged; otherwise the picture has the size of the image.

    Returns:
        RGB picture [S, T, 3].

    Raises:
        ValueError: The sizes of image and labels differ.
    """
    _check_size(image, panoptic, "panoptic ids")
    colors = classes.segment_colors(segments_info)
    segments = [
        Segment(panoptic == info["id"], color, _text(info, classes))
        for info, color in zip(segments_info, colors, strict=True)
    ]
    return draw_segments(image, segments, enlarge=enlarge)


def draw_instances(
    image: Rgb,
    masks: NDArray[np.bool_],
    category_ids: Sequence[int],
    scores: Sequence[float] | None,
    classes: ClassTable,
    *,
    track_ids: Sequence[int] | None = None,
    boxes: NDArray[np.floating] | None = None,
    enlarge: bool = True,
) -> Rgb:
    """Draw instances, the best one on top.

    Args:
        image: RGB [H, W, 3].
        masks: [N, H, W]; they may overlap.
        category_ids: Contiguous class of each instance.
        scores: Score of each instance, or None.
        classes: Names and colours of the category ids.
        track_ids: Number of each object in a video, or None.
        boxes: Box of each instance (x, y, width, height) [N, 4], which is drawn around it, or None.
        enlarge: Whether small images are enlarged; otherwise the picture has the size of the image.

    Returns:
        RGB picture [S, T, 3].

    Raises:
        ValueError: The sizes or lengths differ.
    """
    if len(masks) != len(category_ids) or (scores is not None and len(masks) != len(scores)):
        raise ValueError(f"{len(masks)} masks, {len(category_ids)} classes and {scores and len(scores)} scores")
    columns = {"category_id": category_ids, "score": scores, "track_id": track_ids}
    columns = {key: column for key, column in columns.items() if column is not None}
    infos = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    segments = []
    of_each = boxes if boxes is not None else [None] * len(masks)
    for mask, info, color, box in zip(masks, infos, classes.segment_colors(infos), of_each, strict=True):
        _check_size(image, mask, "a mask")
        segments.append(Segment(mask, color, _text(info, classes), box))
    order = range(len(segments)) if scores is None else np.argsort(scores, kind="stable")
    return draw_segments(image, [segments[i] for i in order], enlarge=enlarge)


def draw_semantic(
    image: Rgb,
    labels: NDArray[np.integer],
    classes: ClassTable,
    ignore_label: int | None = 255,
    *,
    enlarge: bool = True,
) -> Rgb:
    """Draw a semantic segmentation.

    Args:
        image: RGB [H, W, 3].
        labels: Contiguous class of each pixel [H, W].
        classes: Names and colours of the classes.
        ignore_label: Pixels with this value stay undrawn.
        enlarge: Whether small images are enlarged; otherwise the picture has the size of the image.

    Returns:
        RGB picture [S, T, 3].

    Raises:
        ValueError: The sizes of image and labels differ.
    """
    _check_size(image, labels, "class ids")
    present = [int(label) for label in np.unique(labels) if label != ignore_label]
    segments = [Segment(labels == label, classes.color(label), classes.name(label)) for label in present]
    return draw_segments(image, segments, enlarge=enlarge)


def enlargement(height: int, width: int) -> int:
    """Whole factor by which an image is enlarged to become a picture."""
    return math.ceil(MIN_LONGER_SIDE / max(height, width))


def enlarged(image: Rgb) -> Rgb:
    """A copy of an image (RGB [H, W, 3]), enlarged by the whole factor `enlargement`."""
    height, width = image.shape[:2]
    factor = enlargement(height, width)
    picture = cv2.resize(image, (width * factor, height * factor), interpolation=cv2.INTER_CUBIC)
    return np.array(picture, dtype=np.uint8)


def draw_segments(image: Rgb, segments: Sequence[Segment], *, enlarge: bool = True) -> Rgb:
    """Draw segments over ``image`` (RGB [H, W, 3]), later ones on top, and return the picture [S, T, 3]."""
    factor = enlargement(*image.shape[:2]) if enlarge else 1
    picture = enlarged(image) if enlarge else image.copy()
    line = max(1, round(max(picture.shape[:2]) / 500))
    labels = [label for segment in segments if (label := _paint(picture, segment, factor, line)) is not None]
    # After all areas, which would cover them.
    for segment in segments:
        if segment.box is not None:
            _draw_box(picture, [factor * side for side in segment.box], segment.color, line)
    # Small segments have the fewest places for their text, so they choose first.
    labels.sort(key=lambda label: label.room)
    return draw_labels(picture, labels)


def draw_boxes(image: Rgb, boxes: NDArray[np.floating], colors: Sequence[Color]) -> Rgb:
    """Draw boxes (x, y, width, height) [N, 4] on a copy of ``image`` (RGB [H, W, 3])."""
    picture = image.copy()
    for box, color in zip(boxes.tolist(), colors, strict=True):
        _draw_box(picture, box, color, max(1, round(max(picture.shape[:2]) / 500)))
    return picture


def _draw_box(picture: Rgb, box: Sequence[float], color: Color, line: int) -> None:
    """Draw a box (x, y, width, height) on ``picture`` in place."""
    x, y, width, height = box
    corners = (round(x), round(y)), (round(x + width) - 1, round(y + height) - 1)
    cv2.rectangle(picture, *corners, [int(channel) for channel in color], line)


def _paint(picture: Rgb, segment: Segment, factor: int, line: int) -> Label | None:
    """Fill and outline a segment on ``picture`` in place; return its label unless it has nothing to show or no text.

    A segment without a pixel is labelled in its box.
    """
    x, y, width, height = cv2.boundingRect(segment.mask.astype(np.uint8))
    if width == 0:
        if segment.box is None or not segment.text:
            return None
        left, top, wide, high = (factor * side for side in segment.box)
        return Label(segment.text, segment.color, (round(left + wide / 2), round(top + high / 2)), min(wide, high) / 2)
    mask = segment.mask[y : y + height, x : x + width].astype(np.uint8)
    mask = cv2.resize(mask, (width * factor, height * factor), interpolation=cv2.INTER_NEAREST)
    # A ring of zeros: without it the distance to the edge of the box would not count.
    mask = np.pad(mask, 1)
    left, top = x * factor, y * factor
    area = picture[top : top + mask.shape[0] - 2, left : left + mask.shape[1] - 2]
    inside = mask[1:-1, 1:-1].astype(bool)
    color = np.array(segment.color)
    # A table of the 256 values of each channel takes a tenth of the time of arithmetic on the pixels.
    filled = ((1 - FILL) * np.arange(256)[:, None] + FILL * color).astype(np.uint8)
    np.copyto(area, cv2.LUT(area, filled[None]), where=inside[:, :, None])
    contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    # Drawn inwards: the line is twice as wide and cut by the mask, so neighbours keep their own outlines.
    outline = np.zeros_like(mask)
    cv2.drawContours(outline, contours, -1, 1, 2 * line)
    edge = (outline[1:-1, 1:-1] > 0) & inside
    np.copyto(area, (0.6 * color).astype(np.uint8), where=edge[:, :, None])
    if not segment.text:
        return None
    distance = cv2.distanceTransform(mask, cv2.DIST_L2, 3)
    _, room, _, (column, row) = cv2.minMaxLoc(distance)
    return Label(segment.text, segment.color, (left + column - 1, top + row - 1), room)


def _text(info: Mapping[str, Any], classes: ClassTable) -> str:
    name = classes.name(int(info["category_id"]))
    if name and "track_id" in info:
        name += f" #{info['track_id']}"
    return name if info.get("score") is None else f"{name} {100 * float(info['score']):.0f}%"


def _check_size(image: Rgb, labels: NDArray[Any], what: str) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or labels.shape != image.shape[:2]:
        raise ValueError(f"{what} of shape {labels.shape} for an image of shape {image.shape}, expected [H, W, 3]")


Box = tuple[float, float, float, float]

# Places that a label tries around its anchor, in steps of its own width and height: right there, then further away.
_PLACES = ((0, 0), (0, -1), (0, 1), (-0.5, 0), (0.5, 0), (0, -2), (0, 2), (-0.6, -1), (0.6, -1), (-0.6, 1), (0.6, 1))


def draw_labels(picture: NDArray[np.uint8], labels: Sequence[Label]) -> NDArray[np.uint8]:
    """Write labels on an RGB picture [S, T, 3] and return the new one.

    Each takes the first place near its anchor where it covers no label written before; one that finds none is left
    out, because two texts over each other say less than one. A text that is wider than the picture loses its middle.
    """
    canvas = Image.fromarray(picture)
    pen = ImageDraw.Draw(canvas)
    size = font_size(*picture.shape[:2])
    taken: list[Box] = []
    for label in labels:
        line = TextLine(label.text, size, canvas.width - 1 - 0.6 * size)
        height = max(1.35 * size, line.up + line.down + 0.1 * size)
        box = _place(label, line.width + 0.6 * size, height, canvas.size, taken)
        if box is None or not line or height > canvas.height:
            continue
        taken.append(box)
        fill, ink = _contrast(label.color)
        pen.rounded_rectangle(box, radius=0.25 * size, fill=fill, outline=ink, width=max(1, size // 16))
        line.draw(pen, box[0] + 0.3 * size, (box[1] + box[3]) / 2, ink)
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
        TextLine(caption, size, picture.shape[1]).draw(pen, left, head / 2, _INK)
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


def _scaled(picture: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    size = (max(1, round(picture.shape[1] * factor)), max(1, round(picture.shape[0] * factor)))
    scaled = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)
    return np.asarray(scaled, dtype=np.uint8)
