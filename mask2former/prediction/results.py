"""Results of one image: arrays, a picture and plain data.

Category ids are contiguous, as the model numbers them; `to_coco` gives those of the data set's own files.

Shapes:
    H, W: height and width of the image; N: instances
"""

import operator
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar

import cv2
import numpy as np
from hotcoco import mask as mask_util
from numpy.typing import NDArray

from dinat_common.errors import ConfigError, checked_fraction
from mask2former.data.classes import ClassTable
from mask2former.data.coco_format import encode_rle, segment_info, tight_box
from mask2former.prediction.drawing import Rgb, draw_instances, draw_panoptic, draw_semantic
from mask2former.tasks import Task
from mask2former.utils.label_images import ids_to_colors

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
        """Draw the segments over the image, with names and scores; see `mask2former.prediction.drawing`.

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

    def segments(self) -> list[dict[str, Any]]:
        """The segments as JSON-ready dicts.

        Keys: `id`, `category_id`, `category_name`, `isthing`, `score` if it has one, `track_id` in a video, `area`
        (pixels), `bbox` ([x, y, width, height], tight) and `segmentation` (COCO's compressed RLE: `size` [H, W] and
        `counts`).
        """
        return [
            {**entry, "area": int(np.count_nonzero(mask)), "bbox": tight_box(mask), "segmentation": encode_rle(mask)}
            for entry, mask in self.entries_and_masks()
        ]

    def to_json(self, file_name: str | os.PathLike[str]) -> dict[str, Any]:
        """The result in the format of `demo/demo.py --json`, for an image called `file_name`."""
        height, width = self.size
        return {
            "file_name": os.fspath(file_name),
            "height": height,
            "width": width,
            "task": self.task,
            "segments_info": self.segments(),
        }

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
    def _draw(self, image: Rgb, enlarge: bool) -> Rgb: ...

    @abstractmethod
    def _keep(self, ids: Sequence[int]) -> "Self":
        """The result with these segments only."""

    def _checked_classes(self, classes: Iterable[int | str] | int | str) -> set[int | str]:
        """Ids and names of classes, given as several or as one.

        Raises:
            ConfigError: A class does not exist.
        """
        listed = [classes] if isinstance(classes, str) or not isinstance(classes, Iterable) else classes
        wanted = {entry if isinstance(entry, str) else _index(entry) for entry in listed}
        names = [self.classes.name(i) for i in range(len(self.classes.names))]
        if names and (unknown := wanted - {*names, *range(len(names))}):
            listed = ", ".join(sorted(map(repr, unknown)))
            raise ConfigError(f"class {listed}: the classes are {', '.join(names)}")
        return wanted

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


@dataclass(frozen=True, eq=False, kw_only=True)
class PanopticPrediction(Prediction):
    """Segments that do not overlap; a pixel belongs to one or none.

    Attributes:
        ids: Segment ids [H, W]; 0: no segment.
        segments_info: Dict per segment with `id`, `category_id`, `isthing` and optionally `score` and `track_id`.
    """

    ids: NDArray[np.int32]
    segments_info: Sequence[dict[str, Any]]
    task: ClassVar[Task] = "panoptic"

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image."""
        return self.ids.shape[0], self.ids.shape[1]

    def entries_and_masks(self) -> Iterator[tuple[dict[str, Any], Mask]]:
        """See `Prediction.entries_and_masks`."""
        for info in self.segments_info:
            entry = self._entry(
                info["id"], info["category_id"], info["isthing"], info.get("score"), info.get("track_id")
            )
            yield entry, self.ids == info["id"]

    def with_tracks(self, numbers: Mapping[int, int]) -> "Self":
        """See `Prediction.with_tracks`."""
        infos = [i | ({"track_id": numbers[i["id"]]} if i["id"] in numbers else {}) for i in self.segments_info]
        return replace(self, segments_info=infos)

    def to_coco(self, image_id: ImageId = 0) -> dict[str, Any]:
        """An entry of `annotations` in a panoptic JSON: `image_id`, `file_name` of the PNG, and `segments_info`.

        `panoptic_png` returns the colours of the PNG.
        """
        entries = [
            segment_info(mask, entry["id"], self.classes.dataset_id(entry["category_id"]))
            | ({"score": entry["score"]} if "score" in entry else {})
            for entry, mask in self.entries_and_masks()
        ]
        number = _image_id(image_id)
        return {"image_id": number, "file_name": f"{number}.png", "segments_info": entries}

    def panoptic_png(self) -> Rgb:
        """The segment ids as colours [H, W, 3]: id = R + 256 G + 65536 B."""
        return ids_to_colors(self.ids)

    def _draw(self, image: Rgb, enlarge: bool) -> Rgb:
        return draw_panoptic(image, self.ids, self.segments_info, self.classes, enlarge=enlarge)

    def _keep(self, ids: Sequence[int]) -> "Self":
        kept = [info for info in self.segments_info if info["id"] in ids]
        return replace(self, ids=np.where(np.isin(self.ids, ids), self.ids, 0), segments_info=kept)


@dataclass(frozen=True, eq=False, kw_only=True)
class InstancePrediction(Prediction):
    """Instances in order of falling scores; they may overlap.

    Attributes:
        masks: Masks, bool [N, H, W].
        category_ids: Contiguous category ids, int [N].
        scores: Scores, float [N].
        track_ids: Track numbers in a video, int [N].
    """

    masks: Mask
    category_ids: NDArray[np.int64]
    scores: NDArray[np.float32]
    track_ids: NDArray[np.int64] | None = None
    task: ClassVar[Task] = "instance"

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image."""
        return self.masks.shape[1], self.masks.shape[2]

    @property
    def boxes(self) -> NDArray[np.int64]:
        """Tight bounding boxes of the masks [N, 4]: x, y, width, height in pixels."""
        return np.array([tight_box(mask) for mask in self.masks], np.int64).reshape(-1, 4)

    def without_duplicates(self, max_iou: float = 0.5) -> "Self":
        """The result after mask non-maximum suppression within each class.

        Args:
            max_iou: Largest intersection over union that an instance may have with a better one.

        Raises:
            ConfigError: The limit is not from 0 to 1.
        """
        max_iou = checked_fraction(max_iou, "max_iou")
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

    def to_coco(self, image_id: ImageId = 0) -> list[dict[str, Any]]:
        """A dict per instance: `image_id`, `category_id`, `bbox`, `score` and `segmentation` (compressed RLE)."""
        return [
            {
                "image_id": _image_id(image_id),
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


# Class of pixels whose segment was filtered out.
NO_CLASS = -1


@dataclass(frozen=True, eq=False, kw_only=True)
class SemanticPrediction(Prediction):
    """A class for every pixel.

    Attributes:
        labels: Class of each pixel [H, W]; -1: none, after `filter`.
    """

    labels: NDArray[np.int32]
    task: ClassVar[Task] = "semantic"

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image."""
        return self.labels.shape[0], self.labels.shape[1]

    def entries_and_masks(self) -> Iterator[tuple[dict[str, Any], Mask]]:
        """See `Prediction.entries_and_masks`; one entry per class that occurs, its id is the category id + 1."""
        for category in np.unique(self.labels).tolist():
            if category != NO_CLASS:
                entry = self._entry(category + 1, category, category in self.classes.thing_ids, None, None)
                yield entry, self.labels == category

    def with_tracks(self, numbers: Mapping[int, int]) -> "Self":
        """See `Prediction.with_tracks`."""
        return self

    def to_coco(self, image_id: ImageId = 0) -> list[dict[str, Any]]:
        """A dict per class that occurs: `image_id`, `category_id` and `segmentation` (compressed RLE)."""
        return [
            {
                "image_id": _image_id(image_id),
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


def from_model(output: dict[str, Any], image: Rgb, task: Task, classes: ClassTable, lowest_score: float) -> Prediction:
    """Make a result of the output of a Detectron2 model for one image.

    Args:
        output: Output that contains the result of the task, at the size of the image or smaller.
        image: RGB image [H, W, 3].
        task: Task of the result.
        classes: Names and colours of the category ids.
        lowest_score: Score below which instances are left out.
    """
    size = (image.shape[0], image.shape[1])
    if task == "panoptic":
        ids, info = output["panoptic_seg"]
        ids = _enlarged(ids.int().cpu().numpy(), size)
        return PanopticPrediction(classes=classes, image=image, ids=ids, segments_info=info)
    if task == "semantic":
        labels = output["sem_seg"]
        # Our model returns class ids here, other Detectron2 models return scores of all classes.
        labels = (labels.argmax(dim=0) if labels.dim() == 3 else labels).int().cpu().numpy()
        return SemanticPrediction(classes=classes, image=image, labels=_enlarged(labels, size))
    instances = output["instances"]
    instances = instances[instances.scores >= lowest_score]
    instances = instances[instances.scores.argsort(descending=True, stable=True)].to("cpu")
    masks = [_enlarged(mask.numpy().astype(np.uint8), size).astype(bool) for mask in instances.pred_masks]
    return InstancePrediction(
        classes=classes,
        image=image,
        masks=np.stack(masks) if masks else np.zeros((0, *size), dtype=bool),
        category_ids=instances.pred_classes.numpy(),
        scores=instances.scores.float().numpy(),
    )


def _image_id(image_id: ImageId) -> int | str:
    """An image id as JSON holds it; a path is text.

    Raises:
        ConfigError: It is neither a whole number nor text.
    """
    if isinstance(image_id, str | os.PathLike):
        return str(os.fspath(image_id))
    return _index(image_id, "image id", "a whole number or text")


def _index(value: Any, name: str = "class", expected: str = "an id or a name") -> int:
    try:
        return operator.index(value)
    except TypeError as error:
        raise ConfigError(f"{name} {value!r}: expected {expected}") from error


def _enlarged(labels: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Labels enlarged to `size` (height, width) by nearest neighbour."""
    if labels.shape == size:
        return labels
    return cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


def from_segments(
    segments: Sequence[Mapping[str, Any]], size: tuple[int, int], task: Task, classes: ClassTable, image: Rgb | None
) -> Prediction:
    """Restore a result from its `segments()`; scores are rounded to 6 digits.

    Args:
        segments: Output of `Prediction.segments`.
        size: Height and width of the image.
        task: Task of the result.
        classes: Names and colours of the category ids.
        image: RGB image [H, W, 3]; None: the result has none.
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
