"""Intersection over union of classes."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog
from numpy.typing import NDArray

from mask2former.evaluation.errors import EvaluationError
from mask2former.evaluation.label_files import add_pairs, class_map, common_runs, count_pairs, read_ids
from mask2former.evaluation.metric import Image, Key, Metric, Records, image_key, require_all
from mask2former.utils.label_images import write_png

FOLDER = "semantic_predictions"


class SemanticIoU(Metric):
    """IoU and accuracy of `sem_seg`, from one table of pixel counts over the whole data set.

    Metrics: mIoU, fwIoU (weighted by the classes' pixels), mACC, pACC, IoU-<class> and ACC-<class>. Means are over the
    classes that occur in the labels; others are NaN. Unlike Detectron2's evaluator it refuses labels that are no class.

    Predictions go to `semantic_predictions/<image>.png`, in the ids that the data set's owners use: those of the
    metadata's `submission_labels` (one per class) where it has this entry, else the classes' own, from 0.
    The metadata also have `stuff_classes` and `ignore_label`, and the data set's dicts `sem_seg_file_name`.
    """

    task = "sem_seg"
    needs = ("sem_seg_root",)
    outputs = (FOLDER,)

    @cached_property
    def _label_files(self) -> dict[Key, str]:
        return {image_key(image): image["sem_seg_file_name"] for image in DatasetCatalog.get(self._dataset_name)}

    @cached_property
    def _submission_labels(self) -> NDArray[Any]:
        classes = len(self._metadata.stuff_classes)
        labels = np.asarray(self._metadata.get("submission_labels", range(classes)))
        if len(labels) != classes:
            raise EvaluationError(f"{self._dataset_name}: {len(labels)} submission_labels for {classes} classes")
        return labels.astype(np.uint8 if labels.max() < 256 else np.uint16)

    def record(self, image: Image, output: Mapping[str, Any], folder: Path) -> tuple[Any, list[Path]]:
        """Count an image's pixels; `sem_seg` is classes [H, W] or scores [K, H, W]."""
        classes, void = len(self._metadata.stuff_classes), self._metadata.ignore_label
        predicted = class_map(output["sem_seg"])
        label_file = self._label_files[image_key(image)]
        found, labels, pixels = common_runs(predicted, read_ids(label_file, predicted.shape))
        unknown = labels[(labels != void) & (labels >= classes)]
        if unknown.size:
            raise EvaluationError(
                f"{label_file}: label {unknown.max()}; expected 0 to {classes - 1}, or {void} for void"
            )
        pairs = count_pairs(found, np.where(labels == void, np.int64(classes), labels), pixels, classes)
        written = np.repeat(self._submission_labels[found], pixels).reshape(predicted.shape)
        return pairs, [write_png(folder / FOLDER / f"{Path(image['file_name']).stem}.png", written)]

    def evaluate(self, records: Records, folder: Path) -> dict[str, float]:
        """See `Metric.evaluate` and the class."""
        names = list(self._metadata.stuff_classes)
        counts = np.zeros((len(names), len(names)), dtype=np.int64)
        keys = []
        for key, pairs in records:
            keys.append(key)
            add_pairs(counts, pairs)
        require_all(self._label_files, keys, self._metadata.sem_seg_root)
        correct, labelled, predicted = (
            values.astype(np.float64) for values in (counts.diagonal(), counts.sum(axis=0), counts.sum(axis=1))
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            iou = np.where(labelled > 0, correct / (labelled + predicted - correct), np.nan)
            accuracy = np.where(labelled > 0, correct / labelled, np.nan)
            share = labelled / labelled.sum()
        metrics = {
            "mIoU": _mean(iou),
            "fwIoU": float(np.nansum(iou * share)),
            "mACC": _mean(accuracy),
            "pACC": float(np.sum(correct) / np.sum(labelled)) if labelled.any() else float("nan"),
            **{f"IoU-{name}": float(value) for name, value in zip(names, iou, strict=True)},
            **{f"ACC-{name}": float(value) for name, value in zip(names, accuracy, strict=True)},
        }
        return {name: 100 * value for name, value in metrics.items()}


def _mean(values: NDArray[np.float64]) -> float:
    measured = values[~np.isnan(values)]
    return float(measured.mean()) if measured.size else float("nan")
