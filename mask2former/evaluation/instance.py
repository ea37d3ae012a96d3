"""Average precision of masks, as COCO defines it."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from hotcoco import COCO, COCOeval, mask
from numpy.typing import NDArray

from mask2former.evaluation.base import PredictionEvaluator
from mask2former.files import write_json

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


class InstanceEvaluator(PredictionEvaluator):
    """AP of the masks of `instances`, by hotcoco, which gives pycocotools' numbers in a fraction of its time.

    Metrics are under "segm": AP, AP50, AP75, APs, APm, APl and AP-<class>; NaN where there is nothing to measure.
    Detectron2's evaluator wants thing ids without gaps and as many names as things, which panoptic data sets lack.
    Predictions are kept as run-length codes; the main process writes them to `coco_instances_results.json` in COCO's
    submission format.
    """

    needs = ("json_file",)

    def __init__(self, dataset_name: str, output_dir: str | Path | None = None):
        """Take a data set's metadata.

        Args:
            dataset_name: its metadata has `json_file` and `thing_dataset_id_to_contiguous_id`.
            output_dir: where to keep the predictions; None: nowhere.
        """
        super().__init__(output_dir)
        metadata = MetadataCatalog.get(dataset_name)
        self._gt_json = metadata.json_file
        self._dataset_ids = {v: k for k, v in metadata.thing_dataset_id_to_contiguous_id.items()}

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Keep the predictions of some images.

        Args:
            inputs: dicts with `image_id`.
            outputs: dicts with `instances`: `pred_masks` bool [N, H, W], `scores` and contiguous `pred_classes` [N].
        """
        for image, output in zip(inputs, outputs, strict=True):
            instances = output["instances"].to("cpu")
            found = zip(instances.pred_masks, instances.scores.tolist(), instances.pred_classes.tolist(), strict=True)
            for pixels, score, category in found:
                pixels = np.asfortranarray(pixels.numpy(), dtype=np.uint8)
                rle = mask.encode(pixels)  # ty: ignore[no-matching-overload] - wants the number of axes
                self._predictions.append(
                    {
                        "image_id": image["image_id"],
                        "category_id": self._dataset_ids[category],
                        "score": score,
                        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
                    }
                )

    def _compare(self, predictions: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
        if self._output_dir is not None:
            write_json(Path(self._output_dir, "coco_instances_results.json"), predictions)
        ground_truth = COCO(self._gt_json)
        evaluation = COCOeval(ground_truth, ground_truth.load_res(predictions), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        accumulated = evaluation.eval or {}
        # [IoU threshold, recall, class, area, detections]
        precision = np.asarray(accumulated["precision"])
        metrics = {name: _percent(precision[ious, :, :, area, _TOP_100]) for name, (ious, area) in _METRICS.items()}
        for position, category in enumerate(evaluation.params.cat_ids):
            name = ground_truth.cats[category]["name"]
            metrics[f"AP-{name}"] = _percent(precision[:, :, position, _ALL, _TOP_100])
        return {"segm": metrics}


def _percent(precision: NDArray[np.float64]) -> float:
    # -1 marks classes, areas and so on that the ground truth lacks.
    measured = precision[precision > -1]
    return 100 * float(measured.mean()) if measured.size else math.nan
