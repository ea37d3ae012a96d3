"""Turn annotations into targets: one class and one mask per segment.

Glossary: M targets, H x W pixels. Functions that make targets return `classes` int64 [M] (contiguous ids) and `masks`
bool [M, H, W]; M may be 0. Void pixels belong to no mask, and crowds are left out. For each there is one that returns
the void pixels, about which nothing is known, bool [H, W]: crowds, what is not labelled, and where a crop was padded.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from detectron2.structures.masks import polygons_to_bitmask
from fvcore.transforms.transform import TransformList
from numpy.typing import NDArray
from pycocotools import mask as mask_util

Targets = tuple[NDArray[np.int64], NDArray[np.bool_]]

# A mask's value. Detectron2 fills masks with 255 where a crop is padded.
_INSIDE = 1


def panoptic_ids(colors: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Segment ids [H, W] of a panoptic PNG's colours [H, W, 3]: R + 256 G + 65536 B."""
    # Four bytes are one number; a tenth of the time of arithmetic on the channels.
    with_alpha = cv2.cvtColor(np.ascontiguousarray(colors), cv2.COLOR_RGB2RGBA)
    return with_alpha.view("<i4")[:, :, 0] & 0xFFFFFF


def panoptic_targets(ids: NDArray[np.int32], segments_info: Sequence[Mapping[str, Any]]) -> Targets:
    """Targets of a panoptic segmentation, one per entry of `segments_info` that is no crowd.

    Args:
        ids: segment ids [H, W].
        segments_info: dicts with `id`, contiguous `category_id` and `iscrowd`. An entry without a pixel in `ids` gets
            an empty mask.
    """
    segments = _without_crowds(segments_info)
    classes = np.array([segment["category_id"] for segment in segments], np.int64)
    return classes, _masks_where(ids, [segment["id"] for segment in segments])


def panoptic_void(ids: NDArray[np.int32], segments_info: Sequence[Mapping[str, Any]]) -> NDArray[np.bool_]:
    """The void pixels of what `panoptic_targets` takes."""
    return ~np.isin(ids, [segment["id"] for segment in _without_crowds(segments_info)])


def semantic_targets(labels: NDArray[Any], ignore_label: int) -> Targets:
    """Targets of a semantic segmentation: all pixels of a class are one segment.

    Args:
        labels: contiguous ids [H, W].
        ignore_label: marks void.
    """
    present = np.unique(labels)
    present = present[present != ignore_label]
    return present.astype(np.int64), _masks_where(labels, present)


def semantic_void(labels: NDArray[Any], ignore_label: int) -> NDArray[np.bool_]:
    """The void pixels of what `semantic_targets` takes."""
    return labels == ignore_label


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
    things = _without_crowds(annotations)
    masks = np.zeros((len(things), *transformed_size), np.bool_)
    for mask, annotation in zip(masks, things, strict=True):
        mask[:] = _transformed_mask(annotation, transforms, image_size, transformed_size)
    return np.array([annotation["category_id"] for annotation in things], np.int64), masks


def instance_void(
    annotations: Sequence[Mapping[str, Any]],
    transforms: TransformList,
    image_size: tuple[int, int],
    transformed_size: tuple[int, int],
) -> NDArray[np.bool_]:
    """The void pixels of what `instance_targets` takes; a crowd may share some with a target."""
    void = _outside(transforms, image_size)
    for annotation in annotations:
        if annotation.get("iscrowd", 0):
            void |= _transformed_mask(annotation, transforms, image_size, transformed_size)
    return void


def _without_crowds(annotations: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [annotation for annotation in annotations if not annotation.get("iscrowd", 0)]


def _transformed_mask(
    annotation: Mapping[str, Any],
    transforms: TransformList,
    image_size: tuple[int, int],
    transformed_size: tuple[int, int],
) -> NDArray[np.bool_]:
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, list):
        polygons = [np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in segmentation]
        transformed = [polygon.ravel() for polygon in transforms.apply_polygons(polygons)]
        return polygons_to_bitmask(transformed, *transformed_size)
    if isinstance(segmentation, dict):
        return transforms.apply_segmentation(_decode_rle(segmentation, image_size)) == _INSIDE
    raise ValueError(f"expected a segmentation as polygons or run lengths, found {type(segmentation).__name__}")


def _outside(transforms: TransformList, image_size: tuple[int, int]) -> NDArray[np.bool_]:
    """Where a crop lies outside the image."""
    return transforms.apply_segmentation(np.full(image_size, _INSIDE, np.uint8)) != _INSIDE


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
