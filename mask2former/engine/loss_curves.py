"""The course of a training as a picture."""

import json
from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mask2former.utils.files import atomic_write

Curve = dict[int, float]

_TRAINING, _VALIDATION, _METRIC = "#2f6fb2", "#c4432b", "#3c8c4a"
# Shown where no metric is named: the first that there is.
_METRICS = ("panoptic_seg/PQ", "segm/AP", "sem_seg/mIoU")


def draw_loss_curves(metrics_file: str | Path, picture: str | Path, metric: str = "") -> None:
    """Draw total loss in training and validation, and a metric, over the iterations, as a PNG.

    Args:
        metrics_file: the `metrics.json` of a training, a JSON object a line.
        picture: written, unless there is nothing to show yet.
        metric: its name in `metrics_file`; empty: PQ, AP or mIoU, the first of these that there is.
    """
    lines = _read(Path(metrics_file))
    training, validation = _curve(lines, "total_loss"), _curve(lines, "validation/total_loss")
    metric = metric or next((name for name in _METRICS if _curve(lines, name)), "")
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
        _note(axes, best, validation[best], f"{validation[best]:.2f}", _VALIDATION, below=True)
    axes.set_xlabel("iteration")
    axes.set_ylabel("total loss")
    axes.set_ylim(bottom=0)
    axes.spines[["top"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    if measured:
        right = axes.twinx()
        right.plot(list(measured), list(measured.values()), "s--", color=_METRIC, label=metric)
        best = max(measured, key=lambda iteration: measured[iteration])
        _note(right, best, measured[best], f"{measured[best]:.1f}", _METRIC, below=False)
        right.set_ylabel(f"{metric} (percent)", color=_METRIC)
        right.set_ylim(0, max(1.0, 1.2 * measured[best]))
        right.spines[["top"]].set_visible(False)
        for found, texts in zip(right.get_legend_handles_labels(), (handles, labels), strict=True):
            texts.extend(found)
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    with atomic_write(picture, "wb") as file:
        figure.savefig(file, format="png")


def _note(axes: Axes, x: float, y: float, text: str, color: str, *, below: bool) -> None:
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


def _read(path: Path) -> dict[int, dict[str, float]]:
    """By iteration; what a run wrote that another has since taken back to an earlier iteration is left out."""
    lines: dict[int, dict[str, float]] = {}
    if not path.is_file():
        return lines
    for text in path.read_text().splitlines():
        line = json.loads(text)
        iteration = line.pop("iteration")
        lines = {earlier: kept for earlier, kept in lines.items() if earlier <= iteration}
        lines[iteration] = {**lines.get(iteration, {}), **line}
    return lines


def _curve(lines: Mapping[int, Mapping[str, float]], name: str) -> Curve:
    # NaN: nothing to measure.
    return {
        iteration: line[name] for iteration, line in lines.items() if line.get(name, float("nan")) == line.get(name)
    }
