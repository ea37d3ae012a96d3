"""Choice of proposals and detections: the best scores, without boxes that overlap a better one.

Shapes:
    N: boxes; K: classes; L: levels of a pyramid
"""

from collections.abc import Sequence

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torchvision.ops import nms

from ..mask_resizing import Size

# Number of boxes from which on groups are suppressed one by one: time grows with the square of the number.
_SUPPRESSED_AT_ONCE = 10000


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, iou: float) -> Tensor:
    """Drop boxes that overlap a better one of the same group.

    Groups are separated by moving each to a place of its own. Coordinates are rounded by that, up to 0.004 pixels for
    80 classes, which decides about boxes whose overlap is next to the limit. The published detectors do the same.

    Args:
        boxes: Boxes (x0, y0, x1, y1) [N, 4] with coordinates that are not negative.
        scores: Scores [N].
        groups: Classes or levels, int64 [N].
        iou: Intersection over union above which the box with the lower score is dropped.

    Returns:
        Indices of the other boxes, by falling scores.
    """
    if not len(boxes):
        return groups
    boxes, scores = boxes.float(), scores.float()
    moved = boxes + (groups.to(boxes) * (boxes.max() + 1))[:, None]
    if len(boxes) < _SUPPRESSED_AT_ONCE:
        return nms(moved, scores, iou)
    members = [(groups == group).nonzero()[:, 0] for group in groups.unique()]
    kept = torch.cat([of_group[nms(moved[of_group], scores[of_group], iou)] for of_group in members])
    return kept[scores[kept].argsort(descending=True, stable=True)]


def top_proposals(
    boxes: Sequence[Tensor],
    logits: Sequence[Tensor],
    image_size: Size,
    *,
    per_level: int,
    count: int,
    iou: float,
    min_size: float,
) -> Instances:
    """Choose the proposals of an image from all levels, suppressed within each level.

    Args:
        boxes: Boxes [N, 4] of each level.
        logits: Their logits [N].
        image_size: Height and width that boxes are clipped to.
        per_level: Number of boxes of each level that are considered.
        count: Largest number of proposals.
        iou: Limit of `suppress`.
        min_size: Size of a side that both sides of a box must exceed.

    Returns:
        `Instances` with `proposal_boxes` and `objectness_logits`, by falling logits.
    """
    best = [of_level.topk(min(per_level, len(of_level))) for of_level in logits]
    levels = torch.cat([torch.full_like(index, level) for level, (_, index) in enumerate(best)])
    found = Boxes(torch.cat([of_level[index] for of_level, (_, index) in zip(boxes, best, strict=True)]))
    scores = torch.cat([values for values, _ in best])
    finite = found.tensor.isfinite().all(1) & scores.isfinite()
    found, scores, levels = found[finite], scores[finite], levels[finite]
    found.clip(image_size)
    solid = found.nonempty(min_size)
    found, scores, levels = found[solid], scores[solid], levels[solid]
    kept = suppress(found.tensor, scores, levels, iou)[:count]
    return Instances(image_size, proposal_boxes=found[kept], objectness_logits=scores[kept])


def top_detections(
    boxes: Tensor, scores: Tensor, image_size: Size, result_size: Size, *, threshold: float, iou: float, count: int
) -> Instances:
    """Choose the detections of an image, suppressed within each class.

    Args:
        boxes: Boxes of each class [N, 4K], or the same for all classes [N, 4], in pixels of the input.
        scores: Probabilities [N, K + 1], the background last.
        image_size: Height and width of the input, which boxes are clipped to.
        result_size: Height and width of the image, in whose pixels boxes are suppressed.
        threshold: Score that detections must exceed.
        iou: Limit of `suppress`.
        count: Largest number of detections.

    Returns:
        `Instances` with `pred_boxes` in pixels of the input, `scores` and `pred_classes`, by falling scores. Empty
        boxes at the border of the image stay.
    """
    scores = scores[:, :-1]
    by_class = boxes.view(len(boxes), -1, 4).expand(-1, scores.shape[1], -1)
    finite = by_class.isfinite().all(2) & scores.isfinite()
    rows, classes = (finite & (scores > threshold)).nonzero(as_tuple=True)
    found, scores = Boxes(by_class[rows, classes]), scores[rows, classes]
    found.clip(image_size)
    factors = found.tensor.new_tensor([part / whole for part, whole in zip(image_size, result_size, strict=True)])
    kept = suppress(found.tensor / factors.flip(0).repeat(2), scores, classes, iou)[:count]
    return Instances(image_size, pred_boxes=found[kept], scores=scores[kept], pred_classes=classes[kept])
