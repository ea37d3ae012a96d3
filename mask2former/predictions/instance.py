"""Instance results."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_util

from mask2former.data.coco_format import encode_rle, tight_box
from mask2former.predictions.base import Mask, Prediction, Rgb
from mask2former.visualization import draw_instances
from mask2former.visualization.classes import Task

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, eq=False, kw_only=True)
class InstancePrediction(Prediction):
    """Instances, the best first; they may overlap.

    Attributes:
        masks: bool [N, H, W].
        category_ids: int [N].
        scores: float [N].
        track_ids: int [N] in a video.
    """

    masks: Mask
    category_ids: NDArray[np.int64]
    scores: NDArray[np.float32]
    track_ids: NDArray[np.int64] | None = None
    task: ClassVar[Task] = "instance"

    @property
    def size(self) -> tuple[int, int]:
        """H and W."""
        return self.masks.shape[1], self.masks.shape[2]

    @property
    def boxes(self) -> NDArray[np.int64]:
        """Tight boxes around the masks, [N, 4]: x, y, width, height in pixels."""
        return np.array([tight_box(mask) for mask in self.masks], np.int64).reshape(-1, 4)

    def without_duplicates(self, max_iou: float = 0.5) -> "Self":
        """The result without instances that cover a better one of their class (mask non-maximum suppression).

        Args:
            max_iou: largest intersection over union with a better one that is kept.
        """
        encoded = [encode_rle(mask) for mask in self.masks]
        kept: list[int] = []
        for index, category in enumerate(self.category_ids):
            rivals = [encoded[k] for k in kept if self.category_ids[k] == category]
            if not rivals or mask_util.iou([encoded[index]], rivals, [False] * len(rivals)).max() <= max_iou:
                kept.append(index)
        return self._keep([index + 1 for index in kept])

    def entries_and_masks(self) -> Iterator[tuple[dict[str, Any], Mask]]:
        """See `Prediction.entries_and_masks`; ids count from 1."""
        tracks = [None] * len(self.masks) if self.track_ids is None else self.track_ids
        found = zip(self.masks, self.category_ids, self.scores, tracks, strict=True)
        for number, (mask, category, score, track) in enumerate(found, start=1):
            yield self._entry(number, category, True, score, track), mask

    def with_tracks(self, numbers: Mapping[int, int]) -> "Self":
        """See `Prediction.with_tracks`."""
        return replace(self, track_ids=np.array([numbers[i + 1] for i in range(len(self.masks))], np.int64))

    def to_coco(self, image_id: int | str = 0) -> list[dict[str, Any]]:
        """Detections: `image_id`, `category_id`, `bbox`, `score` and `segmentation` (compressed RLE) of each."""
        return [
            {
                "image_id": image_id,
                "category_id": self.classes.dataset_id(entry["category_id"]),
                "bbox": tight_box(mask),
                "score": entry["score"],
                "segmentation": encode_rle(mask),
            }
            for entry, mask in self.entries_and_masks()
        ]

    def _draw(self, image: Rgb, enlarge: bool) -> Rgb:
        tracks = None if self.track_ids is None else self.track_ids.tolist()
        categories, scores = self.category_ids.tolist(), self.scores.tolist()
        return draw_instances(image, self.masks, categories, scores, self.classes, track_ids=tracks, enlarge=enlarge)

    def _keep(self, ids: Sequence[int]) -> "Self":
        index = np.array(ids, dtype=np.int64) - 1
        tracks = None if self.track_ids is None else self.track_ids[index]
        return replace(
            self,
            masks=self.masks[index],
            category_ids=self.category_ids[index],
            scores=self.scores[index],
            track_ids=tracks,
        )
