"""What comes before and after an exported model, in NumPy alone: for programs that have neither PyTorch nor Detectron2.

This file imports nothing but NumPy and nothing of ours, so that it can be copied. Results are those of
`mask2former.modeling.inference`, which documents the rules and their sources.

    image [H, W, 3] -> `network_size`, resize -> `network_input` -> the model -> `ResizedMasks` -> `panoptic`, ...

Shapes:
    Q: queries; K: classes; h, w: height and width of the model's masks; H, W: those of the result; N: instances
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Size = tuple[int, int]

# How many mask values are made at once.
_VALUES_AT_ONCE = 2**22


def network_size(
    image_size: Size, min_size: int, max_size: int, divisibility: int, fixed: Size | None = None
) -> tuple[Size, Size]:
    """Height and width that an image is resized to, and those of the model's input, which is padded.

    Args:
        image_size: of the image.
        min_size: the shorter side becomes so long,
        max_size: unless the longer one would become longer than this.
        divisibility: the sides of the input are multiples of this.
        fixed: size of the input, if the model takes only one; the image is then made as large as fits.
    """
    height, width = image_size
    if fixed is not None:
        scale = min(fixed[0] / height, fixed[1] / width)
        resized = tuple(max(1, min(limit, round(side * scale))) for side, limit in zip(image_size, fixed, strict=True))
        return (resized[0], resized[1]), fixed
    # In the order in which Detectron2 rounds.
    scale = min_size / min(image_size)
    sides = (min_size, scale * width) if height < width else (scale * height, min_size)
    if max(sides) > max_size:
        scale = max_size / max(sides)
        sides = (sides[0] * scale, sides[1] * scale)
    resized = (int(sides[0] + 0.5), int(sides[1] + 0.5))
    padded = (-(-resized[0] // divisibility) * divisibility, -(-resized[1] // divisibility) * divisibility)
    return resized, padded


def network_input(pixels: NDArray[np.uint8], size: Size, image_format: str, pixel_mean: Sequence[float]) -> Floats:
    """Turn a resized RGB image [h, w, 3] into the input [1, 3, *size] of a model, 0..255.

    At the bottom and at the right it is padded with `pixel_mean`, which the model's normalisation makes zero.
    """
    channels = pixels[:, :, ::-1] if image_format == "BGR" else pixels
    padded = np.empty((1, 3, *size), dtype=np.float32)
    padded[:] = np.asarray(pixel_mean, dtype=np.float32)[:, None, None]
    padded[0, :, : pixels.shape[0], : pixels.shape[1]] = channels.transpose(2, 0, 1)
    return padded


class ResizedMasks:
    """Maps [Q, h, w] of a padded input, resized to the size of a result only where somebody looks at them.

    They are enlarged to the padded input, cut to the image in it, and resized to the result.

    Attributes:
        size: height and width of the result.
    """

    def __init__(self, masks: Floats, padded_size: Size, image_size: Size, result_size: Size) -> None:
        """Take maps; `image_size` is that of the resized image inside the input of `padded_size`."""
        self.size = result_size
        self._masks = masks
        self._steps = ((masks.shape[1:], padded_size), (image_size, result_size))

    def __len__(self) -> int:
        return len(self._masks)

    def whole(self, query: int) -> Floats:
        """The map of a query: [H, W]."""
        maps = self._masks[query : query + 1]
        for crop, size in self._steps:
            maps = _resize(maps, crop, size)
        return maps[0]

    def strips(self) -> Iterator[tuple[slice, Floats]]:
        """Maps of all queries, a strip of rows at a time: which rows, and the maps [Q, rows, W]."""
        rows = max(1, _VALUES_AT_ONCE // (len(self) * max(self.size[1], self._steps[0][1][1])))
        for first in range(0, self.size[0], rows):
            last = min(first + rows, self.size[0])
            yield slice(first, last), self._rows(len(self._steps), first, last)

    def _rows(self, num_steps: int, first: int, last: int) -> Floats:
        """Rows of all maps after so many steps."""
        if num_steps == 0:
            return self._masks[:, first:last]
        crop, size = self._steps[num_steps - 1]
        above, below, weight = _taps(crop[0], size[0])
        above, below, weight = above[first:last], below[first:last], weight[first:last]
        source = self._rows(num_steps - 1, int(above[0]), int(below[-1]) + 1)
        source = _resize_columns(source[:, :, : crop[1]], size[1])
        return _mix(source[:, above - above[0]], source[:, below - above[0]], weight[:, None])


def semantic(logits: Floats, masks: ResizedMasks) -> NDArray[np.int64]:
    """The class of each pixel [H, W], by the sum over queries of class probability times mask probability.

    Args:
        logits: [Q, K + 1], the last class being "no object".
        masks: logits.
    """
    result = np.empty(masks.size, dtype=np.int64)
    for rows, scores in _semantic_scores(logits, masks):
        result[rows] = scores.argmax(axis=0)
    return result


def semantic_resized_last(logits: Floats, masks: Floats, padded_size: Size, image_size: Size, result_size: Size) -> Any:
    """As `semantic`, where scores are resized instead of masks (SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE off).

    `logits` are [Q, K + 1], `masks` [Q, h, w]; for the sizes see `ResizedMasks`.
    """
    scores = np.empty((logits.shape[-1] - 1, *padded_size), dtype=np.float32)
    for rows, strip in _semantic_scores(logits, ResizedMasks(masks, padded_size, padded_size, padded_size)):
        scores[:, rows] = strip
    resized = ResizedMasks(scores, padded_size, image_size, result_size)
    return np.concatenate([strip.argmax(axis=0) for _, strip in resized.strips()])


def panoptic(
    logits: Floats,
    masks: ResizedMasks,
    thing_ids: Collection[int],
    object_mask_threshold: float,
    overlap_threshold: float,
) -> tuple[NDArray[np.int32], list[dict[str, Any]]]:
    """Segment ids [H, W] (0: none), and `id`, `isthing`, `category_id` and `score` of each segment.

    Args:
        logits: [Q, K + 1], the last class being "no object".
        masks: logits.
        thing_ids: classes whose segments stay apart; segments of another class merge.
        object_mask_threshold: queries with a lower class probability don't count.
        overlap_threshold: lowest share of a query's mask that it has to win against other queries.
    """
    probabilities = _softmax(logits)
    scores, classes = probabilities.max(axis=1), probabilities.argmax(axis=1)
    kept = np.flatnonzero((classes != logits.shape[1] - 1) & (scores > object_mask_threshold))
    best = np.full(masks.size, -1, dtype=np.float32)
    winner = np.full(masks.size, -1, dtype=np.int64)
    inside = np.zeros(masks.size, dtype=bool)
    areas = []
    for number, query in enumerate(kept):
        probability = _sigmoid(masks.whole(query))
        held = probability >= 0.5
        areas.append(np.count_nonzero(held))
        weighted = scores[query] * probability
        better = weighted > best
        np.copyto(best, weighted, where=better)
        np.copyto(inside, held, where=better)
        winner[better] = number
    ids = np.zeros(masks.size, dtype=np.int32)
    segments: list[dict[str, Any]] = []
    stuff: dict[int, dict[str, Any]] = {}
    for number, query in enumerate(kept):
        won = winner == number
        painted = won & inside
        share = np.float32(np.count_nonzero(won)) / np.float32(max(areas[number], 1))
        if not painted.any() or share < np.float32(overlap_threshold):
            continue
        category, score = int(classes[query]), float(scores[query])
        segment = stuff.get(category)
        if segment is None:
            is_thing = category in thing_ids
            segment = {"id": len(segments) + 1, "isthing": is_thing, "category_id": category, "score": score}
            segments.append(segment)
            if not is_thing:
                stuff[category] = segment
        segment["score"] = max(segment["score"], score)
        ids[painted] = segment["id"]
    return ids, segments


def instances(
    logits: Floats, masks: ResizedMasks, detections: int, classes: Collection[int] | None = None
) -> tuple[NDArray[np.bool_], NDArray[np.int64], Floats]:
    """The best pairs of query and class as instances, the best first: masks [N, H, W], classes [N] and scores [N].

    Args:
        logits: [Q, K + 1], the last class being "no object".
        masks: logits.
        detections: how many of all Q * K pairs are looked at.
        classes: those kept of them; None keeps all.
    """
    num_classes = logits.shape[1] - 1
    pairs = _softmax(logits)[:, :-1].ravel()
    index = np.argsort(-pairs, kind="stable")[:detections]
    if classes is not None:
        index = index[np.isin(index % num_classes, list(classes))]
    queries, scores = index // num_classes, pairs[index]
    found = np.zeros((len(index), *masks.size), dtype=bool)
    for query in np.unique(queries):
        mask = masks.whole(query)
        held = mask > 0
        inside = (_sigmoid(mask) * held).sum() / (np.float32(np.count_nonzero(held)) + np.float32(1e-6))
        users = queries == query
        found[users] = held
        scores[users] *= inside
    order = np.argsort(-scores, kind="stable")
    return found[order], (index % num_classes)[order], scores[order]


def _semantic_scores(logits: Floats, masks: ResizedMasks) -> Iterator[tuple[slice, Floats]]:
    """Scores of all classes, a strip of rows at a time: which rows, and the scores [K, rows, W]."""
    probabilities = _softmax(logits)[:, :-1].T
    for rows, strip in masks.strips():
        yield rows, (probabilities @ _sigmoid(strip).reshape(len(masks), -1)).reshape(-1, *strip.shape[1:])


def _softmax(logits: Floats) -> Floats:
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def _sigmoid(logits: Floats) -> Floats:
    # float32 has no larger exponential.
    return 1 / (1 + np.exp(np.minimum(-logits, np.float32(88))))


def _resize(maps: Floats, crop: Sequence[int], size: Size) -> Floats:
    """Cut maps [N, h, w] to `crop` and resize them bilinearly, as PyTorch does with align_corners=False."""
    maps = maps[:, : crop[0], : crop[1]]
    if maps.shape[1:] == size:
        return maps
    above, below, weight = _taps(crop[0], size[0])
    columns = _resize_columns(maps, size[1])
    return _mix(columns[:, above], columns[:, below], weight[:, None])


def _resize_columns(maps: Floats, width: int) -> Floats:
    left, right, weight = _taps(maps.shape[2], width)
    return _mix(maps[:, :, left], maps[:, :, right], weight)


def _taps(source: int, result: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    """For each position of the result, the two of the source that it lies between, and the weight of the second."""
    scale = np.float32(source) / np.float32(result)
    position = np.maximum((np.arange(result, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5), 0)
    first = np.minimum(position.astype(np.int64), source - 1)
    return first, np.minimum(first + 1, source - 1), position - first.astype(np.float32)


def _mix(first: Floats, second: Floats, weight: Floats) -> Floats:
    return first * (1 - weight) + second * weight
