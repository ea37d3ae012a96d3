"""Segmentations in COCO's formats: entries of `segments_info`, instance annotations, and their run lengths."""

from collections.abc import Container
from itertools import count
from typing import Any

import cv2
import numpy as np
from hotcoco import mask as mask_util
from numpy.typing import NDArray

from mask2former.utils.label_images import color_to_id, encode_mask

Mask = NDArray[np.bool_]


def unused_segment_id(color: tuple[int, int, int], taken: Container[int]) -> int:
    """An id for a segment whose colour in a panoptic PNG is that of its category, or near it.

    Args:
        color: RGB colour of the category.
        taken: Ids of the other segments of the image.
    """
    for step in range(256):
        strides = zip(color, (31, 23, 17), strict=True)
        segment_id = color_to_id([(channel + step * stride) % 256 for channel, stride in strides])
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

    Things become polygons; if a polygon cannot describe one (holes, or parts that meet at a corner) or `polygons` is
    false, compressed run lengths. Crowds become lists of run lengths, as in COCO's own files.
    """
    segmentation = encode_runs(mask) if iscrowd else ((polygons and trace_polygons(mask)) or encode_rle(mask))
    ids = {"id": annotation_id, "image_id": image_id, "category_id": category_id}
    return {**ids, "segmentation": segmentation, **segment_info(mask, annotation_id, category_id, iscrowd)}


def tight_box(mask: Mask) -> list[int]:
    """The smallest box [x, y, width, height] around a mask, in pixels; zeros for an empty mask."""
    return list(cv2.boundingRect(mask.astype(np.uint8)))


def encode_rle(mask: Mask) -> dict[str, Any]:
    """COCO's compressed run lengths of a mask, in the form for JSON: `size` [H, W] and `counts`."""
    return {"size": list(mask.shape), "counts": encode_mask(mask)}


def encode_runs(mask: Mask) -> dict[str, Any]:
    """COCO's uncompressed run lengths: column by column, beginning with the pixels outside."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    bounds = np.concatenate([[0] if flat[:1].any() else [], [0], changes, [flat.size]])
    return {"size": list(mask.shape), "counts": np.diff(bounds).astype(int).tolist()}


def trace_polygons(mask: Mask) -> list[list[float]] | None:
    """Outlines [x, y, x, y, ...] of a mask's parts along the edges of pixels, exact under COCO's rasterisation.

    Returns:
        One polygon per part; None if polygons would not reproduce this mask.
    """
    # Every pixel becomes 3 x 3: the traced centres of border pixels then round to the edges of the large pixels.
    fine = np.kron(mask.astype(np.uint8), np.ones((3, 3), np.uint8))
    contours, _ = cv2.findContours(fine, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    polygons = []
    for contour in contours:
        corners = np.rint((contour[:, 0] + 0.5) / 3)
        corners = corners[(corners != np.roll(corners, 1, axis=0)).any(axis=1)]
        # Corners where the outline goes straight on are left out.
        before, after = corners - np.roll(corners, 1, axis=0), np.roll(corners, -1, axis=0) - corners
        turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
        polygons.append(corners[turns].ravel().tolist())
    if not polygons:
        return None
    drawn = mask_util.decode(mask_util.merge(mask_util.frPyObjects(polygons, *mask.shape)))
    return polygons if np.array_equal(drawn, mask) else None


def mask_area(segmentation: Any, size: tuple[int, int]) -> int:
    """Number of pixels of a `segmentation` without any problem except being empty."""
    return int(mask_util.area(to_rle(segmentation, size)))


def mask_box(segmentation: Any, size: tuple[int, int]) -> list[float]:
    """The box [x, y, width, height] around a `segmentation`; see `mask_area`."""
    return [float(side) for side in mask_util.toBbox(to_rle(segmentation, size))]


def to_rle(segmentation: Any, size: tuple[int, int]) -> Any:
    """Compressed run lengths of a `segmentation` on an image of `size` (height, width)."""
    if isinstance(segmentation, list):
        return mask_util.merge(mask_util.frPyObjects(segmentation, *size))
    return mask_util.frPyObjects(segmentation, *size) if isinstance(segmentation["counts"], list) else segmentation
