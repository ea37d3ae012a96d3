"""Base classes of results: of one image, and of one image that is divided into segments.

Category ids are contiguous, as the model numbers them; `to_coco` gives those of the data set's own files.

Shapes:
    H, W: height and width of the image
"""

import operator
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dinat_common.errors import ConfigError, checked_fraction
from mask2former.data.classes import ClassTable
from mask2former.data.coco_format import encode_rle, tight_box
from mask2former.prediction.drawing import Rgb
from mask2former.tasks import Task

if TYPE_CHECKING:
    from typing_extensions import Self

Mask = NDArray[np.bool_]
# Image ids of COCO's files: whole numbers, NumPy's among them, and text.
ImageId = int | str | os.PathLike[str]


@dataclass(frozen=True, eq=False, kw_only=True)
class Prediction(ABC):
    """Base class of results.

    Attributes:
        classes: Names and colours of the classes.
        image: Predicted RGB image [H, W, 3]; None if the result was made without it.
        task: Task of the result.
    """

    classes: ClassTable
    image: Rgb | None = field(default=None, repr=False)
    task: ClassVar[Task]

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """Height and width of the image."""

    def draw(self, image: Rgb | None = None, *, enlarge: bool = True) -> Rgb:
        """Draw the result over the image, with names and scores; see `mask2former.prediction.drawing`.

        Args:
            image: RGB image [H, W, 3]; None: the predicted image.
            enlarge: Enlarge small images so that text is legible; otherwise the picture is [H, W, 3].

        Raises:
            ValueError: The result has no image, or `image` has another size.
        """
        image = self.image if image is None else image
        if image is None:
            raise ValueError("this result was made without its image: pass the image to draw over")
        return self._draw(image, enlarge)

    def to_json(self, file_name: str | os.PathLike[str]) -> dict[str, Any]:
        """The result in the format of `demo/demo.py --json`, for an image called `file_name`."""
        height, width = self.size
        return {
            "file_name": os.fspath(file_name),
            "height": height,
            "width": width,
            "task": self.task,
            **self.content(),
        }

    @abstractmethod
    def content(self) -> dict[str, Any]:
        """What was found, as a JSON-ready dict with one key."""

    @abstractmethod
    def filter(self, *, min_score: float = 0.0, classes: Iterable[int | str] | int | str | None = None) -> "Self":
        """The result without what has a lower score or another class; see the subclasses."""

    @abstractmethod
    def record(self) -> Any:
        """The result as JSON-ready data from which `from_record` restores it."""

    @classmethod
    @abstractmethod
    def from_output(
        cls,
        output: Mapping[str, Any],
        image: Rgb,
        classes: ClassTable,
        lowest_score: float,
        predicts_boxes: bool = False,
    ) -> "Self":
        """Make a result of the output of a Detectron2 model for one image.

        Args:
            output: Output that contains the result of the task, at the size of the image or smaller.
            image: RGB image [H, W, 3].
            classes: Names and colours of the category ids.
            lowest_score: Score below which instances are left out; without effect on other results.
            predicts_boxes: Whether the boxes of instances are predicted, not measured around masks.
        """

    @classmethod
    @abstractmethod
    def from_record(cls, record: Any, size: tuple[int, int], classes: ClassTable, image: Rgb | None) -> "Self":
        """Restore a result from its `record`.

        Args:
            record: Output of `record`.
            size: Height and width of the image.
            classes: Names and colours of the category ids.
            image: RGB image [H, W, 3]; None: the result has none.
        """

    @abstractmethod
    def _draw(self, image: Rgb, enlarge: bool) -> Rgb: ...

    def _checked_classes(self, classes: Iterable[int | str] | int | str) -> set[int | str]:
        """Ids and names of classes, given as several or as one.

        Raises:
            ConfigError: A class does not exist.
        """
        listed = [classes] if isinstance(classes, str) or not isinstance(classes, Iterable) else classes
        wanted = {entry if isinstance(entry, str) else whole_number(entry) for entry in listed}
        names = [self.classes.name(i) for i in range(len(self.classes.names))]
        if names and (unknown := wanted - {*names, *range(len(names))}):
            listed = ", ".join(sorted(map(repr, unknown)))
            raise ConfigError(f"class {listed}: the classes are {self.classes.listed()}")
        return wanted


@dataclass(frozen=True, eq=False, kw_only=True)
class SegmentPrediction(Prediction):
    """Base class of results that consist of segments.

    Attributes:
        predicted_boxes: Boxes that a detector predicted, see `InstancePrediction`; None for all other results.
    """

    predicted_boxes: NDArray[np.float32] | None = None

    def segments(self) -> list[dict[str, Any]]:
        """The segments as JSON-ready dicts.

        Keys: `id`, `category_id`, `category_name`, `isthing`, `score` if it has one, `track_id` in a video, `area`
        (pixels), `bbox` ([x, y, width, height]: around the mask in whole pixels, or as predicted by a detector) and
        `segmentation` (COCO's compressed RLE: `size` [H, W] and `counts`).
        """
        return [
            {**entry, "area": int(np.count_nonzero(mask)), "bbox": box, "segmentation": encode_rle(mask)}
            for (entry, mask), box in zip(self.entries_and_masks(), self.entry_boxes(), strict=True)
        ]

    def entry_boxes(self) -> Iterable[list[Any]]:
        """The box [x, y, width, height] of each of `entries_and_masks`; see `segments`."""
        return (tight_box(mask) for _, mask in self.entries_and_masks())

    def content(self) -> dict[str, Any]:
        """The segments under `segments_info`."""
        return {"segments_info": self.segments()}

    def record(self) -> list[dict[str, Any]]:
        """The segments; their scores are rounded to 6 digits."""
        return self.segments()

    @abstractmethod
    def entries_and_masks(self) -> Iterator[tuple[dict[str, Any], Mask]]:
        """For each segment, its entry of `segments` without measurements, and its mask [H, W].

        `classes.segment_colors` returns the colours in which the entries are drawn.
        """

    def filter(
        self, *, min_score: float = 0.0, min_area: int = 0, classes: Iterable[int | str] | int | str | None = None
    ) -> "Self":
        """The result without some of its segments, whose pixels then belong to no segment.

        Args:
            min_score: Lowest score to keep; segments without a score (semantic results) are kept.
            min_area: Smallest area to keep, in pixels.
            classes: Category ids or names to keep, or one of these; None: all.

        Raises:
            ConfigError: The classes do not exist, or a limit is not valid.
        """
        min_score = checked_fraction(min_score, "min_score")
        if not (isinstance(min_area, Real) and min_area >= 0):
            raise ConfigError(f"min_area {min_area!r}: expected a number of pixels, at least 0")
        wanted = None if classes is None else self._checked_classes(classes)
        kept = [
            entry["id"]
            for entry, mask in self.entries_and_masks()
            if entry.get("score", 1.0) >= min_score
            and (not min_area or np.count_nonzero(mask) >= min_area)
            and (wanted is None or entry["category_id"] in wanted or entry["category_name"] in wanted)
        ]
        return self._keep(kept)

    @abstractmethod
    def with_tracks(self, numbers: Mapping[int, int]) -> "Self":
        """The result with the track number of each object in a video, given by segment id."""

    @abstractmethod
    def to_coco(self, image_id: ImageId = 0) -> Any:
        """The result in the format of COCO's result files; see the subclasses."""

    @abstractmethod
    def _keep(self, ids: Sequence[int]) -> "Self":
        """The result with these segments only."""

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


def whole_number(value: Any, name: str = "class", expected: str = "an id or a name") -> int:
    """A whole number that a caller gave, of Python or NumPy.

    Raises:
        ConfigError: It is something else; the message has `name` and what was `expected`.
    """
    try:
        return operator.index(value)
    except TypeError as error:
        raise ConfigError(f"{name} {value!r}: expected {expected}") from error
