"""Input of image classifiers: the published evaluation transform, and training augmentation from timm's parts.

The recipe is that of Hassani et al., "Neighborhood Attention Transformer" (CVPR 2023), which resembles DeiT's (Touvron
et al., ICML 2021): random resized crops, RandAugment, mixup, CutMix and random erasing. timm draws from the global
generators of Python and NumPy; the training loader seeds them for each image and each batch, see `training_order`.

Shapes:
    S: side of the square input; K: classes
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torchvision.transforms.functional as TF
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from fvcore.transforms.transform import Transform
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import InterpolationMode

from dinat_common.errors import ConfigError, MissingPackageError, checked_fraction
from mask2former.data.dataset_mapper import TestMapper
from mask2former.data.datasets import AnnotationError
from mask2former.data.image_io import configured_range

Pixels = NDArray[np.uint8]
_FLIPS = {"none": (0.0, 0.0), "horizontal": (0.5, 0.0), "vertical": (0.0, 0.5)}


class ImageTransform(Transform):
    """A transform of whole images; nothing else is transformed with them."""

    def __init__(self, function: Callable[[Pixels], Pixels]):
        """Take the function from an image uint8 [H, W, 3] to one of the same kind."""
        super().__init__()
        self._function = function

    def apply_image(self, img: Pixels) -> Pixels:
        """Transform an image [H, W, 3]."""
        return self._function(img)

    def apply_coords(self, coords: NDArray) -> NDArray:
        """Refuse: classes have no coordinates."""
        raise TypeError("images of class folders have no coordinates to transform")


@dataclass(frozen=True)
class EvaluationTransform:
    """The published evaluation transform: resized with Pillow's bicubic filter, and the centre cropped.

    Attributes:
        size: Side of the crop in pixels.
        crop_pct: Part of the shorter side of the resized image that the crop keeps.
    """

    size: int
    crop_pct: float

    @property
    def shorter_side(self) -> int:
        """Length of the shorter side of the resized image."""
        return math.floor(self.size / self.crop_pct)

    def __call__(self, image: Pixels) -> Pixels:
        """Map an image [H, W, 3] to [size, size, 3]."""
        picture: Any = Image.fromarray(image)
        resized = TF.resize(picture, [self.shorter_side], InterpolationMode.BICUBIC)
        return np.array(TF.center_crop(resized, [self.size, self.size]))


@dataclass(frozen=True)
class TrainingTransform:
    """timm's training transform of single images: crop, flip and RandAugment.

    Attributes:
        transform: Function of timm from a Pillow image to uint8 [3, S, S].
        reverse: Whether images have the channel order BGR.
    """

    transform: Callable[[Image.Image], Any]
    reverse: bool = False

    def __call__(self, image: Pixels) -> Pixels:
        """Map an image [H, W, 3] to [S, S, 3]."""
        step = -1 if self.reverse else 1
        augmented = np.asarray(self.transform(Image.fromarray(np.ascontiguousarray(image[:, :, ::step]))))
        return np.ascontiguousarray(augmented.transpose(1, 2, 0)[:, :, ::step])


@dataclass(frozen=True, eq=False)
class LabelMapper:
    """Read and transform an image, and pass on its class.

    Attributes:
        images: Mapper of the image.
        num_classes: Number of classes; a larger label is an error.
    """

    images: TestMapper
    num_classes: int

    def __call__(self, dataset_dict: Mapping[str, Any]) -> dict[str, Any]:
        """Map a dict of a data set.

        Returns:
            A dict with `file_name`, `image_id`, the original `height` and `width`, `image` uint8 [3, S, S], and
            `label`.

        Raises:
            ImageReadError: The image is missing or damaged.
            AnnotationError: The dict has no label, or one that the model has no class for.
        """
        label = dataset_dict.get("label")
        if label is None:
            raise AnnotationError(
                f"{dataset_dict.get('file_name')}: no 'label'; a classifier is trained on class folders, see "
                "DATASETS.TRAIN"
            )
        if not 0 <= label < self.num_classes:
            raise AnnotationError(
                f"{dataset_dict.get('file_name')}: class id {label}, expected 0 to {self.num_classes - 1} "
                f"(MODEL.CLASSIFIER.NUM_CLASSES is {self.num_classes})"
            )
        return {**self.images(dataset_dict), "label": label}


@dataclass(frozen=True, eq=False)
class BatchAugmentation:
    """timm's augmentation of whole batches: mixup and CutMix, then random erasing.

    As in the published runs, images are mixed as 8-bit values, and erased regions are filled with normal noise in
    normalised values.

    Attributes:
        mix: Function of timm from pairs of image and label to images uint8 [B, 3, S, S] and targets [B, K]; None for
            no mixing.
        erase: Function of timm that erases a region of normalised images [B, 3, S, S] in place; None for no erasing.
        mean: Mean of each channel [3, 1, 1] by which the model normalises.
        std: Standard deviation of each channel [3, 1, 1] by which the model normalises.
    """

    mix: Callable[[Sequence[tuple[Pixels, int]]], tuple[torch.Tensor, torch.Tensor]] | None
    erase: Callable[[torch.Tensor], torch.Tensor] | None
    mean: torch.Tensor
    std: torch.Tensor

    def __call__(self, batch: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Map the inputs of a batch of this process to augmented ones, with distributions [K] as labels if mixed."""
        batch = list(batch)
        if self.mix is not None:
            images, targets = self.mix([(record["image"].numpy(), record["label"]) for record in batch])
            mixed = zip(batch, images, targets, strict=True)
            batch = [{**record, "image": image, "label": target} for record, image, target in mixed]
        if self.erase is not None:
            batch = [{**record, "image": self._erased(record["image"], self.erase)} for record in batch]
        return batch

    def _erased(self, image: torch.Tensor, erase: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        # What is not erased stays NaN here, and keeps its values.
        noise = erase(torch.full((1, *image.shape), math.nan))[0]
        erased = ~noise.isnan()
        return torch.where(erased, noise * self.std + self.mean, image.float()) if bool(erased.any()) else image


def build_evaluation_transform(cfg: CfgNode) -> EvaluationTransform:
    """Build the transform of images for evaluation and prediction (INPUT.CLASSIFICATION.SIZE and CROP_PCT).

    Raises:
        ConfigError: A value is outside its range.
    """
    node = cfg.INPUT.CLASSIFICATION
    if node.SIZE < 1:
        raise ConfigError(f"INPUT.CLASSIFICATION.SIZE is {node.SIZE}, expected a number of pixels")
    if not 0 < node.CROP_PCT <= 1:
        raise ConfigError(f"INPUT.CLASSIFICATION.CROP_PCT is {node.CROP_PCT}, expected more than 0 and at most 1")
    return EvaluationTransform(node.SIZE, node.CROP_PCT)


def build_classification_mapper(cfg: CfgNode, *, augmented: bool = True) -> LabelMapper:
    """Build the mapper of training images; without augmentation, that of validation losses.

    Raises:
        ConfigError: A value of INPUT can't be used.
        MissingPackageError: timm is not installed.
    """
    transform = _build_training_transform(cfg) if augmented else build_evaluation_transform(cfg)
    return LabelMapper(_build_image_mapper(cfg, transform), cfg.MODEL.CLASSIFIER.NUM_CLASSES)


def _build_image_mapper(cfg: CfgNode, transform: Callable[[Pixels], Pixels]) -> TestMapper:
    return TestMapper(T.AugmentationList([ImageTransform(transform)]), cfg.INPUT.FORMAT, configured_range(cfg))


def _build_training_transform(cfg: CfgNode) -> TrainingTransform:
    node, flip = cfg.INPUT.CLASSIFICATION, cfg.INPUT.RANDOM_FLIP
    if flip not in _FLIPS:
        raise ConfigError(f"INPUT.RANDOM_FLIP is {flip!r}, expected one of {', '.join(_FLIPS)}")
    build_evaluation_transform(cfg)
    horizontal, vertical = _FLIPS[flip]
    timm_data = _timm()
    try:
        transform = timm_data.create_transform(
            node.SIZE,
            is_training=True,
            # The result is uint8: the model normalises.
            use_prefetcher=True,
            scale=tuple(node.SCALE),
            ratio=tuple(node.RATIO),
            hflip=horizontal,
            vflip=vertical,
            # RandAugment replaces it, as in the published runs.
            color_jitter=None,
            auto_augment=node.RAND_AUGMENT or None,
            interpolation=node.INTERPOLATION,
            # RandAugment fills what it moves in with the mean.
            mean=tuple(value / 255 for value in _rgb(cfg, cfg.MODEL.PIXEL_MEAN)),
        )
    except (AssertionError, KeyError, ValueError) as error:
        raise ConfigError(f"INPUT.CLASSIFICATION: timm can't use it: {error}") from error
    return TrainingTransform(transform, cfg.INPUT.FORMAT == "BGR")


def build_batch_augmentation(cfg: CfgNode, batch_size: int) -> BatchAugmentation | None:
    """Build the augmentation of whole batches; None if there is none.

    Args:
        cfg: Config.
        batch_size: Number of images of a batch in each process.

    Raises:
        ConfigError: A value of INPUT.CLASSIFICATION can't be used.
        MissingPackageError: timm is not installed.
    """
    node = cfg.INPUT.CLASSIFICATION
    for key in ("ERASING", "MIX_PROB", "MIX_SWITCH_PROB"):
        checked_fraction(node[key], f"INPUT.CLASSIFICATION.{key}")
    mixes = node.MIX_PROB > 0 and (node.MIXUP > 0 or node.CUTMIX > 0)
    if mixes and batch_size % 2:
        raise ConfigError(
            f"a process has {batch_size} images of a batch, but mixup and CutMix need pairs: change "
            "SOLVER.IMS_PER_BATCH, or turn mixing off (INPUT.CLASSIFICATION.MIX_PROB 0)"
        )
    if not mixes and node.ERASING == 0:
        return None
    timm_data = _timm()
    mix = timm_data.FastCollateMixup(
        mixup_alpha=node.MIXUP,
        cutmix_alpha=node.CUTMIX,
        prob=node.MIX_PROB,
        switch_prob=node.MIX_SWITCH_PROB,
        mode="batch",
        label_smoothing=cfg.MODEL.CLASSIFIER.LABEL_SMOOTHING,
        num_classes=cfg.MODEL.CLASSIFIER.NUM_CLASSES,
    )
    erase = timm_data.random_erasing.RandomErasing(node.ERASING, mode="pixel", device="cpu")
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD))
    return BatchAugmentation(mix if mixes else None, erase if node.ERASING else None, mean, std)


def _rgb(cfg: CfgNode, channels: Sequence[float]) -> Sequence[float]:
    return channels[::-1] if cfg.INPUT.FORMAT == "BGR" else channels


def _timm() -> Any:
    try:
        import timm.data
    except ImportError as error:
        raise MissingPackageError("the training of a classifier", "timm", error) from error
    return timm.data
