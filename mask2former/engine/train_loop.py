"""One training step, in float32 or in bfloat16 autocast, on a CPU or a GPU."""

import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dinat_common.errors import UserError
from mask2former.utils.randomness import seed_generators

_logger = logging.getLogger(__name__)


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
        seed: int = -1,
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
            seed: Seed of everything that a step draws (points, dropout, drop path), together with iteration and rank:
                a step does not depend on what was drawn before. If it is negative, one is drawn, or taken from a state
                that is restored.
        """
        super().__init__(model, data_loader, optimizer)
        self._amp = amp
        self._accumulate_steps = accumulate_steps
        self._own_seed = seed >= 0
        self._seed = seed if seed >= 0 else comm.shared_random_seed()
        self._device_type = next(model.parameters()).device.type

    def run_step(self) -> None:
        """Take the batches of an optimiser step, compute the losses, and update the weights.

        Raises:
            NonFiniteLossError: A loss or a matching cost is NaN or infinite; the weights are unchanged.
        """
        start = time.perf_counter()
        batches = [next(self._data_loader_iter) for _ in range(self._accumulate_steps)]
        data_time = time.perf_counter() - start
        seed_generators(self._seed, self.iter, comm.get_rank())

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

    def state_dict(self) -> dict[str, Any]:
        """State of iteration and optimiser, the seed, and the place of a data loader that has a `state_dict`."""
        place = {"data_loader": self.data_loader.state_dict()} if hasattr(self.data_loader, "state_dict") else {}
        return {**super().state_dict(), "seed": self._seed, **place}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the state of `state_dict` before the first step. The log says what an earlier version left out."""
        super().load_state_dict(state_dict)
        if not self._own_seed:
            self._seed = state_dict.get("seed", self._seed)
        if not hasattr(self.data_loader, "load_state_dict"):
            _logger.warning(
                "The training loader (%s) has no load_state_dict: it starts anew, and the order of images differs from "
                "that of an uninterrupted run",
                type(self.data_loader).__name__,
            )
        elif "data_loader" in state_dict:
            self.data_loader.load_state_dict(state_dict["data_loader"])
        else:
            _logger.warning(
                "The checkpoint has no place in the order of images (another loader or an earlier version wrote it): a "
                "new epoch starts"
            )

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
