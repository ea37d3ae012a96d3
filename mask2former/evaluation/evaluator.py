"""Which metrics a data set gets, and how they are measured image by image and resumed after an interruption."""

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from mask2former.evaluation.cityscapes import CityscapesAP, CityscapesIoU
from mask2former.evaluation.classification import ClassAccuracy
from mask2former.evaluation.coco import BoxAP, InstanceAP, PanopticQuality, SemanticIoU
from mask2former.evaluation.metric import EvaluationError, Image, Metric, image_key
from mask2former.evaluation.records import RecordStore
from mask2former.tasks import TASKS, architecture_of, tasks_of
from mask2former.utils.journal import Key

_LOG = logging.getLogger(__name__)

# Metrics by `evaluator_type` of a data set's metadata. ADE20K's sets have COCO's types.
_METRICS: Mapping[str, tuple[type[Metric], ...]] = {
    "classification": (ClassAccuracy,),
    "coco": (BoxAP, InstanceAP),
    "coco_panoptic_seg": (PanopticQuality, BoxAP, InstanceAP, SemanticIoU),
    "sem_seg": (SemanticIoU,),
    "cityscapes_instance": (CityscapesAP,),
    "cityscapes_sem_seg": (CityscapesIoU,),
    "cityscapes_panoptic_seg": (PanopticQuality, CityscapesAP, CityscapesIoU),
}


def build_evaluator(cfg: CfgNode, dataset_name: str, output_dir: str | Path | None = None) -> "StreamingEvaluator":
    """Build the evaluator of the tasks that `cfg` switches on and the data set has ground truth for.

    Args:
        cfg: Config.
        dataset_name: Registered data set whose metadata have `evaluator_type`.
        output_dir: Folder for predictions; None to keep none.

    Raises:
        EvaluationError: `evaluator_type` is unknown, or there is nothing to measure.
    """
    metadata = MetadataCatalog.get(dataset_name)
    kind = metadata.get("evaluator_type")
    if kind not in _METRICS:
        raise EvaluationError(
            f"data set {dataset_name}: evaluator_type {kind!r} is unknown; known are {', '.join(sorted(_METRICS))}"
        )
    predicted, architecture = tasks_of(cfg), architecture_of(cfg)
    possible = [metric for metric in _METRICS[kind] if architecture.boxes or not metric.of_boxes]
    metrics: list[Metric] = []
    for metric in possible:
        lacking = [key for key in metric.needs if not metadata.get(key)]
        if metric.task in predicted and lacking:
            switch = TASKS[metric.task].switch or metric.task
            _LOG.info("%s is not evaluated on %s, which has no %s", switch, dataset_name, ", ".join(lacking))
        elif metric.task in predicted:
            metrics.append(metric.build(dataset_name, architecture))
    if not metrics:
        switches = [switch for metric in possible if (switch := TASKS[metric.task].switch)]
        raise EvaluationError(
            f"data set {dataset_name} ({kind}) can't be evaluated: "
            + (
                f"{cfg.MODEL.META_ARCHITECTURE} predicts {', '.join(predicted)}"
                if architecture.tasks is not None or not switches
                else f"none of MODEL.MASK_FORMER.TEST.{{{', '.join(switches)}}} is on and has ground truth"
            )
        )
    return StreamingEvaluator(metrics, output_dir)


class StreamingEvaluator(DatasetEvaluator):
    """Measures metrics on any device, in any number of processes, on one machine or several, in bounded memory.

    The result for each image is written to disk at once. At the end, records and missing files travel to the main
    process in small rounds, so that machines need no shared folder.

    Attributes:
        metrics: The metrics.
    """

    def __init__(self, metrics: Sequence[Metric], output_dir: str | Path | None):
        """Set what to measure. Nothing is read or written yet.

        Args:
            metrics: Metrics with different names.
            output_dir: Folder for predictions and records on each machine; None for a temporary one.
        """
        self.metrics = tuple(metrics)
        self._output_dir = None if output_dir is None else Path(output_dir)
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._store: RecordStore | None = None

    def reset(self) -> None:
        """Forget all images and remove their files."""
        self.start({}, resume=False)

    def start(self, fingerprint: Mapping[str, Any], *, resume: bool) -> None:
        """Begin an evaluation, or continue an interrupted one.

        Args:
            fingerprint: Everything that predictions depend on, see `evaluation_fingerprint`.
            resume: Whether to keep results with the same fingerprint.
        """
        if self._store is not None:
            self._store.close()
        folder = self._output_dir
        if folder is None:
            self._temporary = tempfile.TemporaryDirectory()
            folder = Path(self._temporary.name)
        store = RecordStore(folder)
        outputs = [name for metric in self.metrics for name in metric.outputs]
        described = {**fingerprint, "metrics": [metric.name for metric in self.metrics]}
        differing = store.start(described, resume=resume, outputs=outputs)
        if resume and differing:
            _LOG.warning("Predictions in %s belong to another evaluation (%s): starting over", folder, differing)
        elif resume:
            _LOG.info("%d images were predicted before", len(store.finished))
        self._store = store

    def is_finished(self, image: Image) -> bool:
        """Whether an image (a dict of the data set) had a result before this evaluation started."""
        return image_key(image) in self._started().finished

    def process(self, inputs: Sequence[Image], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Keep what the metrics need of some images.

        Args:
            inputs: Dicts with `file_name`, and `image_id` if the data set has one.
            outputs: Outputs of the model for them.

        Raises:
            EvaluationError: Ground truth is damaged, or two images have the same name.
        """
        store = self._started()
        for image, output in zip(inputs, outputs, strict=True):
            content, files = {}, []
            for metric in self.metrics:
                content[metric.name], written = metric.record(image, output[TASKS[metric.task].output], store.folder)
                files += written
            store.append(image_key(image), files, content)

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Compare the predictions of all processes with the ground truth.

        Returns:
            On the main process {name of the metric: {quantity: percent}}, see the classes of the metrics; None on the
            others.

        Raises:
            EvaluationError: Ground truth is missing or damaged, or images of it were not predicted.
        """
        store = self._started()
        store.gather()
        if not comm.is_main_process():
            return None
        return {m.name: m.evaluate(_Records(store, m.name), store.folder) for m in self.metrics}

    def _started(self) -> RecordStore:
        if self._store is None:
            raise RuntimeError("an evaluator is started, or reset, before it is used")
        return self._store


class _Records:
    """The records of one metric; can be iterated several times."""

    def __init__(self, store: RecordStore, name: str):
        self._store = store
        self._name = name

    def __iter__(self) -> Iterator[tuple[Key, Any]]:
        for key, record in self._store.read():
            yield key, record[self._name]
