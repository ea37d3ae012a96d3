"""Panoptic results."""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from .strips import MaskSource, Strip, count_pixels, first_largest, infer


def panoptic_inference(
    logits: Tensor,
    masks: MaskSource,
    thing_ids: Collection[int],
    object_mask_threshold: float,
    overlap_threshold: float,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Give each pixel to the query with the largest score times mask probability (MaskFormer, section 3.4).

    Queries count whose best class is a real one, with more than `object_mask_threshold`. A segment survives if the
    pixels it won are at least `overlap_threshold` of its own mask; it paints those of them that its mask holds.

    Args:
        logits: [Q, K + 1], the last class being "no object".
        masks: logits.
        thing_ids: classes whose segments stay apart; segments of another class merge.
        object_mask_threshold: 0 to 1.
        overlap_threshold: 0 to 1.

    Returns:
        int32 [H, W] of segment ids, 0 where there is none; and for each segment `id`, `isthing`, `category_id` and
        `score`, the probability of the class (of the best query where several merged).
    """
    return infer(masks, PanopticResult(logits, masks.size, thing_ids, object_mask_threshold, overlap_threshold))[0]


class PanopticResult:
    """See `panoptic_inference`."""

    def __init__(
        self,
        logits: Tensor,
        size: tuple[int, int],
        thing_ids: Collection[int],
        object_mask_threshold: float,
        overlap_threshold: float,
    ) -> None:
        """Take what `panoptic_inference` takes; `size` is that of the result."""
        scores, classes = logits.softmax(-1).max(-1)
        kept = (classes != logits.shape[-1] - 1) & (scores > object_mask_threshold)
        self.queries = kept.nonzero()[:, 0]
        self._scores, self._classes = scores[self.queries], classes[self.queries]
        self._thing_ids = thing_ids
        self._overlap_threshold = overlap_threshold
        self._winner = torch.zeros(size, dtype=torch.int64, device=logits.device)
        self._inside = torch.zeros(size, dtype=torch.bool, device=logits.device)
        self._area = torch.zeros_like(self.queries)

    def add(self, strip: Strip) -> None:
        """See `Result`."""
        probabilities = strip.probabilities
        self._area += count_pixels(torch.ge(probabilities, 0.5, out=torch.empty_like(probabilities)))
        winner = first_largest(self._scores[:, None, None] * probabilities)
        self._winner[strip.rows] = winner
        self._inside[strip.rows] = probabilities.gather(0, winner[None])[0] >= 0.5

    def finish(self) -> tuple[Tensor, list[dict[str, Any]]]:
        """See `panoptic_inference`."""
        count = len(self.queries)
        if count == 0:
            return self._winner.int(), []
        won = torch.bincount(self._winner.flatten(), minlength=count)
        painted = torch.bincount(torch.where(self._inside, self._winner, count).flatten(), minlength=count + 1)[:count]
        survives = (painted > 0) & (won / self._area.clamp(min=1) >= self._overlap_threshold)
        # The only copy to the host: three short rows.
        table = [survives.to(self._scores.dtype), self._classes.to(self._scores.dtype), self._scores]
        ids, segments = _number_segments(torch.stack(table).tolist(), self._thing_ids)
        id_of_query = torch.tensor(ids, dtype=torch.int32, device=self._scores.device)
        return torch.where(self._inside, id_of_query[self._winner], 0), segments


def _number_segments(rows: list[list[float]], thing_ids: Collection[int]) -> tuple[list[int], list[dict[str, Any]]]:
    """Segment id of each query (0: none) and the list of segments, from rows of `survives`, class and score."""
    ids: list[int] = []
    segments: list[dict[str, Any]] = []
    stuff: dict[int, dict[str, Any]] = {}
    for survives, category, score in zip(rows[0], (int(c) for c in rows[1]), rows[2], strict=True):
        if not survives:
            ids.append(0)
        elif category in stuff:
            stuff[category]["score"] = max(stuff[category]["score"], score)
            ids.append(stuff[category]["id"])
        else:
            is_thing = category in thing_ids
            segments.append({"id": len(segments) + 1, "isthing": is_thing, "category_id": category, "score": score})
            ids.append(len(segments))
            if not is_thing:
                stuff[category] = segments[-1]
    return ids, segments
