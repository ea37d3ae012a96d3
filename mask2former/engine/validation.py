"""Losses of a training on images that it does not see."""

import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm

from mask2former.engine.train_loop import NonFiniteLossError
from mask2former.maskformer_model import MaskFormer


def validation_losses(model: MaskFormer, batches: Iterable[Sequence[dict[str, Any]]]) -> dict[str, float]:
    """The mean over all images of the losses of each alone, without dropout.

    The points that losses look at are drawn from the name of the image, so that numbers of different iterations (and of
    another number of processes) are of the same points. PyTorch's generator is afterwards as it was before.

    Args:
        model: in any mode, which it keeps.
        batches: this process's share of the images, one in each batch, with targets as in training.

    Returns:
        On the main process `total_loss`, and of its parts those of the last layer; empty on others, or where there is
        no image.

    Raises:
        NonFiniteLossError: predictions have diverged; the message names the image.
    """
    sums: dict[str, float] = {}
    count = 0
    training = model.training
    devices = [model.device] if model.device.type == "cuda" else []
    model.eval()
    try:
        with torch.random.fork_rng(devices), torch.no_grad():
            for batch in batches:
                names, values = _losses(model, list(batch))
                sums = {name: sums.get(name, 0.0) + value for name, value in zip(names, values, strict=True)}
                count += 1
    finally:
        model.train(training)
    gathered = comm.gather((sums, count))
    total = sum(images for _, images in gathered)
    if not total:
        return {}
    names = next(found for found, images in gathered if images)
    losses = {name: sum(found.get(name, 0.0) for found, _ in gathered) / total for name in names}
    # Those of other layers end in a number.
    return {"total_loss": sum(losses.values()), **{n: loss for n, loss in losses.items() if not n[-1].isdigit()}}


def _losses(model: MaskFormer, batch: list[dict[str, Any]]) -> tuple[list[str], list[float]]:
    image = str(batch[0].get("file_name", ""))
    torch.manual_seed(zlib.crc32(Path(image).name.encode()))
    try:
        losses = model.losses(batch)
    except FloatingPointError as error:
        raise NonFiniteLossError(f"validation loss: {error}; image: {image}") from error
    # One transfer for all of them.
    return list(losses), torch.stack([loss.float() for loss in losses.values()]).tolist()
