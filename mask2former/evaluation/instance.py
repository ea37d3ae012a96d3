"""Average precision of masks, as COCO defines it."""

import json
import math
import tempfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from hotcoco import COCO, COCOeval
from numpy.typing import NDArray

from mask2former.evaluation.errors import EvaluationError
from mask2former.evaluation.metric import Image, Metric, Records, require_all
from mask2former.utils.files import atomic_write
from mask2former.utils.label_images import encode_masks

RESULTS_FILE = "coco_instances_results.json"

# Positions along the axes of COCO's table of precisions: IoU thresholds 0.50, 0.55, ... 0.95; areas; detections.
_ALL_IOUS, _IOU_50, _IOU_75 = slice(None), slice(0, 1), slice(5, 6)
_ALL, _SMALL, _MEDIUM, _LARGE = range(4)
_TOP_100 = -1
_METRICS = {
    "AP": (_ALL_IOUS, _ALL),
    "AP50": (_IOU_50, _ALL),
    "AP75": (_IOU_75, _ALL),
    "APs": (_ALL_IOUS, _SMALL),
    "APm": (_ALL_IOUS, _MEDIUM),
    "APl": (_ALL_IOUS, _LARGE),
}


class InstanceAP(Metric):
    """AP of the masks of `instances`, by hotcoco, which gives pycocotools' numbers in a fraction of its time.

    Metrics: AP, AP50, AP75, APs, APm, APl and AP-<class>. Detectron2's evaluator wants thing ids without gaps and as
    many names as things, which panoptic data sets lack. Results go to `coco_instances_results.json` in COCO's
    submission format. The metadata have `json_file` and `thing_dataset_id_to_contiguous_id`.
    """

    task = "segm"
    needs = ("json_file",)
    outputs = (RESULTS_FILE,)

    @cached_property
    def _dataset_ids(self) -> dict[int, int]:
        return {v: k for k, v in self._metadata.thing_dataset_id_to_contiguous_id.items()}

    def record(self, image: Image, output: Mapping[str, Any], folder: Path) -> tuple[Any, list[Path]]:
        """Encode the masks of `instances`: `pred_masks` bool [N, H, W], `scores` and contiguous `pred_classes` [N]."""
        instances = output["instances"]
        detections = [
            [self._dataset_ids[category], score, counts]
            for category, score, counts in zip(
                instances.pred_classes.tolist(),
                instances.scores.tolist(),
                encode_masks(instances.pred_masks),
                strict=True,
            )
        ]
        return {"size": list(instances.image_size), "detections": detections}, []

    def evaluate(self, records: Records, folder: Path) -> dict[str, float]:
        """See `Metric.evaluate` and the class."""
        json_file = self._metadata.json_file
        truth, sizes = _read_ground_truth(json_file)
        require_all(sizes, [key for key, _ in records], json_file)
        _require_sizes(records, sizes, json_file)
        _write_results(records, folder / RESULTS_FILE)
        with tempfile.TemporaryDirectory() as temporary:
            results = folder / RESULTS_FILE
            if not all(isinstance(key, int) for key in sizes):
                # hotcoco wants numbers for names of images, which ADE20K does not have.
                numbers = {key: number for number, key in enumerate(sorted(sizes))}
                for image in truth["images"]:
                    image["id"] = numbers[image["id"]]
                for annotation in truth["annotations"]:
                    annotation["image_id"] = numbers[annotation["image_id"]]
                results = Path(temporary, RESULTS_FILE)
                _write_results(((numbers[key], record) for key, record in records), results)
            return _average_precision(truth, results)


def _read_ground_truth(json_file: str) -> tuple[dict[str, Any], dict[Any, tuple[int, int]]]:
    """The content of an annotation file, and (height, width) of its images."""
    try:
        with open(json_file, encoding="utf-8") as file:
            content = json.load(file)
        return content, {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    except OSError as error:
        raise EvaluationError(f"{json_file}: no ground truth: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise EvaluationError(f"{json_file}: not COCO's format: {error}") from error


def _require_sizes(records: Records, sizes: Mapping[Any, tuple[int, int]], json_file: str) -> None:
    for key, record in records:
        if key not in sizes:
            raise EvaluationError(f"{json_file}: no image {key}, which was predicted")
        if sizes[key] != tuple(record["size"]):
            raise EvaluationError(f"{json_file}: image {key} is {sizes[key]}, its prediction {tuple(record['size'])}")


def _write_results(records: Records, path: Path) -> None:
    """Write a list of all detections, never more of it in memory than those of an image."""
    with atomic_write(path) as file:
        before = "["
        for key, record in records:
            for category, score, counts in record["detections"]:
                segmentation = {"size": record["size"], "counts": counts}
                detection = {"image_id": key, "category_id": category, "score": score, "segmentation": segmentation}
                file.write(before + json.dumps(detection))
                before = ",\n"
        file.write("[]" if before == "[" else "]")


def _average_precision(truth: dict[str, Any], results: Path) -> dict[str, float]:
    try:
        ground_truth = COCO(truth)
        evaluation = COCOeval(ground_truth, ground_truth.load_res(str(results)), "segm")
    except ValueError as error:
        raise EvaluationError(f"not COCO's format: {error}") from error
    evaluation.evaluate()
    evaluation.accumulate()
    accumulated = evaluation.eval or {}
    # [IoU threshold, recall, class, area, detections]
    precision = np.asarray(accumulated["precision"])
    metrics = {name: _percent(precision[ious, :, :, area, _TOP_100]) for name, (ious, area) in _METRICS.items()}
    for position, category in enumerate(evaluation.params.cat_ids):
        name = ground_truth.cats[category]["name"]
        metrics[f"AP-{name}"] = _percent(precision[:, :, position, _ALL, _TOP_100])
    return metrics


def _percent(precision: NDArray[np.float64]) -> float:
    # -1 marks classes, areas and so on that the ground truth lacks.
    measured = precision[precision > -1]
    return 100 * float(measured.mean()) if measured.size else math.nan
