"""From the raw output of the network for one image to semantic, panoptic and instance results, as pure functions.

Masks of all queries at the size of the result may not fit in memory, so all results are computed in one pass over
strips of rows (`ResizedMasks`). `run` is the entry point; the three classes define the results.

Shapes:
    Q: queries; N: selected queries, or instances; K: classes; H, W: height and width of the result; h: rows of a strip
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import Boxes, Instances
from torch import Tensor

from mask2former.tasks import TASKS, Task

from .mask_resizing import Resize, ResizedMasks, Size, class_map, first_largest


class RawOutput(Protocol):
    """Raw output of a network for one image, from which results are made as often as needed."""

    @property
    def nbytes(self) -> int:
        """Bytes of the output, on any device."""
        ...

    def results(self, size: Size, settings: "InferenceSettings") -> dict[str, Any]:
        """Compute the results of `settings.tasks` at a size; see `run`."""
        ...


class Queries(NamedTuple):
    """Raw output of the network for one image.

    Attributes:
        logits: Class logits [Q, K + 1], the last class being "no object".
        masks: Mask logits [Q, h, w] at any resolution, over the whole padded input.
        padded_size: Height and width of the padded input.
        image_size: Height and width of the image in the upper left corner of the padded input.
    """

    logits: Tensor
    masks: Tensor
    padded_size: Size
    image_size: Size

    def resized(self, size: Size | None = None) -> ResizedMasks:
        """Masks of the image at `size`, or of the padded input if `size` is None."""
        steps = [Resize(crop=(self.masks.shape[-2], self.masks.shape[-1]), size=self.padded_size)]
        if size is not None:
            steps.append(Resize(crop=self.image_size, size=size))
        return ResizedMasks(self.masks, steps)

    @property
    def nbytes(self) -> int:
        """Bytes of the output, on any device."""
        return self.logits.nbytes + self.masks.nbytes

    def class_strips(self, size: Size, settings: "InferenceSettings") -> Iterator[Tensor]:
        """Class scores of a semantic result at a size, in strips of rows [K, h, W]."""
        if not settings.resize_masks_first:
            padded = make_results(self.logits, self.resized(), _SCORES)["sem_seg"]
            resized = ResizedMasks(padded, [Resize(self.image_size, size)])
            yield from (strip for _, strip in resized.strips())
            return
        weights = self.logits.softmax(-1)[:, :-1].T
        for _, strip in self.resized(size).strips():
            yield (weights @ strip.sigmoid().flatten(1)).view(-1, *strip.shape[1:])

    def results(self, size: Size, settings: "InferenceSettings") -> dict[str, Any]:
        """Compute the results of `settings.tasks` at a size; see `run`."""
        resized_last = "semantic" in settings.tasks and not settings.resize_masks_first
        tasks = tuple(task for task in settings.tasks if task != "semantic" or not resized_last)
        results = make_results(self.logits, self.resized(size), replace(settings, tasks=tasks))
        if resized_last:
            results["sem_seg"] = _semantic_resized_last(self, size, settings.semantic_scores)
        return results


class PixelScores(NamedTuple):
    """Raw output of a network that classifies pixels, for one image.

    Attributes:
        logits: Class logits [K, h, w] at any resolution, over the whole input.
        image_size: Height and width of the input.
    """

    logits: Tensor
    image_size: Size

    @property
    def nbytes(self) -> int:
        """Bytes of the output, on any device."""
        return self.logits.nbytes

    def resized(self, size: Size) -> ResizedMasks:
        """Logits at the size of the input, and from there at `size`, as the published models resize them."""
        whole = (self.logits.shape[-2], self.logits.shape[-1])
        return ResizedMasks(self.logits, [Resize(whole, self.image_size), Resize(self.image_size, size)])

    def class_strips(self, size: Size, settings: "InferenceSettings") -> Iterator[Tensor]:
        """Class probabilities at a size, in strips of rows [K, h, W], whatever the settings."""
        return (strip.softmax(0) for _, strip in self.resized(size).strips())

    def results(self, size: Size, settings: "InferenceSettings") -> dict[str, Any]:
        """Compute `sem_seg` at a size: class probabilities, or the most probable class; see `run`."""
        if settings.semantic_scores:
            return {"sem_seg": torch.cat(list(self.class_strips(size, settings)), 1)}
        # The softmax does not change which class is the most probable.
        return {"sem_seg": class_map(self.resized(size))}


@dataclass(frozen=True)
class InferenceSettings:
    """Settings for computing results from the raw output of the network.

    Attributes:
        tasks: Tasks to compute results for.
        object_mask_threshold: Lowest class probability of a query that may become a panoptic segment, 0 to 1.
        overlap_threshold: Smallest ratio of the pixels that a panoptic segment wins to its mask, 0 to 1.
        detections_per_image: Number of pairs of query and class that are considered as instances.
        thing_ids: Contiguous ids of the thing classes. Panoptic segments of the same other class are merged, and
            instances of other classes are dropped. If None, all classes are things.
        resize_masks_first: Whether to resize masks, not class scores, to the size of a semantic result.
        semantic_scores: Whether semantic results are scores [K, H, W] or class ids [H, W], which take less memory:
            scores of 133 classes at 3000 x 4000 pixels take 6.4 GB.
    """

    tasks: tuple[Task, ...] = ("semantic",)
    object_mask_threshold: float = 0.8
    overlap_threshold: float = 0.8
    detections_per_image: int = 100
    thing_ids: frozenset[int] | None = None
    resize_masks_first: bool = False
    semantic_scores: bool = True


_SCORES = InferenceSettings(tasks=("semantic",))


def run(output: RawOutput, size: Size, settings: InferenceSettings) -> dict[str, Any]:
    """Compute the results of `settings.tasks` for one image.

    Args:
        output: Raw output of the network.
        size: Height and width of the results.
        settings: Tasks and thresholds.

    Returns:
        A dict with an entry per task:

        * `sem_seg`: Class scores [K, H, W], or class ids int64 [H, W]; see `SemanticResult` and `PixelScores`.
        * `panoptic_seg`: Segment ids int32 [H, W] and a list of segments; see `PanopticResult`.
        * `instances`: Detectron2's `Instances`; see `InstanceResult`.
    """
    return output.results(size, settings)


def make_results(logits: Tensor, masks: ResizedMasks, settings: InferenceSettings) -> dict[str, Any]:
    """Compute results at the size of the masks, in one pass over them.

    Args:
        logits: Class logits [Q, K + 1].
        masks: Mask logits of all queries.
        settings: Tasks and thresholds; `resize_masks_first` has no effect.

    Returns:
        The results; see `run`.
    """
    parts = {TASKS[task].output: _RESULTS[task](logits, masks.size, settings) for task in settings.tasks}
    wanted = [part for part in parts.values() if part.queries is None or len(part.queries)]
    union, places = _union([part.queries for part in wanted])
    for rows, strip in masks.strips(union) if wanted else ():
        probabilities = strip.sigmoid()
        for part, place in zip(wanted, places, strict=True):
            part.add(rows, strip, probabilities, place)
    return {output: part.finish() for output, part in parts.items()}


class SemanticResult:
    """Sum over the queries of class probability times mask probability (MaskFormer, NeurIPS 2021, section 3.4).

    The result is scores [K, H, W] or, if `semantic_scores` is off, the class with the highest score of each pixel,
    int64 [H, W].
    """

    queries = None

    def __init__(self, logits: Tensor, size: Size, settings: InferenceSettings) -> None:
        self._weights = logits.softmax(-1)[:, :-1].T.contiguous()
        self._scores = settings.semantic_scores
        shape = (len(self._weights), *size) if self._scores else size
        self._result = torch.empty(shape, dtype=logits.dtype if self._scores else torch.int64, device=logits.device)

    def add(self, rows: slice, logits: Tensor, probabilities: Tensor, places: Tensor | None) -> None:
        """Add a strip of rows; `places` selects the maps of this result."""
        probabilities = _pick(probabilities, places)
        scores = self._weights @ probabilities.flatten(1)
        if self._scores:
            self._result[:, rows] = scores.view(-1, *probabilities.shape[1:])
        else:
            self._result[rows] = first_largest(scores).view(probabilities.shape[1:])

    def finish(self) -> Tensor:
        """Return the result after all strips."""
        return self._result


class PanopticResult:
    """Assigns each pixel to the query with the largest class probability times mask probability (MaskFormer, 3.4).

    Queries compete if their most probable class is not "no object" and has a probability above
    `object_mask_threshold`. A segment is kept if it wins at least `overlap_threshold` times as many pixels as its own
    mask has; it consists of the pixels it won inside its mask.

    The result is a map of segment ids, int32 [H, W], with 0 for no segment, and a dict per segment with `id`,
    `isthing`, `category_id` and `score`, the class probability (the highest one if stuff segments were merged).
    """

    def __init__(self, logits: Tensor, size: Size, settings: InferenceSettings) -> None:
        scores, classes = logits.softmax(-1).max(-1)
        kept = (classes != logits.shape[-1] - 1) & (scores > settings.object_mask_threshold)
        self.queries: Tensor | None = kept.nonzero()[:, 0]
        self._scores, self._classes = scores[kept], classes[kept]
        self._settings = settings
        self._winner = torch.zeros(size, dtype=torch.int64, device=logits.device)
        self._inside = torch.zeros(size, dtype=torch.bool, device=logits.device)
        self._area = torch.zeros_like(self._classes)

    def add(self, rows: slice, logits: Tensor, probabilities: Tensor, places: Tensor | None) -> None:
        """Add a strip of rows; `places` selects the maps of this result."""
        probabilities = _pick(probabilities, places)
        self._area += _count_pixels(torch.ge(probabilities, 0.5, out=torch.empty_like(probabilities)))
        winner = first_largest(self._scores[:, None, None] * probabilities)
        self._winner[rows] = winner
        self._inside[rows] = probabilities.gather(0, winner[None])[0] >= 0.5

    def finish(self) -> tuple[Tensor, list[dict[str, Any]]]:
        """Return the result after all strips."""
        count = len(self._classes)
        if count == 0:
            return self._winner.int(), []
        won = torch.bincount(self._winner.flatten(), minlength=count)
        painted = torch.bincount(torch.where(self._inside, self._winner, count).flatten(), minlength=count + 1)[:count]
        survives = (painted > 0) & (won / self._area.clamp(min=1) >= self._settings.overlap_threshold)
        # The only copy to the host; it has three short rows.
        table = [survives.to(self._scores.dtype), self._classes.to(self._scores.dtype), self._scores]
        ids, segments = self._number_segments(*torch.stack(table).tolist())
        id_of_query = torch.tensor(ids, dtype=torch.int32, device=self._scores.device)
        return torch.where(self._inside, id_of_query[self._winner], 0), segments

    def _number_segments(
        self, survives: list[float], classes: list[float], scores: list[float]
    ) -> tuple[list[int], list[dict[str, Any]]]:
        """Return the segment id of each query (0 if dropped) and the segments."""
        things = self._settings.thing_ids
        ids: list[int] = []
        segments: list[dict[str, Any]] = []
        stuff: dict[int, dict[str, Any]] = {}
        for survived, category, score in zip(survives, map(int, classes), scores, strict=True):
            if not survived:
                ids.append(0)
            elif category in stuff:
                stuff[category]["score"] = max(stuff[category]["score"], score)
                ids.append(stuff[category]["id"])
            else:
                is_thing = things is None or category in things
                segments.append({"id": len(segments) + 1, "isthing": is_thing, "category_id": category, "score": score})
                ids.append(len(segments))
                if not is_thing:
                    stuff[category] = segments[-1]
        return ids, segments


class InstanceResult:
    """Selects the best pairs of query and class; scores are class probability times mean probability inside the mask.

    The best `detections_per_image` of all Q * K pairs are considered; those of classes outside `thing_ids` are dropped.

    The result is `Instances` with `pred_masks` bool [N, H, W], tight `pred_boxes`, `pred_classes`, and `scores` in
    descending order.
    """

    def __init__(self, logits: Tensor, size: Size, settings: InferenceSettings) -> None:
        num_classes = logits.shape[-1] - 1
        pairs = logits.softmax(-1)[:, :-1].flatten()
        scores, index = pairs.topk(min(settings.detections_per_image, len(pairs)))
        categories, queries = index % num_classes, index // num_classes
        if settings.thing_ids is not None:
            kept = torch.isin(categories, categories.new_tensor(sorted(settings.thing_ids)))
            scores, categories, queries = scores[kept], categories[kept], queries[kept]
        self._scores, self._categories = scores, categories
        # One query may appear with several classes.
        unique, self._place = queries.unique(return_inverse=True)
        self.queries: Tensor | None = unique
        self._masks = torch.empty((len(queries), *size), dtype=torch.bool, device=logits.device)
        self._area = torch.zeros_like(unique)
        self._excess = scores.new_empty((len(unique), size[0]))

    def add(self, rows: slice, logits: Tensor, probabilities: Tensor, places: Tensor | None) -> None:
        """Add a strip of rows; `places` selects the maps of this result."""
        logits = _pick(logits, places)
        inside = torch.gt(logits, 0, out=torch.empty_like(logits))
        self._area += _count_pixels(inside)
        # Probabilities inside a mask are at least 0.5: summing the excess avoids a product of numbers and bools.
        self._excess[:, rows] = (_pick(probabilities, places) - 0.5).clamp_(min=0).sum(2)
        self._masks[:, rows] = inside.bool().index_select(0, self._place)

    def finish(self) -> Instances:
        """Return the result after all strips."""
        inside = (self._excess.sum(1) + 0.5 * self._area) / (self._area + 1e-6)
        scores = self._scores * inside[self._place]
        order = scores.argsort(descending=True)
        _reorder(self._masks, order.tolist())
        size = (self._masks.shape[1], self._masks.shape[2])
        boxes, classes = Boxes(mask_boxes(self._masks)), self._categories[order]
        return Instances(size, pred_masks=self._masks, pred_boxes=boxes, scores=scores[order], pred_classes=classes)


_RESULTS = {"panoptic": PanopticResult, "instance": InstanceResult, "semantic": SemanticResult}


def mask_boxes(masks: Tensor) -> Tensor:
    """Compute tight boxes (x0, y0, x1, y1) around masks, with x1 and y1 exclusive; zeros for an empty mask.

    Args:
        masks: Masks, bool [N, H, W].

    Returns:
        Boxes in pixels, float32 [N, 4].
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


def _semantic_resized_last(queries: Queries, size: Size, scores: bool) -> Tensor:
    """Compute a semantic result by resizing class scores, not masks, as the published ADE20K semantic models do."""
    padded = make_results(queries.logits, queries.resized(), _SCORES)["sem_seg"]
    if scores:
        return sem_seg_postprocess(padded, queries.image_size, *size)
    return class_map(ResizedMasks(padded, [Resize(queries.image_size, size)]))


def _union(wanted: list[Tensor | None]) -> tuple[Tensor | None, list[Tensor | None]]:
    """Return the union of several sets of queries, and the places of each set in it; None means all."""
    subsets = [queries for queries in wanted if queries is not None]
    if len(subsets) < len(wanted) or not subsets:
        return None, wanted
    union, places = torch.cat(subsets).unique(return_inverse=True)
    parts = places.split([len(queries) for queries in subsets])
    return union, [None if len(part) == len(union) else part for part in parts]


def _pick(maps: Tensor, places: Tensor | None) -> Tensor:
    """Select maps [N, h, W]; None selects all."""
    return maps if places is None else maps.index_select(0, places)


def _count_pixels(masks: Tensor) -> Tensor:
    """Count the pixels of masks of zeros and ones, float32 [N, h, W]; returns int64 [N]."""
    # Summing floats takes a third of the time of summing bools, and is exact up to 2**24.
    return masks.flatten(1).sum(1).long()


def _reorder(masks: Tensor, order: list[int]) -> None:
    """Apply `masks[:] = masks[order]` for a permutation, copying one mask at a time instead of all."""
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
