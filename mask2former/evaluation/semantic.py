"""Intersection over union of classes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from mask2former.evaluation.errors import EvaluationError


class SemanticEvaluator(DatasetEvaluator):
    """IoU and accuracy of `sem_seg`, from one table of pixel counts over the whole data set.

    Unlike Detectron2's it keeps no predictions, reads labels with any NumPy, and refuses labels that are no class.
    """

    needs = ("sem_seg_root",)

    def __init__(self, dataset_name: str, output_dir: str | Path | None = None):
        """Take a data set's metadata and label files.

        Args:
            dataset_name: its metadata has `stuff_classes` and `ignore_label`, its dicts `sem_seg_file_name`.
            output_dir: not used; nothing is written.
        """
        metadata = MetadataCatalog.get(dataset_name)
        self._names = list(metadata.stuff_classes)
        self._ignore_label = metadata.ignore_label
        self._label_files = {d["file_name"]: d["sem_seg_file_name"] for d in DatasetCatalog.get(dataset_name)}
        self.reset()

    def reset(self) -> None:
        """Forget all counts."""
        # Pixels by [predicted class, class]; the last class is void.
        self._counts = np.zeros((len(self._names), len(self._names) + 1), dtype=np.int64)

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Count the pixels of some images.

        Args:
            inputs: dicts with `file_name`.
            outputs: dicts with `sem_seg`: scores [K, H, W]; a pixel gets the class of the highest.

        Raises:
            EvaluationError: a label file is no label image, has another size, or has values that are no class.
        """
        classes = len(self._names)
        for image, output in zip(inputs, outputs, strict=True):
            predicted = output["sem_seg"].argmax(dim=0).cpu().numpy()
            label_file = self._label_files[image["file_name"]]
            labels = _read_labels(label_file)
            if labels.shape != predicted.shape:
                raise EvaluationError(f"{label_file}: {labels.shape} pixels, the prediction has {predicted.shape}")
            void = labels == self._ignore_label
            if (labels[~void] >= classes).any():
                raise EvaluationError(
                    f"{label_file}: label {labels[~void].max()}; expected 0 to {classes - 1}, or {self._ignore_label} "
                    "for void"
                )
            labels[void] = classes
            pairs = predicted.astype(np.int64) * (classes + 1) + labels
            self._counts += np.bincount(pairs.ravel(), minlength=self._counts.size).reshape(self._counts.shape)

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Compare the predictions of all processes with the labels.

        Returns:
            On the main process {"sem_seg": metrics in percent}: mIoU, fwIoU (weighted by the classes' pixels), mACC,
            pACC, IoU-<class> and ACC-<class>. Means are over the classes that occur in the labels; others are NaN.
            None on the other processes.
        """
        gathered = comm.gather(self._counts)
        if not comm.is_main_process():
            return None
        counts = np.sum(gathered, axis=0)[:, :-1].astype(np.float64)
        correct, labelled, predicted = counts.diagonal(), counts.sum(axis=0), counts.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            iou = np.where(labelled > 0, correct / (labelled + predicted - correct), np.nan)
            accuracy = np.where(labelled > 0, correct / labelled, np.nan)
            share = labelled / labelled.sum()
        metrics = {
            "mIoU": _mean(iou),
            "fwIoU": float(np.nansum(iou * share)),
            "mACC": _mean(accuracy),
            "pACC": float(np.sum(correct) / np.sum(labelled)) if labelled.any() else float("nan"),
            **{f"IoU-{name}": float(value) for name, value in zip(self._names, iou, strict=True)},
            **{f"ACC-{name}": float(value) for name, value in zip(self._names, accuracy, strict=True)},
        }
        return {"sem_seg": {name: 100 * value for name, value in metrics.items()}}


def _read_labels(label_file: str) -> NDArray[np.int64]:
    try:
        with Image.open(label_file) as image:
            labels = np.asarray(image)
    except (OSError, UnidentifiedImageError) as error:
        raise EvaluationError(f"{label_file}: no label image: {error}") from error
    if labels.ndim != 2:
        raise EvaluationError(f"{label_file}: expected one label per pixel, found {labels.shape[-1]} channels")
    return labels.astype(np.int64)


def _mean(values: NDArray[np.float64]) -> float:
    measured = values[~np.isnan(values)]
    return float(measured.mean()) if measured.size else float("nan")
