"""The tasks, three of segmentation and classification: what each needs from a data set, and what it produces."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from detectron2.config import CfgNode
from detectron2.data.catalog import Metadata

from dinat_common.errors import checked_fraction
from mask2former.config import ConfigError

Task = Literal["panoptic", "instance", "semantic", "classification"]
# Training input of detectors, whose targets have boxes.
WITH_BOXES = "mask_rcnn_instance"


@dataclass(frozen=True)
class TaskSpec:
    """Everything that depends on the task.

    Attributes:
        name: The task.
        output: Key of its result in the output of a model.
        switch: Key of `MODEL.MASK_FORMER.TEST` that turns its result on; None for a task that Mask2Former does
            not perform.
        annotation: Entry of a data set's dict that targets are made from.
        segments: Entry of a data set's dict that lists the segments of an image; None if only its pixels say.
        paths: Fields of a `CocoLayout` that the task needs.
        evaluator_type: `evaluator_type` of data sets annotated for the task.
        mappers: Values of `INPUT.DATASET_MAPPER_NAME` that read its annotations.
        metadata: Metadata entries that a data set needs before a model of its classes can perform the task.
        class_list: Prefix of the metadata entries (`..._classes`, `..._colors`) that number its results.
        outputs: Tasks whose results the annotations allow to be evaluated.
        label: Short name for people.
        description: Description of the result for people.
        no_threshold: Reason why no confidence threshold applies to its results; empty if one does.
    """

    name: Task
    output: str
    switch: str | None
    annotation: str
    segments: str | None
    paths: tuple[str, ...]
    evaluator_type: str
    mappers: tuple[str, ...]
    metadata: tuple[str, ...]
    class_list: Literal["thing", "stuff", "image"]
    outputs: tuple[Task, ...]
    label: str
    description: str
    no_threshold: str = ""


# From the richest result to the plainest.
TASKS: Mapping[Task, TaskSpec] = {
    spec.name: spec
    for spec in (
        TaskSpec(
            name="panoptic",
            output="panoptic_seg",
            switch="PANOPTIC_ON",
            annotation="pan_seg_file_name",
            segments="segments_info",
            paths=("panoptic_json", "panoptic_root"),
            evaluator_type="coco_panoptic_seg",
            mappers=("coco_panoptic_lsj", "mask_former_panoptic"),
            metadata=("stuff_classes", "thing_dataset_id_to_contiguous_id"),
            class_list="stuff",
            outputs=("panoptic", "instance", "semantic"),
            label="Panoptic",
            description="every thing separately, and the stuff around them",
        ),
        TaskSpec(
            name="instance",
            output="instances",
            switch="INSTANCE_ON",
            annotation="annotations",
            segments="annotations",
            paths=("json_file",),
            evaluator_type="coco",
            mappers=("coco_instance_lsj", "mask_former_instance", WITH_BOXES),
            metadata=("thing_classes",),
            class_list="thing",
            outputs=("instance",),
            label="Instances",
            description="every thing separately",
        ),
        TaskSpec(
            name="semantic",
            output="sem_seg",
            switch="SEMANTIC_ON",
            annotation="sem_seg_file_name",
            segments=None,
            paths=("sem_seg_root",),
            evaluator_type="sem_seg",
            mappers=("mask_former_semantic",),
            metadata=("stuff_classes",),
            class_list="stuff",
            outputs=("semantic",),
            label="Semantic",
            description="the class of each pixel",
            no_threshold="semantic results have no confidence threshold: every pixel gets its best class",
        ),
        TaskSpec(
            name="classification",
            output="class_scores",
            switch=None,
            annotation="label",
            segments=None,
            paths=("image_root",),
            evaluator_type="classification",
            mappers=("image_classification",),
            metadata=("image_classes",),
            class_list="image",
            outputs=("classification",),
            label="Classes",
            description="the most probable classes of the whole image",
            no_threshold="classification has no confidence threshold: every image gets its best classes",
        ),
    )
}
# Tasks whose results are segments or pixels, and their switches: those that Mask2Former performs.
SEGMENTATION_SWITCHES: Mapping[Task, str] = {name: spec.switch for name, spec in TASKS.items() if spec.switch}


@dataclass(frozen=True)
class Architecture:
    """What the models of a meta-architecture learn from and predict.

    Attributes:
        classes: Config key of the number of classes.
        mappers: Values of `INPUT.DATASET_MAPPER_NAME` whose targets it can be trained on.
        tasks: Tasks; None for those that are switched on in `MODEL.MASK_FORMER.TEST`.
        boxes: Whether boxes of instances are predicted, not measured around masks.
        absent_classes: Whether a class that is predicted but does not occur in the ground truth counts in mIoU, with
            an IoU of 0. So it does in mmsegmentation, with which UPerNets were published; Detectron2, with which
            Mask2Formers are measured, leaves it out.
        augmentation: Whether there is test-time augmentation (TEST.AUG), which averages results over views of an image.
    """

    classes: str
    mappers: tuple[str, ...]
    tasks: tuple[Task, ...] | None = None
    boxes: bool = False
    absent_classes: bool = False
    augmentation: bool = False


_WITHOUT_BOXES = tuple(
    mapper for name in SEGMENTATION_SWITCHES for mapper in TASKS[name].mappers if mapper != WITH_BOXES
)
# By MODEL.META_ARCHITECTURE.
ARCHITECTURES: Mapping[str, Architecture] = {
    "MaskFormer": Architecture("MODEL.SEM_SEG_HEAD.NUM_CLASSES", _WITHOUT_BOXES, augmentation=True),
    "ImageClassifier": Architecture(
        "MODEL.CLASSIFIER.NUM_CLASSES", TASKS["classification"].mappers, ("classification",)
    ),
    "PixelClassifier": Architecture(
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES",
        TASKS["semantic"].mappers,
        ("semantic",),
        absent_classes=True,
        augmentation=True,
    ),
    "MaskRCNN": Architecture("MODEL.ROI_HEADS.NUM_CLASSES", (WITH_BOXES,), ("instance",), boxes=True),
}


def architecture_of(cfg: CfgNode) -> Architecture:
    """Description of a config's meta-architecture; that of Mask2Former for an unknown one."""
    return ARCHITECTURES.get(cfg.MODEL.META_ARCHITECTURE, ARCHITECTURES["MaskFormer"])


def architecture_of_model(model: object) -> Architecture | None:
    """Description of a model by its class or a base class; None for an unknown one."""
    names = [kind.__name__ for kind in type(model).__mro__]
    return next((ARCHITECTURES[name] for name in names if name in ARCHITECTURES), None)


def tasks_of(cfg: CfgNode) -> tuple[Task, ...]:
    """Tasks that the model of a config performs."""
    tasks = architecture_of(cfg).tasks
    if tasks is not None:
        return tasks
    return tuple(name for name, switch in SEGMENTATION_SWITCHES.items() if cfg.MODEL.MASK_FORMER.TEST[switch])


def tasks_of_model(model: object) -> tuple[Task, ...]:
    """Tasks that a model can perform, whatever its config turns on."""
    architecture = architecture_of_model(model) or ARCHITECTURES["MaskFormer"]
    return tuple(SEGMENTATION_SWITCHES) if architecture.tasks is None else architecture.tasks


def class_count(cfg: CfgNode) -> int:
    """Number of classes of the model of a config, under the key that its architecture names."""
    value: Any = cfg
    for part in architecture_of(cfg).classes.split("."):
        value = value[part]
    return value


def possible_tasks(metadata: Metadata) -> tuple[Task, ...]:
    """The tasks that the classes of a data set allow, the richest first; stuff alone has no instances."""
    return tuple(
        name
        for name, spec in TASKS.items()
        # The map of things is empty if all classes are stuff.
        if all(metadata.get(key) not in (None, [], ()) for key in spec.metadata)
        and (name != "instance" or thing_ids(metadata) != frozenset())
    )


def thing_ids(metadata: Metadata) -> frozenset[int] | None:
    """Contiguous ids of the thing classes of a data set, whatever a model predicts.

    Detectron2's metadata name the things in `thing_dataset_id_to_contiguous_id`, which is empty if all classes are
    stuff. Data sets of instances may have nothing but `thing_classes`, data sets of pixels nothing but `stuff_classes`.

    Returns:
        The ids; None if the metadata do not tell things from stuff, so that all classes count as things.
    """
    contiguous = metadata.get("thing_dataset_id_to_contiguous_id")
    if contiguous is not None:
        return frozenset(contiguous.values())
    return frozenset() if metadata.get("stuff_classes") and not metadata.get("thing_classes") else None


def checked_task(
    task: Task | None, threshold: float | None, metadata: Metadata, performed: Sequence[Task] = tuple(TASKS)
) -> Task:
    """Check that a model of these classes can perform a task and that a confidence threshold applies to it.

    Args:
        task: The task; None is refused.
        threshold: Lowest score of a segment or an instance; None if there is none.
        metadata: Metadata of the data set whose classes the model predicts.
        performed: Tasks that the model can perform, see `tasks_of_model`.

    Returns:
        The task.

    Raises:
        ConfigError: The classes or the model do not allow the task, or the threshold is not between 0 and 1 or has no
            meaning.
    """
    if task is not None and task not in tuple(TASKS):
        raise ConfigError(f"task {task!r}: expected {', '.join(TASKS)}")
    possible = possible_tasks(metadata)
    if task is None or task not in possible:
        allowed = " or ".join(possible) or "none"
        raise ConfigError(f"task {task or 'of this config'}: the classes of {metadata.name} allow {allowed}")
    if task not in performed:
        raise ConfigError(f"task {task!r}: the model of this config performs {' and '.join(performed)} only")
    if threshold is not None:
        checked_fraction(threshold, "confidence threshold")
        if TASKS[task].no_threshold:
            raise ConfigError(TASKS[task].no_threshold)
    return task
