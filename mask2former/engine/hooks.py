"""Hooks of a training: average of the weights, best weights, and losses on other images."""

import logging
import math
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.engine.hooks import BestCheckpointer
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dinat_common.errors import ConfigError
from mask2former.checkpoint import Checkpointer, read_checkpoint
from mask2former.engine.train_loop import NonFiniteLossError
from mask2former.modeling.meta_arch.base import LossesOrResults

_logger = logging.getLogger(__name__)


def build_average(model: nn.Module, decay: float) -> AveragedModel:
    """Build an exponential moving average of the weights of `model`, in float32.

    An update keeps the fraction `decay` of the average. The first updates keep less, (1 + n) / (10 + n) after n updates
    (the rule of TensorFlow's ExponentialMovingAverage), so that the average of a short training is not dominated by its
    beginning.

    Raises:
        ConfigError: `decay` is not between 0 and 1.
    """
    if not 0 <= decay < 1:
        raise ConfigError(f"SOLVER.EMA.DECAY is {decay}, expected at least 0 and less than 1")

    def update(averages: Any, weights: Any, updates: Any) -> None:
        count = float(updates)
        get_ema_multi_avg_fn(min(decay, (1 + count) / (10 + count)))(averages, weights, updates)

    average = AveragedModel(model, multi_avg_fn=update)
    average.module.float()
    average.requires_grad_(False)
    return average


class AverageHook(HookBase):
    """Updates the average after each step, and saves it as `model_final_ema.pth` when the training is finished."""

    def __init__(self, average: AveragedModel, model: nn.Module, checkpointer: Checkpointer):
        """Take the average, the model being trained, and the checkpointer of the run."""
        self._average = average
        self._model = model
        self._checkpointer = checkpointer

    def after_step(self) -> None:
        """Update the average."""
        self._average.update_parameters(self._model)

    def after_train(self) -> None:
        """Save the average, unless the training was interrupted."""
        if self.trainer.iter >= self.trainer.max_iter:
            self._checkpointer.save_weights("model_final_ema", self._average.module)


class BestWeights(BestCheckpointer):
    """Detectron2's hook, which keeps the weights with the best metric, in a file that a resumed run continues from.

    `model_best.pth` has the weights and, under "best", the metric, its value and the iteration. Lower is better for
    losses, higher for everything else. The hook runs after the one that evaluates.
    """

    def __init__(self, eval_period: int, checkpointer: Checkpointer, model: nn.Module, metric: str):
        """Initialize the hook.

        Args:
            eval_period: Number of iterations between evaluations; 0 means only at the end.
            checkpointer: Checkpointer of the run.
            model: Model that is evaluated and saved.
            metric: Name of the metric in the `metrics.json` of the run, for example "panoptic_seg/PQ".
        """
        # Detectron2's hook calls `save`; a file that `checkpointer.save` writes would become the last checkpoint.
        saver: Any = self
        super().__init__(eval_period, saver, metric, mode="min" if "loss" in metric else "max")
        self._weights = checkpointer
        self._model = model
        self._metric = metric

    def before_train(self) -> None:
        """Continue from the value that an earlier part of this training has reached."""
        path = Path(self._weights.save_dir, "model_best.pth")
        if self.trainer.start_iter == 0 or not path.is_file():
            return
        kept = read_checkpoint(path).get("best", {})
        if kept.get("metric") == self._metric:
            self.best_metric, self.best_iter = kept["value"], kept["iteration"]
            _logger.info("Best %s so far: %.4f at iteration %d", self._metric, self.best_metric, self.best_iter)

    def save(self, name: str, iteration: int) -> None:
        """Save the weights with the latest value of the metric."""
        value, _ = self.trainer.storage.latest()[self._metric]
        best = {"metric": self._metric, "value": value, "iteration": iteration}
        self._weights.save_weights(name, self._model, best=best)

    def _best_checking(self) -> None:
        # Detectron2 only warns of an unknown metric, and saves infinity as the best.
        latest = self.trainer.storage.latest()
        measured = [name for name in latest if "/" in name]
        if measured and self._metric not in latest:
            # Metrics of single classes, such as AP-person, would make a long list.
            names = sorted(name for name in measured if "-" not in name.rsplit("/", 1)[-1])
            raise ConfigError(f"TEST.BEST_METRIC is {self._metric!r}, expected one of: {', '.join(names)}")
        value, iteration = latest.get(self._metric, (0.0, 0))
        if math.isfinite(value):
            super()._best_checking()
        else:
            _logger.warning("%s is %s at iteration %d and can't be the best", self._metric, value, iteration)


def validation_losses(model: LossesOrResults, batches: Iterable[Sequence[dict[str, Any]]]) -> dict[str, float]:
    """Compute the losses of each image alone, without dropout, and average them over all images.

    The points at which losses are computed are drawn from the name of the image, so that numbers of different
    iterations (and of another number of processes) belong to the same points. The state of PyTorch's generators does
    not change.

    Args:
        model: Model in training or evaluation mode; the mode does not change.
        batches: Images of this process, one in each batch, with targets as in training.

    Returns:
        `total_loss` and the losses of the last layer on the main process; empty on others, and if there are no images.

    Raises:
        NonFiniteLossError: Predictions have diverged; the message names the image.
    """
    sums: dict[str, float] = {}
    count = 0
    training = model.training
    devices = [model.device] if model.device.type == "cuda" else []
    model.eval()
    try:
        # Detectors write numbers of their own to the storage, which are not those of the training.
        with torch.random.fork_rng(devices), torch.no_grad(), EventStorage():
            for batch in batches:
                image = str(batch[0].get("file_name", ""))
                torch.manual_seed(zlib.crc32(Path(image).name.encode()))
                try:
                    losses = model.losses(list(batch))
                except FloatingPointError as error:
                    raise NonFiniteLossError(f"validation loss: {error}; image: {image}") from error
                # One transfer from the device for all losses.
                values = torch.stack([loss.float() for loss in losses.values()]).tolist()
                sums = {name: sums.get(name, 0.0) + value for name, value in zip(losses, values, strict=True)}
                count += 1
    finally:
        model.train(training)
    gathered = comm.gather((sums, count))
    total = sum(images for _, images in gathered)
    if not total:
        return {}
    names = next(found for found, images in gathered if images)
    means = {name: sum(found.get(name, 0.0) for found, _ in gathered) / total for name in names}
    # Names of losses of other layers are those of the last one with a number.
    last = {name: loss for name, loss in means.items() if name.rpartition("_")[0] not in means}
    return {"total_loss": sum(means.values()), **last}
