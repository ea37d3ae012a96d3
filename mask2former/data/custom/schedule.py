"""Batch, length and learning rate of a training, from how many images there are and what fits into memory."""

import math

import numpy as np

from mask2former.data.custom.choices import Machine, Recipe
from mask2former.data.custom.memory import PICO

# Of the published settings: images of a step, and the learning rate for them.
BATCH = 16
_RATE = 1.0e-4
# Of configs/_base_/shapes.yaml, whose learning rate the small model takes: its batch, and images seen in a training.
_BATCH_OF_PICO = 8
_IMAGES_OF_PICO = 12800
# How often it sees each of many images; a CPU is slow.
_PASSES_OF_PICO = 20
# Epochs of the published settings by training images: Cityscapes, ADE20K, COCO.
_EPOCHS = ((2975, 484), (20210, 127), (118287, 100))
_LEAST_ITERATIONS = 500
# Where the published COCO settings divide the learning rate by ten.
_STEPS = (0.889, 0.963)
_EVALUATIONS = 10


def batch_size(images: int, gpus: int) -> int:
    """Images of a step: as published, but not more than there are; the same for each GPU."""
    return gpus * math.ceil(min(BATCH, images) / gpus)


def set_batch(recipe: Recipe, batch: int, fitting: int, machine: Machine, images: int) -> None:
    """Divide a step's images into batches.

    Args:
        recipe: gets the settings.
        batch: images of a step, a multiple of the GPUs.
        fitting: images that a GPU takes at a time.
        machine: what to train on.
        images: of the data set.
    """
    of_gpu = batch // machine.gpus
    together = max(number for number in range(1, of_gpu + 1) if of_gpu % number == 0 and number <= fitting)
    steps = of_gpu // together
    why = "as published" if batch == BATCH else f"there are {images} images; published {BATCH}"
    gpus = f" on each of {machine.gpus} GPUs" if machine.gpus > 1 else ""
    recipe.set(
        f"batch of {batch} ({why})"
        + (f": {together} images at a time{gpus}, {steps} times a step" if steps > 1 else gpus),
        SOLVER__IMS_PER_BATCH=together * machine.gpus,
        SOLVER__ACCUMULATE_STEPS=steps,
    )
    workers = max(1, min(4, machine.processors // machine.gpus))
    recipe.set(
        f"processes that read images{' for each GPU' if machine.gpus > 1 else ''}: {workers}; there are "
        f"{machine.processors} processors, and more than 4 rarely help",
        DATALOADER__NUM_WORKERS=workers,
    )


def set_length(recipe: Recipe, images: int, batch: int, metric: str, *, pretrained: bool) -> None:
    """Choose iterations, learning rate and when to evaluate.

    Args:
        recipe: gets the settings.
        images: of the data set.
        batch: images of a step.
        metric: what decides which checkpoint is the best.
        pretrained: whether the backbone has learned before.
    """
    if recipe.size == PICO:
        passes, like = max(_PASSES_OF_PICO, _IMAGES_OF_PICO / images), f"`make demo`: {_IMAGES_OF_PICO} images in all"
    else:
        counts, epochs = zip(*_EPOCHS, strict=True)
        passes = float(np.interp(math.log(images), np.log(counts), epochs))
        like = "published settings: COCO's 100, ADE20K's 127, Cityscapes' 484 times"
    iterations = max(_LEAST_ITERATIONS, round(passes * images / batch / 10) * 10)
    steps = [round(iterations * share) for share in _STEPS]
    recipe.set(
        f"{iterations} iterations, each image {iterations * batch / images:.0f} times ({like}); learning rate / 10 at "
        f"{steps[0]} and {steps[1]}",
        SOLVER__MAX_ITER=iterations,
        SOLVER__STEPS=steps,
        SOLVER__LR_SCHEDULER_NAME="WarmupMultiStepLR",
    )
    period = iterations // _EVALUATIONS
    recipe.set(
        f"evaluated and saved every {period} iterations; the best by {metric} is kept as model_best.pth",
        TEST__EVAL_PERIOD=period,
        SOLVER__CHECKPOINT_PERIOD=period,
        TEST__BEST_METRIC=metric,
    )
    if recipe.size == PICO:
        recipe.set(
            f"the small model's learning rate, scaled from a batch of {_BATCH_OF_PICO} to {batch}",
            SOLVER__LR_REFERENCE_BATCH=_BATCH_OF_PICO,
        )
        return
    recipe.set(
        f"learning rate {_RATE:g} for a batch of {BATCH}"
        + (f", scaled to {batch}" if batch != BATCH else "")
        + (", a tenth of it in the backbone, which has learned before" if pretrained else ""),
        SOLVER__BASE_LR=_RATE,
        SOLVER__BACKBONE_MULTIPLIER=0.1 if pretrained else 1.0,
        SOLVER__LR_REFERENCE_BATCH=BATCH,
    )
