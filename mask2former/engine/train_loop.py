"""One training step, in float32 or in bfloat16 autocast, on a CPU or a GPU."""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from torch import nn


class NonFiniteLossError(FloatingPointError):
    """A loss, or a cost inside the model, is NaN or infinite; the message names it, the iteration and the images."""


class TrainLoop(SimpleTrainer):
    """Detectron2's plain loop, with bfloat16 autocast if asked, that lets no non-finite loss reach the weights.

    bfloat16 has float32's range, so that no loss scaling is needed.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Any],
        optimizer: torch.optim.Optimizer,
        *,
        amp: bool = False,
    ):
        super().__init__(model, data_loader, optimizer)
        self._amp = amp
        self._device_type = next(model.parameters()).device.type

    def run_step(self) -> None:
        """Take one batch, compute the losses, update the weights.

        Raises:
            NonFiniteLossError: a loss or a matching cost is NaN or infinite; the weights are as they were.
        """
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        try:
            with torch.autocast(self._device_type, torch.bfloat16, enabled=self._amp):
                losses = self.model(data)
        except FloatingPointError as error:
            # The model itself found something, as the matcher does.
            raise self._error(str(error), data) from error
        self._require_finite(losses, data)
        self.optimizer.zero_grad()
        sum(losses.values()).backward()
        self._write_metrics(losses, data_time)
        self.optimizer.step()

    def _require_finite(self, losses: Mapping[str, torch.Tensor], data: Sequence[Mapping[str, Any]]) -> None:
        # One transfer for all of them.
        values = torch.stack([loss.detach().float() for loss in losses.values()]).tolist()
        bad = {name: value for name, value in zip(losses, values, strict=True) if not math.isfinite(value)}
        if bad:
            raise self._error("loss not finite: " + ", ".join(f"{name} = {value}" for name, value in bad.items()), data)

    def _error(self, found: str, data: Sequence[Mapping[str, Any]]) -> NonFiniteLossError:
        images = ", ".join(str(sample.get("file_name", "(no file name)")) for sample in data)
        return NonFiniteLossError(f"iteration {self.iter}: {found}; images of the batch: {images}")
