"""Which tasks a model's classes allow."""

from detectron2.config import CfgNode
from detectron2.data.catalog import Metadata

from mask2former.config import ConfigError
from mask2former.data.datasets import dataset_metadata
from mask2former.visualization.classes import Task

# From the richest result to the plainest, with the metadata that describes its classes.
_TASK_METADATA: dict[Task, tuple[str, ...]] = {
    "panoptic": ("stuff_classes", "thing_dataset_id_to_contiguous_id"),
    "instance": ("thing_classes",),
    "semantic": ("stuff_classes",),
}


def possible_tasks(metadata: Metadata) -> tuple[Task, ...]:
    """The tasks that a data set's classes allow, the richest first."""
    return tuple(task for task, keys in _TASK_METADATA.items() if all(metadata.get(key) for key in keys))


def checked_task(task: Task | None, threshold: float | None, metadata: Metadata) -> Task:
    """The task, if a model of these classes can do it and a confidence threshold makes sense for it.

    Raises:
        ConfigError: otherwise.
    """
    possible = possible_tasks(metadata)
    if task is None or task not in possible:
        allowed = " or ".join(possible) or "none"
        raise ConfigError(f"task {task or 'of this config'}: the classes of {metadata.name} allow {allowed}")
    if threshold is not None and not 0 <= threshold <= 1:
        raise ConfigError(f"confidence threshold {threshold}: expected a number from 0 to 1")
    if threshold is not None and task == "semantic":
        raise ConfigError("semantic results have no confidence threshold: every pixel gets its best class")
    return task


def predicted_metadata(cfg: CfgNode) -> Metadata:
    """The metadata of the data set whose classes the model of a config predicts.

    Raises:
        ConfigError: the config names no data set, or one that is not registered.
    """
    names = [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]
    if not names:
        raise ConfigError("DATASETS.TEST is empty: it names the data set whose classes the model predicts")
    try:
        return dataset_metadata(names[0])
    except ValueError as error:
        raise ConfigError(f"DATASETS.TEST: {error}") from error
