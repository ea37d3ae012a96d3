"""Results of one image: what was found, as a picture and as plain data.

Glossary: H, W height and width of the image; N instances. Category ids are contiguous, as the model numbers them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_util

from mask2former.visualization import ClassTable, draw_instances, draw_panoptic, draw_semantic
from mask2former.visualization.classes import Task

Rgb = NDArray[np.uint8]


class Prediction(Protocol):
    """What all results have in common."""

    @property
    def task(self) -> Task:
        """The task that the result answers."""
        ...

    def draw(self, image: Rgb) -> Rgb:
        """Overlay on the image [H, W, 3] that was predicted; see `mask2former.visualization`."""
        ...

    def segments(self) -> list[dict[str, Any]]:
        """The segments as JSON-ready dicts.

        Keys: `id`, `category_id`, `category_name`, `isthing`, `score` where there is one, `area` (pixels), `bbox`
        ([x, y, width, height], tight) and `segmentation` (COCO's compressed RLE: `size` [H, W] and `counts`).
        """
        ...


@dataclass(frozen=True)
class PanopticPrediction:
    """Segment ids [H, W] (0: none) and what each is: dicts with `id`, `category_id`, `isthing`, perhaps `score`."""

    ids: NDArray[np.int32]
    segments_info: Sequence[dict[str, Any]]
    classes: ClassTable
    task: Task = "panoptic"

    def draw(self, image: Rgb) -> Rgb:
        """See `Prediction.draw`."""
        return draw_panoptic(image, self.ids, self.segments_info, self.classes)

    def segments(self) -> list[dict[str, Any]]:
        """See `Prediction.segments`."""
        return [
            _segment(
                info["id"],
                info["category_id"],
                self.classes,
                info["isthing"],
                info.get("score"),
                self.ids == info["id"],
            )
            for info in self.segments_info
        ]


@dataclass(frozen=True)
class InstancePrediction:
    """Instances, the best first: masks bool [N, H, W], category_ids int [N], scores float [N]."""

    masks: NDArray[np.bool_]
    category_ids: NDArray[np.int64]
    scores: NDArray[np.float32]
    classes: ClassTable
    task: Task = "instance"

    def draw(self, image: Rgb) -> Rgb:
        """See `Prediction.draw`."""
        return draw_instances(image, self.masks, self.category_ids.tolist(), self.scores.tolist(), self.classes)

    def segments(self) -> list[dict[str, Any]]:
        """See `Prediction.segments`; ids count from 1."""
        found = zip(self.masks, self.category_ids, self.scores, strict=True)
        return [
            _segment(number, category, self.classes, True, score, mask)
            for number, (mask, category, score) in enumerate(found, start=1)
        ]


@dataclass(frozen=True)
class SemanticPrediction:
    """The class of each pixel [H, W]."""

    labels: NDArray[np.int32]
    classes: ClassTable
    thing_ids: frozenset[int] = frozenset()
    task: Task = "semantic"

    def draw(self, image: Rgb) -> Rgb:
        """See `Prediction.draw`."""
        return draw_semantic(image, self.labels, self.classes, ignore_label=None)

    def segments(self) -> list[dict[str, Any]]:
        """See `Prediction.segments`; one per class that occurs, its id is the category id plus 1."""
        return [
            _segment(category + 1, category, self.classes, category in self.thing_ids, None, self.labels == category)
            for category in np.unique(self.labels).tolist()
        ]


def _segment(
    number: int, category: int, classes: ClassTable, isthing: bool, score: float | None, mask: NDArray[np.bool_]
) -> dict[str, Any]:
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    scored = {} if score is None else {"score": round(float(score), 6)}
    return {
        "id": int(number),
        "category_id": int(category),
        "category_name": classes.name(int(category)),
        "isthing": bool(isthing),
        **scored,
        "area": int(np.count_nonzero(mask)),
        "bbox": [int(value) for value in mask_util.toBbox(rle)],
        "segmentation": {"size": [int(side) for side in mask.shape], "counts": rle["counts"].decode("ascii")},
    }
