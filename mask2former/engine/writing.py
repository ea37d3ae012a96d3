"""When a training writes its numbers, and the picture of them."""

from collections.abc import Sequence
from pathlib import Path

from detectron2.engine.hooks import PeriodicWriter
from detectron2.utils.events import EventWriter

from mask2former.engine.loss_curves import draw_loss_curves


class CurveWriter(PeriodicWriter):
    """Detectron2's hook that also writes after each evaluation, and then draws `losses.png` from `metrics.json`."""

    def __init__(
        self, writers: Sequence[EventWriter], output_dir: str, eval_period: int, metric: str = "", period: int = 20
    ):
        """Set what to write when.

        Args:
            writers: one of them writes `metrics.json`.
            output_dir: the folder of the run.
            eval_period: iterations between evaluations; 0: none before the end.
            metric: see `draw_loss_curves`.
            period: iterations between writings.
        """
        super().__init__(list(writers), period)
        self._output_dir = output_dir
        self._eval_period = eval_period
        self._metric = metric

    def after_step(self) -> None:
        """Write every `period` iterations; write and draw after an evaluation."""
        super().after_step()
        done = self.trainer.iter + 1
        if self._eval_period > 0 and done % self._eval_period == 0 and done != self.trainer.max_iter:
            if done % self._period:
                for writer in self._writers:
                    writer.write()
            self._draw()

    def after_train(self) -> None:
        """Write what is left, and draw."""
        super().after_train()
        self._draw()

    def _draw(self) -> None:
        draw_loss_curves(Path(self._output_dir, "metrics.json"), Path(self._output_dir, "losses.png"), self._metric)
