"""Running a model over a data set: progress, time and memory."""

import json
import logging
import platform
import resource
import sys
import time
from collections.abc import Generator, Iterable, Mapping, Sized
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch
from detectron2.evaluation import DatasetEvaluator, inference_context
from detectron2.utils import comm
from torch import nn

from mask2former.utils.files import write_json

_SECONDS_BETWEEN_REPORTS = 5


class Batches(Sized, Iterable[list[dict[str, Any]]], Protocol):
    """The images that fall to this process, in lists."""


@dataclass(frozen=True)
class Speed:
    """How fast a model ran.

    Attributes:
        images: how many all processes together saw in this run.
        seconds: spent inside the model, all processes added.
        images_per_second: images / seconds, which is the rate of one process.
        peak_memory_bytes: of a GPU's memory, or on a CPU of a process since it started; of the largest.
        device: what one process ran on.
        processes: how many there were.
    """

    images: int
    seconds: float
    images_per_second: float
    peak_memory_bytes: int
    device: str
    processes: int


def run_inference(model: nn.Module, batches: Batches, evaluator: DatasetEvaluator) -> Speed | None:
    """Give the model's results for all images to a started evaluator; progress with the time left goes to the log.

    Args:
        model: put into evaluation mode meanwhile; asked for classes instead of scores where it has `semantic_scores`.
        batches: images of this process; may be none.
        evaluator: its `process` is called; `evaluate` is not.

    Returns:
        On the main process the speed, None if no process had an image; None on the others.
    """
    device = next(model.parameters()).device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    progress = _Progress(len(batches))
    with ExitStack() as stack:
        stack.enter_context(inference_context(model))
        stack.enter_context(_classes_only(model))
        stack.enter_context(torch.no_grad())
        for inputs in batches:
            start = time.perf_counter()
            outputs = model(inputs)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            after_model = time.perf_counter()
            evaluator.process(inputs, outputs)
            progress.add(len(inputs), after_model - start, time.perf_counter() - after_model)
    progress.finish()
    return _gather_speed(progress, device)


class _Progress:
    """Counts images and seconds, and reports them."""

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


@contextmanager
def _classes_only(model: nn.Module) -> Generator[None, None, None]:
    """Spare a model the scores of all classes where the best class is what counts."""
    if not hasattr(model, "semantic_scores"):
        yield
        return
    before = model.semantic_scores
    setattr(model, "semantic_scores", False)  # noqa: B010 - nn.Module declares no such attribute
    try:
        yield
    finally:
        setattr(model, "semantic_scores", before)  # noqa: B010


def _gather_speed(progress: _Progress, device: torch.device) -> Speed | None:
    of_processes = comm.gather((progress.images, progress.model_seconds, peak_memory(device)))
    if not of_processes or not any(images for images, _, _ in of_processes):
        return None
    all_images, all_seconds, peaks = zip(*of_processes, strict=True)
    images, seconds = sum(all_images), sum(all_seconds)
    return Speed(images, seconds, images / seconds, max(peaks), _device_name(device), len(of_processes))


def peak_memory(device: torch.device) -> int:
    """Peak of a GPU's memory, or on a CPU of the process since it started, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # macOS counts in bytes, others in KiB.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, threads: {torch.get_num_threads()})"


def write_speed(path: str | Path, speeds: Mapping[str, Speed | None], *, keep: bool = False) -> None:
    """Write {data set: speed} as JSON.

    Args:
        path: the file.
        speeds: None for a data set on which nothing was left to predict.
        keep: keep what the file says of others and of these, as after an evaluation that was only completed.
    """
    path = Path(path)
    before = json.loads(path.read_text(encoding="utf-8")) if keep and path.is_file() else {}
    write_json(path, {**before, **{name: asdict(speed) for name, speed in speeds.items() if speed}}, indent=2)
