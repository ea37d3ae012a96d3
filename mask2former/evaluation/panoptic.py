"""Panoptic quality (Kirillov et al., "Panoptic Segmentation", CVPR 2019), as the COCO panoptic API defines it."""

import io
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from hotcoco.panoptic import PanopticEval
from numpy.typing import NDArray
from PIL import Image

from mask2former.evaluation.base import PredictionEvaluator
from mask2former.evaluation.errors import EvaluationError
from mask2former.files import atomic_write, write_json

_GROUPS = {"All": "", "Things": "_th", "Stuff": "_st"}
_QUALITIES = {"pq": "PQ", "sq": "SQ", "rq": "RQ"}


class PanopticEvaluator(PredictionEvaluator):
    """PQ, SQ and RQ of `panoptic_seg`.

    Metrics are under "panoptic_seg": PQ, SQ, RQ, the same of things and of stuff with _th and _st, and PQ-<class>,
    SQ-<class>, RQ-<class>; NaN where there is nothing to measure. Predictions are kept as PNG bytes; the main process
    writes them in COCO's submission format: `panoptic_predictions/*.png` (pixel id = R + 256 G + 65536 B, 0 void) and
    `panoptic_predictions.json`. `evaluate` raises EvaluationError where an image of the ground truth was not predicted
    or two predictions share a name.
    """

    needs = ("panoptic_json", "panoptic_root")

    def __init__(self, dataset_name: str, output_dir: str | Path | None = None):
        """Take a data set's metadata.

        Args:
            dataset_name: its metadata has `panoptic_json`, `panoptic_root` and the maps between ids of the data set
                and contiguous ids.
            output_dir: where to keep the predictions; None: nowhere.
        """
        super().__init__(output_dir)
        metadata = MetadataCatalog.get(dataset_name)
        self._gt_json, self._gt_root = metadata.panoptic_json, metadata.panoptic_root
        self._thing_ids = {v: k for k, v in metadata.thing_dataset_id_to_contiguous_id.items()}
        self._stuff_ids = {v: k for k, v in metadata.stuff_dataset_id_to_contiguous_id.items()}

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Keep the predictions of some images.

        Args:
            inputs: dicts with `image_id` and `file_name`.
            outputs: dicts with `panoptic_seg`: ids int [H, W], and `segments_info` with `id`, `isthing` and
                contiguous `category_id`.
        """
        for image, output in zip(inputs, outputs, strict=True):
            ids, segments = output["panoptic_seg"]
            annotation = {
                "image_id": image["image_id"],
                "file_name": f"{Path(image['file_name']).stem}.png",
                "segments_info": [
                    {"id": int(segment["id"]), "category_id": self._dataset_id(segment)} for segment in segments
                ],
            }
            self._predictions.append({"annotation": annotation, "png": _encode_png(ids.cpu().numpy())})

    def _dataset_id(self, segment: Mapping[str, Any]) -> int:
        return (self._thing_ids if segment["isthing"] else self._stuff_ids)[segment["category_id"]]

    def _compare(self, predictions: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
        with tempfile.TemporaryDirectory() as temporary:
            json_file = _write_submission(predictions, Path(self._output_dir or temporary))
            evaluation = PanopticEval(self._gt_json, json_file, gt_folder=self._gt_root)
            try:
                evaluation.evaluate()
            except (ValueError, KeyError) as error:
                raise EvaluationError(f"{self._gt_json}: {error}") from error
        return {"panoptic_seg": _metrics(evaluation.results(), _class_names(self._gt_json))}


def _encode_png(ids: NDArray[np.integer]) -> bytes:
    pixels = np.stack([ids & 255, (ids >> 8) & 255, (ids >> 16) & 255], axis=-1).astype(np.uint8)
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, format="PNG")
        return file.getvalue()


def _write_submission(predictions: Sequence[Mapping[str, Any]], folder: Path) -> Path:
    annotations = [prediction["annotation"] for prediction in predictions]
    names = {annotation["file_name"] for annotation in annotations}
    if len(names) < len(annotations):
        raise EvaluationError(
            f"panoptic results are named after images, and {len(annotations)} share {len(names)} names"
        )
    json_file = folder / "panoptic_predictions.json"
    for prediction in predictions:
        with atomic_write(json_file.with_suffix("") / prediction["annotation"]["file_name"], "wb") as file:
            file.write(prediction["png"])
    # Last: what the JSON lists is there.
    write_json(json_file, {"annotations": annotations})
    return json_file


def _class_names(json_file: str) -> dict[int, str]:
    with open(json_file, encoding="utf-8") as file:
        return {category["id"]: category["name"] for category in json.load(file)["categories"]}


def _metrics(results: Mapping[str, Any], names: Mapping[int, str]) -> dict[str, float]:
    metrics = {
        quality + suffix: _percent(results[group][key])
        for group, suffix in _GROUPS.items()
        for key, quality in _QUALITIES.items()
    }
    for key, quality in _QUALITIES.items():
        for category, values in results["per_class"].items():
            metrics[f"{quality}-{names[category]}"] = _percent(values[key])
    return metrics


def _percent(value: float) -> float:
    # hotcoco marks what can't be measured with -1.
    return 100 * value if value >= 0 else math.nan
