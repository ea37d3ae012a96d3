"""From class and mask predictions of one image to semantic, panoptic and instance results: pure functions.

Shapes:
    Q: queries; K: classes; H, W: height and width of the result; N: instances
"""

from collections.abc import Collection
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor


def semantic_inference(logits: Tensor, masks: Tensor) -> Tensor:
    """Sum of class probability times mask probability over the queries (Mask2Former follows MaskFormer, section 3.4).

    Args:
        logits: [Q, K + 1], the last class being "no object".
        masks: logits [Q, H, W].

    Returns:
        [K, H, W].
    """
    return torch.einsum("qk,qhw->khw", logits.softmax(-1)[:, :-1], masks.sigmoid())


def panoptic_inference(
    logits: Tensor, masks: Tensor, thing_ids: Collection[int], object_mask_threshold: float, overlap_threshold: float
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Give each pixel to the query with the largest score times mask probability (MaskFormer, section 3.4).

    Queries count whose best class is a real one, with more than `object_mask_threshold`. A segment survives if the
    pixels it won are at least `overlap_threshold` of its own mask; it paints those of them that its mask holds.

    Args:
        logits: [Q, K + 1], the last class being "no object".
        masks: logits [Q, H, W].
        thing_ids: classes whose segments stay apart; segments of another class merge.
        object_mask_threshold: 0 to 1.
        overlap_threshold: 0 to 1.

    Returns:
        int32 [H, W] of segment ids, 0 where there is none; and for each segment `id`, `isthing`, `category_id` and
        `score`, the probability of the class (of the best query where several merged).
    """
    num_classes = logits.shape[-1] - 1
    scores, classes = logits.softmax(-1).max(-1)
    kept = ((classes != num_classes) & (scores > object_mask_threshold)).nonzero()[:, 0]
    if len(kept) == 0:
        return torch.zeros(masks.shape[-2:], dtype=torch.int32, device=masks.device), []
    scores, classes, probabilities = scores[kept], classes[kept], masks[kept].sigmoid()
    winner = (scores[:, None, None] * probabilities).argmax(0)
    inside = probabilities.gather(0, winner[None])[0] >= 0.5
    count = len(kept)
    won = torch.bincount(winner.flatten(), minlength=count)
    painted = torch.bincount(winner[inside], minlength=count)
    mask_area = (probabilities >= 0.5).flatten(1).sum(1)
    survives = (painted > 0) & (won / mask_area.clamp(min=1) >= overlap_threshold)
    # The only copy to the host: three short rows.
    rows = torch.stack([survives.to(scores.dtype), classes.to(scores.dtype), scores]).tolist()
    ids, segments = _number_segments(rows, thing_ids)
    table = torch.tensor(ids, dtype=torch.int32, device=masks.device)
    return torch.where(inside, table[winner], 0), segments


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


def instance_inference(
    logits: Tensor, masks: Tensor, detections_per_image: int, classes: Collection[int] | None = None
) -> Instances:
    """Take the best pairs of query and class; the score is class probability times mean mask probability inside.

    Args:
        logits: [Q, K + 1], the last class being "no object".
        masks: logits [Q, H, W].
        detections_per_image: how many of all Q * K pairs are looked at.
        classes: those kept of them; None keeps all.

    Returns:
        `pred_masks` bool [N, H, W], tight `pred_boxes`, `scores` (falling) and `pred_classes`.
    """
    num_classes = logits.shape[-1] - 1
    pairs = logits.softmax(-1)[:, :-1].flatten()
    scores, index = pairs.topk(min(detections_per_image, len(pairs)))
    categories, queries = index % num_classes, index // num_classes
    if classes is not None:
        kept = torch.isin(categories, torch.tensor(sorted(classes), device=categories.device, dtype=categories.dtype))
        scores, categories, queries = scores[kept], categories[kept], queries[kept]
    chosen = masks[queries]
    binary = chosen > 0
    inside = (chosen.sigmoid() * binary).flatten(1).sum(1) / (binary.flatten(1).sum(1) + 1e-6)
    scores = scores * inside
    order = scores.argsort(descending=True)
    result = Instances((masks.shape[1], masks.shape[2]))
    result.pred_masks = binary[order]
    result.pred_boxes = Boxes(mask_boxes(result.pred_masks))
    result.scores = scores[order]
    result.pred_classes = categories[order]
    return result


def mask_boxes(masks: Tensor) -> Tensor:
    """Tight boxes (x0, y0, x1, y1) around masks, the far sides exclusive; zeros for an empty mask.

    Args:
        masks: bool [N, H, W].

    Returns:
        float32 [N, 4], in pixels.
    """
    sides = []
    for occupied in (masks.any(dim=1), masks.any(dim=2)):  # columns, rows
        position = torch.arange(1, occupied.shape[1] + 1, device=masks.device)
        last = (occupied * position).amax(1)
        first = (occupied * position.flip(0)).amax(1)
        sides.append((torch.where(last > 0, occupied.shape[1] - first, 0), last))
    (x0, x1), (y0, y1) = sides
    return torch.stack([x0, y0, x1, y1], dim=1).float()
