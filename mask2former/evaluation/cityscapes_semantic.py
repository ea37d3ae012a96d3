"""Intersection over union as Cityscapes' benchmark of pixel-level labels defines it."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mask2former.evaluation.cityscapes import (
    FIRST_INSTANCE,
    GROUPS,
    INSTANCE_PIXELS,
    LABELS,
    THING_GROUPS,
    image_stem,
    truth_file,
    truth_stems,
)
from mask2former.evaluation.errors import EvaluationError
from mask2former.evaluation.label_files import add_pairs, class_map, common_runs, count_pairs, read_ids
from mask2former.evaluation.metric import Image, Metric, Records, require_all
from mask2former.evaluation.semantic import FOLDER
from mask2former.utils.label_images import write_png

_ENDING = "_pred_labelIds.png"


class CityscapesIoU(Metric):
    """IoU of `sem_seg`: of classes and of groups of classes ("sup"), also with all instances weighing the same (iIoU).

    Metrics: IoU, iIoU, IoU_sup and iIoU_sup, which are means; the same with -<class> or -<group>; mIoU is IoU by the
    name it has elsewhere. NaN where neither labels nor predictions have a class. Results go to
    `semantic_predictions/<image>_pred_labelIds.png`, in Cityscapes' label ids. The metadata have `gt_dir`,
    `stuff_classes` and the maps between label ids and contiguous ids.
    """

    task = "sem_seg"
    needs = ("gt_dir",)
    outputs = (FOLDER,)

    @cached_property
    def _label_ids(self) -> NDArray[np.int64]:
        """The label of each class."""
        ids = self._metadata.stuff_dataset_id_to_contiguous_id
        ids = {**self._metadata.get("thing_dataset_id_to_contiguous_id", {}), **ids}
        return np.asarray(sorted(ids, key=ids.__getitem__))

    @cached_property
    def _classes(self) -> NDArray[np.int64]:
        """The class of each label; of those that do not count the number of classes."""
        classes = np.full(LABELS, len(self._label_ids))
        classes[self._label_ids] = np.arange(len(self._label_ids))
        return classes

    def record(self, image: Image, output: Mapping[str, Any], folder: Path) -> tuple[Any, list[Path]]:
        """Count an image's pixels; `sem_seg` is classes [H, W] or scores [K, H, W].

        The record has pairs of classes, and of classes with instances, and groups of these, (right, wrong) pixels.
        """
        predicted = class_map(output["sem_seg"])
        stem, gt_dir = image_stem(image), self._metadata.gt_dir
        label_file = truth_file(gt_dir, stem, "labelIds")
        labels = read_ids(label_file, predicted.shape)
        if labels.max() >= LABELS:
            raise EvaluationError(f"{label_file}: label {labels.max()}; expected 0 to {LABELS - 1}")
        instances = read_ids(truth_file(gt_dir, stem, "instanceIds"), predicted.shape)
        file = write_png(folder / FOLDER / f"{stem}{_ENDING}", self._label_ids[predicted].astype(np.uint8))
        classes, labelled, pixels = common_runs(predicted, labels)
        record = {
            "stem": stem,
            "pairs": count_pairs(classes, self._classes[labelled], pixels, len(self._label_ids)),
            "instances": self._weigh_instances(predicted, instances),
        }
        return record, [file]

    def _weigh_instances(
        self, predicted: NDArray[np.integer], instances: NDArray[np.integer]
    ) -> dict[str, tuple[float, float]]:
        names = list(self._metadata.stuff_classes)
        in_group = {name: np.isin(names, GROUPS[group]) for group in THING_GROUPS for name in GROUPS[group]}
        group_of = {name: group for group in THING_GROUPS for name in GROUPS[group]}
        weighed: defaultdict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
        # 1000 itself would be an instance of unlabeled.
        seen = instances > FIRST_INSTANCE
        ids, positions = np.unique(instances[seen], return_inverse=True)
        pixels = np.bincount(positions.ravel() * len(names) + predicted[seen], minlength=len(ids) * len(names))
        for instance, found in zip(ids.tolist(), pixels.reshape(-1, len(names)), strict=True):
            label = instance // FIRST_INSTANCE
            if label >= LABELS or self._classes[label] == len(names):
                continue
            name = names[self._classes[label]]
            weight = INSTANCE_PIXELS[name] / found.sum()
            for key, right in ((name, found[self._classes[label]]), (group_of[name], found[in_group[name]].sum())):
                before = weighed[key]
                weighed[key] = (before[0] + right * weight, before[1] + (found.sum() - right) * weight)
        return dict(weighed)

    def evaluate(self, records: Records, folder: Path) -> dict[str, float]:
        """See `Metric.evaluate` and the class."""
        names = list(self._metadata.stuff_classes)
        counts = np.zeros((len(names), len(names)), dtype=np.int64)
        weighed: defaultdict[str, NDArray[np.float64]] = defaultdict(lambda: np.zeros(2))
        stems = set()
        for _, record in records:
            stems.add(record["stem"])
            add_pairs(counts, record["pairs"])
            for key, values in record["instances"].items():
                weighed[key] += values
        gt_dir = self._metadata.gt_dir
        require_all(truth_stems(gt_dir, "labelIds"), stems, gt_dir)
        members = {name: np.isin(names, [name]) for name in names}
        groups = {group: np.isin(names, classes) for group, classes in GROUPS.items()}
        scores = {
            "IoU": {name: _iou(counts, of_name) for name, of_name in members.items()},
            "iIoU": {name: _weighed_iou(counts, members[name], weighed[name]) for name in INSTANCE_PIXELS},
            "IoU_sup": {group: _iou(counts, of_group) for group, of_group in groups.items()},
            "iIoU_sup": {group: _weighed_iou(counts, groups[group], weighed[group]) for group in THING_GROUPS},
        }
        means = {metric: _mean(values.values()) for metric, values in scores.items()}
        single = {f"{metric}-{name}": v for metric, values in scores.items() for name, v in values.items()}
        return {name: 100 * value for name, value in {"mIoU": means["IoU"], **means, **single}.items()}


def _iou(counts: NDArray[np.int64], of_group: NDArray[np.bool_]) -> float:
    right = counts[of_group][:, of_group].sum()
    either = counts[of_group].sum() + counts[:, of_group].sum() - right
    return float(right / either) if either else math.nan


def _weighed_iou(counts: NDArray[np.int64], of_group: NDArray[np.bool_], weighed: NDArray[np.float64]) -> float:
    right, missed = weighed
    wrong = counts[of_group][:, ~of_group].sum()
    either = right + missed + wrong
    return float(right / either) if either else math.nan


def _mean(values: Iterable[float]) -> float:
    measured = [value for value in values if not math.isnan(value)]
    return sum(measured) / len(measured) if measured else math.nan
