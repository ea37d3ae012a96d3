"""Write segmentations the way COCO stores them: `segments_info`, instance annotations.

`mask2former.data.targets` reads what this writes.
"""

from collections.abc import Container
from itertools import count
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_util

Mask = NDArray[np.bool_]


def unused_segment_id(color: tuple[int, int, int], taken: Container[int]) -> int:
    """A segment's id whose colour in a panoptic PNG is, or starts from, that of its category.

    Args:
        color: RGB.
        taken: ids of the image's other segments.
    """
    for step in range(256):
        red, green, blue = ((value + step * stride) % 256 for value, stride in zip(color, (31, 23, 17), strict=True))
        segment_id = red + 256 * green + 65536 * blue
        # 0 is void.
        if segment_id and segment_id not in taken:
            return segment_id
    return next(segment_id for segment_id in count(1) if segment_id not in taken)


def segment_info(mask: Mask, segment_id: int, category_id: int, iscrowd: bool = False) -> dict[str, Any]:
    """An entry of `segments_info` in a panoptic JSON."""
    return {
        "id": segment_id,
        "category_id": category_id,
        "area": int(mask.sum()),
        "bbox": tight_box(mask),
        "iscrowd": int(iscrowd),
    }


def instance_annotation(
    mask: Mask,
    annotation_id: int,
    image_id: int | str,
    category_id: int,
    iscrowd: bool = False,
    *,
    polygons: bool = True,
) -> dict[str, Any]:
    """An entry of `annotations` in an instances JSON.

    Things are polygons unless a polygon can't say what they are (holes, or parts that meet at a corner) or `polygons`
    is false; these are compressed run lengths. Crowds are lists of run lengths, as in COCO's own files.
    """
    segmentation = encode_runs(mask) if iscrowd else ((polygons and trace_polygons(mask)) or encode_rle(mask))
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": category_id,
        "segmentation": segmentation,
        "area": int(mask.sum()),
        "bbox": tight_box(mask),
        "iscrowd": int(iscrowd),
    }


def tight_box(mask: Mask) -> list[int]:
    """The smallest box [x, y, width, height] around a mask, in pixels; zeros for an empty mask."""
    return list(cv2.boundingRect(mask.astype(np.uint8)))


def encode_runs(mask: Mask) -> dict[str, Any]:
    """COCO's uncompressed run lengths: column by column, starting with the pixels outside."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    bounds = np.concatenate([[0] if flat[:1].any() else [], [0], changes, [flat.size]])
    return {"size": list(mask.shape), "counts": np.diff(bounds).astype(int).tolist()}


def trace_polygons(mask: Mask) -> list[list[float]] | None:
    """The outlines [x, y, x, y, ...] along the pixels' edges of a mask's parts, exact under COCO's rasterisation.

    Returns:
        One polygon per part; None where polygons would not give this mask back.
    """
    # Every pixel becomes 3 x 3: the traced centres of border pixels then round to the edges of the large pixels.
    fine = np.kron(mask.astype(np.uint8), np.ones((3, 3), np.uint8))
    contours, _ = cv2.findContours(fine, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    polygons = []
    for contour in contours:
        corners = np.rint((contour[:, 0] + 0.5) / 3)
        steps = (corners != np.roll(corners, 1, axis=0)).any(axis=1)
        polygons.append(_drop_straight(corners[steps]).ravel().tolist())
    if not polygons:
        return None
    height, width = mask.shape
    drawn = mask_util.decode(mask_util.merge(mask_util.frPyObjects(polygons, height, width)))
    return polygons if np.array_equal(drawn, mask) else None


def _drop_straight(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Leave out corners of a closed outline where it goes straight on."""
    before = corners - np.roll(corners, 1, axis=0)
    after = np.roll(corners, -1, axis=0) - corners
    return corners[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]


def encode_rle(mask: Mask) -> dict[str, Any]:
    """COCO's compressed run lengths, as JSON holds them: `size` [H, W] and `counts`."""
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")}
