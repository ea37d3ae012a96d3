"""One training step, in float32 or in bfloat16 autocast, on a CPU or a GPU."""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mask2former.utils.errors import UserError


class NonFiniteLossError(UserError, FloatingPointError):
    """A loss or a matching cost is NaN or infinite. The message names it, the iteration and the images."""


class TrainLoop(SimpleTrainer):
    """Detectron2's plain loop with optional bfloat16 autocast, in which no non-finite loss reaches the weights.

    bfloat16 has the range of float32 and needs no loss scaling.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Any],
        optimizer: torch.optim.Optimizer,
        *,
        amp: bool = False,
        accumulate_steps: int = 1,
    ):
        """Initialize the loop.

        Args:
            model: Model that returns a dict of losses for a batch, in a DistributedDataParallel if there are several
                processes.
            data_loader: Endless iterable of batches, which are lists of dicts.
            optimizer: Optimiser over the model's weights.
            amp: Whether to compute the losses in bfloat16 autocast.
            accumulate_steps: Number of batches of an optimiser step. If there are several, losses and gradients are
                those of one batch of all their images. The model then needs a method `count_targets`, and takes its
                result as a second argument (as `MaskFormer` does).
        """
        super().__init__(model, data_loader, optimizer)
        self._amp = amp
        self._accumulate_steps = accumulate_steps
        self._device_type = next(model.parameters()).device.type

    def run_step(self) -> None:
        """Take the batches of an optimiser step, compute the losses, and update the weights.

        Raises:
            NonFiniteLossError: A loss or a matching cost is NaN or infinite; the weights are unchanged.
        """
        start = time.perf_counter()
        batches = [next(self._data_loader_iter) for _ in range(self._accumulate_steps)]
        data_time = time.perf_counter() - start

        in_processes = isinstance(self.model, DistributedDataParallel)
        counts: tuple[Any, ...] = ()
        if len(batches) > 1:
            model: Any = self.model.module if in_processes else self.model
            counts = (model.count_targets([sample for data in batches for sample in data]),)
        total: dict[str, torch.Tensor] = {}
        for index, data in enumerate(batches):
            # Processes add up their gradients once, after the last batch.
            with self.model.no_sync() if in_processes and index < len(batches) - 1 else nullcontext():
                losses = self._losses(data, *counts)
                if index == 0:
                    self.optimizer.zero_grad()
                sum(losses.values()).backward()
            total = {name: total.get(name, 0) + loss.detach() for name, loss in losses.items()}
        self._write_metrics(total, data_time)
        self.optimizer.step()

    def _losses(self, data: Sequence[Mapping[str, Any]], *counts: Any) -> dict[str, Any]:
        try:
            with torch.autocast(self._device_type, torch.bfloat16, enabled=self._amp):
                losses = self.model(data, *counts)
            # One transfer from the device for all losses.
            values = torch.stack([loss.detach().float() for loss in losses.values()]).tolist()
            bad = [f"{name} = {value}" for name, value in zip(losses, values, strict=True) if not math.isfinite(value)]
            if bad:
                raise FloatingPointError(f"loss not finite: {', '.join(bad)}")
        except FloatingPointError as error:
            # The model itself may have found something, as the matcher does.
            images = ", ".join(str(sample.get("file_name", "(no file name)")) for sample in data)
            raise NonFiniteLossError(f"iteration {self.iter}: {error}; images of the batch: {images}") from error
        return losses
