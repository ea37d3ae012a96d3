"""Semantic results."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mask2former.data.coco_format import encode_rle
from mask2former.predictions.base import Mask, Prediction, Rgb
from mask2former.visualization import draw_semantic
from mask2former.visualization.classes import Task

if TYPE_CHECKING:
    from typing_extensions import Self

# A pixel whose segment was filtered out.
NO_CLASS = -1


@dataclass(frozen=True, eq=False, kw_only=True)
class SemanticPrediction(Prediction):
    """Every pixel has a class.

    Attributes:
        labels: class of each pixel [H, W]; -1: none, after `filter`.
    """

    labels: NDArray[np.int32]
    task: ClassVar[Task] = "semantic"

    @property
    def size(self) -> tuple[int, int]:
        """H and W."""
        return self.labels.shape[0], self.labels.shape[1]

    def entries_and_masks(self) -> Iterator[tuple[dict[str, Any], Mask]]:
        """See `Prediction.entries_and_masks`; one per class that occurs, its id is the category id plus 1."""
        for category in np.unique(self.labels).tolist():
            if category != NO_CLASS:
                entry = self._entry(category + 1, category, category in self.classes.thing_ids, None, None)
                yield entry, self.labels == category

    def with_tracks(self, numbers: Mapping[int, int]) -> "Self":
        """See `Prediction.with_tracks`."""
        return self

    def to_coco(self, image_id: int | str = 0) -> list[dict[str, Any]]:
        """One entry a class that occurs: `image_id`, `category_id` and `segmentation` (compressed RLE)."""
        return [
            {
                "image_id": image_id,
                "category_id": self.classes.dataset_id(entry["category_id"]),
                "segmentation": encode_rle(mask),
            }
            for entry, mask in self.entries_and_masks()
        ]

    def _draw(self, image: Rgb, enlarge: bool) -> Rgb:
        return draw_semantic(image, self.labels, self.classes, ignore_label=NO_CLASS, enlarge=enlarge)

    def _keep(self, ids: Sequence[int]) -> "Self":
        kept = np.isin(self.labels, [number - 1 for number in ids])
        return replace(self, labels=np.where(kept, self.labels, NO_CLASS))
