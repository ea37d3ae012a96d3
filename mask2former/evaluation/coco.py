"""COCO's metrics, by hotcoco from the submission files: AP of masks and boxes, panoptic quality, IoU of classes."""

import json
import math
import re
import tempfile
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from threading import Lock
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import Instances
from hotcoco import COCO, COCOeval
from hotcoco.panoptic import PanopticEval
from hotcoco.semantic import SemanticEval
from numpy.typing import NDArray
from torch import Tensor

from dinat_common.files import WriteError, atomic_write, write_json
from mask2former.data import values
from mask2former.data.coco_format import mask_area, mask_box
from mask2former.data.datasets.coco_json import FileFinder, entries, read_instances, read_json, read_panoptic
from mask2former.data.image_io import ImageReadError, read_label_map, read_panoptic_ids
from mask2former.data.label_maps import ValueMap, replace_values
from mask2former.data.problems import segment_areas
from mask2former.evaluation.metric import (
    EvaluationError,
    Image,
    Metric,
    Records,
    image_key,
    require_same_images,
    result_name,
)
from mask2former.tasks import Architecture
from mask2former.utils.journal import Key
from mask2former.utils.label_images import encode_masks, ids_to_colors, write_png
from mask2former.utils.parallel import available_cores

# Positions along the axes of COCO's table of precisions: IoU thresholds 0.50, 0.55, ... 0.95; areas; detections.
_ALL_IOUS, _IOU_50, _IOU_75 = slice(None), slice(0, 1), slice(5, 6)
_ALL, _SMALL, _MEDIUM, _LARGE = range(4)
_TOP_100 = -1
_AVERAGE_PRECISIONS = {
    "AP": (_ALL_IOUS, _ALL),
    "AP50": (_IOU_50, _ALL),
    "AP75": (_IOU_75, _ALL),
    "APs": (_ALL_IOUS, _SMALL),
    "APm": (_ALL_IOUS, _MEDIUM),
    "APl": (_ALL_IOUS, _LARGE),
}
_SUFFIXES = {"All": "", "Things": "_th", "Stuff": "_st"}
# Segment ids of a panoptic PNG are below it.
_END_OF_IDS = 1 << 24
# Pairs of label images that a thread counts before it adds to the table, which is large if there are many classes.
_PAIRS_AT_ONCE = 16
# A label that no class has, in place of a negative void label.
_UNUSED = 65535


class InstanceAP(Metric):
    """Average precision of masks.

    Metrics: AP, AP50, AP75, APs, APm, APl and AP-<class>. Predictions are `Instances` with `pred_masks` [N, H, W],
    `scores` [N] and contiguous `pred_classes` [N]; they go to `coco_instances_results.json`. The metadata have
    `json_file` and `thing_dataset_id_to_contiguous_id`.
    """

    task = "instance"
    name = "segm"
    results_file = "coco_instances_results.json"
    needs = ("json_file",)
    outputs: ClassVar[tuple[str, ...]] = (results_file,)

    @cached_property
    def _dataset_ids(self) -> dict[int, int]:
        return _inverted(self._metadata.thing_dataset_id_to_contiguous_id)

    def record(self, image: Image, prediction: Any, folder: Path) -> tuple[Any, list[Path]]:
        """Encode the masks or boxes. See `Metric.record`."""
        categories = [
            _known(self._dataset_ids, category, image, "thing") for category in prediction.pred_classes.tolist()
        ]
        detections = zip(categories, prediction.scores.tolist(), self._encode(prediction), strict=True)
        return {"size": list(prediction.image_size), "detections": list(detections)}, []

    def _encode(self, prediction: Instances) -> Sequence[Any]:
        """What is compared, per instance, for a line of JSON."""
        return encode_masks(prediction.pred_masks)

    def _submitted(self, encoded: Any, size: list[int]) -> dict[str, Any]:
        """What is compared, in the form of a submission."""
        return {"segmentation": {"size": size, "counts": encoded}}

    def evaluate(self, records: Records, folder: Path) -> dict[str, float]:
        """Write the submission and evaluate it. See `Metric.evaluate` and the class."""
        json_file = self._metadata.json_file
        with _reading(json_file):
            content = read_json(json_file)
            images, annotations = read_instances(content, json_file)
            categories = _listed(content, json_file, self._dataset_ids, self._metadata.thing_classes)
        require_same_images(annotations, [key for key, _ in records], json_file)
        predicted = {key: tuple(record["size"]) for key, record in records}
        for image in images:
            key, size = image["id"], (image.get("height"), image.get("width"))
            if size not in ((None, None), predicted[key]):
                raise EvaluationError(f"{json_file}: image {key} is {size}, its prediction {predicted[key]}")
        results, numbers = folder / self.results_file, _numbers(annotations)
        self._write_detections(records, results)
        with tempfile.TemporaryDirectory() as temporary, _reading(json_file):
            if any(key != number for key, number in numbers.items()):
                results = Path(temporary, self.results_file)
                self._write_detections(((numbers[key], record) for key, record in records), results)
            truth = {"images": [{"id": numbers[key], "height": h, "width": w} for key, (h, w) in predicted.items()]}
            truth["annotations"] = self._annotations(annotations, predicted, numbers)
            ground_truth = COCO({**truth, "categories": categories})
            evaluation = COCOeval(ground_truth, ground_truth.load_res(str(results)), self.name)
        evaluation.evaluate()
        evaluation.accumulate()
        # [IoU threshold, recall, class, area, detections]
        precision = np.asarray((evaluation.eval or {})["precision"])
        metrics = {
            name: _average_precision(precision[ious, :, :, area, _TOP_100])
            for name, (ious, area) in _AVERAGE_PRECISIONS.items()
        }
        for position, category in enumerate(evaluation.params.cat_ids):
            name = ground_truth.cats[category]["name"]
            metrics[f"AP-{name}"] = _average_precision(precision[:, :, position, _ALL, _TOP_100])
        return metrics

    def _annotations(
        self,
        annotations: Mapping[Key, Sequence[Mapping[str, Any]]],
        sizes: Mapping[Key, tuple[int, int]],
        numbers: Mapping[Key, int],
    ) -> list[dict[str, Any]]:
        """Just what the metric needs of annotations, numbered from 1: pycocotools does not match one with the id 0."""
        kept: list[dict[str, Any]] = []
        for key, of_image in annotations.items():
            for annotation in of_image:
                where = f"{self._metadata.json_file}: annotation {annotation['id']} of image {key}"
                category, mask = annotation["category_id"], annotation["segmentation"]
                if category not in self._metadata.thing_dataset_id_to_contiguous_id:
                    raise EvaluationError(f"{where}: category {category} is no thing of data set {self._dataset_name}")
                if not mask:
                    raise EvaluationError(f"{where}: no mask to compare predictions with")
                # Areas that the file lacks are measured.
                area = annotation["area"] if "area" in annotation else mask_area(mask, sizes[key])
                needed = {"image_id": numbers[key], "category_id": category, "segmentation": mask, "area": area}
                box = annotation["bbox"] if "bbox" in annotation else mask_box(mask, sizes[key])
                kept.append({"id": len(kept) + 1, **needed, "bbox": box, "iscrowd": annotation["iscrowd"]})
        return kept

    def _write_detections(self, records: Records, path: Path) -> None:
        """Write a list of all detections, those of an image in a line; only one image is in memory."""
        with atomic_write(path) as file:
            before = "["
            for key, record in records:
                size = record["size"]
                detections = [
                    {"image_id": key, "category_id": category, "score": score, **self._submitted(encoded, size)}
                    for category, score, encoded in record["detections"]
                ]
                if detections:
                    file.write(before + json.dumps(detections)[1:-1])
                    before = ",\n"
            file.write("[]" if before == "[" else "]")


class BoxAP(InstanceAP):
    """Average precision of boxes, for models that predict boxes.

    Metrics as in `InstanceAP`. Predictions are `Instances` with `pred_boxes` (x0, y0, x1, y1) in pixels, `scores` [N]
    and contiguous `pred_classes` [N]; they go to `coco_boxes_results.json`. The box of an annotation without one is
    the box around its mask.
    """

    name = "bbox"
    results_file = "coco_boxes_results.json"
    outputs = (results_file,)
    of_boxes = True

    def _encode(self, prediction: Instances) -> Sequence[Any]:
        boxes = prediction.pred_boxes.tensor
        return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1).tolist()

    def _submitted(self, encoded: Any, size: list[int]) -> dict[str, Any]:
        return {"bbox": encoded}


class PanopticQuality(Metric):
    """Panoptic quality (Kirillov et al., "Panoptic Segmentation", CVPR 2019).

    Metrics: PQ, SQ and RQ of all classes, of things (_th) and of stuff (_st), and of single classes (PQ-<class>);
    NaN if there is nothing to measure. A prediction is a pair: segment ids [H, W] (0 is void), and a dict for each
    segment with `id`, `isthing` and contiguous `category_id`. Results go to `panoptic_predictions.json` and
    `panoptic_predictions/*.png` (id = R + 256 G + 65536 B). The metadata have `panoptic_json`, `panoptic_root` and the
    maps from ids of the data set to contiguous ids.
    """

    task = "panoptic"
    name = "panoptic_seg"
    results_folder = "panoptic_predictions"
    results_file = "panoptic_predictions.json"
    needs = ("panoptic_json", "panoptic_root")
    outputs = (results_folder, results_file)

    @cached_property
    def _dataset_ids(self) -> dict[bool, dict[int, int]]:
        """Ids of the data set by contiguous ids; of things and of stuff."""
        return {
            True: _inverted(self._metadata.thing_dataset_id_to_contiguous_id),
            False: _inverted(self._metadata.stuff_dataset_id_to_contiguous_id),
        }

    def record(self, image: Image, prediction: Any, folder: Path) -> tuple[Any, list[Path]]:
        """Write the PNG; the record is the annotation of the submission. See `Metric.record`."""
        ids, segments = prediction
        ids = ids.cpu().numpy()
        file_name = f"{result_name(image)}.png"
        lowest, highest = int(ids.min(initial=0)), int(ids.max(initial=0))
        if lowest < 0 or highest >= _END_OF_IDS:
            raise EvaluationError(
                f"prediction {file_name}: segment ids from {lowest} to {highest}; expected 0 to {_END_OF_IDS - 1}"
            )
        file = write_png(folder / self.results_folder / file_name, ids_to_colors(ids))
        # The metadata, not the prediction, say what is a thing.
        dataset_ids = self._dataset_ids[False] | self._dataset_ids[True]
        infos = [
            {"id": int(s["id"]), "category_id": _known(dataset_ids, s["category_id"], image, "class")} for s in segments
        ]
        return {"image_id": image["image_id"], "file_name": file_name, "segments_info": infos}, [file]

    def evaluate(self, records: Records, folder: Path) -> dict[str, float]:
        """Write the submission and evaluate it. See `Metric.evaluate` and the class."""
        json_file = self._metadata.panoptic_json
        with _reading(json_file):
            content = read_json(json_file)
            annotations = {annotation["image_id"]: annotation for annotation in read_panoptic(content, json_file)}
            categories = {
                category["id"]: {**category, "isthing": int(isthing)}
                for isthing, ids in sorted(self._dataset_ids.items())
                for category in _listed(content, json_file, ids, self._metadata.stuff_classes)
            }
        predicted = [annotation for _, annotation in records]
        require_same_images(annotations, [annotation["image_id"] for annotation in predicted], json_file)
        unknown = {s["category_id"] for a in predicted for s in a["segments_info"]} - categories.keys()
        if unknown:
            raise EvaluationError(f"{json_file}: no categories {sorted(unknown)}, which were predicted")
        write_json(folder / self.results_file, {"annotations": predicted})
        find = FileFinder(self._metadata.panoptic_root, png=True)
        files = {key: find(annotation["file_name"]) for key, annotation in annotations.items()}
        numbers = _numbers(annotations)
        truth = {
            "annotations": [
                {
                    "image_id": numbers[key],
                    "file_name": str(files[key].absolute()),
                    "segments_info": _measured(annotation["segments_info"], files[key]),
                }
                for key, annotation in annotations.items()
            ],
            "categories": list(categories.values()),
        }
        submission = {"annotations": [{**a, "image_id": numbers[a["image_id"]]} for a in predicted]}
        root = self._metadata.panoptic_root
        try:
            evaluation = PanopticEval(truth, submission, gt_folder=root, pred_folder=folder / self.results_folder)
            evaluation.evaluate()
        except (OSError, ValueError) as error:
            named = re.match(r"image (\d+): ", str(error))
            if named is None:
                raise EvaluationError(str(error)) from error
            key = next(key for key, number in numbers.items() if number == int(named[1]))
            raise EvaluationError(f"{files[key]}: image {key}: {str(error)[named.end() :]}") from error
        found = evaluation.results()
        metrics = {
            quality.upper() + suffix: 100 * found[group][quality] if found[group]["n"] else math.nan
            for group, suffix in _SUFFIXES.items()
            for quality in ("pq", "sq", "rq")
        }
        for quality in ("pq", "sq", "rq"):
            for category, entry in categories.items():
                value = found["per_class"][category][quality]
                metrics[f"{quality.upper()}-{entry['name']}"] = 100 * value if value >= 0 else math.nan
        return metrics


class SemanticIoU(Metric):
    """IoU and accuracy of classes, from the pixels of the whole data set.

    Metrics: mIoU, fwIoU (weighted by the pixels of the classes), mACC, pACC, IoU-<class> and ACC-<class>. Means are
    over the classes that occur in the ground truth; others are NaN. With `absent_classes`, the IoU of a class that is
    predicted but does not occur is 0 and counts in mIoU. A prediction is classes [H, W] or scores [K, H, W].

    Results go to `semantic_predictions/<image>.png`, with the labels of the metadata's `submission_labels` (one per
    class) or, without this entry, the classes themselves. The metadata also have `stuff_classes` and `ignore_label`,
    and the dicts of the data set have `sem_seg_file_name`.
    """

    task = "semantic"
    name = "sem_seg"
    results_folder = "semantic_predictions"
    needs = ("sem_seg_root",)
    outputs = (results_folder,)

    def __init__(self, dataset_name: str, *, absent_classes: bool = False):
        """Read the metadata of a data set, but no file yet.

        Args:
            dataset_name: Registered data set, see `Metric`.
            absent_classes: Whether classes that are predicted but do not occur count in mIoU, see
                `Architecture.absent_classes`.
        """
        super().__init__(dataset_name)
        self._absent_classes = absent_classes

    @classmethod
    def build(cls, dataset_name: str, architecture: Architecture) -> "SemanticIoU":
        """Build the metric by the definition of mIoU that the models of an architecture were published with."""
        return cls(dataset_name, absent_classes=architecture.absent_classes)

    @cached_property
    def _submission_labels(self) -> NDArray[Any]:
        classes = len(self._metadata.stuff_classes)
        labels = np.asarray(self._metadata.get("submission_labels", range(classes)))
        if len(labels) != classes:
            raise EvaluationError(f"{self._dataset_name}: {len(labels)} submission_labels for {classes} classes")
        return labels.astype(np.uint8 if labels.max() < 256 else np.uint16)

    @cached_property
    def _labels_are_classes(self) -> bool:
        return np.array_equal(self._submission_labels, range(len(self._submission_labels)))

    def record(self, image: Image, prediction: Any, folder: Path) -> tuple[Any, list[Path]]:
        """Write the PNG. See `Metric.record`."""
        classes, labels = class_ids(prediction), self._submission_labels
        _known(dict(enumerate(labels)), int(classes.max(initial=0)), image, "class")
        # Most data sets have the classes themselves as labels: looking them up would take longer than the PNG.
        of_pixels = classes.astype(labels.dtype) if self._labels_are_classes else np.take(labels, classes)
        return None, [write_png(self._file(image, folder), of_pixels)]

    def _file(self, image: Image, folder: Path) -> Path:
        return folder / self.results_folder / f"{result_name(image)}.png"

    def evaluate(self, records: Records, folder: Path) -> dict[str, float]:
        """Count the pixels of the files. See `Metric.evaluate` and the class."""
        names = list(self._metadata.stuff_classes)
        images = {image_key(image): image for image in DatasetCatalog.get(self._dataset_name)}
        require_same_images(images, [key for key, _ in records], self._metadata.sem_seg_root)
        labels = self._submission_labels
        files = [(image["sem_seg_file_name"], self._file(image, folder)) for image in images.values()]
        void, values = self._metadata.ignore_label, self._metadata.get("sem_seg_values", {})
        counts = count_pixels(files, len(names), int(labels.max()) + 1, void=void, values=values)[:, labels]
        correct, labelled, predicted = (
            values.astype(np.float64) for values in (counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0))
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            union = labelled + predicted - correct
            iou = np.where((union if self._absent_classes else labelled) > 0, correct / union, np.nan)
            accuracy = np.where(labelled > 0, correct / labelled, np.nan)
            weighted, of_pixels = np.nansum(iou * labelled / labelled.sum()), correct.sum() / labelled.sum()
        metrics = {"mIoU": mean_of_measured(iou), "fwIoU": weighted, "mACC": mean_of_measured(accuracy)}
        metrics["pACC"] = of_pixels
        for kind, of_classes in (("IoU", iou), ("ACC", accuracy)):
            metrics.update((f"{kind}-{name}", value) for name, value in zip(names, of_classes, strict=True))
        return {name: 100 * float(value) for name, value in metrics.items()}


def class_ids(sem_seg: Tensor) -> NDArray[np.int16]:
    """Class of each pixel [H, W] from classes [H, W] or scores [K, H, W]."""
    classes = sem_seg if sem_seg.ndim == 2 else sem_seg.argmax(dim=0)
    return classes.cpu().numpy().astype(np.int16)


def count_pixels(
    files: Iterable[tuple[str | Path, str | Path]],
    classes: int,
    labels: int,
    *,
    void: int | None,
    values: ValueMap = MappingProxyType({}),
) -> NDArray[np.int64]:
    """Count how often each pair of labels occurs in pairs of label images.

    Args:
        files: Paths of ground truth and prediction.
        classes: Number of classes in the ground truth.
        labels: Number of labels in the predictions.
        void: Label of the ground truth for pixels that do not count; None if all count.
        values: Labels of the values of the ground truth that do not stand for themselves.

    Returns:
        Pixels [class in the ground truth, label in the prediction].

    Raises:
        EvaluationError: A file is missing or damaged, or has another size or label than expected.
    """
    total = np.zeros((classes, labels), dtype=np.int64)
    lock = Lock()
    void_label = _UNUSED if void is not None and void < 0 else void

    def add(pair: tuple[str | Path, str | Path], evaluation: SemanticEval) -> None:
        try:
            if Path(pair[0]).suffix.lower() == ".png" and not values and void_label == void:
                evaluation.update_png(*pair)
            else:
                truth = replace_values(read_label_map(pair[0]), values).astype(np.int64)
                if void is not None and void_label is not None:
                    truth[truth == void] = void_label
                evaluation.update(truth, read_label_map(pair[1]).astype(np.int64))
        except ImageReadError as error:
            raise EvaluationError(str(error)) from error
        except (OSError, ValueError) as error:
            raise EvaluationError(str(error) if str(pair[0]) in str(error) else f"{pair[0]}: {error}") from error

    def count(pairs: Sequence[tuple[str | Path, str | Path]]) -> None:
        evaluation = SemanticEval(max(classes, labels), ignore_index=void_label)
        for pair in pairs:
            add(pair, evaluation)
        counts = evaluation.confusion().astype(np.int64)
        if counts[classes:].any():
            for pair in pairs if len(pairs) > 1 else ():  # which one is it?
                count([pair])
            label = np.flatnonzero(counts.any(axis=1))[-1]
            raise EvaluationError(f"{pairs[0][0]}: label {label}; expected 0 to {classes - 1}, or {void} for void")
        with lock:
            np.add(total, counts[:classes, :labels], out=total)

    listed, threads = list(files), available_cores()
    at_once = max(1, min(_PAIRS_AT_ONCE, len(listed) // (4 * threads)))
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(count, [listed[i : i + at_once] for i in range(0, len(listed), at_once)]):
            pass
    return total


def mean_of_measured(values: Iterable[float]) -> float:
    """Mean of the values that are not NaN; NaN if there are none."""
    measured = [float(value) for value in values if not math.isnan(value)]
    return sum(measured) / len(measured) if measured else math.nan


def _average_precision(precision: NDArray[np.float64]) -> float:
    # -1 marks classes, areas and so on that the ground truth does not have.
    measured = precision[precision > -1]
    return 100 * float(measured.mean()) if measured.size else math.nan


@contextmanager
def _reading(path: str) -> Generator[None, None, None]:
    """Report what is wrong with an annotation file."""
    try:
        yield
    except (EvaluationError, WriteError):
        raise
    except OSError as error:
        raise EvaluationError(f"{path}: no ground truth: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise EvaluationError(f"{path}: not COCO's format: {error}") from error


def _known(dataset_ids: Mapping[int, int], class_id: int, image: Image, kind: str) -> int:
    """The category id of a predicted class."""
    if class_id not in dataset_ids:
        raise EvaluationError(f"{image['file_name']}: the model predicted class {class_id}, which is no {kind} here")
    return dataset_ids[class_id]


def _listed(
    content: Mapping[str, Any], path: str, dataset_ids: Mapping[int, int], names: Sequence[str]
) -> list[dict[str, Any]]:
    """The categories of a file that the data set has; a name that is none is taken from the data set."""
    listed = [category for category in entries(content, "categories", path) if isinstance(category, Mapping)]
    named = {values.whole_number(category.get("id")): values.name(category.get("name")) for category in listed}
    return [{"id": number, "name": named[number] or names[i]} for i, number in dataset_ids.items() if number in named]


def _measured(segments: Sequence[Mapping[str, Any]], path: Path) -> list[dict[str, Any]]:
    """Segments with their areas; those that the JSON lacks are counted in the PNG."""
    areas = {} if all("area" in segment for segment in segments) else segment_areas(read_panoptic_ids(path))
    return [{"area": areas.get(segment["id"], 0), **segment} for segment in segments]


def _numbers(keys: Iterable[Key]) -> dict[Key, int]:
    """Numbers instead of image ids: hotcoco takes only positive integers, ADE20K has strings. Such ids stay."""
    listed = list(keys)
    if all(isinstance(key, int) and key >= 0 for key in listed):
        return {key: int(key) for key in listed}
    return {key: number for number, key in enumerate(sorted(listed, key=str))}


def _inverted(ids: Mapping[int, int]) -> dict[int, int]:
    return {contiguous: number for number, contiguous in ids.items()}
