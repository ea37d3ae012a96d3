"""Instances."""

from collections.abc import Collection

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from .strips import MaskSource, Strip, count_pixels, infer


def instance_inference(
    logits: Tensor, masks: MaskSource, detections_per_image: int, classes: Collection[int] | None = None
) -> Instances:
    """Take the best pairs of query and class; the score is class probability times mean mask probability inside.

    Args:
        logits: [Q, K + 1], the last class being "no object".
        masks: logits.
        detections_per_image: how many of all Q * K pairs are looked at.
        classes: those kept of them; None keeps all.

    Returns:
        `pred_masks` bool [N, H, W], tight `pred_boxes`, `scores` (falling) and `pred_classes`.
    """
    return infer(masks, InstanceResult(logits, masks.size, detections_per_image, classes))[0]


class InstanceResult:
    """See `instance_inference`."""

    def __init__(
        self, logits: Tensor, size: tuple[int, int], detections_per_image: int, classes: Collection[int] | None
    ) -> None:
        """Take what `instance_inference` takes; `size` is that of the result."""
        num_classes = logits.shape[-1] - 1
        pairs = logits.softmax(-1)[:, :-1].flatten()
        scores, index = pairs.topk(min(detections_per_image, len(pairs)))
        categories, queries = index % num_classes, index // num_classes
        if classes is not None:
            allowed = torch.tensor(sorted(classes), device=categories.device, dtype=categories.dtype)
            kept = torch.isin(categories, allowed)
            scores, categories, queries = scores[kept], categories[kept], queries[kept]
        self._scores, self._categories = scores, categories
        # A query may be there with several classes.
        self.queries, self._place = queries.unique(return_inverse=True)
        self._masks = torch.empty((len(queries), *size), dtype=torch.bool, device=logits.device)
        self._area = torch.zeros_like(self.queries)
        self._excess = scores.new_empty((len(self.queries), size[0]))

    def add(self, strip: Strip) -> None:
        """See `Result`."""
        logits = strip.logits
        held = torch.gt(logits, 0, out=torch.empty_like(logits))
        self._area += count_pixels(held)
        # Inside a mask probabilities are at least 0.5; adding up what is above takes no product of numbers and bools.
        self._excess[:, strip.rows] = (strip.probabilities - 0.5).clamp_(min=0).sum(2)
        self._masks[:, strip.rows] = held.bool().index_select(0, self._place)

    def finish(self) -> Instances:
        """See `instance_inference`."""
        inside = (self._excess.sum(1) + 0.5 * self._area) / (self._area + 1e-6)
        scores = self._scores * inside[self._place]
        order = scores.argsort(descending=True)
        _reorder(self._masks, order.tolist())
        result = Instances((self._masks.shape[1], self._masks.shape[2]))
        result.pred_masks = self._masks
        result.pred_boxes = Boxes(mask_boxes(self._masks))
        result.scores = scores[order]
        result.pred_classes = self._categories[order]
        return result


def _reorder(masks: Tensor, order: list[int]) -> None:
    """`masks[:] = masks[order]` for a permutation, with room for one mask more instead of all."""
    todo = set(range(len(order)))
    while todo:
        start = place = todo.pop()
        if order[start] == start:
            continue
        first = masks[start].clone()
        while order[place] != start:
            masks[place] = masks[order[place]]
            place = order[place]
            todo.discard(place)
        masks[place] = first


def mask_boxes(masks: Tensor) -> Tensor:
    """Tight boxes (x0, y0, x1, y1) around masks, the far sides exclusive; zeros for an empty mask.

    Args:
        masks: bool [N, H, W].

    Returns:
        float32 [N, 4], in pixels.
    """
    sides = []
    pixels = masks.view(torch.uint8)  # `amax` of bytes takes a fiftieth of the time of `any` of bools
    for occupied in (pixels.amax(dim=1), pixels.amax(dim=2)):  # columns, rows
        position = torch.arange(1, occupied.shape[1] + 1, device=masks.device)
        last = (occupied * position).amax(1)
        first = (occupied * position.flip(0)).amax(1)
        sides.append((torch.where(last > 0, occupied.shape[1] - first, 0), last))
    (x0, x1), (y0, y1) = sides
    return torch.stack([x0, y0, x1, y1], dim=1).float()
