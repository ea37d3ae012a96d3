"""Metrics of the Cityscapes benchmarks (Cordts et al., CVPR 2016): IoU, iIoU and AP.

hotcoco counts the pixels of classes. The other metrics are defined only in the official scripts, which take minutes: AP
without COCO's limits and with its own rule for equal scores, and iIoU, which weights all instances equally. Their
counts are collected when an image is predicted.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinat_common.files import atomic_write
from mask2former.data.image_io import ImageReadError, read_label_map
from mask2former.evaluation.coco import class_ids, count_pixels, mean_of_measured
from mask2former.evaluation.metric import EvaluationError, Image, Metric, Records, require_same_images
from mask2former.utils.label_images import write_png

# Evaluated classes by group.
GROUPS: Mapping[str, tuple[str, ...]] = {
    "flat": ("road", "sidewalk"),
    "construction": ("building", "wall", "fence"),
    "object": ("pole", "traffic light", "traffic sign"),
    "nature": ("vegetation", "terrain"),
    "sky": ("sky",),
    "human": ("person", "rider"),
    "vehicle": ("car", "truck", "bus", "train", "motorcycle", "bicycle"),
}
# Groups that contain only things.
THING_GROUPS = ("human", "vehicle")

# Average number of pixels per instance, for the weights of iIoU.
INSTANCE_PIXELS: Mapping[str, float] = {
    "person": 3462.4756337644,
    "rider": 3930.4788056518,
    "car": 12794.0202738185,
    "truck": 27855.1264367816,
    "bus": 35732.1511111111,
    "train": 67583.7075812274,
    "motorcycle": 6298.7200839748,
    "bicycle": 4672.3249222261,
}

# Instance n of a label has the id label * 1000 + n; stuff and crowds have the label as their id.
FIRST_INSTANCE = 1000
LABELS = 34
# Labels whose pixels are not evaluated.
VOID_LABELS = (0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30)

# AP: official overlaps 0.5, 0.55, ... 0.95; labelled instances with fewer pixels are not evaluated.
_OVERLAPS = np.arange(0.5, 1.0, 0.05)
_MIN_PIXELS = 100


class CityscapesAP(Metric):
    """Average precision of masks.

    Metrics: AP (mean over overlaps 0.5, 0.55, ... 0.95), AP50, AP-<class> and AP50-<class>; means are over the classes
    that have labelled instances. Predictions are `Instances` with `pred_masks` [N, H, W], `scores` [N] and contiguous
    `pred_classes` [N]. They are written to `instance_predictions/<image>_pred.txt`, in lines of "mask file, label id,
    score", and to mask files beside it. The metadata have `gt_dir`, `thing_classes` and
    `thing_dataset_id_to_contiguous_id`.
    """

    task = "instance"
    name = "segm"
    results_folder = "instance_predictions"
    needs = ("gt_dir",)
    outputs = (results_folder,)

    @cached_property
    def _label_ids(self) -> dict[int, int]:
        """Label of each class."""
        return {v: k for k, v in self._metadata.thing_dataset_id_to_contiguous_id.items()}

    def record(self, image: Image, prediction: Any, folder: Path) -> tuple[Any, list[Path]]:
        """Write the masks and compare them with the labelled instances. See `Metric.record`.

        The record lists labelled instances (label, pixels, whether it is a crowd), predicted instances (label, score,
        pixels, void pixels), and pairs with the same label (predicted, labelled, common pixels).
        """
        stem = _stem(image)
        path = _truth_file(self._metadata.gt_dir, stem, "instanceIds")
        truth = _read_ids(path, prediction.image_size)
        if truth.max() >= LABELS * FIRST_INSTANCE:
            raise EvaluationError(f"{path}: id {truth.max()}; expected at most {LABELS * FIRST_INSTANCE - 1}")
        ids, positions, pixels = np.unique(truth, return_inverse=True, return_counts=True)
        ids, positions = ids.astype(np.int64), positions.reshape(truth.shape)
        crowd = ids < FIRST_INSTANCE
        labels = np.where(crowd, ids, ids // FIRST_INSTANCE)
        void = np.isin(ids, VOID_LABELS)

        predicted, pairs, files, lines = [], [], [], []
        for index, (mask, score, category) in enumerate(
            zip(prediction.pred_masks, prediction.scores.tolist(), prediction.pred_classes.tolist(), strict=True)
        ):
            mask, label = mask.cpu().numpy().astype(bool, copy=False), self._label_ids[category]
            name = f"masks/{stem}_{index:03d}.png"
            files.append(write_png(folder / self.results_folder / name, mask))
            lines.append(f"{name} {label} {score}\n")
            common = np.bincount(positions[mask], minlength=len(ids))
            same_label = np.nonzero((labels == label) & (common > 0))[0]
            pairs += [(index, position, int(common[position])) for position in same_label.tolist()]
            predicted.append((label, score, int(common.sum()), int(common[void].sum())))
        files.append(folder / self.results_folder / f"{stem}_pred.txt")
        with atomic_write(files[-1]) as file:
            file.writelines(lines)
        labelled = list(zip(labels.tolist(), pixels.tolist(), crowd.tolist(), strict=True))
        return {"stem": stem, "labelled": labelled, "predicted": predicted, "pairs": pairs}, files

    def evaluate(self, records: Records, folder: Path) -> dict[str, float]:
        """Compute the metrics from the records. See `Metric.evaluate` and the class."""
        gt_dir = self._metadata.gt_dir
        require_same_images(_truth_stems(gt_dir, "instanceIds"), [record["stem"] for _, record in records], gt_dir)
        names = {self._metadata.thing_classes[k]: label for k, label in self._label_ids.items()}
        images: dict[str, list[_Overlaps]] = {name: [] for name in names}
        for _, record in records:
            for name, label in names.items():
                found = _overlaps(record, label)
                if found is not None:
                    images[name].append(found)
        # [class, overlap]
        table = np.asarray([[_average_precision(images[name], overlap) for overlap in _OVERLAPS] for name in names])
        metrics = {"AP": mean_of_measured(table.ravel()), "AP50": mean_of_measured(table[:, 0])}
        metrics |= {f"AP-{name}": float(np.mean(row)) for name, row in zip(names, table, strict=True)}
        metrics |= {f"AP50-{name}": float(row[0]) for name, row in zip(names, table, strict=True)}
        return {name: 100 * value for name, value in metrics.items()}


class CityscapesIoU(Metric):
    """IoU of classes and of groups of classes ("sup"), and iIoU, which weights all instances equally.

    Metrics: the means IoU, iIoU, IoU_sup and iIoU_sup; the same with -<class> or -<group>; and mIoU, which equals IoU.
    A value is NaN if neither labels nor predictions contain the class. A prediction is classes [H, W] or scores
    [K, H, W]; it is written to `semantic_predictions/<image>_pred_labelIds.png`, in Cityscapes' label ids. The metadata
    have `gt_dir`, `stuff_classes` and the maps from label ids to contiguous ids.
    """

    task = "semantic"
    name = "sem_seg"
    results_folder = "semantic_predictions"
    needs = ("gt_dir",)
    outputs = (results_folder,)

    @cached_property
    def _label_ids(self) -> NDArray[np.int64]:
        """Label of each class."""
        ids = self._metadata.stuff_dataset_id_to_contiguous_id
        ids = {**self._metadata.get("thing_dataset_id_to_contiguous_id", {}), **ids}
        return np.asarray(sorted(ids, key=ids.__getitem__))

    def record(self, image: Image, prediction: Any, folder: Path) -> tuple[Any, list[Path]]:
        """Write the PNG. See `Metric.record`.

        The record has weighted counts of correct and wrong pixels of the classes with instances and of their groups.
        """
        classes, stem = class_ids(prediction), _stem(image)
        instances = _read_ids(_truth_file(self._metadata.gt_dir, stem, "instanceIds"), classes.shape)
        file = write_png(self._file(stem, folder), self._label_ids[classes].astype(np.uint8))
        return {"stem": stem, "instances": self._weigh_instances(classes, instances)}, [file]

    def _file(self, stem: str, folder: Path) -> Path:
        return folder / self.results_folder / f"{stem}_pred_labelIds.png"

    def _weigh_instances(self, predicted: NDArray[Any], instances: NDArray[Any]) -> dict[str, tuple[float, float]]:
        names, class_of = list(self._metadata.stuff_classes), {v: k for k, v in enumerate(self._label_ids.tolist())}
        in_group = {name: np.isin(names, GROUPS[group]) for group in THING_GROUPS for name in GROUPS[group]}
        group_of = {name: group for group in THING_GROUPS for name in GROUPS[group]}
        weighted: defaultdict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
        # 1000 would be an instance of the label "unlabeled".
        seen = instances > FIRST_INSTANCE
        ids, positions = np.unique(instances[seen], return_inverse=True)
        pixels = np.bincount(positions.ravel() * len(names) + predicted[seen], minlength=len(ids) * len(names))
        for instance, found in zip(ids.tolist(), pixels.reshape(-1, len(names)), strict=True):
            class_id = class_of.get(instance // FIRST_INSTANCE)
            if class_id is None:
                continue
            name = names[class_id]
            weight = INSTANCE_PIXELS[name] / found.sum()
            for key, right in ((name, found[class_id]), (group_of[name], found[in_group[name]].sum())):
                before = weighted[key]
                weighted[key] = (before[0] + right * weight, before[1] + (found.sum() - right) * weight)
        return dict(weighted)

    def evaluate(self, records: Records, folder: Path) -> dict[str, float]:
        """Count the pixels of the files and add the records. See `Metric.evaluate` and the class."""
        gt_dir, names = self._metadata.gt_dir, list(self._metadata.stuff_classes)
        weighted: defaultdict[str, NDArray[np.float64]] = defaultdict(lambda: np.zeros(2))
        stems = []
        for _, record in records:
            stems.append(record["stem"])
            for key, values in record["instances"].items():
                weighted[key] += values
        require_same_images(_truth_stems(gt_dir, "labelIds"), stems, gt_dir)
        files = [(_truth_file(gt_dir, stem, "labelIds"), self._file(stem, folder)) for stem in stems]
        counts = count_pixels(files, LABELS, LABELS, void=None)[np.ix_(self._label_ids, self._label_ids)]
        members = {name: np.isin(names, [name]) for name in names}
        groups = {group: np.isin(names, classes) for group, classes in GROUPS.items()}
        scores = {
            "IoU": {name: _iou(counts, of_name) for name, of_name in members.items()},
            "iIoU": {name: _instance_iou(counts, members[name], weighted[name]) for name in INSTANCE_PIXELS},
            "IoU_sup": {group: _iou(counts, of_group) for group, of_group in groups.items()},
            "iIoU_sup": {group: _instance_iou(counts, groups[group], weighted[group]) for group in THING_GROUPS},
        }
        means = {metric: mean_of_measured(values.values()) for metric, values in scores.items()}
        single = {f"{metric}-{name}": v for metric, values in scores.items() for name, v in values.items()}
        return {name: 100 * value for name, value in {"mIoU": means["IoU"], **means, **single}.items()}


@dataclass(frozen=True)
class _Overlaps:
    """Predicted (P) and labelled (G) instances of a class in an image.

    Attributes:
        scores: Scores of the predictions [P].
        ignored: Fraction of each prediction on pixels that are not evaluated [P].
        iou: IoU of each pair [P, G].
        counted: Whether each labelled instance is evaluated [G].
    """

    scores: NDArray[np.float64]
    ignored: NDArray[np.float64]
    iou: NDArray[np.float64]
    counted: NDArray[np.bool_]


def _overlaps(record: Mapping[str, Any], label: int) -> _Overlaps | None:
    """Return the instances of a class in a record of `CityscapesAP`, or None if it has none."""
    # Empty masks do not count as predictions.
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
    # An instance that is both a crowd and small is subtracted twice, as in the official code.
    not_counted = (crowd > 0).astype(np.float64) + (sizes < _MIN_PIXELS)
    return _Overlaps(
        scores,
        ignored=(void + common @ not_counted) / pixels,
        iou=common / (pixels[:, None] + sizes - common),
        counted=not_counted == 0,
    )


def _average_precision(images: Sequence[_Overlaps], overlap: float) -> float:
    """Compute the AP of a class, where an IoU above `overlap` (at least 0.5) detects an instance.

    If several predictions detect an instance, the one with the highest score is correct and the others are wrong. A
    prediction that detects no instance is wrong, unless a fraction above `overlap` of it lies on void, crowds or small
    instances. The result is NaN if no instance is labelled.
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
    # Counts of predictions with at least each occurring score, from the lowest score.
    thresholds = np.unique(right + wrong)
    true = len(right) - np.searchsorted(np.sort(right), thresholds)
    false = len(wrong) - np.searchsorted(np.sort(wrong), thresholds)
    precision = np.append(true / (true + false), 1.0)
    recall = np.append(true / labelled, 0.0)
    # Each point covers half the distance to its neighbours.
    steps = np.concatenate([recall[:1], recall, [0.0]])
    return float(precision @ ((steps[:-2] - steps[2:]) / 2))


def _iou(counts: NDArray[np.int64], of_group: NDArray[np.bool_]) -> float:
    right = counts[of_group][:, of_group].sum()
    either = counts[of_group].sum() + counts[:, of_group].sum() - right
    return float(right / either) if either else math.nan


def _instance_iou(counts: NDArray[np.int64], of_group: NDArray[np.bool_], weighted: NDArray[np.float64]) -> float:
    right, missed = weighted
    wrong = counts[~of_group][:, of_group].sum()
    either = right + missed + wrong
    return float(right / either) if either else math.nan


def _stem(image: Image) -> str:
    """Return the `city_sequence_frame` of an image."""
    return Path(image["file_name"]).stem.removesuffix("_leftImg8bit")


def _truth_file(gt_dir: str, stem: str, kind: str) -> Path:
    """Return the ground-truth file of an image; `kind` is "labelIds" or "instanceIds"."""
    return Path(gt_dir, stem.split("_")[0], f"{stem}_gtFine_{kind}.png")


def _truth_stems(gt_dir: str, kind: str) -> set[str]:
    ending = f"_gtFine_{kind}.png"
    return {path.name.removesuffix(ending) for path in Path(gt_dir).glob(f"*/*{ending}")}


def _read_ids(path: Path, size: Sequence[int]) -> NDArray[Any]:
    """Read a map of ids [H, W] of the given size."""
    try:
        ids = read_label_map(path)
    except ImageReadError as error:
        raise EvaluationError(str(error)) from error
    if ids.shape != tuple(size):
        raise EvaluationError(f"{path}: {ids.shape} pixels, the prediction has {tuple(size)}")
    return ids
