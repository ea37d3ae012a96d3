"""From class and mask predictions of one image to semantic, panoptic and instance results: pure functions.

Masks come as a `MaskSource`, which makes them at the size of the result a few at a time: those of all queries may need
more memory than there is.

Shapes:
    Q: queries; K: classes; H, W: height and width of the result; N: instances
"""

from collections.abc import Collection, Iterator
from typing import Any, Protocol

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor


class MaskSource(Protocol):
    """Mask logits of Q queries at the size of the result."""

    size: tuple[int, int]

    def select(self, queries: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Masks of some queries [N], in groups: which of them, and their masks [group, H, W]."""
        ...

    def strips(self) -> Iterator[tuple[slice, Tensor]]:
        """Masks of all queries, a strip of rows at a time: which rows, and the masks [Q, rows, W]."""
        ...


def semantic_inference(logits: Tensor, masks: MaskSource) -> Tensor:
    """Sum of class probability times mask probability over the queries (Mask2Former follows MaskFormer, section 3.4).

    Args:
        logits: [Q, K + 1], the last class being "no object".
        masks: logits.

    Returns:
        [K, H, W].
    """
    result = logits.new_empty((logits.shape[-1] - 1, *masks.size))
    probabilities = logits.softmax(-1)[:, :-1].T
    for rows, strip in masks.strips():
        result[:, rows] = (probabilities @ strip.sigmoid().flatten(1)).view(-1, *strip.shape[1:])
    return result


def semantic_classes(logits: Tensor, masks: MaskSource) -> Tensor:
    """The class with the highest score of `semantic_inference` for each pixel: int64 [H, W]."""
    probabilities = logits.softmax(-1)[:, :-1]
    # [pixels, K], not [K, pixels]: the highest of numbers that lie side by side is found three times as fast.
    strips = [(strip.sigmoid().flatten(1).T @ probabilities).argmax(1) for _, strip in masks.strips()]
    return torch.cat(strips).view(masks.size)


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
    num_classes = logits.shape[-1] - 1
    scores, classes = logits.softmax(-1).max(-1)
    kept = ((classes != num_classes) & (scores > object_mask_threshold)).nonzero()[:, 0]
    if len(kept) == 0:
        return torch.zeros(masks.size, dtype=torch.int32, device=logits.device), []
    scores, classes = scores[kept], classes[kept]
    winner, inside, mask_area = _compete(scores, masks, kept)
    count = len(kept)
    won = torch.bincount(winner.flatten(), minlength=count)
    painted = torch.bincount(winner[inside], minlength=count)
    survives = (painted > 0) & (won / mask_area.clamp(min=1) >= overlap_threshold)
    # The only copy to the host: three short rows.
    rows = torch.stack([survives.to(scores.dtype), classes.to(scores.dtype), scores]).tolist()
    ids, segments = _number_segments(rows, thing_ids)
    table = torch.tensor(ids, dtype=torch.int32, device=logits.device)
    return torch.where(inside, table[winner], 0), segments


def _compete(scores: Tensor, masks: MaskSource, queries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which of some queries [N] wins each pixel, whether its own mask holds the pixel, and all masks' areas.

    Returns:
        int64 and bool [H, W], and [N]. The first of several equal queries wins.
    """
    best = scores.new_full(masks.size, -1)
    winner = torch.zeros(masks.size, dtype=torch.int64, device=scores.device)
    inside = torch.zeros(masks.size, dtype=torch.bool, device=scores.device)
    areas = []
    for group, logits in masks.select(queries):
        probabilities = logits.sigmoid()
        areas.append((probabilities >= 0.5).flatten(1).sum(1))
        weighted, leader = (scores[group, None, None] * probabilities).max(0)
        held = probabilities.gather(0, leader[None])[0] >= 0.5
        better = weighted > best
        best = torch.where(better, weighted, best)
        winner = torch.where(better, leader + group.start, winner)
        inside = torch.where(better, held, inside)
    return winner, inside, torch.cat(areas)


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
    num_classes = logits.shape[-1] - 1
    pairs = logits.softmax(-1)[:, :-1].flatten()
    scores, index = pairs.topk(min(detections_per_image, len(pairs)))
    categories, queries = index % num_classes, index // num_classes
    if classes is not None:
        kept = torch.isin(categories, torch.tensor(sorted(classes), device=categories.device, dtype=categories.dtype))
        scores, categories, queries = scores[kept], categories[kept], queries[kept]
    binary, inside = _binary_masks(masks, queries)
    scores = scores * inside
    order = scores.argsort(descending=True)
    _reorder(binary, order.tolist())
    result = Instances(masks.size)
    result.pred_masks = binary
    result.pred_boxes = Boxes(mask_boxes(binary))
    result.scores = scores[order]
    result.pred_classes = categories[order]
    return result


def _binary_masks(masks: MaskSource, queries: Tensor) -> tuple[Tensor, Tensor]:
    """Masks of queries [N], which may repeat: bool [N, H, W], and their mean probability inside [N]."""
    distinct, position = queries.unique(return_inverse=True)
    users: list[list[int]] = [[] for _ in distinct]
    for user, query in enumerate(position.tolist()):
        users[query].append(user)
    binary = torch.empty((len(queries), *masks.size), dtype=torch.bool, device=queries.device)
    inside = [torch.zeros(0, device=queries.device)]
    for group, logits in masks.select(distinct):
        held = logits > 0
        inside.append((logits.sigmoid() * held).flatten(1).sum(1) / (held.flatten(1).sum(1) + 1e-6))
        for mask, places in zip(held, users[group], strict=True):
            for place in places:
                binary[place] = mask
    return binary, torch.cat(inside)[position]


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
    for occupied in (masks.any(dim=1), masks.any(dim=2)):  # columns, rows
        position = torch.arange(1, occupied.shape[1] + 1, device=masks.device)
        last = (occupied * position).amax(1)
        first = (occupied * position.flip(0)).amax(1)
        sides.append((torch.where(last > 0, occupied.shape[1] - first, 0), last))
    (x0, x1), (y0, y1) = sides
    return torch.stack([x0, y0, x1, y1], dim=1).float()
