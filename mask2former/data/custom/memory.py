"""How much memory training takes with each DiNAT, and which of them fits a GPU."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

GIB = 2**30
# Pixels that `Cost` is for.
_REFERENCE = 1024 * 1024
# Weights, gradients and the two moments of AdamW in float32.
_BYTES_PER_PARAMETER = 16
# What CUDA and its libraries take for themselves.
_CONTEXT = 0.7
# What an operation needs for a moment, and the losses, per image; counted is only what waits for the backward pass.
_TRANSIENT = 1.5
# The allocator can't use every gap.
_USABLE = 0.9


@dataclass(frozen=True)
class Cost:
    """What training a model takes.

    Attributes:
        parameters: millions, with the head.
        plain: GiB that an image of 1024 x 1024 keeps until the backward pass, in float32.
        checkpointed: the same with MODEL.DINAT.USE_CHECKPOINT, which computes the backbone twice.
    """

    parameters: float
    plain: float
    checkpointed: float

    @property
    def fixed(self) -> float:
        """GiB that do not depend on the images."""
        return self.parameters * 1e6 * _BYTES_PER_PARAMETER / GIB + _CONTEXT

    def per_image(self, pixels: int, checkpoint: bool) -> float:
        """GiB that an image of so many pixels takes."""
        return ((self.checkpointed if checkpoint else self.plain) + _TRANSIENT) * pixels / _REFERENCE


# Configs of configs/_base_ (dinat_NAME.yaml), the largest first, with Mask2Former's head, 200 queries and 80 classes.
# Counted as benchmarks/training_memory.py does, on tensors without content, PyTorch 2.14. At other sizes it grows with
# the pixels, if dilations fit the smaller maps (which `recipe` sees to).
COSTS: Mapping[str, Cost] = {
    "large": Cost(219.9, 9.02, 3.09),
    "base": Cost(108.8, 7.21, 2.78),
    "small": Cost(69.9, 5.43, 2.63),
    "tiny": Cost(47.2, 4.65, 2.48),
    "mini": Cost(39.3, 3.96, 2.44),
}
# The small model of configs/shapes, with its small head: for CPUs.
PICO = "pico"


@dataclass(frozen=True)
class Fit:
    """A model that fits: its size, whether it needs checkpointing, and how many images a GPU takes at a time."""

    size: str
    checkpoint: bool
    images: int

    def memory(self, pixels: int) -> float:
        """GiB that this takes with images of so many pixels."""
        return COSTS[self.size].fixed + self.images * COSTS[self.size].per_image(pixels, self.checkpoint)


def largest_fit(memory: float, pixels: int, most: int, sizes: Sequence[str] = tuple(COSTS)) -> Fit | None:
    """The largest model that trains in a GPU's memory; without checkpointing, which costs time, where that fits.

    Args:
        memory: GiB.
        pixels: of a training image.
        most: images that a GPU should take at a time.
        sizes: keys of `COSTS` to choose from, the best first.

    Returns:
        The fit; None if even one image is too much for all.
    """
    for size in sizes:
        for checkpoint in (False, True):
            room = _USABLE * memory - COSTS[size].fixed
            images = int(room / COSTS[size].per_image(pixels, checkpoint))
            if images >= 1:
                return Fit(size, checkpoint, min(images, most))
    return None
