"""What evaluators that keep predictions share."""

import itertools
from pathlib import Path
from typing import Any

from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm


class PredictionEvaluator(DatasetEvaluator):
    """Collects predictions in each process and hands them all to the main one; subclasses compare them.

    Processes send them to each other: machines need no folder in common.
    """

    def __init__(self, output_dir: str | Path | None):
        """Start without predictions.

        Args:
            output_dir: where to keep the predictions; None: nowhere.
        """
        self._output_dir = output_dir
        self._predictions: list[dict[str, Any]] = []

    def reset(self) -> None:
        """Forget all predictions."""
        self._predictions = []

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Compare the predictions of all processes with the ground truth.

        Returns:
            On the main process {task: metrics in percent}, see the class; None on the others.
        """
        predictions = list(itertools.chain(*comm.gather(self._predictions)))
        return self._compare(predictions) if comm.is_main_process() else None

    def _compare(self, predictions: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
        raise NotImplementedError
