"""Tracking: which objects in a frame are the same as in the frame before.

Objects are matched one to one by the overlap of their masks, so that the sum of the overlaps is largest (the Hungarian
method): first within each class, then what is left regardless of the class, because models confuse classes in single
frames. So an object keeps its number when its class changes, and two objects of different classes at one place have
two numbers. An object that is missing for a few frames keeps its number; meanwhile it is expected to continue its
movement. This is SORT (Bewley et al., "Simple Online and Realtime Tracking", ICIP 2016) on masks instead of boxes.
"""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from mask2former.prediction.base import Prediction, SegmentPrediction
from mask2former.tasks import TASKS

# Masks are compared at this size, which is fast even for a hundred of them.
_LONGER_SIDE = 320
# An object that takes the number of one of another class overlaps it by this IoU, and that one was there until now.
_FLIP_IOU = 0.5
_FLIP_MISSED = 2
# Number of frames whose classes vote on the class of an object.
_VOTES = 15
# Weight of the last movement in the running average of the velocity.
_NEWEST = 0.5

Mask = NDArray[np.bool_]


@dataclass(eq=False)
class _Track:
    number: int
    categories: deque[int]
    mask: Mask
    center: NDArray[np.float64]
    velocity: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))
    missed: int = 0

    @property
    def category(self) -> int:
        """The most frequent class of the last frames."""
        return Counter(self.categories).most_common(1)[0][0]

    def expected_mask(self) -> Mask:
        """The mask where the object should be in the next frame."""
        return _shifted(self.mask, np.rint(self.velocity * (self.missed + 1)).astype(int))

    def lose(self) -> None:
        self.missed += 1

    def follow(self, mask: Mask, category: int) -> None:
        self.categories.append(category)
        center = _center(mask)
        velocity = (center - self.center) / (self.missed + 1)
        self.velocity += _NEWEST * (velocity - self.velocity)
        self.mask, self.center, self.missed = mask, center, 0


@dataclass(eq=False)
class _Object:
    segment_id: int
    category: int
    mask: Mask


class Tracker:
    """Numbers the objects in the frames of a video, the same object with the same number."""

    def __init__(self, *, min_iou: float = 0.3, max_missed: int = 10):
        """Set when two masks count as the same object.

        Args:
            min_iou: Smallest intersection over union with the object's last mask, or with its expected mask.
            max_missed: Number of frames in a row that an object may be missing before it is forgotten.
        """
        self._min_iou = min_iou
        self._max_missed = max_missed
        self._tracks: list[_Track] = []
        self._next = 1

    def update(self, prediction: Prediction) -> Prediction:
        """Return the prediction of the next frame with a `track_id` for each thing; results without are unchanged."""
        if not isinstance(prediction, SegmentPrediction) or TASKS[prediction.task].segments is None:
            return prediction
        things = [
            _Object(entry["id"], entry["category_id"], _reduced(mask))
            for entry, mask in prediction.entries_and_masks()
            if entry["isthing"]
        ]
        matched: dict[int, _Track] = {}
        for category in sorted({track.category for track in self._tracks}):
            same = [track for track in self._tracks if track.category == category]
            matched |= _match(same, [thing for thing in things if thing.category == category], self._min_iou)
        lost = [track for track in self._tracks if track not in matched.values()]
        recent = [track for track in lost if track.missed <= _FLIP_MISSED]
        rest = [thing for thing in things if thing.segment_id not in matched]
        matched |= _match(recent, rest, max(_FLIP_IOU, self._min_iou))
        for track in self._tracks:
            if track not in matched.values():
                track.lose()
        for thing in sorted(things, key=lambda thing: thing.category):
            if thing.segment_id in matched:
                matched[thing.segment_id].follow(thing.mask, thing.category)
            else:
                votes = deque([thing.category], maxlen=_VOTES)
                matched[thing.segment_id] = _Track(self._next, votes, thing.mask, _center(thing.mask))
                self._tracks.append(matched[thing.segment_id])
                self._next += 1
        self._tracks = [track for track in self._tracks if track.missed <= self._max_missed]
        return prediction.with_tracks({segment_id: track.number for segment_id, track in matched.items()})


def _match(tracks: Sequence[_Track], things: Sequence[_Object], min_iou: float) -> dict[int, _Track]:
    """Match known objects with those of a frame; return the track of each matched one by its segment id."""
    masks = [thing.mask for thing in things]
    overlap = np.maximum(
        _iou([track.mask for track in tracks], masks),
        _iou([track.expected_mask() for track in tracks], masks),
    )
    pairs = zip(*linear_sum_assignment(np.where(overlap >= min_iou, overlap, 0), maximize=True), strict=True)
    return {things[column].segment_id: tracks[row] for row, column in pairs if overlap[row, column] >= min_iou}


def _reduced(mask: Mask) -> Mask:
    """Reduce a mask to at most `_LONGER_SIDE` pixels; a pixel is inside if any part of it was."""
    scale = _LONGER_SIDE / max(mask.shape)
    if scale >= 1:
        return mask
    size = (max(1, round(mask.shape[1] * scale)), max(1, round(mask.shape[0] * scale)))
    return np.asarray(cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA)) > 0


def _center(mask: Mask) -> NDArray[np.float64]:
    rows, columns = np.nonzero(mask)
    return np.array([rows.mean(), columns.mean()]) if len(rows) else np.zeros(2)


def _shifted(mask: Mask, step: NDArray[np.int_]) -> Mask:
    """Move a mask by (down, right) pixels; parts outside the frame are lost."""
    height, width = mask.shape
    down, right = (int(np.clip(s, -limit, limit)) for s, limit in zip(step, mask.shape, strict=True))
    shifted = np.zeros_like(mask)
    shifted[max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = mask[
        max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)
    ]
    return shifted


def _iou(before: Sequence[Mask], now: Sequence[Mask]) -> NDArray[np.float32]:
    """Intersection over union of each pair of masks, [len(before), len(now)]."""
    if not before or not now:
        return np.zeros((len(before), len(now)), np.float32)
    a, b = (np.stack(masks).reshape(len(masks), -1).astype(np.float32) for masks in (before, now))
    shared = a @ b.T
    return shared / np.maximum(a.sum(1)[:, None] + b.sum(1) - shared, 1)
