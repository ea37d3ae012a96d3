"""Exponential moving average of the weights of a training."""

from collections.abc import Callable, Mapping
from typing import Any

from detectron2.engine import HookBase
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mask2former.config import ConfigError

# Under which a training's checkpoints keep the state of the `AveragedModel`.
AVERAGE_KEY = "ema"
_INSIDE = "module."


def build_average(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of `model`, in float32, that follows its weights.

    `decay` is the part of the average that an update keeps. The first updates keep less, (1 + n) / (10 + n) after n of
    them (the rule of TensorFlow's ExponentialMovingAverage), so that the average of a short training is not that of its
    beginning.

    Raises:
        ConfigError: `decay` is not between 0 and 1.
    """
    if not 0 <= decay < 1:
        raise ConfigError(f"SOLVER.EMA.DECAY is {decay}, expected at least 0 and less than 1")
    average = AveragedModel(model, multi_avg_fn=_warmed_up(decay))
    average.module.float()
    average.requires_grad_(False)
    return average


def averaged_weights(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict of the averaged model itself, of a state of `AveragedModel`."""
    return {name.removeprefix(_INSIDE): value for name, value in state.items() if name.startswith(_INSIDE)}


def _warmed_up(decay: float) -> Callable[..., None]:
    def update(averages: Any, weights: Any, updates: Any) -> None:
        count = float(updates)
        get_ema_multi_avg_fn(min(decay, (1 + count) / (10 + count)))(averages, weights, updates)

    return update


class AverageHook(HookBase):
    """Updates the average after each step, and saves it as `model_final_ema.pth` when the training is done."""

    def __init__(self, average: AveragedModel, model: nn.Module, checkpointer: Any):
        """Take the average, the model that is trained, and the checkpointer of the run."""
        self._average = average
        self._model = model
        self._checkpointer = checkpointer

    def after_step(self) -> None:
        """Update."""
        self._average.update_parameters(self._model)

    def after_train(self) -> None:
        """Save, unless the training broke off."""
        if self.trainer.iter >= self.trainer.max_iter:
            self._checkpointer.save_weights("model_final_ema", self._average.module)
