"""Settings for a training on a data set: model, image sizes, batch, length and learning rate, each with its reason."""

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from mask2former.data.custom.choices import Machine, Recipe, RecipeError
from mask2former.data.custom.inspection import Inspection
from mask2former.data.custom.memory import COSTS, PICO, Fit, largest_fit
from mask2former.data.custom.schedule import batch_size, set_batch, set_length
from mask2former.data.custom.source import Format

# Sides of training images, in pixels.
_LARGEST, _LARGEST_ON_CPU, _SMALLEST = 1024, 256, 64
# DiNAT looks 7 pixels far times its dilation, at strides 4 to 32.
_STRIDES = (4, 8, 16, 32)
_INPUTS: Mapping[Format, str] = {
    "coco_instance": "coco_instance_lsj",
    "coco_panoptic": "coco_panoptic_lsj",
    "semantic_instance": "coco_panoptic_lsj",
    "semantic": "mask_former_semantic",
}
_BEST: Mapping[str, str] = {
    "coco_instance_lsj": "segm/AP",
    "coco_panoptic_lsj": "panoptic_seg/PQ",
    "mask_former_semantic": "sem_seg/mIoU",
}


def make_recipe(
    inspection: Inspection,
    machine: Machine,
    backbone: Mapping[str, Mapping[str, Any]],
    size: str | None = None,
    weights: str = "",
) -> Recipe:
    """Choose settings.

    Args:
        inspection: of the data.
        machine: what to train on.
        backbone: size -> its section MODEL.DINAT.
        size: the DiNAT, a key of `backbone`; None: the largest that fits.
        weights: what MODEL.WEIGHTS will be; empty: nothing.

    Raises:
        RecipeError: the model does not fit into the memory at any size of images.
    """
    images = len(inspection.train.scans)
    height, width = (int(median(axis)) for axis in zip(*inspection.train.sizes, strict=True))
    batch = batch_size(images, machine.gpus)
    side, fit = _choose_model(_side(inspection, machine), batch, machine, size)
    recipe = Recipe(fit.size if fit else size or PICO)
    _set_classes(recipe, inspection)
    _set_model(recipe, fit, side, machine, weights, backbone[recipe.size])
    mapper = _INPUTS[inspection.train.content.source.format]
    _set_sizes(recipe, mapper, side, height, width)
    set_batch(recipe, batch, fit.images if fit else batch, machine, images)
    set_length(recipe, images, batch, _BEST[mapper], pretrained=bool(weights))
    _set_void(recipe, inspection)
    return recipe


def _side(inspection: Inspection, machine: Machine) -> int:
    """Side of training images before memory is looked at: the data's, a multiple of 32."""
    sizes = inspection.train.sizes
    semantic = inspection.train.content.source.format == "semantic"
    typical = median(min(size) if semantic else max(size) for size in sizes)
    most = _LARGEST if machine.gpu_memory else _LARGEST_ON_CPU
    return int(min(most, max(_SMALLEST, 32 * round(typical / 32))))


def _choose_model(side: int, batch: int, machine: Machine, size: str | None) -> tuple[int, Fit | None]:
    """The side of training images, and the model unless it is the one for CPUs."""
    if size == PICO or (size is None and not machine.gpu_memory):
        return side, None
    if not machine.gpu_memory:
        return side, Fit(size or PICO, checkpoint=False, images=1)
    sizes = tuple(COSTS) if size is None else (size,)
    for smaller in range(side, min(side - 1, 255), -128):
        fit = largest_fit(machine.gpu_memory, smaller * smaller, batch // machine.gpus, sizes)
        if fit:
            return smaller, fit
    raise RecipeError(
        f"--gpu-memory {machine.gpu_memory:g}: too little to train DiNAT-{size or 'Mini'} on images of 256 x 256; "
        f"--gpu-memory 0 chooses a model for CPUs, which is small enough for any GPU"
    )


def _set_classes(recipe: Recipe, inspection: Inspection) -> None:
    format = inspection.train.content.source.format
    name, classes = _INPUTS[format], len(inspection.categories)
    panoptic, instance = name == "coco_panoptic_lsj", name != "mask_former_semantic"
    things = sum(category.isthing for category in inspection.categories)
    kinds = f" ({things} things, {classes - things} stuff)" if panoptic else ""
    recipe.set(
        f"{classes} classes{kinds}: "
        + (
            "panoptic, instance and semantic results"
            if panoptic
            else f"{'instance' if instance else 'semantic'} results"
        ),
        MODEL__SEM_SEG_HEAD__NUM_CLASSES=classes,
        INPUT__DATASET_MAPPER_NAME=name,
        MODEL__MASK_FORMER__TEST__PANOPTIC_ON=panoptic,
        MODEL__MASK_FORMER__TEST__INSTANCE_ON=instance and things > 0,
        MODEL__MASK_FORMER__TEST__SEMANTIC_ON=panoptic or not instance,
    )
    most = max(scan.segments.total() for scan in inspection.train.scans)
    # Twice as many as are needed, and as published where that is enough.
    wanted = next((count for count in ((16, 50) if recipe.size == PICO else ()) + (100, 200) if 2 * most <= count), 0)
    queries = wanted or 100 * math.ceil(most / 50)
    recipe.set(
        f"{queries} queries, each of which can find one segment: there are at most {most} on an image",
        MODEL__MASK_FORMER__NUM_OBJECT_QUERIES=queries,
    )


def _set_model(
    recipe: Recipe, fit: Fit | None, side: int, machine: Machine, weights: str, backbone: Mapping[str, Any]
) -> None:
    if fit is None:
        why = "" if machine.gpu_memory else "no GPU: "
        recipe.set(f"{why}DiNAT-Pico with a small head, 2 million parameters, which learns on a CPU")
    elif not machine.gpu_memory:
        recipe.set(f"DiNAT-{recipe.size.title()} as asked for; without a GPU it is slow")
    else:
        gib = f"{fit.memory(side * side):.1f} of {machine.gpu_memory:g} GiB with {fit.images} images of {side} x {side}"
        checkpoint = "; activations of the backbone are computed twice to save memory" if fit.checkpoint else ""
        recipe.set(
            f"DiNAT-{fit.size.title()}, {COSTS[fit.size].parameters:.0f} million parameters: takes {gib}{checkpoint}",
            MODEL__DINAT__USE_CHECKPOINT=fit.checkpoint,
        )
    dilations = fitting_dilations(backbone, side)
    if dilations != backbone["DILATIONS"]:
        recipe.set(
            f"dilations reduced: maps of images of {side} x {side} are smaller than a dilated window",
            MODEL__DINAT__DILATIONS=dilations,
        )
    start = f"starts from {weights}" if weights else (
        "starts from NOTHING: give --weights (ImageNet or an own checkpoint, see Weights in README.md) unless you have "
        "many thousands of images"
    )  # fmt: skip
    recipe.set(start, MODEL__WEIGHTS=weights)


def fitting_dilations(backbone: Mapping[str, Any], side: int) -> list[list[int]]:
    """The dilations of a DiNAT with those reduced whose window is larger than the map of an image's side."""
    kernels: Sequence[int] = backbone.get("KERNEL_SIZES") or [backbone.get("KERNEL_SIZE", 7)] * len(_STRIDES)
    return [
        [max(1, min(dilation, side // stride // kernel)) for dilation in of_level]
        for of_level, kernel, stride in zip(backbone["DILATIONS"], kernels, _STRIDES, strict=True)
    ]


def _set_sizes(recipe: Recipe, name: str, side: int, height: int, width: int) -> None:
    shorter, longer = min(height, width), max(height, width)
    if name == "mask_former_semantic":
        recipe.set(
            f"images are typically {width} x {height}: trained on crops of {side} x {side} at 0.5 to 2 times a "
            f"shorter side of {side}, tested at {side}",
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
        f"images are typically {width} x {height}: trained on squares of {side} at 0.5 to 2 times that size, tested at "
        f"{round(longer * tested / shorter)} x {tested}",
        INPUT__IMAGE_SIZE=side,
        INPUT__SIZE_DIVISIBILITY=-1,
        INPUT__MIN_SCALE=0.5,
        INPUT__MAX_SCALE=2.0,
        INPUT__MIN_SIZE_TEST=tested,
        INPUT__MAX_SIZE_TEST=round(4 / 3 * side),
    )


def _set_void(recipe: Recipe, inspection: Inspection) -> None:
    recipe.set("segments that a crop leaves without a pixel are forgotten", INPUT__DROP_EMPTY_TARGETS=True)
    if inspection.train.content.source.format == "coco_instance":
        return
    area = sum(height * width for height, width in inspection.train.sizes)
    void = 1 - inspection.train.total("pixels").total() / area
    if void > 0.001:
        recipe.set(
            f"{void:.1%} of the pixels have no class: the losses leave them out", MODEL__MASK_FORMER__IGNORE_VOID=True
        )
