"""Images through a model several at a time."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn


def batches_of_one_size(images: Sequence[NDArray[np.uint8]], batch_size: int) -> Iterator[list[int]]:
    """Positions of images [H, W, 3] of one size, at most so many at once."""
    sizes: dict[tuple[int, ...], list[int]] = {}
    for position, image in enumerate(images):
        sizes.setdefault(image.shape, []).append(position)
    for positions in sizes.values():
        for start in range(0, len(positions), batch_size):
            yield positions[start : start + batch_size]


def run_batch(model: nn.Module, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A Detectron2 model's outputs for a batch, in two halves where there is not memory enough for it."""
    try:
        return model(inputs)
    except torch.OutOfMemoryError:
        if len(inputs) == 1:
            raise
    middle = len(inputs) // 2
    return run_batch(model, inputs[:middle]) + run_batch(model, inputs[middle:])
