"""From a dataset dict to the input of the model: images and labels are read, augmented and padded.

Glossary: M targets, H x W pixels after augmentation and padding.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from os import PathLike
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.projects.point_rend import ColorAugSSDTransform
from detectron2.structures import BitMasks, Boxes, Instances
from fvcore.transforms.transform import NoOpTransform, TransformList
from numpy.typing import NDArray

from dinat_common.errors import UserError
from mask2former.data.datasets import AnnotationError
from mask2former.data.image_io import ChannelOrder, read_image, read_panoptic_png
from mask2former.data.label_maps import read_semantic_map
from mask2former.data.photographs import ValueRange
from mask2former.data.resizing import ResizeShortestEdge, at_least_one_pixel
from mask2former.data.targets import (
    Targets,
    instance_boxes,
    instance_targets,
    instance_void,
    panoptic_targets,
    panoptic_void,
    semantic_targets,
)
from mask2former.tasks import TASKS, Task
from mask2former.utils.label_images import colors_to_ids

Flip = Literal["none", "horizontal", "vertical"]

# Value of padded pixels in images of 0..255; they are padded before they are normalised.
PADDING_VALUE = 128
_PASSED_ON = ("file_name", "image_id", "height", "width", "result_name")


def large_scale_jitter(image_size: int, min_scale: float, max_scale: float, flip: Flip) -> T.AugmentationList:
    """Large-scale jittering (Ghiasi et al., "Simple Copy-Paste", 2021), the augmentation of COCO.

    A random flip; the image scaled to fit a square of `image_size` pixels, times a random factor between the scales; a
    crop of that square, padded at the right and at the bottom. As in `resize_and_crop`, order and kind of the random
    draws are those of the published runs: the same seeds of NumPy and `random` give the same crops.
    """
    return T.AugmentationList(
        [
            *_flips(flip),
            _Contiguous(),
            _ResizeScale(min_scale, max_scale, image_size, image_size),
            # (Its annotation says tuple[int].)
            T.FixedSizeCrop((image_size, image_size), pad_value=PADDING_VALUE),  # ty: ignore[invalid-argument-type]
        ]
    )


def resize_and_crop(
    short_edges: Sequence[int],
    max_size: int,
    sampling: Literal["choice", "range"],
    crop: T.Augmentation | None,
    color_format: ChannelOrder | None,
    flip: Flip,
    resize: type[ResizeShortestEdge] = ResizeShortestEdge,
) -> T.AugmentationList:
    """The augmentation of ADE20K and Cityscapes: the shortest edge resized, a crop, SSD's colour changes, a flip.

    Args:
        short_edges: Lengths of the shortest edge in pixels to choose from, or the two ends of a range.
        max_size: Largest length of the longest edge in pixels.
        sampling: Whether `short_edges` are single lengths ("choice") or a range.
        crop: Random crop; None for no crop.
        color_format: Channel order of the images; None for no changes of colour.
        flip: Direction of the random flip.
        resize: Kind of resizing, one of `resizing.RESIZES`.
    """
    augmentations: list[T.Augmentation | T.Transform] = [resize(list(short_edges), max_size, sampling)]
    if crop is not None:
        augmentations.append(crop)
    if color_format is not None:
        augmentations.append(ColorAugSSDTransform(img_format=color_format))
    return T.AugmentationList([*augmentations, *_flips(flip)])


def resize_or_crop_first(
    short_edges: Sequence[int],
    max_size: int,
    crop: tuple[Sequence[int], T.Augmentation] | None,
    flip: Flip,
    resize: type[ResizeShortestEdge] = ResizeShortestEdge,
) -> T.AugmentationList:
    """The augmentation of detectors (Carion et al., "End-to-End Object Detection with Transformers", section 4).

    A flip; for one of two images a resizing to one of few lengths and a crop; then a resizing of what is left.

    Args:
        short_edges: Lengths of the shortest edge in pixels to choose from.
        max_size: Largest length of the longest edge in pixels.
        crop: Lengths of the shortest edge to choose from before a random crop, and the crop; None for no crop.
        flip: Direction of the random flip.
        resize: Kind of resizing, one of `resizing.RESIZES`.
    """
    augmentations: list[T.Augmentation | T.Transform] = list(_flips(flip))
    if crop is not None:
        first = resize(list(crop[0]), max_size, "choice")
        augmentations.append(T.RandomApply(T.AugmentationList([first, crop[1]]), 0.5))
    return T.AugmentationList([*augmentations, resize(list(short_edges), max_size, "choice")])


def _flips(flip: Flip) -> list[T.Augmentation]:
    return [] if flip == "none" else [T.RandomFlip(horizontal=flip == "horizontal", vertical=flip == "vertical")]


class _ResizeScale(T.ResizeScale):
    """Detectron2's, except that no side becomes shorter than one pixel, whatever the shape of the image."""

    def get_transform(self, image: NDArray) -> T.Transform:
        """Choose a size for an image [H, W, ...]."""
        return at_least_one_pixel(super().get_transform(image))


class _Contiguous(NoOpTransform):
    """Copies a flipped array, which is a view, into the memory order that Pillow reads ten times faster."""

    def apply_image(self, img: NDArray) -> NDArray:
        return np.ascontiguousarray(img)


@dataclass(frozen=True, eq=False)
class TrainingMapper:
    """Read, augment and pad a training image, and make its targets.

    Attributes:
        augmentations: Augmentations of the image, such as `large_scale_jitter`.
        task: Task whose annotations targets are made from.
        num_classes: Number of classes; larger class ids are an error.
        classes_key: Config key of the number of classes, for messages.
        image_format: Channel order of the images.
        size_divisibility: Number that the height and width of padded images are multiples of; below 1, images are not
            padded.
        ignore_label: Value of void pixels in semantic maps.
        drop_empty_targets: Whether segments without a pixel in the crop are left out.
        augment_with_semantic_map: Whether the augmentations need the semantic map.
        mark_void: Whether the output contains the void pixels.
        boxes: Whether targets have boxes, as detectors need them (instances only).
        value_range: Values that become 0 and 255 in images with more than 8 bits; see `read_image`.
    """

    augmentations: T.AugmentationList
    task: Task
    _: KW_ONLY
    num_classes: int
    classes_key: str = "MODEL.SEM_SEG_HEAD.NUM_CLASSES"
    image_format: ChannelOrder = "RGB"
    size_divisibility: int = -1
    ignore_label: int = 255
    drop_empty_targets: bool = False
    augment_with_semantic_map: bool = False
    mark_void: bool = False
    boxes: bool = False
    value_range: ValueRange | None = None

    def __call__(self, dataset_dict: Mapping[str, Any]) -> dict[str, Any]:
        """Map a dict in Detectron2's standard format, which is not changed.

        Returns:
            A dict with `file_name`, `image_id` (if there is one), the original `height` and `width`, `image` uint8
            [3, H, W], and `instances` with `gt_classes` int64 [M] and `gt_masks` bool [M, H, W]; M may be 0. With
            `mark_void` also `void`, bool [H, W]. With `boxes`, instances have `gt_boxes`, `gt_masks` are Detectron2's
            `BitMasks`, and instances without a part of their box in the image are left out.

        Raises:
            ImageReadError: An image or a label image is missing, damaged, or of the wrong size.
            AnnotationError: Labels do not fit the image or the classes, or the task has no annotations here.
        """
        with _errors_name(dataset_dict):
            return self._map(dataset_dict)

    def _map(self, dataset_dict: Mapping[str, Any]) -> dict[str, Any]:
        record, image = _read_record(dataset_dict, self.image_format, self.value_range)
        annotation = TASKS[self.task].annotation
        if annotation not in dataset_dict:
            raise AnnotationError(
                f"{record['file_name']}: no {annotation!r} to make {self.task} targets from; does "
                "INPUT.DATASET_MAPPER_NAME fit DATASETS.TRAIN?"
            )
        sem_seg = None
        if self.augment_with_semantic_map or self.task == "semantic":
            sem_seg = self._read_semantic_map(dataset_dict, _size(image))
        augmented = T.AugInput(image, sem_seg=sem_seg)
        transforms = self.augmentations(augmented)
        targets, void = self._make_targets(dataset_dict, _size(image), augmented, transforms)
        record["image"] = _image_tensor(augmented.image, self.size_divisibility)
        boxes = instance_boxes(dataset_dict["annotations"], transforms, targets[1]) if self.boxes else None
        record["instances"] = self._pack(targets, boxes, record)
        if void is not None:
            record["void"] = torch.from_numpy(pad_to_multiple(void, self.size_divisibility, value=1))
        return record

    def _make_targets(
        self,
        dataset_dict: Mapping[str, Any],
        image_size: tuple[int, int],
        augmented: T.AugInput,
        transforms: TransformList,
    ) -> tuple[Targets, NDArray[np.bool_] | None]:
        """The targets, and the void pixels if they are to be marked."""
        if self.task == "semantic":
            labels = np.asarray(augmented.sem_seg)
            void = labels == self.ignore_label if self.mark_void else None
            return semantic_targets(labels, self.ignore_label), void
        if self.task == "panoptic":
            colors = read_panoptic_png(dataset_dict["pan_seg_file_name"], image_size)
            ids, segments = colors_to_ids(transforms.apply_segmentation(colors)), dataset_dict["segments_info"]
            return panoptic_targets(ids, segments), panoptic_void(ids, segments) if self.mark_void else None
        annotated = dataset_dict["annotations"], transforms, image_size, _size(augmented.image)
        try:
            targets = instance_targets(*annotated)
            void = instance_void(*annotated) & ~targets[1].any(axis=0) if self.mark_void else None
        except (ValueError, TypeError) as error:
            raise AnnotationError(f"annotations of {dataset_dict['file_name']}: {error}") from error
        return targets, void

    def _read_semantic_map(self, dataset_dict: Mapping[str, Any], image_size: tuple[int, int]) -> NDArray[np.float32]:
        if "sem_seg_file_name" not in dataset_dict:
            raise AnnotationError(f"{dataset_dict['file_name']}: no 'sem_seg_file_name', which the crop needs")
        # Not uint8: Detectron2 resizes that with Pillow and everything else with PyTorch, whose nearest pixel is
        # another one, and the published runs had floating-point labels.
        return read_semantic_map(dataset_dict, image_size).astype(np.float32)

    def _pack(self, targets: Targets, boxes: NDArray[np.float32] | None, record: Mapping[str, Any]) -> Instances:
        classes, masks = targets
        kept = masks.any(axis=(1, 2)) if self.drop_empty_targets else np.ones(len(masks), np.bool_)
        if boxes is not None:
            kept &= (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
            boxes = boxes[kept]
        if not kept.all():
            classes, masks = classes[kept], masks[kept]
        if classes.size and not 0 <= classes.min() <= classes.max() < self.num_classes:
            raise AnnotationError(
                f"labels of {record['file_name']}: class ids from {classes.min()} to {classes.max()}, expected "
                f"0 to {self.num_classes - 1} ({self.classes_key} is {self.num_classes})"
            )
        instances = Instances(tuple(record["image"].shape[1:]))
        instances.gt_classes = torch.from_numpy(classes)
        padded = torch.from_numpy(pad_to_multiple(masks, self.size_divisibility, value=0))
        instances.gt_masks = padded if boxes is None else BitMasks(padded)
        if boxes is not None:
            instances.gt_boxes = Boxes(torch.from_numpy(boxes))
        return instances


@dataclass(frozen=True, eq=False)
class TestMapper:
    """Read and resize a test image; annotations are left to the evaluators.

    Attributes:
        augmentations: Augmentations of the image.
        image_format: Channel order of the images.
        value_range: Values that become 0 and 255 in images with more than 8 bits; see `read_image`.
    """

    __test__: ClassVar = False  # not a test, whatever pytest thinks of its name

    augmentations: T.AugmentationList
    image_format: ChannelOrder = "RGB"
    value_range: ValueRange | None = None

    def __call__(self, dataset_dict: Mapping[str, Any]) -> dict[str, Any]:
        """Map a dict in Detectron2's standard format, which is not changed.

        Returns:
            A dict with `file_name`, `image_id` (if there is one), the original `height` and `width`, and `image`
            uint8 [3, H, W].

        Raises:
            ImageReadError: The image is missing or damaged.
        """
        with _errors_name(dataset_dict):
            record, image = _read_record(dataset_dict, self.image_format, self.value_range)
            resized = T.AugInput(image)
            self.augmentations(resized)
            record["image"] = _image_tensor(resized.image)
            return record


@contextmanager
def _errors_name(dataset_dict: Mapping[str, Any]) -> Generator[None, None, None]:
    """Turn every error into one for users that names a file of the dict."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        text, image = " ".join(str(error).split()), dataset_dict.get("file_name", "an image without file_name")
        files = [value for value in dataset_dict.values() if isinstance(value, str | PathLike)]
        if isinstance(error, UserError) and any(str(file) in str(error) for file in files):
            raise
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        raise AnnotationError(f"{image}: the image or its labels can't be used: {kind}{text}") from error


def _read_record(
    dataset_dict: Mapping[str, Any], image_format: ChannelOrder, value_range: ValueRange | None
) -> tuple[dict[str, Any], NDArray[np.uint8]]:
    record = {key: dataset_dict[key] for key in _PASSED_ON if key in dataset_dict}
    image = read_image(record["file_name"], image_format, value_range)
    size = dict(zip(("height", "width"), _size(image), strict=True))
    if differing := [side for side in size if record.setdefault(side, size[side]) != size[side]]:
        found = " and ".join(f"{side} {size[side]}, annotated {record[side]}" for side in differing)
        raise AnnotationError(f"{record['file_name']}: the image has {found} pixels")
    return record, image


def _image_tensor(image: NDArray[np.uint8], size_divisibility: int = -1) -> torch.Tensor:
    channels_first = pad_to_multiple(image.transpose(2, 0, 1), size_divisibility, value=PADDING_VALUE)
    return torch.from_numpy(np.ascontiguousarray(channels_first))


def _size(pixels: NDArray[Any]) -> tuple[int, int]:
    return pixels.shape[0], pixels.shape[1]


def pad_to_multiple(pixels: NDArray, divisor: int, value: int) -> NDArray:
    """Pad [..., H, W] at the bottom and at the right to multiples of `divisor`; a divisor below 1 changes nothing."""
    if divisor < 1:
        return pixels
    margins = [(0, -length % divisor) for length in pixels.shape[-2:]]
    return np.pad(pixels, [(0, 0)] * (pixels.ndim - 2) + margins, constant_values=value)
