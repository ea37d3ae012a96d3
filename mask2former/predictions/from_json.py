"""From the plain data of a result to the result."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as mask_util

from mask2former.predictions.base import Prediction, Rgb
from mask2former.predictions.instance import InstancePrediction
from mask2former.predictions.panoptic import PanopticPrediction
from mask2former.predictions.semantic import NO_CLASS, SemanticPrediction
from mask2former.visualization import ClassTable
from mask2former.visualization.classes import Task


def from_segments(
    segments: Sequence[Mapping[str, Any]], size: tuple[int, int], task: Task, classes: ClassTable, image: Rgb | None
) -> Prediction:
    """The result of which these are the `segments()`; scores have 6 digits.

    Args:
        segments: dicts with `id`, `category_id`, `segmentation`, and what else they have.
        size: height and width of the image.
        task: of the result.
        classes: what the category ids mean.
        image: RGB [H, W, 3], to be remembered.
    """
    masks = [mask_util.decode(segment["segmentation"]).astype(bool) for segment in segments]
    if task == "semantic":
        labels = np.full(size, NO_CLASS, np.int32)
        for segment, mask in zip(segments, masks, strict=True):
            labels[mask] = segment["category_id"]
        return SemanticPrediction(classes=classes, image=image, labels=labels)
    if task == "panoptic":
        ids = np.zeros(size, np.int32)
        for segment, mask in zip(segments, masks, strict=True):
            ids[mask] = segment["id"]
        known = ("id", "category_id", "isthing", "score", "track_id")
        infos = [{key: segment[key] for key in known if key in segment} for segment in segments]
        return PanopticPrediction(classes=classes, image=image, ids=ids, segments_info=infos)
    tracked = bool(segments) and all("track_id" in segment for segment in segments)
    return InstancePrediction(
        classes=classes,
        image=image,
        masks=np.stack(masks) if masks else np.zeros((0, *size), dtype=bool),
        category_ids=np.array([segment["category_id"] for segment in segments], np.int64),
        scores=np.array([segment["score"] for segment in segments], np.float32),
        track_ids=np.array([segment["track_id"] for segment in segments], np.int64) if tracked else None,
    )
