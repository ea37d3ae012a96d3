"""The best weights of a training, by a metric of its evaluations."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from mask2former.checkpoint.checkpointer import Checkpointer
from mask2former.checkpoint.reading import read_checkpoint
from mask2former.config import ConfigError

_NAME = "model_best"
_KEY = "best"


class BestModel:
    """Keeps `model_best.pth`: weights, and under "best" the metric, its value and the iteration.

    The file itself says what is to be surpassed when a training is resumed. Losses are the better the lower, all else
    the better the higher.
    """

    def __init__(self, checkpointer: Checkpointer, metric: str):
        """Set where to save and what to go by.

        Args:
            checkpointer: of the run.
            metric: its name in `metrics.json` of the run, as "panoptic_seg/PQ".
        """
        self._checkpointer = checkpointer
        self._metric = metric
        self._sign = -1 if "loss" in metric else 1
        self._best: float | None = None
        self._logger = logging.getLogger(__name__)

    def resume(self) -> None:
        """Go on from what an earlier part of this training kept."""
        path = Path(self._checkpointer.save_dir, f"{_NAME}.pth")
        if not path.is_file():
            return
        kept = read_checkpoint(path).get(_KEY, {})
        if kept.get("metric") == self._metric:
            self._best = kept["value"]
            self._logger.info("Best %s before: %.4f, at iteration %d", self._metric, self._best, kept["iteration"])

    def update(self, results: Mapping[str, float], model: nn.Module, iteration: int) -> None:
        """Save `model` if it is better than all before.

        Args:
            results: what an evaluation of it gave, one name for each number.
            model: with the weights that were evaluated.
            iteration: the last one before the evaluation.

        Raises:
            ConfigError: there is no such metric.
        """
        if self._metric not in results:
            # Not those of single classes, as PQ-person.
            names = [name for name in results if "-" not in name.rsplit("/", 1)[-1]]
            raise ConfigError(f"TEST.BEST_METRIC is {self._metric!r}, expected one of: {', '.join(sorted(names))}")
        value = float(results[self._metric])
        if not math.isfinite(value):
            self._logger.warning("%s is %s at iteration %d: not the best", self._metric, value, iteration)
            return
        if self._best is not None and self._sign * value <= self._sign * self._best:
            self._logger.info("%s is %.4f; the best stays %.4f", self._metric, value, self._best)
            return
        before = "" if self._best is None else f", {self._best:.4f} before"
        self._logger.info("%s is %.4f, the best so far%s", self._metric, value, before)
        self._best = value
        best = {"metric": self._metric, "value": value, "iteration": iteration}
        self._checkpointer.save_weights(_NAME, model, **{_KEY: best})
