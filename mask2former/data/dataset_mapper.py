"""From a dataset dict to what the model takes: the one place where images and labels are read."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.data.detection_utils import check_image_size
from detectron2.structures import Instances
from fvcore.transforms.transform import TransformList
from numpy.typing import NDArray

from mask2former.data.augmentation import PADDING_VALUE, pad_to_multiple
from mask2former.data.image_io import ChannelOrder, ImageReadError, read_image, read_label_map, read_panoptic_png
from mask2former.data.targets import (
    Targets,
    drop_empty,
    instance_targets,
    instance_void,
    panoptic_ids,
    panoptic_targets,
    panoptic_void,
    semantic_targets,
    semantic_void,
)

TargetKind = Literal["semantic", "panoptic", "instance"]

# What a dict of each kind has its annotations under.
_ANNOTATION_KEYS: Mapping[TargetKind, str] = {
    "semantic": "sem_seg_file_name",
    "panoptic": "pan_seg_file_name",
    "instance": "annotations",
}
_PASSED_ON = ("file_name", "image_id", "height", "width")


class TrainingMapper:
    """Read, augment and pad a training image, and make its targets.

    Glossary: M targets, H x W pixels after augmentation and padding.
    """

    def __init__(
        self,
        augmentations: T.AugmentationList,
        target_kind: TargetKind,
        *,
        num_classes: int,
        image_format: ChannelOrder = "RGB",
        size_divisibility: int = -1,
        ignore_label: int = 255,
        drop_empty_targets: bool = False,
        augment_with_semantic_map: bool = False,
        mark_void: bool = False,
    ):
        """Take the parts.

        Args:
            augmentations: one of the recipes of `mask2former.data.augmentation`.
            target_kind: what the targets are made from.
            num_classes: class ids from here on are an error.
            image_format: channel order of the images.
            size_divisibility: images are padded to multiples of this; below 1: not at all.
            ignore_label: marks void in semantic maps.
            drop_empty_targets: forget segments that have no pixel in the crop.
            augment_with_semantic_map: the augmentations look at the semantic map.
            mark_void: say which pixels are void.
        """
        self._augmentations = augmentations
        self._kind = target_kind
        self._num_classes = num_classes
        self._image_format = image_format
        self._size_divisibility = size_divisibility
        self._ignore_label = ignore_label
        self._drop_empty_targets = drop_empty_targets
        self._mark_void = mark_void
        self._reads_semantic_map = augment_with_semantic_map or target_kind == "semantic"

    def __call__(self, dataset_dict: Mapping[str, Any]) -> dict[str, Any]:
        """Map a dict in Detectron2's standard format, which stays as it is.

        Returns:
            A dict with `file_name`, `image_id` (where there is one), the original `height` and `width`, `image` uint8
            [3, H, W], and `instances` with `gt_classes` int64 [M] and `gt_masks` bool [M, H, W]; M may be 0. With
            `mark_void` also `void`, bool [H, W].

        Raises:
            ImageReadError: an image or a label is missing or damaged.
            ValueError: a label doesn't fit its image or the classes, or the dict has no annotations of this kind.
        """
        record, image = _read_record(dataset_dict, self._image_format)
        if _ANNOTATION_KEYS[self._kind] not in dataset_dict:
            raise ValueError(
                f"{record['file_name']}: no {_ANNOTATION_KEYS[self._kind]!r} to make {self._kind} targets from; does "
                "INPUT.DATASET_MAPPER_NAME fit DATASETS.TRAIN?"
            )
        sem_seg = self._read_semantic_map(dataset_dict, _size(image)) if self._reads_semantic_map else None
        augmented = T.AugInput(image, sem_seg=sem_seg)
        transforms = self._augmentations(augmented)
        targets, void = self._make_targets(dataset_dict, _size(image), augmented, transforms)
        record["image"] = _image_tensor(augmented.image, self._size_divisibility)
        record["instances"] = self._pack(targets, record)
        if void is not None:
            record["void"] = torch.from_numpy(pad_to_multiple(void, self._size_divisibility, value=1))
        return record

    def _make_targets(
        self,
        dataset_dict: Mapping[str, Any],
        image_size: tuple[int, int],
        augmented: T.AugInput,
        transforms: TransformList,
    ) -> tuple[Targets, NDArray[np.bool_] | None]:
        """The targets, and the void pixels if they are to be marked."""
        if self._kind == "semantic":
            labels = np.asarray(augmented.sem_seg)
            void = semantic_void(labels, self._ignore_label) if self._mark_void else None
            return semantic_targets(labels, self._ignore_label), void
        if self._kind == "panoptic":
            colors = _read_labels(read_panoptic_png, dataset_dict["pan_seg_file_name"], image_size)
            ids, segments = panoptic_ids(transforms.apply_segmentation(colors)), dataset_dict["segments_info"]
            return panoptic_targets(ids, segments), panoptic_void(ids, segments) if self._mark_void else None
        annotated = dataset_dict["annotations"], transforms, image_size, _size(augmented.image)
        try:
            targets = instance_targets(*annotated)
            # A crowd's outline may cover things that stand out from it.
            void = instance_void(*annotated) & ~targets[1].any(axis=0) if self._mark_void else None
        except ValueError as error:
            raise ValueError(f"annotations of {dataset_dict['file_name']}: {error}") from error
        return targets, void

    def _read_semantic_map(self, dataset_dict: Mapping[str, Any], image_size: tuple[int, int]) -> NDArray[np.float32]:
        if "sem_seg_file_name" not in dataset_dict:
            raise ValueError(f"{dataset_dict['file_name']}: no 'sem_seg_file_name', which the crop has to look at")
        # Not uint8: Detectron2 resizes that with Pillow and everything else with PyTorch, whose nearest pixel is
        # another one, and the published runs had floating-point labels.
        return _read_labels(read_label_map, dataset_dict["sem_seg_file_name"], image_size).astype(np.float32)

    def _pack(self, targets: Targets, record: Mapping[str, Any]) -> Instances:
        classes, masks = drop_empty(*targets) if self._drop_empty_targets else targets
        if classes.size and not 0 <= classes.min() <= classes.max() < self._num_classes:
            raise ValueError(
                f"labels of {record['file_name']}: class ids from {classes.min()} to {classes.max()}, expected "
                f"0 to {self._num_classes - 1} (MODEL.SEM_SEG_HEAD.NUM_CLASSES is {self._num_classes})"
            )
        instances = Instances(tuple(record["image"].shape[1:]))
        instances.gt_classes = torch.from_numpy(classes)
        instances.gt_masks = torch.from_numpy(pad_to_multiple(masks, self._size_divisibility, value=0))
        return instances


class TestMapper:
    """Read and resize an image to test on; annotations are left to the evaluators."""

    __test__ = False  # not a test, whatever pytest thinks of its name

    def __init__(self, augmentations: T.AugmentationList, image_format: ChannelOrder = "RGB"):
        """Take the resizing and the channel order."""
        self._augmentations = augmentations
        self._image_format = image_format

    def __call__(self, dataset_dict: Mapping[str, Any]) -> dict[str, Any]:
        """Map a dict in Detectron2's standard format, which stays as it is.

        Returns:
            A dict with `file_name`, `image_id` (where there is one), the original `height` and `width`, and `image`
            uint8 [3, H, W].

        Raises:
            ImageReadError: the image is missing or damaged.
        """
        record, image = _read_record(dataset_dict, self._image_format)
        resized = T.AugInput(image)
        self._augmentations(resized)
        record["image"] = _image_tensor(resized.image)
        return record


def _read_record(
    dataset_dict: Mapping[str, Any], image_format: ChannelOrder
) -> tuple[dict[str, Any], NDArray[np.uint8]]:
    record = {key: dataset_dict[key] for key in _PASSED_ON if key in dataset_dict}
    image = read_image(record["file_name"], image_format)
    # Fills in height and width; an image of another size than annotated is an error that names it.
    check_image_size(record, image)
    return record, image


def _read_labels(
    read: Callable[[str | Path], NDArray[Any]], path: str | Path, image_size: tuple[int, int]
) -> NDArray[Any]:
    labels = read(path)
    if _size(labels) != image_size:
        raise ImageReadError(f"{path}: labels of {_size(labels)} pixels for an image of {image_size}")
    return labels


def _size(pixels: NDArray[Any]) -> tuple[int, int]:
    return pixels.shape[0], pixels.shape[1]


def _image_tensor(image: NDArray[np.uint8], size_divisibility: int = -1) -> torch.Tensor:
    channels_first = pad_to_multiple(image.transpose(2, 0, 1), size_divisibility, value=PADDING_VALUE)
    return torch.from_numpy(np.ascontiguousarray(channels_first))
