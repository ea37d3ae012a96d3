"""Choose settings for training on a data set: model, image sizes, batch, length and learning rate, with reasons."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np

from mask2former.data.custom.inspection import Inspection
from mask2former.data.custom.model_size import PICO, Choice, Machine, RecipeError, choose_model
from mask2former.data.custom.models import FAMILY_NAMES, FORMAT_TASKS, MODELS, TrainableModel
from mask2former.tasks import ARCHITECTURES, SEGMENTATION_SWITCHES, TASKS, WITH_BOXES, Task

# Smallest and largest sides of training images, in pixels.
_SMALLEST, _LARGEST, _LARGEST_ON_CPU = 64, 1024, 256
# Strides of DiNAT's levels.
_STRIDES = (4, 8, 16, 32)
_BEST_METRICS: Mapping[Task, str] = {"instance": "segm/AP", "panoptic": "panoptic_seg/PQ", "semantic": "sem_seg/mIoU"}

# Images per step of the published settings.
_BATCH = 16
_LEAST_ITERATIONS = 500
_EVALUATIONS = 10

# Batch of configs/_base_/shapes.yaml, whose learning rate the small model uses.
_PICO_BATCH = 8
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
    model: str = "mask2former",
) -> Recipe:
    """Choose settings for masks, label maps and detections.

    Args:
        inspection: The inspected data.
        machine: The machine for training.
        backbones: Section MODEL.DINAT by size; see `TrainableModel.backbones`.
        size: Size of the backbone, a key of `backbones`; None for the one that `choose_model` finds.
        weights: Value of MODEL.WEIGHTS; may be empty.
        model: Key of `MODELS`; `check_model` accepts the format of the data.

    Raises:
        RecipeError: There is no such size, the model does not fit into the memory at any image size, or a detector has
            nothing to find.
    """
    spec, annotated = MODELS[model], FORMAT_TASKS[inspection.train.content.source.format]
    # Task whose targets are learned, which is also that of the best checkpoint.
    images, mapper = len(inspection.train.scans), spec.mappers[annotated]
    task = next(name for name, of_task in TASKS.items() if mapper in of_task.mappers)
    height, width = (int(median(axis)) for axis in zip(*inspection.train.sizes, strict=True))
    # The batch is as published, but not larger than the data set; each GPU gets the same number of images.
    batch = machine.gpus * max(spec.least_batch, math.ceil(min(_BATCH, images) / machine.gpus))
    if task == "instance" and not inspection.has_things:
        raise RecipeError(
            f"--model {model}: no image of train has an annotated thing, and {spec.label} finds nothing else"
        )
    # Images are as large as the data's, rounded to a multiple of 32, unless memory is too small.
    typical = median(min(sides) if task == "semantic" else max(sides) for sides in inspection.train.sizes)
    most = _LARGEST if machine.gpu_memory else _LARGEST_ON_CPU
    side = int(min(most, max(_SMALLEST, 32 * round(typical / 32))))
    choice = choose_model(images, side, batch, machine, size, weights, backbones, spec.costs, least=spec.least_batch)
    side, fit = choice.side, choice.fit
    family, small = spec.family_of(weights), choice.size == PICO
    bases = spec.small_configs if small else [name.format(choice.size) for name in spec.configs[family]]
    recipe = Recipe(choice.size, list(bases))
    _set_classes(recipe, inspection, spec, task, mapper)
    set_sizes, whole = _SIZES[mapper]
    least = _tested_side(side, height, width) if whole else side
    _set_model(recipe, choice, machine, spec, FAMILY_NAMES[family], backbones[choice.size], least)
    set_start(recipe, weights)
    set_sizes(recipe, spec, side, height, width)
    set_batch(recipe, batch, fit.images if fit else batch, machine, images, least=spec.least_batch)
    _set_length(recipe, images, batch, spec, task, pretrained=bool(weights))
    if spec.tasks is None:
        _set_void(recipe, inspection, task)
    return recipe


def _set_classes(recipe: Recipe, inspection: Inspection, spec: TrainableModel, task: Task, mapper: str) -> None:
    things = sum(category.isthing for category in inspection.categories)
    classes = things if task == "instance" else len(inspection.categories)
    kinds = f" ({things} things, {classes - things} stuff)" if task == "panoptic" else ""
    results = spec.tasks or TASKS[task].outputs
    switches = {
        f"MODEL__MASK_FORMER__TEST__{switch}": name in results and (name != "instance" or things > 0)
        for name, switch in SEGMENTATION_SWITCHES.items()
    }
    *others, last = results
    described = f"{', '.join(others)} and {last}" if others else last
    recipe.set(
        f"{classes} classes{kinds}: {described} results",
        **{ARCHITECTURES[spec.architecture].classes.replace(".", "__"): classes},
        INPUT__DATASET_MAPPER_NAME=mapper,
        **(switches if spec.tasks is None else {}),
    )
    if spec.tasks is None:
        most = max(scan.segments.total() for scan in inspection.train.scans)
        # Twice as many as needed, rounded up to the published number if that is enough.
        counts = ((16, 50) if recipe.size == PICO else ()) + (100, 200)
        queries = next((count for count in counts if 2 * most <= count), 100 * math.ceil(most / 50))
        recipe.set(
            f"{queries} queries, each for one segment: an image has at most {most}",
            MODEL__MASK_FORMER__NUM_OBJECT_QUERIES=queries,
        )


def _set_model(
    recipe: Recipe,
    choice: Choice,
    machine: Machine,
    spec: TrainableModel,
    family: str,
    backbone: Mapping[str, Any],
    least: int,
) -> None:
    side, fit = choice.side, choice.fit
    name = f"{family}-{recipe.size.title()}" + (f" with {spec.head}" if spec.head else "")
    if fit is None:
        why = "" if machine.gpu_memory else "no GPU: "
        recipe.set(
            f"{why}DiNAT-Pico with a small {spec.head or 'head'}, {spec.small_parameters} million parameters, which "
            "can be trained on a CPU"
        )
    elif not machine.gpu_memory:
        recipe.set(f"{name}, {choice.reason}; slow without a GPU")
    else:
        needed = fit.memory(side * side, spec.costs)
        gib = f"{needed:.1f} of {machine.gpu_memory:g} GiB with {fit.images} images of {side} x {side}"
        checkpoint = "; activations of the backbone are computed twice to save memory" if fit.checkpoint else ""
        recipe.set(
            f"{name}, {spec.costs[fit.size].parameters:.0f} million parameters, {choice.reason}: needs {gib}"
            f"{checkpoint}",
            MODEL__DINAT__USE_CHECKPOINT=fit.checkpoint,
        )
    if (dilations := fitting_dilations(backbone, least)) != backbone["DILATIONS"]:
        recipe.set(
            f"dilations reduced: feature maps of {least} x {least} images are smaller than a dilated window",
            MODEL__DINAT__DILATIONS=dilations,
        )


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
    if not backbone["DILATIONS"]:
        return []
    return [
        [max(1, min(dilation, side // stride // kernel)) for dilation in of_level]
        for of_level, kernel, stride in zip(backbone["DILATIONS"], kernels, _STRIDES, strict=True)
    ]


def _tested_side(side: int, height: int, width: int) -> int:
    """Shorter side of an image whose longer one is `side`."""
    return max(32, round(min(height, width) * side / max(height, width)))


def _set_squares(recipe: Recipe, spec: TrainableModel, side: int, height: int, width: int) -> None:
    """Sizes of large-scale jittering."""
    tested, shorter, longer = _tested_side(side, height, width), min(height, width), max(height, width)
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


def _set_crops(recipe: Recipe, spec: TrainableModel, side: int, height: int, width: int) -> None:
    """Sizes for semantic maps."""
    recipe.set(
        f"typical image size {width} x {height}: trained on crops of {side} x {side} from images whose shorter "
        f"side is 0.5 to 2 times {side}, tested at {side}",
        INPUT__MIN_SIZE_TRAIN=[round(side * scale / 10) for scale in range(5, 21)],
        INPUT__MAX_SIZE_TRAIN=4 * max(side, round(max(height, width) * side / min(height, width))),
        INPUT__CROP__ENABLED=True,
        INPUT__CROP__TYPE="absolute",
        INPUT__CROP__SIZE=[side, side],
        **{spec.padding.replace(".", "__"): side},
        INPUT__COLOR_AUG_SSD=True,
        INPUT__MIN_SIZE_TEST=side,
        INPUT__MAX_SIZE_TEST=4 * side,
    )


def _set_whole_images(recipe: Recipe, spec: TrainableModel, side: int, height: int, width: int) -> None:
    """Sizes for detectors: the published ones, relative to the 800 pixels of the shorter side in tests."""
    tested = _tested_side(side, height, width)
    lengths, edges, crop = (
        [round(tested * length / 800) for length in published]
        for published in (range(480, 801, 32), (400, 500, 600), (384, 600))
    )
    longest = max(side, round(tested * 1333 / 800))
    tested_longer = round(max(height, width) * tested / min(height, width))
    crops = recipe.size != PICO
    recipe.set(
        f"typical image size {width} x {height}: trained on images whose shorter side is {lengths[0]} to {tested}"
        f"{', half of them cropped first' if crops else ''}, tested at {tested_longer} x {tested}",
        INPUT__MIN_SIZE_TRAIN=lengths,
        INPUT__MAX_SIZE_TRAIN=longest,
        INPUT__CROP__ENABLED=crops,
        INPUT__CROP__SHORT_EDGES=edges,
        INPUT__CROP__TYPE="absolute_range",
        INPUT__CROP__SIZE=crop,
        INPUT__SIZE_DIVISIBILITY=-1,
        INPUT__MIN_SIZE_TEST=tested,
        INPUT__MAX_SIZE_TEST=longest,
    )


# By INPUT.DATASET_MAPPER_NAME: the function that sets the sizes, and whether the model sees whole images, not squares.
_SIZES: Mapping[str, tuple[Callable[[Recipe, TrainableModel, int, int, int], None], bool]] = {
    "coco_panoptic_lsj": (_set_squares, False),
    "coco_instance_lsj": (_set_squares, False),
    "mask_former_semantic": (_set_crops, False),
    WITH_BOXES: (_set_whole_images, True),
}


def set_batch(
    recipe: Recipe, batch: int, fitting: int, machine: Machine, images: int, usual: int = _BATCH, least: int = 1
) -> None:
    """Divide the images of a step over GPUs, and choose the number of data loading processes.

    Args:
        recipe: Recipe that gets the settings.
        batch: Number of images of a step.
        fitting: Number of images that a GPU can process at a time.
        machine: The machine for training.
        images: Number of training images.
        usual: Batch of the published settings.
        least: Smallest number of images that a process can be trained on at a time.
    """
    of_gpu = batch // machine.gpus
    divisors = [number for number in range(least, of_gpu + 1) if of_gpu % number == 0]
    together = max((number for number in divisors if number <= fitting), default=divisors[0])
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


def _set_length(recipe: Recipe, images: int, batch: int, spec: TrainableModel, task: Task, *, pretrained: bool) -> None:
    """Choose iterations, learning rate and evaluation period."""
    if recipe.size == PICO:
        epochs = max(_PICO_EPOCHS, spec.small_images / images)
        like = f"{spec.small_images} images in total, 2.5 times {spec.small_like}"
    else:
        epochs = float(np.interp(math.log(images), *np.transpose([(math.log(n), e) for n, e in spec.epochs])))
        like = spec.like
    iterations = max(_LEAST_ITERATIONS, round(epochs * images / batch / 10) * 10)
    seen = f"{iterations} iterations, each image {iterations * batch / images:.0f} times ({like})"
    steps = [round(iterations * share) for share in spec.steps]
    if steps:
        recipe.set(
            f"{seen}; learning rate divided by 10 at {steps[0]} and {steps[1]}",
            SOLVER__MAX_ITER=iterations,
            SOLVER__STEPS=steps,
            SOLVER__LR_SCHEDULER_NAME="WarmupMultiStepLR",
        )
    else:
        recipe.set(f"{seen}; learning rate falls to 0", SOLVER__MAX_ITER=iterations)
    if spec.warmup:
        warmup = min(spec.warmup, iterations // 10)
        recipe.set(f"the learning rate rises during the first {warmup} iterations", SOLVER__WARMUP_ITERS=warmup)
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
    scaled = f", scaled to {batch}" if batch != _BATCH else ""
    if spec.rate is None:
        recipe.set(f"published learning rate for a batch of {_BATCH}{scaled}", SOLVER__LR_REFERENCE_BATCH=_BATCH)
        return
    recipe.set(
        f"learning rate {spec.rate:g} for a batch of {_BATCH}{scaled}"
        + (", a tenth of it in the pretrained backbone" if pretrained else ""),
        SOLVER__BASE_LR=spec.rate,
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
