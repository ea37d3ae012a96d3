"""Average precision as Cityscapes' benchmark of instance-level labels defines it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mask2former.evaluation.cityscapes import FIRST_INSTANCE, LABELS, VOID_LABELS, image_stem, truth_file, truth_stems
from mask2former.evaluation.errors import EvaluationError
from mask2former.evaluation.label_files import read_ids
from mask2former.evaluation.metric import Image, Metric, Records, require_all
from mask2former.utils.files import atomic_write
from mask2former.utils.label_images import write_png

FOLDER = "instance_predictions"
_MASKS = "masks"
_ENDING = "_pred.txt"

# Official values: 0.5, 0.55, ... 0.95, and the pixels below which a labelled instance does not count.
_OVERLAPS = np.arange(0.5, 1.0, 0.05)
_MIN_PIXELS = 100


class CityscapesAP(Metric):
    """AP of the masks of `instances`.

    Metrics: AP (mean over overlaps 0.5, 0.55, ... 0.95), AP50, AP-<class> and AP50-<class>; means are over the classes
    that have instances in the labels. Results go to `instance_predictions/<image>_pred.txt`, lines of "mask file, label
    id, score", the mask files beside it. The metadata have `gt_dir`, `thing_classes` and
    `thing_dataset_id_to_contiguous_id`.
    """

    task = "segm"
    needs = ("gt_dir",)
    outputs = (FOLDER,)

    @cached_property
    def _label_ids(self) -> dict[int, int]:
        return {v: k for k, v in self._metadata.thing_dataset_id_to_contiguous_id.items()}

    def record(self, image: Image, output: Mapping[str, Any], folder: Path) -> tuple[Any, list[Path]]:
        """Overlap `instances` (`pred_masks` bool [N, H, W], `scores`, contiguous `pred_classes` [N]) with the labels.

        The record has rows: labelled instances (label, pixels, whether it is a crowd), predicted ones (label, score,
        pixels, void pixels), and pairs of these with one label (predicted, labelled, common pixels).
        """
        instances = output["instances"]
        stem = image_stem(image)
        truth = read_ids(truth_file(self._metadata.gt_dir, stem, "instanceIds"), instances.image_size)
        if truth.max() >= LABELS * FIRST_INSTANCE:
            path = truth_file(self._metadata.gt_dir, stem, "instanceIds")
            raise EvaluationError(f"{path}: id {truth.max()}; expected at most {LABELS * FIRST_INSTANCE - 1}")
        ids, positions, pixels = np.unique(truth, return_inverse=True, return_counts=True)
        ids, positions = ids.astype(np.int64), positions.reshape(truth.shape)
        crowd = ids < FIRST_INSTANCE
        labels = np.where(crowd, ids, ids // FIRST_INSTANCE)
        void = np.isin(ids, VOID_LABELS)

        predictions, pairs, files = [], [], []
        for index, (mask, score, category) in enumerate(
            zip(instances.pred_masks, instances.scores.tolist(), instances.pred_classes.tolist(), strict=True)
        ):
            mask, label = mask.cpu().numpy().astype(bool, copy=False), self._label_ids[category]
            files.append(write_png(folder / FOLDER / _MASKS / f"{stem}_{index:03d}.png", mask))
            common = np.bincount(positions[mask], minlength=len(ids))
            matched = np.nonzero((labels == label) & (common > 0))[0]
            pairs += [(index, position, int(common[position])) for position in matched.tolist()]
            predictions.append((label, score, int(common.sum()), int(common[void].sum())))
        files.append(_write_list(folder / FOLDER / f"{stem}{_ENDING}", files, predictions))
        labelled = list(zip(labels.tolist(), pixels.tolist(), crowd.tolist(), strict=True))
        return {"stem": stem, "labelled": labelled, "predicted": predictions, "pairs": pairs}, files

    def evaluate(self, records: Records, folder: Path) -> dict[str, float]:
        """See `Metric.evaluate` and the class."""
        gt_dir = self._metadata.gt_dir
        require_all(truth_stems(gt_dir, "instanceIds"), [record["stem"] for _, record in records], gt_dir)
        names = {self._metadata.thing_classes[k]: label for k, label in self._label_ids.items()}
        matches: dict[str, list[_Matches]] = {name: [] for name in names}
        for _, record in records:
            for name, label in names.items():
                found = _matches(record, label)
                if found is not None:
                    matches[name].append(found)
        # [class, overlap]
        table = np.asarray([[average_precision(matches[name], overlap) for overlap in _OVERLAPS] for name in names])
        metrics = {"AP": _mean(table), "AP50": _mean(table[:, 0])}
        metrics |= {f"AP-{name}": float(np.mean(row)) for name, row in zip(names, table, strict=True)}
        metrics |= {f"AP50-{name}": float(row[0]) for name, row in zip(names, table, strict=True)}
        return {name: 100 * value for name, value in metrics.items()}


def _write_list(path: Path, masks: Sequence[Path], predictions: Iterable[Sequence[Any]]) -> Path:
    with atomic_write(path) as file:
        for mask, (label, score, *_) in zip(masks, predictions, strict=True):
            file.write(f"{mask.relative_to(path.parent).as_posix()} {label} {score}\n")
    return path


@dataclass(frozen=True)
class _Matches:
    """Predicted and labelled instances of a class in an image.

    Attributes:
        scores: of predictions [P].
        ignored: share of a prediction that lies on what does not count [P].
        iou: [P, G].
        counted: whether a labelled instance has to be found [G].
    """

    scores: NDArray[np.float64]
    ignored: NDArray[np.float64]
    iou: NDArray[np.float64]
    counted: NDArray[np.bool_]


def _matches(record: Mapping[str, Any], label: int) -> _Matches | None:
    """The instances of a class in a record, if it has any."""
    # A mask without a pixel is no prediction.
    predicted = {i: row[1:] for i, row in enumerate(record["predicted"]) if row[0] == label and row[2]}
    labelled = {i: row[1:] for i, row in enumerate(record["labelled"]) if row[0] == label}
    if not predicted and not labelled:
        return None
    scores, pixels, void = np.asarray(list(predicted.values()), dtype=np.float64).reshape(-1, 3).T
    sizes, crowd = np.asarray(list(labelled.values()), dtype=np.float64).reshape(-1, 2).T
    rows, columns = ({index: i for i, index in enumerate(part)} for part in (predicted, labelled))
    common = np.zeros((len(predicted), len(labelled)))
    for index, position, count in record["pairs"]:
        if index in rows and position in columns:
            common[rows[index], columns[position]] = count
    # What is both a crowd and small is subtracted twice, as it is officially.
    without_effect = (crowd > 0).astype(np.float64) + (sizes < _MIN_PIXELS)
    return _Matches(
        scores,
        ignored=(void + common @ without_effect) / pixels,
        iou=common / (pixels[:, None] + sizes - common),
        counted=without_effect == 0,
    )


def average_precision(images: Sequence[_Matches], overlap: float) -> float:
    """AP of a class where a match is an IoU above `overlap`, at least 0.5; NaN where no instance is labelled.

    The most certain match of a labelled instance is right, others of it are wrong. A prediction that matches nothing is
    wrong unless more than `overlap` of it lies on void, a crowd or an instance too small to count.
    """
    right, wrong = [], []
    labelled = sum(int(image.counted.sum()) for image in images)
    if not labelled:
        return math.nan
    for image in images:
        hit = image.iou > overlap
        for of_instance in hit[:, image.counted].T:
            found = np.sort(image.scores[of_instance])
            right += found[-1:].tolist()
            wrong += found[:-1].tolist()
        wrong += image.scores[~hit.any(axis=1) & (image.ignored <= overlap)].tolist()
    if not right:
        return 0.0
    # At each score that occurs, from the lowest: what is at least that certain.
    thresholds = np.unique(right + wrong)
    true = len(right) - np.searchsorted(np.sort(right), thresholds)
    false = len(wrong) - np.searchsorted(np.sort(wrong), thresholds)
    precision = np.append(true / (true + false), 1.0)
    recall = np.append(true / labelled, 0.0)
    # A point stands for half the way to its neighbours.
    steps = np.concatenate([recall[:1], recall, [0.0]])
    return float(precision @ ((steps[:-2] - steps[2:]) / 2))


def _mean(values: NDArray[np.float64]) -> float:
    measured = values[~np.isnan(values)]
    return float(measured.mean()) if measured.size else math.nan
