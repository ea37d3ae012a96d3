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

from mask2former.utils.files import write_json

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
    with inference_context(model), torch.no_grad():
        for inputs in batches:
            start = time.perf_counter()
            outputs = predict(inputs)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            after_model = time.perf_counter()
            evaluator.process(inputs, outputs)
            progress.add(len(inputs), after_model - start, time.perf_counter() - after_model)
    progress.finish()
    of_processes = comm.gather((progress.images, progress.model_seconds, peak_memory(device)))
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
        model_seconds: Time inside the model.
    """

    def __init__(self, batches: int):
        self.images = 0
        self.model_seconds = 0.0
        self._evaluation_seconds = 0.0
        self._batches = batches
        self._batches_done = 0
        self._start = time.perf_counter()
        self._next_report = self._start

    def add(self, images: int, model_seconds: float, evaluation_seconds: float) -> None:
        self.images += images
        self._batches_done += 1
        self.model_seconds += model_seconds
        self._evaluation_seconds += evaluation_seconds
        now = time.perf_counter()
        if now < self._next_report:
            return
        self._next_report = now + _SECONDS_BETWEEN_REPORTS
        passed = now - self._start
        left = timedelta(seconds=round(passed / self._batches_done * (self._batches - self._batches_done)))
        done = f"{self._batches_done}/{self._batches}"
        logging.getLogger(__name__).info("Predicted %s: %s; eta: %s", done, self._times(passed), left)

    def finish(self) -> None:
        passed = time.perf_counter() - self._start
        times = f": {self._times(passed)}" if self.images else ""
        whole = timedelta(seconds=round(passed))
        logging.getLogger(__name__).info("Predicted %d images in %s%s", self.images, whole, times)

    def _times(self, passed: float) -> str:
        return (
            f"{passed / self.images:.3f} s per image, of these {self.model_seconds / self.images:.3f} model, "
            f"{self._evaluation_seconds / self.images:.3f} evaluation"
        )


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
    before = json.loads(path.read_text(encoding="utf-8")) if keep and path.is_file() else {}
    write_json(path, {**before, **{name: asdict(speed) for name, speed in speeds.items() if speed}}, indent=2)


def results_table(dataset_name: str, results: Mapping[str, Mapping[str, float]]) -> str:
    """Table of the metrics of a data set in percent, without those of single classes."""
    rows = [
        (task, metric, value)
        for task, metrics in results.items()
        for metric, value in metrics.items()
        if "-" not in metric  # PQ-<class> and the like
    ]
    table = tabulate(rows, headers=("task", "metric", "%"), tablefmt="github", floatfmt=".4f")
    return f"Results on {dataset_name}:\n{table}"


def json_ready(results: Mapping[str, Any]) -> dict[str, Any]:
    """Nested results with None instead of NaN and infinity, which JSON does not have."""
    ready: dict[str, Any] = {}
    for key, value in results.items():
        if isinstance(value, Mapping):
            ready[key] = json_ready(value)
        else:
            ready[key] = float(value) if math.isfinite(value) else None
    return ready
