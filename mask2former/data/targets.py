"""Turn annotations into targets: one class and one mask per segment.

Glossary: M targets, H x W pixels. All functions return `classes` int64 [M] (contiguous ids) and `masks` bool [M, H, W];
M may be 0. Void pixels belong to no mask, and crowds are left out.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.structures.masks import polygons_to_bitmask
from fvcore.transforms.transform import TransformList
from numpy.typing import NDArray
from pycocotools import mask as mask_util

Targets = tuple[NDArray[np.int64], NDArray[np.bool_]]


def panoptic_ids(colors: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Segment ids [H, W] of a panoptic PNG's colours [H, W, 3]: R + 256 G + 65536 B."""
    red, green, blue = np.moveaxis(colors.astype(np.int32), 2, 0)
    return red + 256 * green + 65536 * blue


def panoptic_targets(ids: NDArray[np.int32], segments_info: Sequence[Mapping[str, Any]]) -> Targets:
    """Targets of a panoptic segmentation, one per entry of `segments_info` that is no crowd.

    Args:
        ids: segment ids [H, W].
        segments_info: dicts with `id`, contiguous `category_id` and `iscrowd`. An entry without a pixel in `ids` gets
            an empty mask.
    """
    segments = [segment for segment in segments_info if not segment.get("iscrowd", 0)]
    classes = np.array([segment["category_id"] for segment in segments], np.int64)
    return classes, _masks_where(ids, [segment["id"] for segment in segments])


def semantic_targets(labels: NDArray[Any], ignore_label: int) -> Targets:
    """Targets of a semantic segmentation: all pixels of a class are one segment.

    Args:
        labels: contiguous ids [H, W].
        ignore_label: marks void.
    """
    present = np.unique(labels)
    present = present[present != ignore_label]
    return present.astype(np.int64), _masks_where(labels, present)


def instance_targets(
    annotations: Sequence[Mapping[str, Any]],
    transforms: TransformList,
    image_size: tuple[int, int],
    transformed_size: tuple[int, int],
) -> Targets:
    """Targets of instance annotations, one per annotation that is no crowd.

    Polygons are transformed before they are filled, run lengths after.

    Args:
        annotations: dicts with `segmentation` (polygons or run lengths), contiguous `category_id` and `iscrowd`.
        transforms: what happened to the image.
        image_size: height and width of the annotated image.
        transformed_size: height and width after the transforms; the size of the masks.

    Raises:
        ValueError: an annotation has no segmentation, one of another kind, or one of another size than the image.
    """
    things = [annotation for annotation in annotations if not annotation.get("iscrowd", 0)]
    masks = np.zeros((len(things), *transformed_size), np.bool_)
    for mask, annotation in zip(masks, things, strict=True):
        segmentation = annotation.get("segmentation")
        if isinstance(segmentation, list):
            polygons = [np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in segmentation]
            transformed = [polygon.ravel() for polygon in transforms.apply_polygons(polygons)]
            mask[:] = polygons_to_bitmask(transformed, *transformed_size)
        elif isinstance(segmentation, dict):
            # Not bool(): where the crop is padded, Detectron2 fills masks with 255.
            mask[:] = transforms.apply_segmentation(_decode_rle(segmentation, image_size)) == 1
        else:
            raise ValueError(f"expected a segmentation as polygons or run lengths, found {type(segmentation).__name__}")
    return np.array([annotation["category_id"] for annotation in things], np.int64), masks


def drop_empty(classes: NDArray[np.int64], masks: NDArray[np.bool_]) -> Targets:
    """The targets whose masks have a pixel."""
    kept = masks.any(axis=(1, 2))
    return classes[kept], masks[kept]


def _masks_where(labels: NDArray[Any], values: Sequence[int] | NDArray[Any]) -> NDArray[np.bool_]:
    return np.equal(labels, np.asarray(values, labels.dtype)[:, None, None])


def _decode_rle(rle: Mapping[str, Any], image_size: tuple[int, int]) -> NDArray[np.uint8]:
    if tuple(rle["size"]) != tuple(image_size):
        raise ValueError(f"run lengths of size {tuple(rle['size'])} on an image of size {tuple(image_size)}")
    compressed = mask_util.frPyObjects(rle, *rle["size"]) if isinstance(rle["counts"], list) else rle
    return mask_util.decode(compressed)
