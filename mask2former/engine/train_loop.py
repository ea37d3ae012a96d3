"""One training step, in float32 or in bfloat16 autocast, on a CPU or a GPU."""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mask2former.utils.errors import UserError


class NonFiniteLossError(UserError, FloatingPointError):
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
        accumulate_steps: int = 1,
    ):
        """Take the parts.

        Args:
            model: gives a dict of losses for a batch; in a DistributedDataParallel where there are several processes.
            data_loader: endless batches, lists of dicts.
            optimizer: of the model's weights.
            amp: compute the losses in bfloat16 autocast.
            accumulate_steps: batches of an optimiser step. With more than one, losses and gradients are those of one
                batch of all their images, for which the model has a method `count_targets`, and takes what that gives
                as a second argument (as `MaskFormer` does).
        """
        super().__init__(model, data_loader, optimizer)
        self._amp = amp
        self._accumulate_steps = accumulate_steps
        self._device_type = next(model.parameters()).device.type

    def run_step(self) -> None:
        """Take the batches of an optimiser step, compute the losses, update the weights.

        Raises:
            NonFiniteLossError: a loss or a matching cost is NaN or infinite; the weights are as they were.
        """
        start = time.perf_counter()
        batches = [next(self._data_loader_iter) for _ in range(self._accumulate_steps)]
        data_time = time.perf_counter() - start

        total: dict[str, torch.Tensor] = {}
        whole = self._describe(batches)
        for index, data in enumerate(batches):
            with self._synchronized(last=index == len(batches) - 1):
                losses = self._losses(data, whole)
                if index == 0:
                    self.optimizer.zero_grad()
                sum(losses.values()).backward()
            total = {name: total.get(name, 0) + loss.detach() for name, loss in losses.items()}
        self._write_metrics(total, data_time)
        self.optimizer.step()

    def _describe(self, batches: Sequence[Sequence[Mapping[str, Any]]]) -> tuple[list[int], ...]:
        """What the model has to know of all batches besides the one it is given: nothing where there is but one."""
        if len(batches) == 1:
            return ()
        model: Any = self.model.module if isinstance(self.model, DistributedDataParallel) else self.model
        return (model.count_targets([sample for data in batches for sample in data]),)

    def _synchronized(self, *, last: bool) -> AbstractContextManager[None]:
        """Where processes add up their gradients: once, after the last batch."""
        if last or not isinstance(self.model, DistributedDataParallel):
            return nullcontext()
        return self.model.no_sync()

    def _losses(self, data: Sequence[Mapping[str, Any]], whole: tuple[list[int], ...]) -> dict[str, Any]:
        try:
            with torch.autocast(self._device_type, torch.bfloat16, enabled=self._amp):
                losses = self.model(data, *whole)
        except FloatingPointError as error:
            # The model itself found something, as the matcher does.
            raise self._error(str(error), data) from error
        self._require_finite(losses, data)
        return losses

    def _require_finite(self, losses: Mapping[str, torch.Tensor], data: Sequence[Mapping[str, Any]]) -> None:
        # One transfer for all of them.
        values = torch.stack([loss.detach().float() for loss in losses.values()]).tolist()
        bad = {name: value for name, value in zip(losses, values, strict=True) if not math.isfinite(value)}
        if bad:
            raise self._error("loss not finite: " + ", ".join(f"{name} = {value}" for name, value in bad.items()), data)

    def _error(self, found: str, data: Sequence[Mapping[str, Any]]) -> NonFiniteLossError:
        images = ", ".join(str(sample.get("file_name", "(no file name)")) for sample in data)
        return NonFiniteLossError(f"iteration {self.iter}: {found}; images of the batch: {images}")
