"""From the config to mappers and loaders: which augmentation and which targets each training input has."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import (
    DatasetFromList,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data import transforms as T
from detectron2.data.samplers import RepeatFactorTrainingSampler
from torch.utils.data import DataLoader

from mask2former.config import ConfigError
from mask2former.data.augmentation import Crop, large_scale_jitter, resize_and_crop
from mask2former.data.dataset_mapper import TargetKind, TestMapper, TrainingMapper
from mask2former.data.datasets import dataset_metadata
from mask2former.data.datasets.coco_layout import IGNORE_LABEL
from mask2former.data.sampling import repeat_factors

_FLIPS = ("none", "horizontal", "vertical")


def build_train_mapper(cfg: CfgNode) -> TrainingMapper:
    """Build the mapper that INPUT.DATASET_MAPPER_NAME names.

    Raises:
        ConfigError: there is no such mapper, or a value of INPUT can't be used with it.
    """
    if cfg.INPUT.RANDOM_FLIP not in _FLIPS:
        raise ConfigError(f"INPUT.RANDOM_FLIP is {cfg.INPUT.RANDOM_FLIP!r}, expected one of {', '.join(_FLIPS)}")
    choice = _build_training_input(cfg)
    augmentations, needs_semantic_map = choice.build_augmentations(cfg, _build_ignore_label(cfg))
    if needs_semantic_map and choice.target_kind == "instance":
        raise ConfigError(
            f"INPUT.CROP.SINGLE_CATEGORY_MAX_AREA is {cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA}: below 1 the crop needs "
            f"semantic maps, which the data of {cfg.INPUT.DATASET_MAPPER_NAME} don't have"
        )
    return _build_mapper(cfg, augmentations, augment_with_semantic_map=needs_semantic_map)


def _build_training_input(cfg: CfgNode) -> "_TrainingInput":
    name = cfg.INPUT.DATASET_MAPPER_NAME
    if name not in _TRAINING_INPUTS:
        raise ConfigError(f"INPUT.DATASET_MAPPER_NAME is {name!r}, expected one of {', '.join(_TRAINING_INPUTS)}")
    return _TRAINING_INPUTS[name]


def _build_mapper(
    cfg: CfgNode, augmentations: T.AugmentationList, *, augment_with_semantic_map: bool = False
) -> TrainingMapper:
    choice = _build_training_input(cfg)
    return TrainingMapper(
        augmentations,
        choice.target_kind,
        num_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        image_format=cfg.INPUT.FORMAT,
        size_divisibility=cfg.INPUT.SIZE_DIVISIBILITY,
        ignore_label=_build_ignore_label(cfg),
        drop_empty_targets=cfg.INPUT.DROP_EMPTY_TARGETS or choice.always_drops_empty_targets,
        augment_with_semantic_map=augment_with_semantic_map,
        mark_void=cfg.MODEL.MASK_FORMER.IGNORE_VOID,
    )


def build_train_loader(cfg: CfgNode) -> DataLoader:
    """Build the endless loader of training batches (lists of dicts) of DATASETS.TRAIN.

    Raises:
        ConfigError: INPUT can't be used.
        ValueError: an unknown data set.
        MissingDatasetError: files of a data set are missing.
    """
    for name in cfg.DATASETS.TRAIN:
        dataset_metadata(name)
    mapper = build_train_mapper(cfg)
    node = cfg.DATALOADER
    if node.SAMPLER_TRAIN != "RepeatFactorTrainingSampler":
        return build_detection_train_loader(cfg, mapper=mapper)
    # Detectron2's own choice of images knows the classes of instances only.
    if not node.REPEAT_THRESHOLD > 0:
        raise ConfigError(
            f"DATALOADER.REPEAT_THRESHOLD is {node.REPEAT_THRESHOLD}: RepeatFactorTrainingSampler then repeats no "
            "image; set the part of the images below which a class is rare, such as 0.1"
        )
    dicts = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=node.FILTER_EMPTY_ANNOTATIONS)
    factors = repeat_factors(
        dicts,
        _build_training_input(cfg).target_kind,
        threshold=node.REPEAT_THRESHOLD,
        ignore_label=_build_ignore_label(cfg),
        sqrt=node.REPEAT_SQRT,
    )
    sampler = RepeatFactorTrainingSampler(factors, seed=cfg.SEED if cfg.SEED >= 0 else None)
    return build_detection_train_loader(cfg, mapper=mapper, dataset=dicts, sampler=sampler)


def build_test_loader(
    cfg: CfgNode, dataset_name: str, skip: Callable[[Mapping[str, Any]], bool] | None = None
) -> DataLoader:
    """Build the loader that goes through a data set once, one image at a time, this process's share of it.

    Args:
        cfg: the config.
        dataset_name: a registered data set.
        skip: says of a dict of the data set whether it is left out, as an interrupted evaluation is completed.

    Raises:
        ValueError: an unknown data set.
        MissingDatasetError: files of the data set are missing.
    """
    dataset_metadata(dataset_name)
    mapper = TestMapper(_build_test_resizing(cfg), cfg.INPUT.FORMAT)
    dicts = get_detection_dataset_dicts(dataset_name, filter_empty=False)
    wanted = [image for image in dicts if skip is None or not skip(image)]
    if not wanted:
        # Detectron2's loader wants at least one.
        return DataLoader(DatasetFromList(wanted, serialize=False))
    return build_detection_test_loader(wanted, mapper=mapper, num_workers=cfg.DATALOADER.NUM_WORKERS)


def build_validation_loader(cfg: CfgNode) -> DataLoader:
    """Build the loader of images to compute losses on: of DATASETS.TEST, resized as to test, with targets as to train.

    It goes once through this process's share of at most TEST.VALIDATION_IMAGES, spread evenly over the data sets.

    Raises:
        ConfigError: the data have no annotations of the kind that is trained on, or the number is not positive.
        MissingDatasetError: files of a data set are missing.
    """
    limit = cfg.TEST.VALIDATION_IMAGES
    if limit < 1:
        raise ConfigError(f"TEST.VALIDATION_IMAGES is {limit}, expected at least 1")
    mapper = _build_mapper(cfg, _build_test_resizing(cfg))
    for name in cfg.DATASETS.TEST:
        dataset_metadata(name)
    dicts = get_detection_dataset_dicts(cfg.DATASETS.TEST, filter_empty=False)
    step = max(1.0, len(dicts) / limit)
    chosen = [dicts[int(index * step)] for index in range(min(limit, len(dicts)))]
    try:
        mapper(chosen[0])
    except ValueError as error:
        raise ConfigError(
            f"TEST.VALIDATION_LOSS needs DATASETS.TEST annotated as DATASETS.TRAIN is: {error}"
        ) from error
    return build_detection_test_loader(chosen, mapper=mapper, num_workers=cfg.DATALOADER.NUM_WORKERS)


def _build_test_resizing(cfg: CfgNode) -> T.AugmentationList:
    resize = T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST], cfg.INPUT.MAX_SIZE_TEST, "choice")
    return T.AugmentationList([resize])


def _build_ignore_label(cfg: CfgNode) -> int:
    return dataset_metadata(cfg.DATASETS.TRAIN[0]).get("ignore_label", IGNORE_LABEL)


def _build_large_scale_jitter(cfg: CfgNode, ignore_label: int) -> tuple[T.AugmentationList, bool]:
    recipe = large_scale_jitter(
        cfg.INPUT.IMAGE_SIZE, cfg.INPUT.MIN_SCALE, cfg.INPUT.MAX_SCALE, flip=cfg.INPUT.RANDOM_FLIP
    )
    return recipe, False


def _build_resize_and_crop(cfg: CfgNode, ignore_label: int) -> tuple[T.AugmentationList, bool]:
    crop = None
    if cfg.INPUT.CROP.ENABLED:
        node = cfg.INPUT.CROP
        crop = Crop(node.TYPE, node.SIZE, node.SINGLE_CATEGORY_MAX_AREA, ignore_label)
    recipe = resize_and_crop(
        cfg.INPUT.MIN_SIZE_TRAIN,
        cfg.INPUT.MAX_SIZE_TRAIN,
        cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING,
        crop,
        color_format=cfg.INPUT.FORMAT if cfg.INPUT.COLOR_AUG_SSD else None,
        flip=cfg.INPUT.RANDOM_FLIP,
    )
    return recipe, crop is not None and crop.needs_semantic_map


@dataclass(frozen=True)
class _TrainingInput:
    """A training input: what targets are made from, how images are augmented, what becomes of emptied segments."""

    target_kind: TargetKind
    # Takes the config and the label of void; says also whether the augmentations look at the semantic map.
    build_augmentations: Callable[[CfgNode, int], tuple[T.AugmentationList, bool]]
    always_drops_empty_targets: bool = False


_TRAINING_INPUTS: Mapping[str, _TrainingInput] = {
    "mask_former_semantic": _TrainingInput("semantic", _build_resize_and_crop),
    "mask_former_panoptic": _TrainingInput("panoptic", _build_resize_and_crop),
    "mask_former_instance": _TrainingInput("instance", _build_resize_and_crop),
    "coco_instance_lsj": _TrainingInput("instance", _build_large_scale_jitter, always_drops_empty_targets=True),
    "coco_panoptic_lsj": _TrainingInput("panoptic", _build_large_scale_jitter),
}
