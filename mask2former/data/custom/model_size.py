"""Choose the size of the DiNAT: by the number of images, the weights to start from, and the memory."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinat_common.errors import UserError
from dinat_common.weights import CheckpointError, read_checkpoint

# The small model of configs/shapes, with its small head: for CPUs.
PICO = "pico"
# Numbers of images below which larger sizes are not chosen: they would learn so few by heart.
_FEW = ((100, "mini"), (300, "tiny"), (1000, "small"))
# The largest size for random weights.
_FROM_NOTHING = "tiny"

_GIB = 2**30
# Number of pixels of the measurements in `COSTS`.
_REFERENCE = 1024 * 1024
# Weights, gradients and the two moments of AdamW in float32.
_BYTES_PER_PARAMETER = 16
# GiB used by CUDA and its libraries.
_CONTEXT = 0.7
# GiB per image for temporary buffers and the losses; `COSTS` counts only what is kept for the backward pass.
_TRANSIENT = 1.5
# Usable share of the GPU memory: the allocator can't use every gap.
_USABLE = 0.9


class RecipeError(UserError):
    """A machine or choice for which no training is possible."""


@dataclass(frozen=True)
class Machine:
    """The machine for training.

    Attributes:
        gpu_memory: GiB of each GPU; 0 if there is no GPU.
        gpus: Number of GPUs.
        processors: Number of processors.
    """

    gpu_memory: float
    gpus: int
    processors: int


@dataclass(frozen=True)
class Cost:
    """GPU memory for training a model.

    Attributes:
        parameters: Millions of parameters, with the head.
        plain: GiB that an image of 1024 x 1024 keeps for the backward pass, in float32.
        checkpointed: The same with MODEL.DINAT.USE_CHECKPOINT, which computes the backbone twice.
        boxes: GiB that an image of any size keeps for its boxes.
    """

    parameters: float
    plain: float
    checkpointed: float
    boxes: float = 0.0

    @property
    def fixed(self) -> float:
        """GiB that do not depend on the images."""
        return self.parameters * 1e6 * _BYTES_PER_PARAMETER / _GIB + _CONTEXT

    def per_image(self, pixels: int, checkpoint: bool) -> float:
        """GiB for an image with this number of pixels."""
        kept = self.checkpointed if checkpoint else self.plain
        return (kept + _TRANSIENT) * pixels / _REFERENCE + self.boxes


# Costs of configs/_base_/dinat_NAME.yaml, the largest first, with Mask2Former's head, 200 queries and 80 classes,
# counted by benchmarks/training_memory.py on tensors without content, PyTorch 2.14. They grow with the number of pixels
# if the dilations fit smaller maps (see `fitting_dilations`).
COSTS: Mapping[str, Cost] = {
    "large": Cost(219.9, 8.27, 3.03),
    "base": Cost(108.8, 6.85, 2.72),
    "small": Cost(69.9, 5.19, 2.57),
    "tiny": Cost(47.2, 4.49, 2.43),
    "mini": Cost(39.3, 3.83, 2.38),
}
SIZES = (*COSTS, PICO)


@dataclass(frozen=True)
class Fit:
    """A model that fits: its size, whether it needs checkpointing, and the number of images per GPU."""

    size: str
    checkpoint: bool
    images: int

    def memory(self, pixels: int, costs: Mapping[str, Cost] = COSTS) -> float:
        """GiB for images with this number of pixels."""
        return costs[self.size].fixed + self.images * costs[self.size].per_image(pixels, self.checkpoint)


def largest_fit(
    memory: float,
    pixels: int,
    most: int,
    sizes: Sequence[str] = tuple(COSTS),
    costs: Mapping[str, Cost] = COSTS,
    least: int = 1,
) -> Fit | None:
    """The largest model that can be trained on a GPU; without checkpointing, which costs time, if that fits.

    Args:
        memory: GiB of the GPU.
        pixels: Number of pixels of a training image.
        most: Largest useful number of images per GPU.
        sizes: Keys of `costs` to choose from, the best first.
        costs: Costs by size.
        least: Smallest number of images per GPU.

    Returns:
        The fit; None if even the smallest number of images is too much for all models.
    """
    for size in sizes:
        for checkpoint in (False, True):
            room = _USABLE * memory - costs[size].fixed
            if (images := int(room / costs[size].per_image(pixels, checkpoint))) >= least:
                return Fit(size, checkpoint, min(images, most))
    return None


@dataclass(frozen=True)
class Choice:
    """The model to train.

    Attributes:
        size: Size of the DiNAT.
        side: Side of training images in pixels.
        fit: Fit of the model into the memory; None for the model for CPUs.
        reason: Reason for the size.
    """

    size: str
    side: int
    fit: Fit | None
    reason: str


def choose_model(
    images: int,
    side: int,
    batch: int,
    machine: Machine,
    size: str | None,
    weights: str,
    backbones: Mapping[str, Mapping[str, Any]],
    costs: Mapping[str, Cost] = COSTS,
    smallest_side: int = 256,
    least: int = 1,
) -> Choice:
    """Choose the size of the DiNAT, and the side of training images.

    Without a GPU, it is the small model for CPUs. Otherwise it is the largest size that fits into the memory, but at
    most Mini for fewer than 100 images, Tiny for fewer than 300 or without weights, and Small for fewer than 1000; or
    the smallest that there is. Mini is the smallest size with published weights. A given size, or that of the weights,
    takes precedence.

    Args:
        images: Number of training images.
        side: Side of training images in pixels; smaller ones are used if the memory is too small.
        batch: Number of images per step.
        machine: The machine for training.
        size: Size that the user wants; None for any.
        weights: Value of MODEL.WEIGHTS; may be empty.
        backbones: Section MODEL.DINAT by size, of the sizes that there are.
        costs: Costs by size.
        smallest_side: Smallest side of training images that is tried if the memory is too small.
        least: Smallest number of images that a process can be trained on at a time.

    Raises:
        RecipeError: There is no such size, or the model does not fit into the memory at any image size.
    """
    reason = "as requested"
    if size is None and (size := size_of_weights(weights, backbones)):
        reason = f"the size of {Path(weights).name}"
    if size is not None and size not in backbones:
        raise RecipeError(f"size {size}, {reason}: this model comes in {', '.join(backbones)} only")
    costs = {name: cost for name, cost in costs.items() if name in backbones}
    if size == PICO or (size is None and not machine.gpu_memory):
        return Choice(PICO, side, None, reason)
    if size and not machine.gpu_memory:
        return Choice(size, side, Fit(size, checkpoint=False, images=least), reason)
    sizes, reasons = (
        ((size,), {size: reason}) if size else _useful_sizes(images, tuple(costs), pretrained=bool(weights))
    )
    for smaller in range(side, min(side, smallest_side) - 1, -128):
        if fit := largest_fit(machine.gpu_memory, smaller * smaller, batch // machine.gpus, sizes, costs, least):
            return Choice(fit.size, smaller, fit, reasons.get(fit.size, "the largest that fits"))
    raise RecipeError(
        f"--gpu-memory {machine.gpu_memory:g}: too little to train DiNAT-{sizes[-1].title()} on images of "
        f"{smallest_side} x {smallest_side}; --gpu-memory 0 chooses a model for CPUs, which fits any GPU"
    )


def _useful_sizes(
    images: int, available: Sequence[str], *, pretrained: bool
) -> tuple[tuple[str, ...], Mapping[str, str]]:
    """The sizes that suit the data, the largest first, and why there is no larger one than the first."""
    limit, size = next(((limit, size) for limit, size in _FEW if images < limit), (0, "large"))
    reason = f"because {images} images are few: larger sizes are for {limit} and more" if limit else (
        "the largest that fits"
    )  # fmt: skip
    order = tuple(COSTS)
    if not pretrained and order.index(size) < order.index(_FROM_NOTHING):
        size, reason = _FROM_NOTHING, "because it starts from random weights: larger sizes need --weights"
    useful = tuple(name for name in order[order.index(size) :] if name in available)
    return useful or (available[-1],), {size: reason}


def size_of_weights(weights: str, backbones: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The size of the DiNAT whose weights a file holds, by its name or its content; None if that is unknown."""
    named = re.search(rf"nat_?(?:s_?)?({'|'.join(SIZES)})(?![a-z])", Path(weights).name.lower())
    if named or not Path(weights).is_file():
        return named[1] if named else None
    try:
        state = read_checkpoint(weights)["model"]
    except CheckpointError:
        # The training says what is wrong.
        return None
    blocks: dict[int, int] = {}
    width = 0
    for name, tensor in state.items():
        if place := re.search(r"levels\.(\d+)\.blocks\.(\d+)\.norm1\.weight$", name):
            level, block = int(place[1]), int(place[2])
            blocks[level] = max(blocks.get(level, 0), block + 1)
            width = len(tensor) if level == 0 else width
    shape = width, [blocks[level] for level in sorted(blocks)]
    matching = (size for size, backbone in backbones.items() if (backbone["EMBED_DIM"], backbone["DEPTHS"]) == shape)
    return next(matching, None)
