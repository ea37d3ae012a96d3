"""Choose settings for training an image classifier on class folders, with reasons.

With weights, the settings are those of the published fine-tuning of DiNAT-Large (Hassani and Shi, "Dilated Neighborhood
Attention Transformer", arXiv 2209.15001, section 4.1); without, those of the published trainings from scratch. The
small model for CPUs has those of configs/shapes/classification.
"""

import math
from collections.abc import Mapping
from statistics import median
from typing import Any

from mask2former.data.custom.inspection import Inspection
from mask2former.data.custom.model_size import PICO, Choice, Cost, Machine, choose_model
from mask2former.data.custom.recipe import Recipe, set_batch, set_start

# Configs with the published settings of a size, and of the small model for CPUs, relative to configs/_base_.
_PUBLISHED = "../imagenet/classification/dinat/dinat_{}.yaml"
_SMALL = "../shapes/classification/dinat_pico.yaml"
# Side of the images that the published models see, and the sides that the small model can be trained at.
_SIDE, _SMALL_SIDES = 224, (64, 128)
# Costs of the backbones, the largest first, counted on tensors without content at 224 x 224 as for `COSTS`.
_COSTS: Mapping[str, Cost] = {
    "large": Cost(200.9, 7.11, 1.86),
    "base": Cost(89.8, 5.14, 1.00),
    "small": Cost(50.7, 3.29, 0.66),
    "tiny": Cost(27.9, 2.46, 0.38),
    "mini": Cost(20.0, 1.80, 0.34),
}
_BATCH, _SMALL_BATCH = 128, 32
# Epochs and learning rates of the published fine-tuning and of the published trainings from scratch, with the batch
# that the latter rate is for; and least numbers of images that a training sees.
_TUNING_EPOCHS, _TUNING_RATE = 30, 5.0e-5
_SCRATCH_EPOCHS, _SCRATCH_RATE, _SCRATCH_BATCH = 300, 1.0e-3, 1024
_SMALL_EPOCHS, _SMALL_IMAGES, _TUNING_IMAGES = 10, 20_000, 8_000
_EVALUATIONS = 10


def make_class_recipe(
    inspection: Inspection,
    machine: Machine,
    backbones: Mapping[str, Mapping[str, Any]],
    size: str | None = None,
    weights: str = "",
) -> Recipe:
    """Choose settings for class folders; see `recipe.make_recipe`.

    Raises:
        RecipeError: The model does not fit into the memory.
    """
    images = len(inspection.train.scans)
    choice = choose_model(images, _SIDE, _BATCH, machine, size, weights, backbones, _COSTS, smallest_side=_SIDE)
    small = choice.size == PICO
    recipe = Recipe(choice.size, [_SMALL if small else _PUBLISHED.format(choice.size)])
    classes = len(inspection.categories)
    recipe.set(f"{classes} classes, one for each folder", MODEL__CLASSIFIER__NUM_CLASSES=classes)
    _set_model(recipe, choice, machine)
    set_start(recipe, weights)
    height, width = (int(median(axis)) for axis in zip(*inspection.train.sizes, strict=True))
    side = _SIDE
    if small:
        side = int(min(_SMALL_SIDES[1], max(_SMALL_SIDES[0], 32 * round(min(height, width) / 32))))
    recipe.set(
        f"typical image size {width} x {height}: trained on random crops that are resized to {side} x {side}, tested "
        "on the centre of the image",
        INPUT__CLASSIFICATION__SIZE=side,
    )
    # Mixing takes pairs of images of a process.
    most = _SMALL_BATCH if small else _BATCH
    of_gpu = max(1, 2 * math.floor(min(most, images) / (2 * machine.gpus)))
    batch = machine.gpus * of_gpu
    set_batch(recipe, batch, choice.fit.images if choice.fit else batch, machine, images, usual=most)
    if not small and not weights and recipe.values["SOLVER.IMS_PER_BATCH"] // machine.gpus % 2:
        recipe.set(
            "no mixup and CutMix, which need an even number of images at a time", INPUT__CLASSIFICATION__MIX_PROB=0.0
        )
    _set_length(recipe, images, batch, pretrained=bool(weights))
    return recipe


def _set_model(recipe: Recipe, choice: Choice, machine: Machine) -> None:
    fit = choice.fit
    if fit is None:
        why = "" if machine.gpu_memory else "no GPU: "
        recipe.set(f"{why}DiNAT-Pico, 1 million parameters, which can be trained on a CPU")
        return
    name = f"DiNAT-{fit.size.title()}, {_COSTS[fit.size].parameters:.0f} million parameters, {choice.reason}"
    if not machine.gpu_memory:
        recipe.set(f"{name}; slow without a GPU")
        return
    gib = fit.memory(_SIDE * _SIDE, _COSTS)
    checkpoint = "; activations of the backbone are computed twice to save memory" if fit.checkpoint else ""
    recipe.set(
        f"{name}: needs {gib:.1f} of {machine.gpu_memory:g} GiB with {fit.images} images{checkpoint}",
        MODEL__DINAT__USE_CHECKPOINT=fit.checkpoint,
    )


def _set_length(recipe: Recipe, images: int, batch: int, *, pretrained: bool) -> None:
    """Choose epochs, learning rate, augmentation of batches and evaluation period."""
    if recipe.size == PICO:
        least = _TUNING_IMAGES if pretrained else _SMALL_IMAGES
        epochs, like = max(_SMALL_EPOCHS, math.ceil(least / images)), f"{least} images in total, or {_SMALL_EPOCHS}"
    elif pretrained:
        epochs = max(_TUNING_EPOCHS, math.ceil(_TUNING_IMAGES / images))
        like = f"published fine-tuning {_TUNING_EPOCHS}; at least {_TUNING_IMAGES} images in total"
        recipe.set(
            f"learning rate {_TUNING_RATE:g} as in the published fine-tuning, without mixup and CutMix",
            SOLVER__BASE_LR=_TUNING_RATE,
            INPUT__CLASSIFICATION__MIX_PROB=0.0,
        )
    else:
        epochs, like = _SCRATCH_EPOCHS, "as published"
        recipe.set(
            f"learning rate {_SCRATCH_RATE:g} for a batch of {_SCRATCH_BATCH} as published, scaled to {batch}",
            SOLVER__BASE_LR=_SCRATCH_RATE,
            SOLVER__LR_REFERENCE_BATCH=_SCRATCH_BATCH,
        )
    warmup = max(1, epochs // 15)
    recipe.set(
        f"{epochs} epochs ({like}), the first {warmup} of them warm-up, and a last one at the lowest rate",
        SOLVER__EPOCHS=epochs,
        SOLVER__WARMUP_EPOCHS=warmup,
        SOLVER__COOLDOWN_EPOCHS=1,
    )
    period = max(1, (epochs + 1) * max(1, images // batch) // _EVALUATIONS)
    recipe.set(
        f"evaluated and saved every {period} iterations; the checkpoint with the best classification/top1 is "
        "model_best.pth",
        TEST__EVAL_PERIOD=period,
        SOLVER__CHECKPOINT_PERIOD=period,
        TEST__BEST_METRIC="classification/top1",
    )
