"""The metrics of a data set, measured image by image and resumed after an interruption."""

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from mask2former.evaluation.metric import Image, Key, Metric, image_key
from mask2former.evaluation.records import RecordStore


class StreamingEvaluator(DatasetEvaluator):
    """Measures metrics on any device, in any number of processes, on one machine or several, in bounded memory.

    What is known of an image is written to disk when it comes. In the end records travel to the main process in small
    rounds, and so do result files that it does not see: machines need no folder in common.
    """

    def __init__(self, metrics: Sequence[Metric], output_dir: str | Path | None):
        """Take what is to be measured. Nothing is read or written yet.

        Args:
            metrics: with a task of its own each.
            output_dir: where to keep predictions and records, on each machine; None: nowhere, they are lost when the
                evaluator is.
        """
        self.metrics = tuple(metrics)
        self._output_dir = None if output_dir is None else Path(output_dir)
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._store: RecordStore | None = None

    def reset(self) -> None:
        """Forget all images, on disk too."""
        self.start({}, resume=False)

    def start(self, fingerprint: Mapping[str, Any], *, resume: bool) -> None:
        """Begin, or go on with what an interrupted evaluation left.

        Args:
            fingerprint: what predictions depend on, see `evaluation_fingerprint`.
            resume: keep what is there, if its fingerprint is this one.
        """
        if self._store is not None:
            self._store.close()
        folder = self._output_dir
        if folder is None:
            self._temporary = tempfile.TemporaryDirectory()
            folder = Path(self._temporary.name)
        store = RecordStore(folder)
        outputs = [name for metric in self.metrics for name in metric.outputs]
        tasks = [metric.task for metric in self.metrics]
        differing = store.start({**fingerprint, "tasks": tasks}, resume=resume, outputs=outputs)
        logger = logging.getLogger(__name__)
        if resume and differing:
            logger.warning("Predictions in %s are of another evaluation (%s): starting afresh", folder, differing)
        elif resume:
            logger.info("%d images were predicted before", len(store.finished))
        self._store = store

    def is_finished(self, image: Image) -> bool:
        """Whether an image (a dict of the data set) was predicted before this evaluation started."""
        return image_key(image) in self._started().finished

    def process(self, inputs: Sequence[Image], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Keep what the metrics need of some images.

        Args:
            inputs: dicts with `file_name`, and `image_id` if the data set has one.
            outputs: what the metrics read, see their classes.

        Raises:
            EvaluationError: bad ground truth, or two images with one name.
        """
        store = self._started()
        for image, output in zip(inputs, outputs, strict=True):
            content, files = {}, []
            for metric in self.metrics:
                content[metric.task], written = metric.record(image, output, store.folder)
                files += written
            store.append(image_key(image), files, content)

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Compare the predictions of all processes with the ground truth.

        Returns:
            On the main process {task: metrics in percent}, see the metrics' classes; None on the others.

        Raises:
            EvaluationError: images of the ground truth were not predicted.
        """
        store = self._started()
        store.gather()
        if not comm.is_main_process():
            return None
        return {m.task: m.evaluate(_TaskRecords(store, m.task), store.folder) for m in self.metrics}

    def _started(self) -> RecordStore:
        if self._store is None:
            raise RuntimeError("an evaluator is started, or reset, before it is used")
        return self._store


class _TaskRecords:
    """The part of all records that belongs to a task; can be gone through several times."""

    def __init__(self, store: RecordStore, task: str):
        self._store = store
        self._task = task

    def __iter__(self) -> Iterator[tuple[Key, Any]]:
        for key, record in self._store.read():
            yield key, record[self._task]
