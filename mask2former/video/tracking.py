"""Tracking: which objects in a frame are the same as in the frame before.

Objects of one class are matched one to one by the overlap of their masks, so that the sum of the overlaps is largest
(the Hungarian method). An object that is missing for a few frames keeps its number; meanwhile it is expected to
continue its movement. This is SORT (Bewley et al., "Simple Online and Realtime Tracking", ICIP 2016) on masks instead
of boxes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from mask2former.prediction.results import Prediction

# Masks are compared at this size, which is fast even for a hundred of them.
_LONGER_SIDE = 320
# Weight of the last movement in the running average of the velocity.
_NEWEST = 0.5

Mask = NDArray[np.bool_]


@dataclass(eq=False)
class _Track:
    number: int
    category: int
    mask: Mask
    center: NDArray[np.float64]
    velocity: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))
    missed: int = 0

    def expected_mask(self) -> Mask:
        """The mask where the object should be in the next frame."""
        return _shifted(self.mask, np.rint(self.velocity * (self.missed + 1)).astype(int))

    def lose(self) -> None:
        self.missed += 1

    def follow(self, mask: Mask) -> None:
        center = _center(mask)
        velocity = (center - self.center) / (self.missed + 1)
        self.velocity += _NEWEST * (velocity - self.velocity)
        self.mask, self.center, self.missed = mask, center, 0


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
        """Return the prediction of the next frame with a `track_id` for each thing; semantic results are unchanged."""
        if prediction.task == "semantic":
            return prediction
        things = [(entry, _reduced(mask)) for entry, mask in prediction.entries_and_masks() if entry["isthing"]]
        numbers: dict[int, int] = {}
        for category in sorted({entry["category_id"] for entry, _ in things} | {t.category for t in self._tracks}):
            found = [(entry["id"], mask) for entry, mask in things if entry["category_id"] == category]
            numbers |= self._match(category, [mask for _, mask in found], [segment_id for segment_id, _ in found])
        self._tracks = [track for track in self._tracks if track.missed <= self._max_missed]
        return prediction.with_tracks(numbers)

    def _match(self, category: int, masks: Sequence[Mask], segment_ids: Sequence[int]) -> dict[int, int]:
        """Match the objects of one class with the known ones, and return their numbers by segment id."""
        tracks = [track for track in self._tracks if track.category == category]
        overlap = np.maximum(
            _iou([track.mask for track in tracks], masks),
            _iou([track.expected_mask() for track in tracks], masks),
        )
        pairs = zip(*linear_sum_assignment(np.where(overlap >= self._min_iou, overlap, 0), maximize=True), strict=True)
        matched = {int(column): tracks[row] for row, column in pairs if overlap[row, column] >= self._min_iou}
        for track in tracks:
            if track not in matched.values():
                track.lose()
        numbers = {}
        for column, (mask, segment_id) in enumerate(zip(masks, segment_ids, strict=True)):
            if column in matched:
                matched[column].follow(mask)
            else:
                matched[column] = _Track(self._next, category, mask, _center(mask))
                self._tracks.append(matched[column])
                self._next += 1
            numbers[segment_id] = matched[column].number
        return numbers


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
