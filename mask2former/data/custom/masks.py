"""Masks in COCO's annotation files: what is wrong with them, and their pixels."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as mask_util

from mask2former.data.custom import problems
from mask2former.data.custom.problems import Found

# Pixels that a polygon may leave the image by: coordinates are rounded in many ways.
_MARGIN = 1.0
# Farther outside, rasterisation would overflow.
_FAR = 1e5


def segmentation_problems(segmentation: Any, size: tuple[int, int]) -> Iterator[Found]:
    """What is wrong with a `segmentation` of COCO's format on an image of `size` (height, width), with details."""
    if not segmentation:
        yield Found(problems.NO_SEGMENTATION, "")
    elif isinstance(segmentation, dict):
        yield from _rle_problems(segmentation, size)
    elif isinstance(segmentation, list) and all(isinstance(polygon, list) for polygon in segmentation):
        yield from _polygon_problems(segmentation, size)
    else:
        yield Found(problems.BAD_MASK, "")


def _rle_problems(rle: Mapping[str, Any], size: tuple[int, int]) -> Iterator[Found]:
    stated, counts = rle.get("size"), rle.get("counts")
    if not isinstance(stated, list) or len(stated) != 2 or not isinstance(counts, str | list):
        yield Found(problems.BAD_MASK, "")
        return
    if tuple(stated) != size:
        yield Found(problems.RLE_SIZE, f": {size_text(stated)}, image {size_text(size)}")
        return
    pixels = size[0] * size[1]
    if isinstance(counts, list):
        numbers = all(type(count) is int and count >= 0 for count in counts)
        if not numbers or sum(counts) != pixels:
            yield Found(
                problems.BAD_MASK, f": runs of {sum(counts)} pixels, image {size_text(size)}" if numbers else ""
            )
            return
    else:
        try:
            mask_util.decode({"size": stated, "counts": counts})
        except (ValueError, TypeError):
            yield Found(problems.BAD_MASK, ": runs that don't fill the image")
            return
    if mask_area(rle, size) < 1:
        yield Found(problems.EMPTY_MASK, "")


def _polygon_problems(polygons: Sequence[list[Any]], size: tuple[int, int]) -> Iterator[Found]:
    coordinates = [coordinate for polygon in polygons for coordinate in polygon]
    if not all(map(_is_number, coordinates)):
        yield Found(problems.BAD_MASK, "")
        return
    if any(len(polygon) < 6 or len(polygon) % 2 for polygon in polygons):
        yield Found(problems.FEW_POINTS, f": {min(len(polygon) for polygon in polygons)} coordinates")
        return
    corners = np.concatenate([np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in polygons])
    beyond = max(0.0, float(-corners.min()), float((corners - [size[1], size[0]]).max()))
    if beyond > _FAR:
        yield Found(problems.BAD_MASK, f": {beyond:.0f} pixels outside of the image")
        return
    if beyond > _MARGIN:
        yield Found(problems.POLYGON_OUTSIDE, f": by {beyond:.0f} pixels")
    if mask_area(polygons, size) < 1:
        yield Found(problems.EMPTY_MASK, "")


def bad_field(annotation: Mapping[str, Any]) -> str:
    """The first field of an annotation, or of an entry of `segments_info`, that can't be used; empty: none."""
    box, area = annotation.get("bbox", [0, 0, 0, 0]), annotation.get("area")
    sound = {
        **{key: type(annotation.get(key)) is int and annotation[key] >= 0 for key in ("id", "category_id")},
        "iscrowd": isinstance(annotation.get("iscrowd", 0), int) and annotation.get("iscrowd", 0) in (0, 1),
        "area": area is None or (_is_number(area) and area >= 0),
        "bbox": isinstance(box, list) and len(box) == 4 and all(map(_is_number, box)),
    }
    return next((f"{key} {annotation.get(key)!r}" for key, fine in sound.items() if not fine), "")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def mask_area(segmentation: Any, size: tuple[int, int]) -> int:
    """Pixels of a `segmentation` that has no problem but being empty."""
    return int(mask_util.area(to_rle(segmentation, size)))


def to_rle(segmentation: Any, size: tuple[int, int]) -> Any:
    """Compressed run lengths of a `segmentation` on an image of `size` (height, width)."""
    if isinstance(segmentation, list):
        return mask_util.merge(mask_util.frPyObjects(segmentation, *size))
    return mask_util.frPyObjects(segmentation, *size) if isinstance(segmentation["counts"], list) else segmentation


def size_text(size: Sequence[int]) -> str:
    """A size in words, the width first as everywhere else."""
    return f"{size[1]} x {size[0]}"
