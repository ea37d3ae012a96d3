"""Whether a config fits its data sets, before a training fails in the middle or gives wrong results."""

from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode
from detectron2.data.catalog import Metadata

from mask2former.config import ConfigError
from mask2former.data.datasets import dataset_metadata

# For each `evaluator_type`: which training inputs there are annotations for, and which results need them.
_INPUTS: Mapping[str, tuple[str, ...]] = {
    "coco": ("coco_instance_lsj", "mask_former_instance"),
    "coco_panoptic_seg": ("coco_panoptic_lsj", "mask_former_panoptic"),
    "sem_seg": ("mask_former_semantic",),
}
_RESULTS: Mapping[str, tuple[str, ...]] = {
    "coco": ("INSTANCE_ON",),
    "coco_panoptic_seg": ("PANOPTIC_ON", "INSTANCE_ON", "SEMANTIC_ON"),
    "sem_seg": ("SEMANTIC_ON",),
}


def check_agreement(cfg: CfgNode) -> None:
    """Compare a config with those of its data sets that DATASETS.CUSTOM describes.

    Raises:
        ConfigError: another number of classes, other classes to test than to train on, or a training input or result
            that the annotations are not made for; the message names the key and the value it should have.
    """
    metadata = {name: dataset_metadata(name) for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)}
    custom = {name: found for name, found in metadata.items() if found.get("custom")}
    for name, found in custom.items():
        _check_classes(cfg, name, found)
        _check_results(cfg, name, found)
        first = metadata[cfg.DATASETS.TRAIN[0]] if cfg.DATASETS.TRAIN else found
        if (ours := _class_names(found)) != (theirs := _class_names(first)):
            different = next((pair for pair in zip(theirs, ours, strict=False) if pair[0] != pair[1]), None)
            detail = f"{different[0]!r} and {different[1]!r}" if different else f"{len(theirs)} and {len(ours)} classes"
            raise ConfigError(f"data sets {first.name} and {name} have different classes: {detail}")
    for name in cfg.DATASETS.TRAIN:
        if name not in custom:
            continue
        possible = _INPUTS[custom[name].evaluator_type]
        if custom[name].get("sem_seg_root") and "mask_former_semantic" not in possible:
            possible = (*possible, "mask_former_semantic")
        if cfg.INPUT.DATASET_MAPPER_NAME not in possible:
            raise ConfigError(
                f"INPUT.DATASET_MAPPER_NAME is {cfg.INPUT.DATASET_MAPPER_NAME!r}; the annotations of {name} are for "
                f"{' or '.join(possible)}"
            )


def _class_names(metadata: Metadata) -> list[Any]:
    return list(metadata.get("stuff_classes") or metadata.get("thing_classes"))


def _check_classes(cfg: CfgNode, name: str, metadata: Metadata) -> None:
    count = len(_class_names(metadata))
    if count != cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES:
        raise ConfigError(
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES}, but data set {name} has {count} "
            "classes"
        )


def _check_results(cfg: CfgNode, name: str, metadata: Metadata) -> None:
    possible = _RESULTS[metadata.evaluator_type]
    for switch in _RESULTS["coco_panoptic_seg"]:
        if cfg.MODEL.MASK_FORMER.TEST[switch] and switch not in possible:
            raise ConfigError(
                f"MODEL.MASK_FORMER.TEST.{switch} is on, but the classes of data set {name} allow {possible[0]} alone"
            )
