"""The models that `tools/dataset.py config --model` sets up: what differs between them, in one table."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mask2former.data.custom.class_list import SourceError
from mask2former.data.custom.model_size import COSTS, PICO, Cost
from mask2former.data.custom.source import Format
from mask2former.data.datasets.custom import FORMATS
from mask2former.tasks import ARCHITECTURES, TASKS, WITH_BOXES, Task
from mask2former.utils.yaml_files import read_config_file

Family = Literal["dinat", "dinat_s", "nat"]
# Tasks that the formats describe most fully.
FORMAT_TASKS: Mapping[Format, Task] = {
    "coco_instance": FORMATS["coco_instance"].task,
    "coco_panoptic": FORMATS["coco_panoptic"].task,
    "semantic": FORMATS["semantic"].task,
    "semantic_instance": FORMATS["coco_panoptic"].task,
    "class_folders": FORMATS["class_folders"].task,
}
FAMILY_NAMES: Mapping[Family, str] = {"dinat": "DiNAT", "dinat_s": "DiNATs", "nat": "NAT"}


# Names of weights of the families that are not DiNATs of the usual kind.
_FAMILIES: Mapping[Family, str] = {"dinat_s": r"dinat_?s_", "nat": r"(?<!di)nat_?"}


@dataclass(frozen=True)
class TrainableModel:
    """A model that can be trained on a user's data.

    Attributes:
        label: Name for people.
        architecture: Value of MODEL.META_ARCHITECTURE, a key of `tasks.ARCHITECTURES`.
        mappers: Values of INPUT.DATASET_MAPPER_NAME by the task that annotations describe most fully; the model can't
            be trained on other annotations.
        needs: Annotations that it needs, for messages.
        configs: Configs that it starts from, relative to configs/_base_, with {} for the size, by family of backbones;
            the last one has the section MODEL.DINAT.
        small_configs: Configs of the small model for CPUs.
        costs: Memory for training by size of the backbone, the largest first.
        epochs: Pairs of a number of training images and the number of epochs on as many, by the published settings.
        like: Settings that `epochs` are from, for people.
        steps: Shares of the iterations after which the learning rate is divided by 10; empty for a polynomial schedule.
        warmup: Iterations of the published warm-up; 0: none.
        rate: Learning rate, of which a pretrained backbone gets a tenth; None for that of `configs`, everywhere.
        padding: Config key of the number that the sides of square crops are padded to.
        head: Name of the model beside that of its backbone; empty for Mask2Former, which goes without saying.
        small_parameters: Millions of parameters of the small model for CPUs.
        small_images: Images that the small model for CPUs sees in a training from scratch: 2.5 times those of the
            training on shapes, which stops when its targets are reached.
        small_like: Training on shapes that `small_images` follows from.
        least_batch: Smallest number of images that a process can be trained on at a time.
    """

    label: str
    architecture: str
    mappers: Mapping[Task, str]
    needs: str
    configs: Mapping[Family, tuple[str, ...]]
    small_configs: tuple[str, ...]
    costs: Mapping[str, Cost]
    epochs: tuple[tuple[int, int], ...]
    like: str
    steps: tuple[float, ...]
    warmup: int = 0
    rate: float | None = None
    padding: str = "INPUT.SIZE_DIVISIBILITY"
    head: str = ""
    small_parameters: int = 2
    small_images: int = 12800
    small_like: str = "the training of configs/shapes"
    least_batch: int = 1

    @property
    def tasks(self) -> tuple[Task, ...] | None:
        """Tasks of its results; None if all that the annotations allow."""
        return ARCHITECTURES[self.architecture].tasks

    def family_of(self, weights: str) -> Family:
        """Family of the backbone that weights are for, by their name; DiNAT if the model has no other one."""
        name, sizes = Path(weights).name.lower(), "|".join(COSTS)
        named = (family for family, start in _FAMILIES.items() if re.search(f"{start}({sizes})", name))
        return next((family for family in named if family in self.configs), "dinat")

    def backbones(self, base_folder: Path, family: Family = "dinat") -> dict[str, dict[str, Any]]:
        """Section MODEL.DINAT of each size that there is in a family, and of the small model for CPUs.

        Args:
            base_folder: The folder configs/_base_.
            family: Family of backbones.
        """
        files = {size: base_folder / self.configs[family][-1].format(size) for size in self.costs}
        files = {size: file for size, file in files.items() if file.is_file()}
        files[PICO] = base_folder / next(name for name in self.small_configs if PICO in name)
        return {size: read_config_file(file).values["MODEL"]["DINAT"] for size, file in files.items()}


_DETECTOR_NEEDS = "things with masks: COCO's instances or panoptic JSON, or semantic and instance PNGs"
_WITH_BOXES: Mapping[Task, str] = dict.fromkeys(("panoptic", "instance"), WITH_BOXES)
_SEMANTIC: Mapping[Task, str] = dict.fromkeys(("panoptic", "semantic"), TASKS["semantic"].mappers[0])
_COCO = "../coco/detection/"
_ADE20K = "../ade20k/semantic-segmentation/"
_SHAPES = "../shapes/"
# Costs of the published DiNAT detectors and UPerNets, counted as `COSTS`, but in bfloat16 where they are trained in it;
# boxes in float32 and with the published 512 per image, 128 of them with masks.
_MASK_RCNN_COSTS: Mapping[str, Cost] = {
    "small": Cost(70.2, 1.75, 0.35, boxes=0.29),
    "tiny": Cost(47.5, 1.36, 0.28, boxes=0.29),
    "mini": Cost(39.6, 1.02, 0.26, boxes=0.29),
}
_CASCADE_COSTS: Mapping[str, Cost] = {
    "large": Cost(257.9, 6.40, 1.16, boxes=1.44),
    "base": Cost(147.0, 3.00, 0.61, boxes=1.44),
    "small": Cost(108.1, 1.75, 0.35, boxes=1.44),
    "tiny": Cost(85.4, 1.36, 0.28, boxes=1.44),
    "mini": Cost(77.5, 1.02, 0.26, boxes=1.44),
}
_UPERNET_COSTS: Mapping[str, Cost] = {
    "large": Cost(238.2, 9.10, 3.86),
    "base": Cost(123.3, 4.87, 2.56),
    "small": Cost(82.4, 3.65, 2.30),
    "tiny": Cost(57.7, 3.28, 2.22),
    "mini": Cost(49.8, 2.95, 2.20),
}

_MASK_RCNN = TrainableModel(
    label="Mask R-CNN",
    head="Mask R-CNN",
    architecture="MaskRCNN",
    mappers=_WITH_BOXES,
    needs=_DETECTOR_NEEDS,
    configs={
        "dinat": (f"{_COCO}dinat/maskrcnn_dinat_{{}}.yaml",),
        "dinat_s": (f"{_COCO}dinat_s/maskrcnn_dinat_s_{{}}.yaml",),
        "nat": (f"{_COCO}nat/nat_{{}}_maskrcnn.yaml",),
    },
    small_configs=(f"{_SHAPES}detection/dinat/maskrcnn_dinat_pico_shapes.yaml",),
    costs=_MASK_RCNN_COSTS,
    epochs=((2975, 64), (118287, 36)),
    like="36 times for COCO, as published; 64 for a data set as small as Cityscapes",
    steps=(0.75, 0.917),
    warmup=500,
)

# By value of --model.
MODELS: Mapping[str, TrainableModel] = {
    "mask2former": TrainableModel(
        label="Mask2Former",
        architecture="MaskFormer",
        mappers={name: TASKS[name].mappers[0] for name in ("panoptic", "instance", "semantic")},
        needs="masks or label maps",
        configs={"dinat": ("mask2former.yaml", "dinat_{}.yaml")},
        small_configs=("mask2former.yaml", "dinat_pico.yaml", "shapes.yaml"),
        costs=COSTS,
        epochs=((2975, 484), (20210, 127), (118287, 100)),
        like="published settings: 100 times for COCO, 127 for ADE20K, 484 for Cityscapes",
        steps=(0.889, 0.963),
        rate=1.0e-4,
        small_like="`make demo`",
    ),
    "mask-rcnn": _MASK_RCNN,
    "cascade": replace(
        _MASK_RCNN,
        label="Cascade Mask R-CNN",
        head="Cascade Mask R-CNN",
        small_parameters=4,
        configs={
            "dinat": (f"{_COCO}dinat/cascadedmaskrcnn_dinat_{{}}.yaml",),
            "dinat_s": (f"{_COCO}dinat_s/cascadedmaskrcnn_dinat_s_{{}}.yaml",),
            "nat": (f"{_COCO}nat/nat_{{}}_cascademaskrcnn.yaml",),
        },
        small_configs=(f"{_SHAPES}detection/dinat/cascadedmaskrcnn_dinat_pico_shapes.yaml",),
        costs=_CASCADE_COSTS,
    ),
    "upernet": TrainableModel(
        label="UPerNet",
        head="UPerNet",
        architecture="PixelClassifier",
        mappers=_SEMANTIC,
        needs="a class per pixel: semantic label maps, COCO's panoptic JSON, or semantic and instance PNGs",
        configs={
            "dinat": (f"{_ADE20K}dinat/upernet_dinat_{{}}.yaml",),
            "dinat_s": (f"{_ADE20K}dinat_s/upernet_dinat_s_{{}}.yaml",),
            "nat": (f"{_ADE20K}nat/nat_{{}}_upernet.yaml",),
        },
        small_configs=(f"{_SHAPES}semantic-segmentation/dinat/upernet_dinat_pico_shapes.yaml",),
        costs=_UPERNET_COSTS,
        epochs=((2975, 215), (20210, 127)),
        like="127 times for ADE20K, as published; 215 for a data set as small as Cityscapes",
        steps=(),
        warmup=1500,
        padding="MODEL.PIXEL_CLASSIFIER.SIZE_DIVISIBILITY",
        small_images=24000,
        # Batch norms of averages of whole images can't be trained on one.
        least_batch=2,
    ),
}


def serving(format: Format, *, things: bool) -> dict[str, tuple[Task, ...]]:
    """The models that can be trained on a format, by value of --model, with the tasks of their results.

    Args:
        format: Format of the data.
        things: Whether there are annotated things.
    """
    task = FORMAT_TASKS[format]
    results = {
        name: model.tasks or tuple(output for output in TASKS[task].outputs if things or output != "instance")
        for name, model in MODELS.items()
        if task in model.mappers
    }
    return {name: tasks for name, tasks in results.items() if things or tasks != ("instance",)}


def check_model(name: str, format: Format) -> None:
    """Check that a model can be trained on a format.

    Raises:
        SourceError: It can't.
    """
    if FORMAT_TASKS[format] in MODELS[name].mappers:
        return
    if FORMAT_TASKS[format] == "classification":
        raise SourceError(f"--model {name}: class folders train a classifier of whole images; leave --model out")
    others = " or ".join(serving(format, things=True))
    raise SourceError(
        f"--model {name}: {MODELS[name].label} needs {MODELS[name].needs}; the format {format} is for --model {others}"
    )
