"""Turn annotations into targets: one class and one mask per segment.

Glossary: M targets, H x W pixels. Targets are `classes` int64 [M] (contiguous ids) and `masks` bool [M, H, W]; M may be
0. Crowds are left out. Void pixels, bool [H, W], are those whose class is unknown: crowds, unlabelled pixels, and the
padding of a crop. They belong to no mask.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.structures import BoxMode
from detectron2.structures.masks import polygons_to_bitmask
from fvcore.transforms.transform import TransformList
from hotcoco import mask as mask_util
from numpy.typing import NDArray

from mask2former.data.coco_format import tight_box
from mask2former.data.datasets import AnnotationError

Targets = tuple[NDArray[np.int64], NDArray[np.bool_]]

# Value of the pixels of a mask. Detectron2 fills masks with 255 where a crop is padded.
_INSIDE = 1


def panoptic_targets(ids: NDArray[np.integer], segments_info: Sequence[Mapping[str, Any]]) -> Targets:
    """Targets of a panoptic segmentation: one per entry of `segments_info` that is not a crowd.

    Args:
        ids: Segment ids [H, W].
        segments_info: Dicts with `id`, contiguous `category_id` and `iscrowd`. An entry without pixels in `ids` gets an
            empty mask.
    """
    segments = _without_crowds(segments_info)
    classes = np.array([segment["category_id"] for segment in segments], np.int64)
    return classes, _masks_where(ids, np.array([segment["id"] for segment in segments], np.int64))


def panoptic_void(ids: NDArray[np.integer], segments_info: Sequence[Mapping[str, Any]]) -> NDArray[np.bool_]:
    """Void pixels of a panoptic segmentation; see `panoptic_targets` for the arguments."""
    return ~np.isin(ids, [segment["id"] for segment in _without_crowds(segments_info)])


def semantic_targets(labels: NDArray[Any], ignore_label: int) -> Targets:
    """Targets of a semantic segmentation: one per class, with all its pixels.

    Args:
        labels: Contiguous class ids [H, W].
        ignore_label: Value of void pixels.
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
    """Targets of instance annotations: one per annotation that is not a crowd.

    Polygons are transformed before they are filled, run lengths after they are decoded.

    Args:
        annotations: Dicts with `segmentation` (polygons or run lengths), contiguous `category_id` and `iscrowd`.
        transforms: Transforms that were applied to the image.
        image_size: Height and width of the annotated image.
        transformed_size: Height and width after the transforms, the size of the masks.

    Raises:
        AnnotationError: A segmentation is missing, of another kind, or of another size than the image.
        ValueError: Run lengths are damaged.
    """
    things = _without_crowds(annotations)
    masks = np.zeros((len(things), *transformed_size), np.bool_)
    for mask, annotation in zip(masks, things, strict=True):
        mask[:] = _transformed_mask(annotation, transforms, image_size, transformed_size)
    return np.array([annotation["category_id"] for annotation in things], np.int64), masks


def instance_boxes(
    annotations: Sequence[Mapping[str, Any]], transforms: TransformList, masks: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Boxes of the targets of `instance_targets`, clipped to the image.

    Args:
        annotations: Dicts with `iscrowd` and, where it is known, `bbox` with `bbox_mode`.
        transforms: Transforms that were applied to the image.
        masks: Masks of the targets, bool [M, H, W]; a target without `bbox` gets the box around its mask.

    Returns:
        Boxes (x0, y0, x1, y1) in pixels, float32 [M, 4].
    """
    height, width = masks.shape[1:]
    boxes = np.zeros((len(masks), 4), np.float32)
    for box, annotation, mask in zip(boxes, _without_crowds(annotations), masks, strict=True):
        if "bbox" in annotation:
            given = BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS)
            box[:] = transforms.apply_box(np.array([given], np.float64))[0]
        else:
            x, y, *sides = tight_box(mask)
            box[:] = x, y, x + sides[0], y + sides[1]
    return boxes.clip(0, np.array([width, height, width, height], np.float32))


def instance_void(
    annotations: Sequence[Mapping[str, Any]],
    transforms: TransformList,
    image_size: tuple[int, int],
    transformed_size: tuple[int, int],
) -> NDArray[np.bool_]:
    """Void pixels of instance annotations; see `instance_targets` for the arguments.

    The outlines of crowds may cover things that stand out from them, so these pixels can belong to a target, too.
    """
    # The padding of a crop.
    void = transforms.apply_segmentation(np.full(image_size, _INSIDE, np.uint8)) != _INSIDE
    for annotation in annotations:
        if annotation.get("iscrowd", 0):
            void |= _transformed_mask(annotation, transforms, image_size, transformed_size)
    return void


def _without_crowds(annotations: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [annotation for annotation in annotations if not annotation.get("iscrowd", 0)]


def _masks_where(labels: NDArray[Any], values: NDArray[Any]) -> NDArray[np.bool_]:
    return np.equal(labels, values.astype(labels.dtype)[:, None, None])


def _transformed_mask(
    annotation: Mapping[str, Any],
    transforms: TransformList,
    image_size: tuple[int, int],
    transformed_size: tuple[int, int],
) -> NDArray[np.bool_]:
    segmentation = annotation.get("segmentation")
    if not segmentation:
        found = f"{'' if segmentation is None else 'empty '}{type(segmentation).__name__}"
        raise AnnotationError(
            f"expected a segmentation as polygons or run lengths, found {found}: models learn masks, not boxes alone"
        )
    if isinstance(segmentation, list):
        polygons = [np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in segmentation]
        transformed = [polygon.ravel() for polygon in transforms.apply_polygons(polygons)]
        return polygons_to_bitmask(transformed, *transformed_size)
    if not isinstance(segmentation, dict):
        raise AnnotationError(
            f"expected a segmentation as polygons or run lengths, found {type(segmentation).__name__}"
        )
    size = tuple(segmentation["size"])
    if size != tuple(image_size):
        raise AnnotationError(f"run lengths of size {size} on an image of size {tuple(image_size)}")
    if isinstance(segmentation["counts"], list):
        segmentation = mask_util.frPyObjects(segmentation, *size)
    return transforms.apply_segmentation(mask_util.decode(segmentation)) == _INSIDE
