"""From the config to training and test input: checks against the data sets, mappers, loaders."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetFromList,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data import transforms as T
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.utils import comm
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from mask2former.config import ConfigError
from mask2former.data.classification import (
    ImageTransform,
    LabelMapper,
    build_batch_augmentation,
    build_classification_mapper,
    build_evaluation_transform,
)
from mask2former.data.dataset_mapper import (
    TestMapper,
    TrainingMapper,
    large_scale_jitter,
    resize_and_crop,
    resize_or_crop_first,
)
from mask2former.data.datasets import AnnotationError, dataset_metadata
from mask2former.data.datasets.registry import IGNORE_LABEL
from mask2former.data.image_io import configured_range
from mask2former.data.label_maps import read_semantic_map
from mask2former.data.resizing import build_resize_kind, build_test_resize
from mask2former.data.training_order import Mapper, TrainingLoader
from mask2former.solver import images_per_step
from mask2former.tasks import ARCHITECTURES, TASKS, WITH_BOXES, Task, architecture_of, class_count, tasks_of
from mask2former.utils.parallel import default_workers, report_interval

_FLIPS = ("none", "horizontal", "vertical")


def check_agreement(cfg: CfgNode) -> None:
    """Check that a config fits those of its data sets that DATASETS.CUSTOM describes.

    Without this check, a wrong config makes training fail in the middle or gives wrong results.

    Raises:
        ConfigError: The number of classes is wrong, the classes to test on are not those to train on, or the
            annotations do not allow a result or the training input. The message names the key and the expected value.
    """
    metadata = {name: dataset_metadata(name) for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)}
    classes = {
        name: list(next(filter(None, (m.get(f"{kind}_classes") for kind in ("stuff", "thing", "image"))), ()))
        for name, m in metadata.items()
    }
    predicted, key, count = tasks_of(cfg), architecture_of(cfg).classes, class_count(cfg)
    for name, found in metadata.items():
        if not found.get("custom"):
            continue
        annotated = next(spec for spec in TASKS.values() if spec.evaluator_type == found.evaluator_type)
        possible = annotated.mappers
        if found.get("sem_seg_root") and annotated.name != "semantic":
            possible += TASKS["semantic"].mappers
        if not set(possible) & set(architecture_of(cfg).mappers):
            raise ConfigError(
                f"{cfg.MODEL.META_ARCHITECTURE} can't use data set {name}, whose annotations are for "
                f"{', '.join(possible)}; tools/dataset.py config --model writes what it needs"
            )
        if len(classes[name]) != count:
            raise ConfigError(f"{key} is {count}, but data set {name} has {len(classes[name])} classes")
        first = cfg.DATASETS.TRAIN[0] if cfg.DATASETS.TRAIN else name
        if classes[name] != classes[first]:
            pairs = zip(classes[first], classes[name], strict=False)
            lengths = f"{len(classes[first])} and {len(classes[name])} classes"
            detail = next((f"{one!r} and {other!r}" for one, other in pairs if one != other), lengths)
            raise ConfigError(f"data sets {first} and {name} have different classes: {detail}")
        for task in predicted:
            if task not in annotated.outputs:
                raise ConfigError(
                    f"MODEL.MASK_FORMER.TEST.{TASKS[task].switch} is on, but the classes of data set {name} allow "
                    f"{annotated.switch or annotated.name} only"
                )
        if name in cfg.DATASETS.TRAIN and cfg.INPUT.DATASET_MAPPER_NAME not in possible:
            raise ConfigError(
                f"INPUT.DATASET_MAPPER_NAME is {cfg.INPUT.DATASET_MAPPER_NAME!r}; the annotations of {name} are for "
                f"{' or '.join(possible)}"
            )


def build_train_mapper(cfg: CfgNode) -> TrainingMapper | LabelMapper:
    """Build the mapper that INPUT.DATASET_MAPPER_NAME names.

    Raises:
        ConfigError: There is no such mapper, or a value of INPUT cannot be used with it.
    """
    task, node, flip = _build_task(cfg), cfg.INPUT, cfg.INPUT.RANDOM_FLIP
    if task == "classification":
        return build_classification_mapper(cfg)
    if flip not in _FLIPS:
        raise ConfigError(f"INPUT.RANDOM_FLIP is {flip!r}, expected one of {', '.join(_FLIPS)}")
    if node.DATASET_MAPPER_NAME.endswith("_lsj"):
        jitter = large_scale_jitter(node.IMAGE_SIZE, node.MIN_SCALE, node.MAX_SCALE, flip)
        return _build_mapper(cfg, jitter)
    if node.DATASET_MAPPER_NAME == WITH_BOXES:
        crop = (node.CROP.SHORT_EDGES, T.RandomCrop(node.CROP.TYPE, node.CROP.SIZE)) if node.CROP.ENABLED else None
        edges = node.MIN_SIZE_TRAIN, node.MAX_SIZE_TRAIN
        return _build_mapper(cfg, resize_or_crop_first(*edges, crop, flip, build_resize_kind(cfg)))
    crop, needs_semantic_map = None, False
    if node.CROP.ENABLED:
        max_area = node.CROP.SINGLE_CATEGORY_MAX_AREA
        # Up to ten windows are tried until no category but void covers a larger part of one.
        needs_semantic_map = max_area < 1
        crop = T.RandomCrop_CategoryAreaConstraint(node.CROP.TYPE, node.CROP.SIZE, max_area, _build_ignore_label(cfg))
        if needs_semantic_map and task == "instance":
            raise ConfigError(
                f"INPUT.CROP.SINGLE_CATEGORY_MAX_AREA is {max_area}: below 1 the crop needs semantic maps, which the "
                f"data of {node.DATASET_MAPPER_NAME} don't have"
            )
    colors = node.FORMAT if node.COLOR_AUG_SSD else None
    edges = node.MIN_SIZE_TRAIN, node.MAX_SIZE_TRAIN, node.MIN_SIZE_TRAIN_SAMPLING
    augmentations = resize_and_crop(*edges, crop, colors, flip, build_resize_kind(cfg))
    return _build_mapper(cfg, augmentations, augment_with_semantic_map=needs_semantic_map)


def _build_mapper(
    cfg: CfgNode, augmentations: T.AugmentationList, *, augment_with_semantic_map: bool = False
) -> TrainingMapper:
    # As in the published runs, this mapper always leaves out segments without a pixel in the crop.
    always_drops_empty_targets = cfg.INPUT.DATASET_MAPPER_NAME == "coco_instance_lsj"
    return TrainingMapper(
        augmentations,
        _build_task(cfg),
        num_classes=class_count(cfg),
        classes_key=architecture_of(cfg).classes,
        image_format=cfg.INPUT.FORMAT,
        size_divisibility=cfg.INPUT.SIZE_DIVISIBILITY,
        ignore_label=_build_ignore_label(cfg),
        drop_empty_targets=cfg.INPUT.DROP_EMPTY_TARGETS or always_drops_empty_targets,
        augment_with_semantic_map=augment_with_semantic_map,
        mark_void=cfg.MODEL.MASK_FORMER.IGNORE_VOID,
        boxes=cfg.INPUT.DATASET_MAPPER_NAME == WITH_BOXES,
        value_range=configured_range(cfg),
    )


def _build_task(cfg: CfgNode) -> Task:
    """The task whose annotations the mapper reads."""
    tasks = {mapper: name for name, spec in TASKS.items() for mapper in spec.mappers}
    if cfg.INPUT.DATASET_MAPPER_NAME not in tasks:
        raise ConfigError(
            f"INPUT.DATASET_MAPPER_NAME is {cfg.INPUT.DATASET_MAPPER_NAME!r}, expected one of {', '.join(tasks)}"
        )
    known = ARCHITECTURES.get(cfg.MODEL.META_ARCHITECTURE)
    if known is not None and cfg.INPUT.DATASET_MAPPER_NAME not in known.mappers:
        raise ConfigError(
            f"INPUT.DATASET_MAPPER_NAME is {cfg.INPUT.DATASET_MAPPER_NAME!r}; {cfg.MODEL.META_ARCHITECTURE} is trained "
            f"with {' or '.join(known.mappers)}"
        )
    return tasks[cfg.INPUT.DATASET_MAPPER_NAME]


def _build_ignore_label(cfg: CfgNode) -> int:
    return dataset_metadata(cfg.DATASETS.TRAIN[0]).get("ignore_label", IGNORE_LABEL)


def build_train_loader(cfg: CfgNode, mapper: Mapper | None = None) -> TrainingLoader | DataLoader:
    """Build the endless loader of training batches (lists of dicts) of DATASETS.TRAIN.

    Args:
        cfg: Config.
        mapper: Function that makes the input of the model of a dict. Default: `build_train_mapper(cfg)`.

    Returns:
        A loader whose place in the order of images goes into checkpoints; Detectron2's, which has no such place, for
        other samplers than TrainingSampler and RepeatFactorTrainingSampler, and for data sets that are no lists.

    Raises:
        ConfigError: A data set is unknown, or INPUT, DATALOADER or IMS_PER_BATCH has a value that cannot be used.
        MissingDatasetError: Files of a data set are missing.
        AnnotationError: No image has anything to learn.
    """
    for name in cfg.DATASETS.TRAIN:
        dataset_metadata(name)
    mapper = build_train_mapper(cfg) if mapper is None else mapper
    if _build_task(cfg) == "classification":
        return _build_classification_loader(cfg, mapper)
    node = cfg.DATALOADER
    repeat = node.SAMPLER_TRAIN == "RepeatFactorTrainingSampler"
    if repeat and not node.REPEAT_THRESHOLD > 0:
        raise ConfigError(
            f"DATALOADER.REPEAT_THRESHOLD is {node.REPEAT_THRESHOLD}: RepeatFactorTrainingSampler would repeat no "
            "image; set the share of images below which a class is rare, such as 0.1"
        )
    if not repeat and node.SAMPLER_TRAIN != "TrainingSampler":
        return build_detection_train_loader(cfg, mapper=mapper)
    try:
        dicts = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=node.FILTER_EMPTY_ANNOTATIONS)
    except AssertionError as error:
        names = ", ".join(cfg.DATASETS.TRAIN)
        raise AnnotationError(
            f"{names}: nothing to learn: no image has an annotation that is not a crowd ({error})"
        ) from error
    if not isinstance(dicts, list):
        return build_detection_train_loader(cfg, mapper=mapper, dataset=dicts)
    factors = None
    if repeat:
        # Detectron2's own sampler only counts the classes of instances.
        ignore = _build_ignore_label(cfg)
        settings = {"threshold": node.REPEAT_THRESHOLD, "ignore_label": ignore, "sqrt": node.REPEAT_SQRT}
        factors = repeat_factors(dicts, _build_task(cfg), **settings)
    return TrainingLoader(
        dicts,
        mapper,
        batch_size=cfg.SOLVER.IMS_PER_BATCH,
        factors=factors,
        seed=cfg.SEED if cfg.SEED >= 0 else None,
        group_by_shape=node.ASPECT_RATIO_GROUPING,
        workers=node.NUM_WORKERS,
    )


def _build_classification_loader(cfg: CfgNode, mapper: Mapper) -> TrainingLoader:
    images: Any = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=False)
    if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
        raise ConfigError(
            f"DATALOADER.SAMPLER_TRAIN is {cfg.DATALOADER.SAMPLER_TRAIN!r}; a classifier is trained with "
            "TrainingSampler"
        )
    batch_size = cfg.SOLVER.IMS_PER_BATCH
    return TrainingLoader(
        images,
        mapper,
        batch_size=batch_size,
        seed=cfg.SEED if cfg.SEED >= 0 else None,
        workers=cfg.DATALOADER.NUM_WORKERS,
        batch_mapper=build_batch_augmentation(cfg, batch_size // comm.get_world_size()),
        multiple_of=images_per_step(cfg),
    )


def repeat_factors(
    dicts: Sequence[Mapping[str, Any]], task: Task, *, threshold: float, ignore_label: int, sqrt: bool = True
) -> Tensor:
    """Number of times each image is shown per epoch, by its rarest class (Gupta et al., LVIS, CVPR 2019, section 4).

    Args:
        dicts: Dicts in Detectron2's format with annotations for the task. Semantic label maps are read.
        task: Task that targets are made for.
        threshold: Fraction of the images below which a class is rare. Images with a rare class are repeated.
        ignore_label: Value of void pixels in semantic label maps.
        sqrt: Whether images are repeated by the square root of how much rarer the class is, as published.

    Returns:
        Factors [len(dicts)], each at least 1.
    """
    spec = TASKS[task]
    if spec.segments is not None:
        # Crowds are no targets.
        listed = ([entry for entry in image[spec.segments] if not entry.get("iscrowd")] for image in dicts)
        classes = [{entry["category_id"] for entry in entries} for entries in listed]
    else:
        with ThreadPoolExecutor(default_workers()) as executor:
            maps = executor.map(lambda image: np.unique(read_semantic_map(image)).tolist(), dicts)
            labels = tqdm(maps, "classes of label maps", len(dicts), unit="map", mininterval=report_interval())
            classes = [set(values) - {ignore_label} for values in labels]
    found = [{"annotations": [{"category_id": c} for c in sorted(in_image)]} for in_image in classes]
    return RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(found, threshold, sqrt)


def build_test_loader(
    cfg: CfgNode, dataset_name: str, skip: Callable[[Mapping[str, Any]], bool] | None = None
) -> DataLoader:
    """Build the loader that goes once through this process's share of a data set, one image at a time.

    Args:
        cfg: Config.
        dataset_name: Name of a registered data set.
        skip: Function that returns whether a dict of the data set is left out, to complete an interrupted evaluation.

    Raises:
        ConfigError: The data set is unknown.
        MissingDatasetError: Files of the data set are missing.
    """
    dataset_metadata(dataset_name)
    mapper = TestMapper(_build_test_augmentations(cfg), cfg.INPUT.FORMAT, configured_range(cfg))
    dicts = get_detection_dataset_dicts(dataset_name, filter_empty=False)
    kept = [image for image in dicts if skip is None or not skip(image)]
    if not kept:
        # Detectron2's loader needs at least one.
        return DataLoader(DatasetFromList(kept, serialize=False))
    return build_detection_test_loader(
        kept, mapper=mapper, batch_size=_build_test_batch(cfg), num_workers=cfg.DATALOADER.NUM_WORKERS
    )


def _build_test_batch(cfg: CfgNode) -> int:
    if cfg.TEST.IMS_PER_BATCH < 1:
        raise ConfigError(f"TEST.IMS_PER_BATCH is {cfg.TEST.IMS_PER_BATCH}, expected at least 1")
    return cfg.TEST.IMS_PER_BATCH


def build_validation_loader(cfg: CfgNode) -> DataLoader:
    """Build the loader for validation losses: images of DATASETS.TEST, resized as for tests, with training targets.

    It goes once through this process's share of at most TEST.VALIDATION_IMAGES, spread evenly over the data sets.

    Raises:
        ConfigError: The data lack annotations of the kind that is trained on, or the number of images is not positive.
        MissingDatasetError: Files of a data set are missing.
    """
    limit = cfg.TEST.VALIDATION_IMAGES
    if limit < 1:
        raise ConfigError(f"TEST.VALIDATION_IMAGES is {limit}, expected at least 1")
    mapper: Any
    if "classification" in tasks_of(cfg):
        mapper = build_classification_mapper(cfg, augmented=False)
    else:
        mapper = _build_mapper(cfg, _build_test_augmentations(cfg))
    for name in cfg.DATASETS.TEST:
        dataset_metadata(name)
    dicts = get_detection_dataset_dicts(cfg.DATASETS.TEST, filter_empty=False)
    step = max(1.0, len(dicts) / limit)
    chosen = [dicts[int(index * step)] for index in range(min(limit, len(dicts)))]
    try:
        mapper(chosen[0])
    except ValueError as error:
        raise ConfigError(
            f"TEST.VALIDATION_LOSS needs the same kind of annotations in DATASETS.TEST and DATASETS.TRAIN: {error}"
        ) from error
    return build_detection_test_loader(chosen, mapper=mapper, num_workers=cfg.DATALOADER.NUM_WORKERS)


def _build_test_augmentations(cfg: CfgNode) -> T.AugmentationList:
    return T.AugmentationList([build_test_transform(cfg)])


def build_test_transform(cfg: CfgNode) -> T.Augmentation | T.Transform:
    """Build what happens to images before a model sees them in evaluation and prediction: resizing, or also a crop."""
    if "classification" in tasks_of(cfg):
        return ImageTransform(build_evaluation_transform(cfg))
    return build_test_resize(cfg)
