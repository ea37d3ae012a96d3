"""What results of all tasks have in common."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mask2former.data.coco_format import encode_rle, tight_box
from mask2former.visualization import ClassTable
from mask2former.visualization.classes import Task

if TYPE_CHECKING:
    from typing_extensions import Self

Mask = NDArray[np.bool_]
Rgb = NDArray[np.uint8]


@dataclass(frozen=True, eq=False, kw_only=True)
class Prediction(ABC):
    """What all results have in common.

    Attributes:
        classes: names and colours of the classes.
        image: the RGB image [H, W, 3] that was predicted, where it is remembered.
        task: the task that the result answers.
    """

    classes: ClassTable
    image: Rgb | None = field(default=None, repr=False)
    task: ClassVar[Task]

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """H and W."""

    def draw(self, image: Rgb | None = None, *, enlarge: bool = True) -> Rgb:
        """Draw the segments over the image, with names and scores; see `mask2former.visualization`.

        Args:
            image: [H, W, 3]; by default the one that was predicted.
            enlarge: enlarge small images, so that text is legible; otherwise the picture is [H, W, 3].

        Raises:
            ValueError: there is no image, or one of another size.
        """
        image = self.image if image is None else image
        if image is None:
            raise ValueError("this result does not remember its image: give the one to draw over")
        return self._draw(image, enlarge)

    def segments(self) -> list[dict[str, Any]]:
        """The segments as JSON-ready dicts.

        Keys: `id`, `category_id`, `category_name`, `isthing`, `score` where there is one, `track_id` in a video, `area`
        (pixels), `bbox` ([x, y, width, height], tight) and `segmentation` (COCO's compressed RLE: `size` [H, W] and
        `counts`).
        """
        return [
            {**entry, "area": int(np.count_nonzero(mask)), "bbox": tight_box(mask), "segmentation": encode_rle(mask)}
            for entry, mask in self.entries_and_masks()
        ]

    def to_json(self, file_name: str) -> dict[str, Any]:
        """The result as `demo/demo.py --json` writes it; `file_name` is that of the image."""
        height, width = self.size
        return {
            "file_name": file_name,
            "height": height,
            "width": width,
            "task": self.task,
            "segments_info": self.segments(),
        }

    @abstractmethod
    def entries_and_masks(self) -> Iterator[tuple[dict[str, Any], Mask]]:
        """What `segments` says of each without measuring it, and its mask [H, W].

        `classes.segment_colors` gives the colours in which the entries are drawn.
        """

    def filter(
        self, *, min_score: float = 0.0, min_area: int = 0, classes: Collection[int | str] | None = None
    ) -> "Self":
        """The result without some of its segments; pixels that they had belong to none.

        Args:
            min_score: lowest score that is kept; what has no score (semantic results) is kept.
            min_area: smallest area in pixels that is kept.
            classes: category ids or names that are kept; None: all.
        """
        kept = [
            entry["id"]
            for entry, mask in self.entries_and_masks()
            if entry.get("score", 1.0) >= min_score
            and (not min_area or np.count_nonzero(mask) >= min_area)
            and (classes is None or entry["category_id"] in classes or entry["category_name"] in classes)
        ]
        return self._keep(kept)

    @abstractmethod
    def with_tracks(self, numbers: Mapping[int, int]) -> "Self":
        """The result with the number of each object in a video, by segment id."""

    @abstractmethod
    def to_coco(self, image_id: int | str = 0) -> Any:
        """The result as COCO's result files store it; see the classes."""

    @abstractmethod
    def _draw(self, image: Rgb, enlarge: bool) -> Rgb: ...

    @abstractmethod
    def _keep(self, ids: Sequence[int]) -> "Self":
        """The result with these segments."""

    def _entry(self, number: int, category: int, isthing: bool, score: float | None, track_id: int | None) -> dict:
        entry = {
            "id": int(number),
            "category_id": int(category),
            "category_name": self.classes.name(int(category)),
            "isthing": bool(isthing),
        }
        if score is not None:
            entry["score"] = round(float(score), 6)
        if track_id is not None:
            entry["track_id"] = int(track_id)
        return entry
