"""`metrics.json` of a run: written during the training, continued after a kill, read, and drawn as curves."""

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from detectron2.config import CfgNode
from detectron2.engine.hooks import PeriodicWriter
from detectron2.utils.events import EventStorage, EventWriter, JSONWriter, TensorboardXWriter
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dinat_common.files import atomic_write, check_folder

_logger = logging.getLogger(__name__)

# Writers show medians over this number of iterations.
_WINDOW = 20
# Measurements of the machine, which a resumed run makes anew.
_TIMES = ("time", "data_time", "rank_data_time", "eta_seconds")


class EventsWriter(TensorboardXWriter):
    """Detectron2's writer of TensorBoard's events, which looks first whether its folder can be written.

    TensorBoard writes in a thread, which would print an error with a traceback.
    """

    def __init__(self, folder: str | Path):
        """Take the folder; the file is created by the first `write`."""
        super().__init__(str(folder), window_size=_WINDOW)
        self._folder = folder

    def write(self) -> None:
        """Write the new scalars.

        Raises:
            WriteError: The folder can't be written, or the disk is full.
        """
        check_folder(self._folder)
        super().write()


class MetricsWriter(JSONWriter):
    """Detectron2's writer of `metrics.json`, which can go back to the lines that a checkpoint knows."""

    def __init__(self, json_file: str | Path):
        """Open the file; new lines are appended."""
        super().__init__(str(json_file), window_size=_WINDOW)
        self._path = Path(json_file)

    def state_dict(self) -> dict[str, int]:
        """Length of the file in bytes, and the last iteration that was written."""
        return {"bytes": self._path.stat().st_size, "written": self._last_write}

    def rewind(self, state: Mapping[str, int], iteration: int) -> dict[str, float] | None:
        """Drop the lines that an interrupted run has written after its checkpoint, since they will be written again.

        Args:
            state: Result of `state_dict` when the checkpoint was written.
            iteration: Iteration of the checkpoint. Its line is kept: it was written after everything else.

        Returns:
            Numbers of this line by name; None if there is none.
        """
        content = self._path.read_bytes()
        end = place = min(state["bytes"], len(content))
        last = None
        for text in content[end:].splitlines(keepends=True):
            line = _parse(text)
            if line.get("iteration", math.inf) > iteration:
                break
            place += len(text)
            if line["iteration"] == iteration:
                end, last = place, line
        self._last_write = state["written"] if last is None else iteration
        if end < len(content):
            _logger.info("metrics.json: lines after iteration %d are dropped and written again", iteration)
            os.truncate(self._path, end)
        return last


def _parse(line: bytes) -> dict[str, float]:
    """Content of a line of `metrics.json`; empty if it is incomplete."""
    try:
        return json.loads(line) if line.endswith(b"\n") else {}
    except ValueError:
        return {}


class MetricsLog(PeriodicWriter):
    """Detectron2's hook, which also writes after each evaluation, draws curves, and is part of checkpoints.

    With TEST.VALIDATION_LOSS it draws `losses.png` from `metrics.json` after each evaluation. A checkpoint has the
    scalars of the last iterations, so that medians over them are those of an uninterrupted run.

    Attributes:
        EMPTY: State before the first iteration.
    """

    EMPTY: ClassVar[Mapping[str, Any]] = {"scalars": {}, "files": [{"bytes": 0, "written": -1}]}

    def __init__(self, writers: Sequence[EventWriter], cfg: CfgNode):
        """Initialize the hook.

        Args:
            writers: Writers of the main process; none on the others.
            cfg: Config of the run.
        """
        super().__init__(list(writers))
        self._folder = Path(cfg.OUTPUT_DIR)
        self._eval_period = cfg.TEST.EVAL_PERIOD
        self._metric = cfg.TEST.BEST_METRIC
        self._draws = cfg.TEST.VALIDATION_LOSS
        self._restored: Mapping[str, Any] | None = None
        self._complete = True

    def lacks_last_iteration(self) -> bool:
        """Whether the run was interrupted between its checkpoint and the evaluation and lines of that iteration."""
        return not self._complete

    def state_dict(self) -> dict[str, Any]:
        """Scalars of the last iterations and the length of `metrics.json`."""
        storage = getattr(self.trainer, "storage", None)
        files = [writer.state_dict() for writer in self._writers if isinstance(writer, MetricsWriter)]
        return {"scalars": {} if storage is None else _last_scalars(storage), "files": files}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Keep a state for the beginning of the training."""
        self._restored = state_dict

    def before_train(self) -> None:
        """Restore scalars and lines of a resumed run."""
        if self._restored is None:
            return
        storage, last = self.trainer.storage, self.trainer.start_iter - 1
        for name, (smoothing, values) in self._restored["scalars"].items():
            for value, iteration in values:
                storage.put_scalar(name, value, smoothing_hint=smoothing, cur_iter=iteration)
        writers = [writer for writer in self._writers if isinstance(writer, MetricsWriter)]
        states = zip(writers, self._restored["files"], strict=False)
        lines = [writer.rewind(state, last) for writer, state in states]
        self._complete = not self._writers or (bool(lines) and None not in lines)
        # Results of an evaluation after the checkpoint.
        restored = {"iteration", *_TIMES, *(name for name, (_, at) in storage.latest().items() if at == last)}
        for name, value in ((n, v) for line in lines if line for n, v in line.items() if n not in restored):
            storage.put_scalar(name, value, smoothing_hint=False, cur_iter=last)

    def after_step(self) -> None:
        """Write periodically and after an evaluation."""
        super().after_step()
        done = self.trainer.iter + 1
        if self._eval_period > 0 and done % self._eval_period == 0 and done != self.trainer.max_iter:
            if done % self._period:
                for writer in self._writers:
                    writer.write()
            self._draw()

    def after_train(self) -> None:
        """Write the remaining events, and draw."""
        super().after_train()
        self._draw()

    def _draw(self) -> None:
        if self._draws and self._writers:
            draw_loss_curves(self._folder / "metrics.json", self._folder / "losses.png", self._metric)


def _last_scalars(storage: EventStorage) -> dict[str, Any]:
    """Scalars as {name: [whether writers smooth it, [value, iteration] of the last iterations]}."""
    smoothed = storage.smoothing_hints()
    found = {}
    for name in storage.latest():
        if name not in _TIMES:
            count = storage.count_samples(name, _WINDOW) if smoothed[name] else 1
            found[name] = [smoothed[name], [list(entry) for entry in storage.history(name).values()[-count:]]]
    return found


_TRAINING, _VALIDATION, _METRIC = "#2f6fb2", "#c4432b", "#3c8c4a"


def draw_loss_curves(metrics_file: str | Path, picture: str | Path, metric: str = "") -> None:
    """Draw the total loss in training and validation, and a metric, over the iterations, as a PNG.

    Args:
        metrics_file: The `metrics.json` of a training, one JSON object per line.
        picture: PNG file to write; it is not written if there is nothing to show yet.
        metric: Name of the metric in `metrics_file`; by default the first of PQ, AP, mIoU and top1 that the file has.
    """
    lines = read_metrics(metrics_file)
    training, validation = _curve(lines, "total_loss"), _curve(lines, "validation/total_loss")
    usual = ("panoptic_seg/PQ", "segm/AP", "sem_seg/mIoU", "classification/top1")
    metric = metric or next((name for name in usual if _curve(lines, name)), "")
    measured = {} if metric.endswith("total_loss") else _curve(lines, metric)
    if not (training or validation or measured):
        return
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(list(training), list(training.values()), color=_TRAINING, label="training loss")
    if validation:
        axes.plot(list(validation), list(validation.values()), "o-", color=_VALIDATION, label="validation loss")
        best = min(validation, key=lambda iteration: validation[iteration])
        _note(axes, best, validation[best], f"{validation[best]:.2f}", color=_VALIDATION, below=True)
    axes.set_xlabel("iteration")
    axes.set_ylabel("total loss")
    axes.set_ylim(bottom=0)
    axes.spines[["top"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    if measured:
        right = axes.twinx()
        right.plot(list(measured), list(measured.values()), "s--", color=_METRIC, label=metric)
        best = max(measured, key=lambda iteration: measured[iteration])
        _note(right, best, measured[best], f"{measured[best]:.1f}", color=_METRIC, below=False)
        right.set_ylabel(f"{metric} (percent)", color=_METRIC)
        right.set_ylim(0, max(1.0, 1.2 * measured[best]))
        right.spines[["top"]].set_visible(False)
        for found, texts in zip(right.get_legend_handles_labels(), (handles, labels), strict=True):
            texts.extend(found)
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    with atomic_write(picture, "wb") as file:
        figure.savefig(file, format="png")


def read_metrics(metrics_file: str | Path) -> dict[int, dict[str, float]]:
    """Read the `metrics.json` of a training: numbers by name, by iteration.

    Iterations that a resumed run has repeated count once, with the later numbers.
    """
    lines: dict[int, dict[str, float]] = {}
    path = Path(metrics_file)
    for text in path.read_text().splitlines() if path.is_file() else ():
        line = json.loads(text)
        iteration = line.pop("iteration")
        lines = {earlier: kept for earlier, kept in lines.items() if earlier <= iteration}
        lines[iteration] = {**lines.get(iteration, {}), **line}
    return lines


def _curve(lines: Mapping[int, Mapping[str, float]], name: str) -> dict[int, float]:
    return {iteration: line[name] for iteration, line in lines.items() if not math.isnan(line.get(name, math.nan))}


def _note(axes: Axes, x: float, y: float, text: str, *, color: str, below: bool) -> None:
    axes.annotate(
        text,
        (x, y),
        (0, -14 if below else 7),
        textcoords="offset points",
        ha="center",
        color=color,
        fontsize=9,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
    )
