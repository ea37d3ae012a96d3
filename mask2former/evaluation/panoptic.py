"""Panoptic quality (Kirillov et al., "Panoptic Segmentation", CVPR 2019), as the COCO panoptic API defines it."""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mask2former.evaluation.errors import EvaluationError
from mask2former.evaluation.label_files import read_panoptic_ids
from mask2former.evaluation.metric import Image, Metric, Records, require_all
from mask2former.evaluation.panoptic_matching import count_segment_pairs, match_segments
from mask2former.utils.files import write_json
from mask2former.utils.label_images import ids_to_colors, write_png

FOLDER = "panoptic_predictions"
RESULTS_FILE = "panoptic_predictions.json"

_GROUPS: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "": lambda category: True,
    "_th": lambda category: bool(category["isthing"]),
    "_st": lambda category: not category["isthing"],
}


class PanopticQuality(Metric):
    """PQ, SQ and RQ of `panoptic_seg`, the numbers of panopticapi in a fraction of its time.

    Metrics: PQ, SQ, RQ, the same of things and of stuff with _th and _st, and PQ-<class>, SQ-<class>, RQ-<class>; NaN
    where there is nothing to measure. Results go to `panoptic_predictions/*.png` (pixel id = R + 256 G + 65536 B, 0
    void) and `panoptic_predictions.json`, COCO's submission format. The metadata have `panoptic_json`,
    `panoptic_root` and the maps between ids of the data set and contiguous ids.
    """

    task = "panoptic_seg"
    needs = ("panoptic_json", "panoptic_root")
    outputs = (FOLDER, RESULTS_FILE)

    @cached_property
    def _ground_truth(self) -> tuple[list[dict[str, Any]], dict[Any, dict[str, Any]]]:
        """The categories, and the annotation of each image id."""
        path = self._metadata.panoptic_json
        try:
            with open(path, encoding="utf-8") as file:
                content = json.load(file)
            return content["categories"], {a["image_id"]: a for a in content["annotations"]}
        except OSError as error:
            raise EvaluationError(f"{path}: no ground truth: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise EvaluationError(f"{path}: not COCO's panoptic format: {error}") from error

    def record(self, image: Image, output: Mapping[str, Any], folder: Path) -> tuple[Any, list[Path]]:
        """Match the segments of `panoptic_seg`: ids int [H, W], and `id`, `isthing`, contiguous `category_id` of each.

        The record has the annotation of the submission, and (sum of IoU, matches, wrong, missed) of categories.
        """
        ids, segments = output["panoptic_seg"]
        predicted = {
            "image_id": image["image_id"],
            "file_name": f"{Path(image['file_name']).stem}.png",
            "segments_info": [{"id": int(s["id"]), "category_id": self._dataset_id(s)} for s in segments],
        }
        pixels = ids.cpu().numpy()
        counts = self._match(predicted, pixels)
        file = write_png(folder / FOLDER / predicted["file_name"], ids_to_colors(pixels))
        return {"annotation": predicted, "counts": counts}, [file]

    def _dataset_id(self, segment: Mapping[str, Any]) -> int:
        ids = self._thing_ids if segment["isthing"] else self._stuff_ids
        return ids[segment["category_id"]]

    @cached_property
    def _thing_ids(self) -> dict[int, int]:
        return {v: k for k, v in self._metadata.thing_dataset_id_to_contiguous_id.items()}

    @cached_property
    def _stuff_ids(self) -> dict[int, int]:
        return {v: k for k, v in self._metadata.stuff_dataset_id_to_contiguous_id.items()}

    def _match(
        self, predicted: Mapping[str, Any], pixels: NDArray[np.integer]
    ) -> dict[str, tuple[float, int, int, int]]:
        categories, annotations = self._ground_truth
        key = predicted["image_id"]
        if key not in annotations:
            raise EvaluationError(f"{self._metadata.panoptic_json}: no image {key}")
        categories_of = {segment["id"]: segment["category_id"] for segment in predicted["segments_info"]}
        unknown = set(categories_of.values()) - {category["id"] for category in categories}
        if unknown:
            raise EvaluationError(
                f"{self._metadata.panoptic_json}: no categories {sorted(unknown)}, which were predicted"
            )
        truth = read_panoptic_ids(Path(self._metadata.panoptic_root, annotations[key]["file_name"]), pixels.shape)
        try:
            pairs = count_segment_pairs(truth, pixels)
            segments = {segment["id"]: segment for segment in annotations[key]["segments_info"]}
            found = match_segments(pairs, segments, categories_of)
        except ValueError as error:
            raise EvaluationError(f"prediction {predicted['file_name']} of image {key}: {error}") from error
        except KeyError as error:
            raise EvaluationError(f"{self._metadata.panoptic_json}: image {key}: a segment without {error}") from error
        return {str(category): counts for category, counts in found.items()}

    def evaluate(self, records: Records, folder: Path) -> dict[str, float]:
        """See `Metric.evaluate` and the class."""
        categories, annotations = self._ground_truth
        predicted = [record["annotation"] for _, record in records]
        require_all(annotations, [annotation["image_id"] for annotation in predicted], self._metadata.panoptic_json)
        write_json(folder / RESULTS_FILE, {"annotations": predicted})
        totals: defaultdict[int, NDArray[np.float64]] = defaultdict(lambda: np.zeros(4))
        for _, record in records:
            for category, counts in record["counts"].items():
                totals[int(category)] += counts
        return _metrics(categories, {category: _qualities(*counts.tolist()) for category, counts in totals.items()})


def _qualities(iou: float, matched: float, wrong: float, missed: float) -> dict[str, float]:
    segments = matched + wrong / 2 + missed / 2
    return {"PQ": iou / segments, "SQ": iou / matched if matched else 0.0, "RQ": matched / segments}


def _metrics(categories: Sequence[Mapping[str, Any]], qualities: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    metrics = {}
    for suffix, belongs in _GROUPS.items():
        of_group = [qualities[c["id"]] for c in categories if belongs(c) and c["id"] in qualities]
        for name in ("PQ", "SQ", "RQ"):
            values = [quality[name] for quality in of_group]
            metrics[name + suffix] = 100 * sum(values) / len(values) if values else math.nan
    for name in ("PQ", "SQ", "RQ"):
        for category in categories:
            quality = qualities.get(category["id"])
            metrics[f"{name}-{category['name']}"] = math.nan if quality is None else 100 * quality[name]
    return metrics
