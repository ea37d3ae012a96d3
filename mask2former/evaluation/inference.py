"""Running a model over a data set, its speed and memory, and the report of the results."""

import json
import logging
import math
import platform
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from detectron2.evaluation import DatasetEvaluator, inference_context
from detectron2.utils import comm
from tabulate import tabulate
from torch import nn
from torch.utils.data import DataLoader

from dinat_common.files import read_text, write_json
from mask2former.utils.parallel import uneven_work

Batches: TypeAlias = DataLoader[list[dict[str, Any]]]

_SECONDS_BETWEEN_REPORTS = 5


@dataclass(frozen=True)
class Speed:
    """Speed and memory of a model.

    Attributes:
        images: Number of images of this run, in all processes.
        seconds: Time inside the model, summed over the processes.
        images_per_second: images / seconds, the rate of one process.
        peak_memory_bytes: Largest peak of any process, see `peak_memory`.
        device: Device of one process.
        processes: Number of processes.
    """

    images: int
    seconds: float
    images_per_second: float
    peak_memory_bytes: int
    device: str
    processes: int


def run_inference(model: nn.Module, batches: Batches, evaluator: DatasetEvaluator) -> Speed | None:
    """Pass the model's results for all images to a started evaluator; log the progress and the time left.

    Args:
        model: Model, in evaluation mode during the run. A model with `inference_settings` is asked for classes instead
            of class scores, which take less memory.
        batches: Images of this process; may be empty.
        evaluator: Evaluator whose `process` is called; `evaluate` is not.

    Returns:
        On the main process the speed, None if no process had an image; None on the others.
    """
    device = next(model.parameters()).device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    settings = getattr(model, "inference_settings", None)
    predict = partial(model, settings=replace(settings, semantic_scores=False)) if settings else model
    progress = _Progress(len(batches))
    with inference_context(model), torch.no_grad(), uneven_work():
        for inputs in batches:
            start = time.perf_counter()
            outputs = predict(inputs)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            after_model = time.perf_counter()
            evaluator.process(inputs, outputs)
            progress.add(len(inputs), after_model - start, time.perf_counter() - after_model)
    progress.report("total", 1)
    of_processes = comm.gather((progress.images, progress.seconds[0], peak_memory(device)))
    images, seconds = (sum(values[i] for values in of_processes) for i in range(2))
    if not images:
        return None
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{device.type} ({platform.machine()}, threads: {torch.get_num_threads()})"
    peak = max(memory for _, _, memory in of_processes)
    return Speed(images, seconds, images / seconds, peak, name, len(of_processes))


class _Progress:
    """Counts images and seconds, and logs them.

    Attributes:
        images: Number of images so far.
        seconds: Time inside the model and time inside the evaluator.
    """

    def __init__(self, batches: int):
        self.images, self.seconds = 0, (0.0, 0.0)
        self._batches, self._batches_done = batches, 0
        self._start = self._next_report = time.perf_counter()

    def add(self, images: int, model_seconds: float, evaluation_seconds: float) -> None:
        self.images, self._batches_done = self.images + images, self._batches_done + 1
        self.seconds = self.seconds[0] + model_seconds, self.seconds[1] + evaluation_seconds
        if time.perf_counter() >= self._next_report:
            self._next_report = time.perf_counter() + _SECONDS_BETWEEN_REPORTS
            self.report("eta", self._batches / self._batches_done - 1)

    def report(self, label: str, share: float) -> None:
        """Log the progress, and a share of the time that has passed under a label."""
        passed = time.perf_counter() - self._start
        each = "%.3f s per image, of these %.3f model, %.3f evaluation"
        times = each % tuple(seconds / max(1, self.images) for seconds in (passed, *self.seconds))
        line = f"Predicted %d images (batch %d of %d): {times}; {label}: %s"
        left = timedelta(seconds=round(share * passed))
        logging.getLogger(__name__).info(line, self.images, self._batches_done, self._batches, left)


def peak_memory(device: torch.device) -> int:
    """Peak GPU memory in bytes; on a CPU, peak memory of the process since it started."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # macOS counts in bytes, others in KiB.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def write_speed(path: str | Path, speeds: Mapping[str, Speed | None], *, keep: bool = False) -> None:
    """Write {data set: speed} as JSON.

    Args:
        path: The file.
        speeds: Speed on each data set; None if nothing was left to predict.
        keep: Whether entries that the file has and `speeds` lacks stay, as after an evaluation that was only completed.
    """
    path = Path(path)
    before = json.loads(read_text(path)) if keep and path.is_file() else {}
    write_json(path, {**before, **{name: asdict(speed) for name, speed in speeds.items() if speed}}, indent=2)


def results_table(dataset_name: str, results: Mapping[str, Mapping[str, float]]) -> str:
    """Table of the metrics of a data set in percent, without those of single classes."""
    every = ((task, *entry) for task, metrics in results.items() for entry in metrics.items())
    rows = [row for row in every if "-" not in row[1]]  # without PQ-<class> and the like
    table = tabulate(rows, headers=("task", "metric", "%"), tablefmt="github", floatfmt=".4f")
    return f"Results on {dataset_name}:\n{table}"


def json_ready(results: Mapping[str, Any]) -> dict[str, Any]:
    """Nested results with None instead of NaN and infinity, which JSON does not have."""
    return {
        key: json_ready(value) if isinstance(value, Mapping) else float(value) if math.isfinite(value) else None
        for key, value in results.items()
    }
