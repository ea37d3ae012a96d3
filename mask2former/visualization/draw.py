"""Overlays of panoptic, instance and semantic results on an image, with class names and scores.

Glossary: H, W height and width of the image and of every mask; S, T those of the picture, N instances. A picture is the
image itself, or the image enlarged by a whole factor where text would not be legible at its size. Lines and text
grow with the picture. Colours depend on the classes and the order of the segments alone, so pictures can be compared;
in a video, on the classes and the `track_id` of an object, which stays the same from frame to frame.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mask2former.visualization.classes import ClassTable, Color
from mask2former.visualization.labels import Label, draw_labels

Image = NDArray[np.uint8]

# Pictures whose longer side is smaller are enlarged.
MIN_LONGER_SIDE = 640
# Share of a segment's colour in its area.
FILL = 0.5


@dataclass(frozen=True)
class Segment:
    """An area to draw: its mask, bool [H, W], colour and text (empty: none)."""

    mask: NDArray[np.bool_]
    color: Color
    text: str


def draw_panoptic(
    image: Image,
    panoptic: NDArray[np.integer],
    segments_info: Sequence[Mapping[str, Any]],
    classes: ClassTable,
    *,
    enlarge: bool = True,
) -> Image:
    """Draw a panoptic segmentation.

    Args:
        image: RGB [H, W, 3].
        panoptic: Segment ids [H, W]; ids that ``segments_info`` does not list stay undrawn.
        segments_info: Per segment ``id``, ``category_id`` (contiguous), ``isthing`` and, optionally, ``score`` and
            ``track_id``.
        classes: What the category ids mean.
        enlarge: Whether small images are enlarged; otherwise the picture has the size of the image.

    Returns:
        RGB picture [S, T, 3].

    Raises:
        ValueError: Sizes do not fit.
    """
    _check_size(image, panoptic, "panoptic ids")
    colors = classes.segment_colors(segments_info)
    segments = [
        Segment(panoptic == info["id"], color, _text(info, classes))
        for info, color in zip(segments_info, colors, strict=True)
    ]
    return draw_segments(image, segments, enlarge=enlarge)


def draw_instances(
    image: Image,
    masks: NDArray[np.bool_],
    category_ids: Sequence[int],
    scores: Sequence[float] | None,
    classes: ClassTable,
    *,
    track_ids: Sequence[int] | None = None,
    enlarge: bool = True,
) -> Image:
    """Draw instances, the best one on top.

    Args:
        image: RGB [H, W, 3].
        masks: [N, H, W]; they may overlap.
        category_ids: Contiguous class of each instance.
        scores: Score of each instance, or None.
        classes: What the category ids mean.
        track_ids: Number of each object in a video, or None.
        enlarge: Whether small images are enlarged; otherwise the picture has the size of the image.

    Returns:
        RGB picture [S, T, 3].

    Raises:
        ValueError: Sizes or lengths do not fit.
    """
    if len(masks) != len(category_ids) or (scores is not None and len(masks) != len(scores)):
        raise ValueError(f"{len(masks)} masks, {len(category_ids)} classes and {scores and len(scores)} scores")
    columns = {"category_id": category_ids, "score": scores, "track_id": track_ids}
    columns = {key: column for key, column in columns.items() if column is not None}
    infos = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    segments = []
    for mask, info, color in zip(masks, infos, classes.segment_colors(infos), strict=True):
        _check_size(image, mask, "a mask")
        segments.append(Segment(mask, color, _text(info, classes)))
    order = range(len(segments)) if scores is None else np.argsort(scores, kind="stable")
    return draw_segments(image, [segments[i] for i in order], enlarge=enlarge)


def draw_semantic(
    image: Image,
    labels: NDArray[np.integer],
    classes: ClassTable,
    ignore_label: int | None = 255,
    *,
    enlarge: bool = True,
) -> Image:
    """Draw a semantic segmentation.

    Args:
        image: RGB [H, W, 3].
        labels: Contiguous class of each pixel [H, W].
        classes: What the classes mean.
        ignore_label: Pixels with this value stay undrawn.
        enlarge: Whether small images are enlarged; otherwise the picture has the size of the image.

    Returns:
        RGB picture [S, T, 3].

    Raises:
        ValueError: Sizes do not fit.
    """
    _check_size(image, labels, "class ids")
    present = [int(label) for label in np.unique(labels) if label != ignore_label]
    segments = [Segment(labels == label, classes.color(label), classes.name(label)) for label in present]
    return draw_segments(image, segments, enlarge=enlarge)


def enlargement(height: int, width: int) -> int:
    """Whole factor by which an image is enlarged to become a picture."""
    return math.ceil(MIN_LONGER_SIDE / max(height, width))


def draw_segments(image: Image, segments: Sequence[Segment], *, enlarge: bool = True) -> Image:
    """Draw segments over ``image`` (RGB [H, W, 3]), later ones on top, and return the picture [S, T, 3]."""
    height, width = image.shape[:2]
    factor = enlargement(height, width) if enlarge else 1
    enlarged = cv2.resize(image, (width * factor, height * factor), interpolation=cv2.INTER_CUBIC)
    picture = np.asarray(enlarged, dtype=np.uint8)
    line = max(1, round(max(picture.shape[:2]) / 500))
    labels = []
    for segment in segments:
        label = _paint(picture, segment, factor, line)
        if label is not None:
            labels.append(label)
    # Small segments have the fewest places for their text, so they choose first.
    labels.sort(key=lambda label: label.room)
    return draw_labels(picture, labels)


def _paint(picture: Image, segment: Segment, factor: int, line: int) -> Label | None:
    """Fill and outline a segment on ``picture`` in place; return its label unless it has no pixel or no text."""
    x, y, width, height = cv2.boundingRect(segment.mask.astype(np.uint8))
    if width == 0:
        return None
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


def _check_size(image: Image, labels: NDArray[Any], what: str) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or labels.shape != image.shape[:2]:
        raise ValueError(f"{what} of shape {labels.shape} for an image of shape {image.shape}, expected [H, W, 3]")
