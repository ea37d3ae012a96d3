"""Results that consist of segments: arrays, a picture and plain data.

Category ids are contiguous, as the model numbers them; `to_coco` gives those of the data set's own files.

Shapes:
    H, W: height and width of the image; N: instances
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import cv2
import numpy as np
from detectron2.structures import Instances
from hotcoco import mask as mask_util
from numpy.typing import NDArray

from dinat_common.errors import checked_fraction
from mask2former.data.classes import ClassTable
from mask2former.data.coco_format import encode_rle, segment_info, tight_box
from mask2former.prediction.base import ImageId, Mask, Prediction, SegmentPrediction, whole_number
from mask2former.prediction.drawing import Rgb, draw_instances, draw_panoptic, draw_semantic
from mask2former.tasks import TASKS, Task
from mask2former.utils.label_images import ids_to_colors

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["InstancePrediction", "PanopticPrediction", "Prediction", "SemanticPrediction"]


@dataclass(frozen=True, eq=False, kw_only=True)
class PanopticPrediction(SegmentPrediction):
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
        """See `SegmentPrediction.entries_and_masks`."""
        for info in self.segments_info:
            entry = self._entry(
                info["id"], info["category_id"], info["isthing"], info.get("score"), info.get("track_id")
            )
            yield entry, self.ids == info["id"]

    def with_tracks(self, numbers: Mapping[int, int]) -> "Self":
        """See `SegmentPrediction.with_tracks`."""
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

    @classmethod
    def from_output(
        cls,
        output: Mapping[str, Any],
        image: Rgb,
        classes: ClassTable,
        lowest_score: float,
        predicts_boxes: bool = False,
    ) -> "Self":
        """See `Prediction.from_output`."""
        ids, info = output[TASKS[cls.task].output]
        ids = _enlarged(ids.int().cpu().numpy(), image)
        return cls(classes=classes, image=image, ids=ids, segments_info=info)

    @classmethod
    def from_record(cls, record: Any, size: tuple[int, int], classes: ClassTable, image: Rgb | None) -> "Self":
        """See `Prediction.from_record`."""
        ids = np.zeros(size, np.int32)
        for segment, mask in zip(record, _masks(record), strict=True):
            ids[mask] = segment["id"]
        known = ("id", "category_id", "isthing", "score", "track_id")
        infos = [{key: segment[key] for key in known if key in segment} for segment in record]
        return cls(classes=classes, image=image, ids=ids, segments_info=infos)

    def _draw(self, image: Rgb, enlarge: bool) -> Rgb:
        return draw_panoptic(image, self.ids, self.segments_info, self.classes, enlarge=enlarge)

    def _keep(self, ids: Sequence[int]) -> "Self":
        kept = [info for info in self.segments_info if info["id"] in ids]
        return replace(self, ids=np.where(np.isin(self.ids, ids), self.ids, 0), segments_info=kept)


@dataclass(frozen=True, eq=False, kw_only=True)
class InstancePrediction(SegmentPrediction):
    """Instances in order of falling scores; they may overlap.

    Attributes:
        masks: Masks, bool [N, H, W].
        category_ids: Contiguous category ids, int [N].
        scores: Scores, float [N].
        track_ids: Track numbers in a video, int [N].
        predicted_boxes: Boxes that a detector predicted (x, y, width, height), float [N, 4]; None: the model predicts
            only masks.
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
    def boxes(self) -> NDArray[np.int64] | NDArray[np.float32]:
        """Boxes [N, 4]: x, y, width, height in pixels, as predicted by a detector, or else around the masks (int)."""
        if self.predicted_boxes is not None:
            return self.predicted_boxes
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
        """See `SegmentPrediction.entries_and_masks`; ids count from 1."""
        tracks = [None] * len(self.masks) if self.track_ids is None else self.track_ids
        found = zip(self.masks, self.category_ids, self.scores, tracks, strict=True)
        for number, (mask, category, score, track) in enumerate(found, start=1):
            yield self._entry(number, category, True, score, track), mask

    def with_tracks(self, numbers: Mapping[int, int]) -> "Self":
        """See `SegmentPrediction.with_tracks`."""
        return replace(self, track_ids=np.array([numbers[i + 1] for i in range(len(self.masks))], np.int64))

    def to_coco(self, image_id: ImageId = 0) -> list[dict[str, Any]]:
        """A dict per instance: `image_id`, `category_id`, `bbox`, `score` and `segmentation` (compressed RLE)."""
        return [
            {
                "image_id": _image_id(image_id),
                "category_id": self.classes.dataset_id(entry["category_id"]),
                "bbox": box,
                "score": entry["score"],
                "segmentation": encode_rle(mask),
            }
            for (entry, mask), box in zip(self.entries_and_masks(), self.entry_boxes(), strict=True)
        ]

    def entry_boxes(self) -> list[list[Any]]:
        """See `SegmentPrediction.entry_boxes`."""
        return self.boxes.tolist()

    @classmethod
    def from_output(
        cls,
        output: Mapping[str, Any],
        image: Rgb,
        classes: ClassTable,
        lowest_score: float,
        predicts_boxes: bool = False,
    ) -> "Self":
        """See `Prediction.from_output`."""
        instances = output[TASKS[cls.task].output]
        instances = instances[instances.scores >= lowest_score]
        instances = instances[instances.scores.argsort(descending=True, stable=True)].to("cpu")
        masks = [_enlarged(mask.numpy().astype(np.uint8), image).astype(bool) for mask in instances.pred_masks]
        return cls(
            classes=classes,
            image=image,
            masks=np.stack(masks) if masks else np.zeros((0, *image.shape[:2]), dtype=bool),
            category_ids=instances.pred_classes.numpy(),
            scores=instances.scores.float().numpy(),
            predicted_boxes=_predicted_boxes(instances, image) if predicts_boxes else None,
        )

    @classmethod
    def from_record(cls, record: Any, size: tuple[int, int], classes: ClassTable, image: Rgb | None) -> "Self":
        """See `Prediction.from_record`."""
        masks = _masks(record)
        tracked = bool(record) and all("track_id" in segment for segment in record)
        return cls(
            classes=classes,
            image=image,
            masks=np.stack(masks) if masks else np.zeros((0, *size), dtype=bool),
            category_ids=np.array([segment["category_id"] for segment in record], np.int64),
            scores=np.array([segment["score"] for segment in record], np.float32),
            track_ids=np.array([segment["track_id"] for segment in record], np.int64) if tracked else None,
            predicted_boxes=_recorded_boxes(record),
        )

    def _draw(self, image: Rgb, enlarge: bool) -> Rgb:
        tracks = None if self.track_ids is None else self.track_ids.tolist()
        categories, scores = self.category_ids.tolist(), self.scores.tolist()
        extras: dict[str, Any] = {"track_ids": tracks, "boxes": self.predicted_boxes, "enlarge": enlarge}
        return draw_instances(image, self.masks, categories, scores, self.classes, **extras)

    def _keep(self, ids: Sequence[int]) -> "Self":
        index = np.array(ids, dtype=np.int64) - 1
        tracks = None if self.track_ids is None else self.track_ids[index]
        boxes = None if self.predicted_boxes is None else self.predicted_boxes[index]
        return replace(
            self,
            masks=self.masks[index],
            category_ids=self.category_ids[index],
            scores=self.scores[index],
            track_ids=tracks,
            predicted_boxes=boxes,
        )


def _predicted_boxes(instances: Instances, image: Rgb) -> NDArray[np.float32]:
    """The boxes of a detector (x, y, width, height) in pixels of the image."""
    height, width = (whole / part for whole, part in zip(image.shape, instances.image_size, strict=False))
    corners = instances.pred_boxes.tensor.float().numpy() * np.array([width, height, width, height], np.float32)
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)


def _recorded_boxes(record: Sequence[Mapping[str, Any]]) -> NDArray[np.float32] | None:
    """Predicted boxes of a record. Those around masks are whole numbers there."""
    boxes = [segment["bbox"] for segment in record if isinstance(segment.get("bbox"), list)]
    if not boxes or len(boxes) < len(record) or not all(isinstance(side, float) for box in boxes for side in box):
        return None
    return np.array(boxes, np.float32)


# Class of pixels whose segment was filtered out.
NO_CLASS = -1


@dataclass(frozen=True, eq=False, kw_only=True)
class SemanticPrediction(SegmentPrediction):
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
        """See `SegmentPrediction.entries_and_masks`; one entry per class that occurs, its id is the category id + 1."""
        for category in np.unique(self.labels).tolist():
            if category != NO_CLASS:
                entry = self._entry(category + 1, category, category in self.classes.thing_ids, None, None)
                yield entry, self.labels == category

    def with_tracks(self, numbers: Mapping[int, int]) -> "Self":
        """See `SegmentPrediction.with_tracks`."""
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

    @classmethod
    def from_output(
        cls,
        output: Mapping[str, Any],
        image: Rgb,
        classes: ClassTable,
        lowest_score: float,
        predicts_boxes: bool = False,
    ) -> "Self":
        """See `Prediction.from_output`."""
        labels = output[TASKS[cls.task].output]
        # Our models return class ids here, other Detectron2 models return scores of all classes.
        labels = (labels.argmax(dim=0) if labels.dim() == 3 else labels).int().cpu().numpy()
        return cls(classes=classes, image=image, labels=_enlarged(labels, image))

    @classmethod
    def from_record(cls, record: Any, size: tuple[int, int], classes: ClassTable, image: Rgb | None) -> "Self":
        """See `Prediction.from_record`."""
        labels = np.full(size, NO_CLASS, np.int32)
        for segment, mask in zip(record, _masks(record), strict=True):
            labels[mask] = segment["category_id"]
        return cls(classes=classes, image=image, labels=labels)

    def _draw(self, image: Rgb, enlarge: bool) -> Rgb:
        return draw_semantic(image, self.labels, self.classes, ignore_label=NO_CLASS, enlarge=enlarge)

    def _keep(self, ids: Sequence[int]) -> "Self":
        kept = np.isin(self.labels, [number - 1 for number in ids])
        return replace(self, labels=np.where(kept, self.labels, NO_CLASS))


def _masks(segments: Sequence[Mapping[str, Any]]) -> list[Mask]:
    return [mask_util.decode(segment["segmentation"]).astype(bool) for segment in segments]


def _image_id(image_id: ImageId) -> int | str:
    """An image id as JSON holds it; a path is text.

    Raises:
        ConfigError: It is neither a whole number nor text.
    """
    if isinstance(image_id, str | os.PathLike):
        return str(os.fspath(image_id))
    return whole_number(image_id, "image id", "a whole number or text")


def _enlarged(labels: NDArray[Any], image: Rgb) -> NDArray[Any]:
    """Labels [h, w] enlarged to the size of an image by nearest neighbour."""
    height, width = image.shape[:2]
    if labels.shape == (height, width):
        return labels
    return cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
