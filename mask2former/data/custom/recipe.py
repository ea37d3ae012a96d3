"""Choose settings for training on a data set: model, image sizes, batch, length and learning rate, with reasons."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np

from mask2former.data.custom.inspection import Inspection
from mask2former.data.custom.model_size import COSTS, PICO, Choice, Machine, choose_model
from mask2former.data.datasets.custom import FORMATS
from mask2former.tasks import SEGMENTATION_SWITCHES, TASKS, Task

# Smallest and largest sides of training images, in pixels.
_SMALLEST, _LARGEST, _LARGEST_ON_CPU = 64, 1024, 256
# Strides of DiNAT's levels.
_STRIDES = (4, 8, 16, 32)
_TASKS: Mapping[str, Task] = {
    **{name: format.task for name, format in FORMATS.items()},
    "semantic_instance": FORMATS["coco_panoptic"].task,
}
_BEST_METRICS: Mapping[Task, str] = {"instance": "segm/AP", "panoptic": "panoptic_seg/PQ", "semantic": "sem_seg/mIoU"}

# Published settings: images per step, and the learning rate for them.
_BATCH = 16
_RATE = 1.0e-4
# Epochs of the published settings by number of training images: Cityscapes, ADE20K, COCO.
_EPOCHS = ((2975, 484), (20210, 127), (118287, 100))
# Share of the iterations after which the published COCO settings divide the learning rate by 10.
_STEPS = (0.889, 0.963)
_LEAST_ITERATIONS = 500
_EVALUATIONS = 10

# Batch of configs/_base_/shapes.yaml, whose learning rate it uses, and images seen in a training from scratch: 2.5
# times those of that training, which stops when its targets are reached.
_PICO_BATCH = 8
_PICO_IMAGES = 12800
# Epochs on a large data set; a CPU is slow.
_PICO_EPOCHS = 20


@dataclass
class Recipe:
    """Settings with their reasons.

    Attributes:
        size: Size of the DiNAT, as in configs/_base_/dinat_SIZE.yaml.
        bases: Configs that it starts from, relative to configs/_base_.
        values: Values by config key, with dots.
        reasons: Lines of text.
    """

    size: str
    bases: list[str]
    values: dict[str, Any] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)

    def set(self, reason: str, **values: Any) -> None:
        """Set keys (with "__" for dots) for a reason."""
        self.values |= {key.replace("__", "."): value for key, value in values.items()}
        self.reasons.append(reason)

    def lines(self) -> list[str]:
        """The reasons as a list for people."""
        return [f"- {reason}" for reason in self.reasons]


def make_recipe(
    inspection: Inspection,
    machine: Machine,
    backbones: Mapping[str, Mapping[str, Any]],
    size: str | None = None,
    weights: str = "",
) -> Recipe:
    """Choose settings.

    Args:
        inspection: The inspected data.
        machine: The machine for training.
        backbones: Section MODEL.DINAT by size.
        size: Size of the DiNAT, a key of `backbones`; None for the one that `choose_model` finds.
        weights: Value of MODEL.WEIGHTS; may be empty.

    Raises:
        RecipeError: The model does not fit into the memory at any image size.
    """
    images, task = len(inspection.train.scans), _TASKS[inspection.train.content.source.format]
    height, width = (int(median(axis)) for axis in zip(*inspection.train.sizes, strict=True))
    # The batch is as published, but not larger than the data set; each GPU gets the same number of images.
    batch = machine.gpus * math.ceil(min(_BATCH, images) / machine.gpus)
    # Images are as large as the data's, rounded to a multiple of 32, unless memory is too small.
    typical = median(min(sides) if task == "semantic" else max(sides) for sides in inspection.train.sizes)
    most = _LARGEST if machine.gpu_memory else _LARGEST_ON_CPU
    side = int(min(most, max(_SMALLEST, 32 * round(typical / 32))))
    choice = choose_model(images, side, batch, machine, size, weights, backbones)
    side, fit = choice.side, choice.fit
    small = ["shapes.yaml"] if choice.size == PICO else []
    recipe = Recipe(choice.size, ["mask2former.yaml", f"dinat_{choice.size}.yaml", *small])
    _set_classes(recipe, inspection, task)
    _set_model(recipe, choice, machine, weights, backbones[recipe.size])
    _set_sizes(recipe, task, side, height, width)
    set_batch(recipe, batch, fit.images if fit else batch, machine, images)
    _set_length(recipe, images, batch, task, pretrained=bool(weights))
    _set_void(recipe, inspection, task)
    return recipe


def _set_classes(recipe: Recipe, inspection: Inspection, task: Task) -> None:
    spec, classes = TASKS[task], len(inspection.categories)
    things = sum(category.isthing for category in inspection.categories)
    kinds = f" ({things} things, {classes - things} stuff)" if task == "panoptic" else ""
    *others, last = spec.outputs
    results = f"{', '.join(others)} and {last}" if others else last
    recipe.set(
        f"{classes} classes{kinds}: {results} results",
        MODEL__SEM_SEG_HEAD__NUM_CLASSES=classes,
        INPUT__DATASET_MAPPER_NAME=spec.mappers[0],
        **{
            f"MODEL__MASK_FORMER__TEST__{switch}": name in spec.outputs and (name != "instance" or things > 0)
            for name, switch in SEGMENTATION_SWITCHES.items()
        },
    )
    most = max(scan.segments.total() for scan in inspection.train.scans)
    # Twice as many as needed, rounded up to the published number if that is enough.
    counts = ((16, 50) if recipe.size == PICO else ()) + (100, 200)
    queries = next((count for count in counts if 2 * most <= count), 100 * math.ceil(most / 50))
    recipe.set(
        f"{queries} queries, each for one segment: an image has at most {most}",
        MODEL__MASK_FORMER__NUM_OBJECT_QUERIES=queries,
    )


def _set_model(recipe: Recipe, choice: Choice, machine: Machine, weights: str, backbone: Mapping[str, Any]) -> None:
    side, fit = choice.side, choice.fit
    if fit is None:
        why = "" if machine.gpu_memory else "no GPU: "
        recipe.set(f"{why}DiNAT-Pico with a small head, 2 million parameters, which can be trained on a CPU")
    elif not machine.gpu_memory:
        recipe.set(f"DiNAT-{recipe.size.title()}, {choice.reason}; slow without a GPU")
    else:
        gib = f"{fit.memory(side * side):.1f} of {machine.gpu_memory:g} GiB with {fit.images} images of {side} x {side}"
        checkpoint = "; activations of the backbone are computed twice to save memory" if fit.checkpoint else ""
        recipe.set(
            f"DiNAT-{fit.size.title()}, {COSTS[fit.size].parameters:.0f} million parameters, {choice.reason}: needs "
            f"{gib}{checkpoint}",
            MODEL__DINAT__USE_CHECKPOINT=fit.checkpoint,
        )
    if (dilations := fitting_dilations(backbone, side)) != backbone["DILATIONS"]:
        recipe.set(
            f"dilations reduced: feature maps of {side} x {side} images are smaller than a dilated window",
            MODEL__DINAT__DILATIONS=dilations,
        )
    set_start(recipe, weights)


def set_start(recipe: Recipe, weights: str) -> None:
    """Set the initial weights; may be empty."""
    start = f"starts from {weights}" if weights else (
        "starts from RANDOM weights: give --weights (ImageNet or your own checkpoint, see Weights in README.md) unless "
        "you have many thousands of images"
    )  # fmt: skip
    recipe.set(start, MODEL__WEIGHTS=weights)


def fitting_dilations(backbone: Mapping[str, Any], side: int) -> list[list[int]]:
    """Dilations of a DiNAT, reduced where the dilated window is larger than the feature map of an image's side."""
    kernels: Sequence[int] = backbone.get("KERNEL_SIZES") or [backbone.get("KERNEL_SIZE", 7)] * len(_STRIDES)
    return [
        [max(1, min(dilation, side // stride // kernel)) for dilation in of_level]
        for of_level, kernel, stride in zip(backbone["DILATIONS"], kernels, _STRIDES, strict=True)
    ]


def _set_sizes(recipe: Recipe, task: Task, side: int, height: int, width: int) -> None:
    shorter, longer = min(height, width), max(height, width)
    if task == "semantic":
        recipe.set(
            f"typical image size {width} x {height}: trained on crops of {side} x {side} from images whose shorter "
            f"side is 0.5 to 2 times {side}, tested at {side}",
            INPUT__MIN_SIZE_TRAIN=[round(side * scale / 10) for scale in range(5, 21)],
            INPUT__MAX_SIZE_TRAIN=4 * max(side, round(longer * side / shorter)),
            INPUT__CROP__ENABLED=True,
            INPUT__CROP__TYPE="absolute",
            INPUT__CROP__SIZE=[side, side],
            INPUT__SIZE_DIVISIBILITY=side,
            INPUT__COLOR_AUG_SSD=True,
            INPUT__MIN_SIZE_TEST=side,
            INPUT__MAX_SIZE_TEST=4 * side,
        )
        return
    tested = max(32, round(shorter * side / longer))
    recipe.set(
        f"typical image size {width} x {height}: trained on squares of {side} from images scaled by 0.5 to 2, tested "
        f"at {round(longer * tested / shorter)} x {tested}",
        INPUT__IMAGE_SIZE=side,
        INPUT__SIZE_DIVISIBILITY=-1,
        INPUT__MIN_SCALE=0.5,
        INPUT__MAX_SCALE=2.0,
        INPUT__MIN_SIZE_TEST=tested,
        INPUT__MAX_SIZE_TEST=round(4 / 3 * side),
    )


def set_batch(recipe: Recipe, batch: int, fitting: int, machine: Machine, images: int, usual: int = _BATCH) -> None:
    """Divide the images of a step over GPUs, and choose the number of data loading processes.

    Args:
        recipe: Recipe that gets the settings.
        batch: Number of images of a step.
        fitting: Number of images that a GPU can process at a time.
        machine: The machine for training.
        images: Number of training images.
        usual: Batch of the published settings.
    """
    of_gpu = batch // machine.gpus
    together = max(number for number in range(1, of_gpu + 1) if of_gpu % number == 0 and number <= fitting)
    steps = of_gpu // together
    why = "as published" if batch == usual else f"there are {images} images; published {usual}"
    gpus = f" on each of {machine.gpus} GPUs" if machine.gpus > 1 else ""
    recipe.set(
        f"batch of {batch} ({why})"
        + (f": {together} images at a time{gpus}, {steps} times per step" if steps > 1 else gpus),
        SOLVER__IMS_PER_BATCH=together * machine.gpus,
        SOLVER__ACCUMULATE_STEPS=steps,
    )
    workers = max(1, min(4, machine.processors // machine.gpus))
    recipe.set(
        f"{workers} data loading processes{' per GPU' if machine.gpus > 1 else ''}: there are {machine.processors} "
        "processors, and more than 4 processes rarely help",
        DATALOADER__NUM_WORKERS=workers,
    )


def _set_length(recipe: Recipe, images: int, batch: int, task: Task, *, pretrained: bool) -> None:
    """Choose iterations, learning rate and evaluation period."""
    if recipe.size == PICO:
        epochs = max(_PICO_EPOCHS, _PICO_IMAGES / images)
        like = f"{_PICO_IMAGES} images in total, 2.5 times `make demo`"
    else:
        epochs = float(np.interp(math.log(images), *np.transpose([(math.log(n), e) for n, e in _EPOCHS])))
        like = "published settings: 100 times for COCO, 127 for ADE20K, 484 for Cityscapes"
    iterations = max(_LEAST_ITERATIONS, round(epochs * images / batch / 10) * 10)
    steps = [round(iterations * share) for share in _STEPS]
    recipe.set(
        f"{iterations} iterations, each image {iterations * batch / images:.0f} times ({like}); learning rate divided "
        f"by 10 at {steps[0]} and {steps[1]}",
        SOLVER__MAX_ITER=iterations,
        SOLVER__STEPS=steps,
        SOLVER__LR_SCHEDULER_NAME="WarmupMultiStepLR",
    )
    period, metric = iterations // _EVALUATIONS, _BEST_METRICS[task]
    recipe.set(
        f"evaluated and saved every {period} iterations; the checkpoint with the best {metric} is model_best.pth",
        TEST__EVAL_PERIOD=period,
        SOLVER__CHECKPOINT_PERIOD=period,
        TEST__BEST_METRIC=metric,
    )
    if recipe.size == PICO:
        recipe.set(
            f"learning rate of the small model, scaled from a batch of {_PICO_BATCH} to {batch}",
            SOLVER__LR_REFERENCE_BATCH=_PICO_BATCH,
        )
        return
    recipe.set(
        f"learning rate {_RATE:g} for a batch of {_BATCH}"
        + (f", scaled to {batch}" if batch != _BATCH else "")
        + (", a tenth of it in the pretrained backbone" if pretrained else ""),
        SOLVER__BASE_LR=_RATE,
        SOLVER__BACKBONE_MULTIPLIER=0.1 if pretrained else 1.0,
        SOLVER__LR_REFERENCE_BATCH=_BATCH,
    )


def _set_void(recipe: Recipe, inspection: Inspection, task: Task) -> None:
    recipe.set("segments without a pixel in the crop are dropped", INPUT__DROP_EMPTY_TARGETS=True)
    if task == "instance":
        return
    area = sum(height * width for height, width in inspection.train.sizes)
    void = 1 - inspection.train.total("pixels").total() / area
    if void > 0.001:
        recipe.set(
            f"{void:.1%} of the pixels have no class: the losses ignore them", MODEL__MASK_FORMER__IGNORE_VOID=True
        )
