"""Pre- and post-processing for an exported model in NumPy, for programs without PyTorch and Detectron2.

This file needs only NumPy (and Pillow to resize), and nothing of this project, so that it can be copied. The rules are
those of `mask2former.modeling.inference`, which names their sources.

    image [H, W, 3] -> `prepare` -> a Mask2Former -> `NumpyMasks` -> `panoptic`, `instances`, `semantic`
    image [H, W, 3] -> `prepare` -> a classifier of pixels -> `NumpyMasks` -> `pixel_classes`
    image [H, W, 3] -> `prepare_crop` -> an image classifier -> `top_classes`

Shapes:
    Q: queries; K: classes; h, w: height and width of the model's input or masks; H, W: those of the image and the
    result; N: instances; S: side of a crop
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]
# Height and width.
Size = tuple[int, int]

_VALUES_AT_ONCE = 2**22


class ImageSizes(NamedTuple):
    """Sizes that an image has on its way through the model.

    Attributes:
        padded: Height and width of the model's input.
        image: Height and width of the resized image in its upper left corner.
        result: Height and width of the image and of its results.
    """

    padded: Size
    image: Size
    result: Size


def prepare(image: Pixels, about: Mapping[str, Any], fixed_size: Size | None) -> tuple[Floats, ImageSizes]:
    """Turn an RGB image [H, W, 3] into the input [1, 3, h, w] of a segmentation model.

    Args:
        image: Image.
        about: Description in the file of the model.
        fixed_size: Height and width of the input if the model accepts only one size.

    Returns:
        The input, and the sizes on the way to the results.
    """
    # Files of earlier versions lack the last two keys.
    resize_with, smallest = about.get("resize_with", "pillow"), about.get("smallest_side", 1)
    limits = about["min_size"], about["max_size"], about["divisibility"]
    size = image.shape[0], image.shape[1]
    sizes = image_sizes(size, *limits, fixed_size, resize_with=resize_with, smallest=smallest)
    resized = _RESIZES[resize_with](image, sizes.image)
    return network_input(resized, sizes.padded, about["image_format"], about["pixel_mean"]), sizes


def prepare_crop(image: Pixels, about: Mapping[str, Any]) -> Floats:
    """Turn an RGB image [H, W, 3] into the input [1, 3, S, S] of an image classifier; `about` is as in `prepare`."""
    from PIL import Image  # the rest of this module needs only NumPy

    crop = crop_of((image.shape[0], image.shape[1]), about["shorter_side"], about["crop"])
    resized = np.asarray(Image.fromarray(image).resize(crop.resized[::-1], Image.Resampling.BICUBIC))
    pixels = resized[crop.rows, crop.columns]
    return network_input(pixels, (about["crop"], about["crop"]), about["image_format"], about["pixel_mean"])


def image_sizes(
    size: Size,
    min_size: int,
    max_size: int,
    divisibility: int,
    fixed_size: Size | None = None,
    *,
    resize_with: str = "pillow",
    smallest: int = 1,
) -> ImageSizes:
    """Choose the sizes that an image is resized and padded to.

    Args:
        size: Height and width of the image.
        min_size: Length that the shorter side is resized to.
        max_size: Limit for the longer side, which takes precedence.
        divisibility: Number that the sides of the input are multiples of.
        fixed_size: Height and width of the input if the model accepts only one size. The image is then made as large
            as fits, and the limits have no effect.
        resize_with: Library whose rule of rounding holds, "pillow" or "opencv".
        smallest: Shortest side of the input.
    """
    height, width = size
    if fixed_size is not None:
        scale = min(fixed_size[0] / height, fixed_size[1] / width)
        rows, columns = (max(1, min(limit, round(side * scale))) for side, limit in zip(size, fixed_size, strict=True))
        return ImageSizes(fixed_size, (rows, columns), size)
    if resize_with == "opencv":
        scale = min(max_size / max(size), min_size / min(size))
        sides = (scale * height, scale * width)
    else:
        # In the order in which Detectron2 rounds.
        scale = min_size / min(size)
        sides = (min_size, scale * width) if height < width else (scale * height, min_size)
        if max(sides) > max_size:
            scale = max_size / max(sides)
            sides = (sides[0] * scale, sides[1] * scale)
    rows, columns = (max(1, int(side + 0.5)) for side in sides)
    padded = tuple(-(-max(side, smallest) // divisibility) * divisibility for side in (rows, columns))
    return ImageSizes((padded[0], padded[1]), (rows, columns), size)


def resize_with_pillow(image: Pixels, size: Size) -> Pixels:
    """Resize an image [H, W, 3] bilinearly as Pillow does: smoothed if it becomes smaller."""
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))


def resize_with_opencv(image: Pixels, size: Size) -> Pixels:
    """Resize an image [H, W, 3] bilinearly without smoothing, to the values of OpenCV's INTER_LINEAR.

    OpenCV computes with weights of 11 bits, drops 4 bits between the two axes, and averages at exactly half the size.
    """
    height, width = size
    if image.shape[:2] == (2 * height, 2 * width):
        sums = image.reshape(height, 2, width, 2, -1).sum((1, 3), dtype=np.int32)
        return ((sums + 2) >> 2).astype(np.uint8)
    left, right, weights = _fixed_point(image.shape[1], width)
    inside = (left >= 0) & (right < image.shape[1])
    weights = np.where(inside, weights, [[_ONE], [0]])
    above, below, row_weights = _fixed_point(image.shape[0], height)
    left, right = np.clip([left, right], 0, image.shape[1] - 1)
    above, below = np.clip([above, below], 0, image.shape[0] - 1)
    columns = image[:, left] * weights[0, :, None] + image[:, right] * weights[1, :, None] >> 4
    upper, lower = (columns[y] * w[:, None, None] >> 16 for y, w in zip((above, below), row_weights, strict=True))
    return (upper + lower + 2 >> 2).astype(np.uint8)


# By the `resize_with` of a description.
_RESIZES = {"pillow": resize_with_pillow, "opencv": resize_with_opencv}
# The weight 1 of `resize_with_opencv`.
_ONE = 1 << 11


def _fixed_point(source: int, result: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
    """The two source positions around each position of the result, perhaps outside, and their weights [2, result]."""
    position = ((np.arange(result) + 0.5) * (1 / (result / source)) - 0.5).astype(np.float32)
    first = np.floor(position).astype(np.int64)
    share = position - first.astype(np.float32)
    weights = np.rint(np.stack([np.float32(1) - share, share]) * np.float32(_ONE)).astype(np.int32)
    return first, first + 1, weights


class Crop(NamedTuple):
    """Part of a resized image that an image classifier sees.

    Attributes:
        resized: Height and width of the resized image.
        rows: Rows of the crop.
        columns: Columns of the crop.
    """

    resized: Size
    rows: slice
    columns: slice


def crop_of(size: Size, shorter_side: int, crop: int) -> Crop:
    """Choose the size that an image is resized to, bicubically, and the square crop of its centre.

    Args:
        size: Height and width of the image.
        shorter_side: Length that the shorter side is resized to.
        crop: Side of the crop, at most `shorter_side`.
    """
    rows, columns = (shorter_side if side == min(size) else int(shorter_side * side / min(size)) for side in size)
    # In the order in which torchvision rounds.
    top, left = (round((side - crop) / 2.0) for side in (rows, columns))
    return Crop((rows, columns), slice(top, top + crop), slice(left, left + crop))


def top_classes(logits: Floats, count: int = 5) -> list[tuple[int, float]]:
    """Ids and probabilities of the most probable classes of an image, the best first.

    Args:
        logits: Class logits [K].
        count: Number of classes.
    """
    probabilities = _softmax(logits)
    order = np.argsort(-probabilities, kind="stable")[:count]
    return [(int(i), float(probabilities[i])) for i in order]


def network_input(pixels: Pixels, size: Size, image_format: str, pixel_mean: Sequence[float]) -> Floats:
    """Turn a resized RGB image [h, w, 3] into the input [1, 3, *size] of a model, 0..255.

    It is padded at the bottom and at the right with `pixel_mean`, which the model's normalisation turns into zero.
    """
    channels = pixels[:, :, ::-1] if image_format == "BGR" else pixels
    padded = np.empty((1, 3, *size), dtype=np.float32)
    padded[:] = np.asarray(pixel_mean, dtype=np.float32)[:, None, None]
    padded[0, :, : pixels.shape[0], : pixels.shape[1]] = channels.transpose(2, 0, 1)
    return padded


class NumpyMasks:
    """Maps [Q, h, w] of an input, resized to the result only one map or one strip of rows at a time.

    They are resized to the padded input, cropped to the image, and resized to the result, bilinearly as PyTorch does
    with align_corners=False.

    Attributes:
        maps: Maps as they were given.
        sizes: Sizes of the input, the image in it, and the result.
    """

    def __init__(self, maps: Floats, sizes: ImageSizes) -> None:
        self.maps = maps
        self.sizes = sizes
        self._steps = ((maps.shape[1:], sizes.padded), (sizes.image, sizes.result))

    def whole(self, query: int) -> Floats:
        """The resized map [H, W] of one query."""
        return self._rows(self.maps[query : query + 1], 2, 0, self.sizes.result[0])[0]

    def strips(self, values_at_once: int = _VALUES_AT_ONCE) -> Iterator[tuple[slice, Floats]]:
        """Yield the range of each strip of rows and the resized maps [Q, rows, W], about `values_at_once` numbers."""
        height, width = self.sizes.result
        rows = max(1, values_at_once // (len(self.maps) * max(width, self.sizes.padded[1])))
        for first in range(0, height, rows):
            last = min(first + rows, height)
            yield slice(first, last), self._rows(self.maps, 2, first, last)

    def _rows(self, maps: Floats, num_steps: int, first: int, last: int) -> Floats:
        """Rows `first` to `last` of maps after the first steps of resizing."""
        if num_steps == 0:
            return maps[:, first:last]
        crop, size = self._steps[num_steps - 1]
        if crop == size:
            return self._rows(maps, num_steps - 1, first, last)[:, :, : crop[1]]
        above, below, weight = _neighbours(crop[0], size[0])
        above, below, weight = above[first:last], below[first:last], weight[first:last]
        source = self._rows(maps, num_steps - 1, int(above[0]), int(below[-1]) + 1)
        left, right, column_weight = _neighbours(crop[1], size[1])
        source = _mix(source[:, :, left], source[:, :, right], column_weight)
        return _mix(source[:, above - above[0]], source[:, below - above[0]], weight[:, None])


def semantic(logits: Floats, masks: NumpyMasks, resize_masks_first: bool = True) -> NDArray[np.int64]:
    """The class of each pixel [H, W]: the highest sum over queries of class probability times mask probability.

    Args:
        logits: Class logits [Q, K + 1], the last class being "no object".
        masks: Mask logits.
        resize_masks_first: Whether masks are resized to the result. Otherwise the sums are made at the size of the
            padded input and then resized (SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE False).
    """
    if resize_masks_first:
        return np.concatenate([scores.argmax(axis=0) for _, scores in _class_scores(logits, masks)])
    padded = masks.sizes.padded
    scores = np.empty((logits.shape[1] - 1, *padded), dtype=np.float32)
    for rows, strip in _class_scores(logits, NumpyMasks(masks.maps, ImageSizes(padded, padded, padded))):
        scores[:, rows] = strip
    return pixel_classes(NumpyMasks(scores, masks.sizes))


def pixel_classes(logits: NumpyMasks) -> NDArray[np.int64]:
    """The class of each pixel [H, W] from class logits of pixels [K, h, w], which stand in for the masks."""
    return np.concatenate([strip.argmax(axis=0) for _, strip in logits.strips()])


def panoptic(
    logits: Floats,
    masks: NumpyMasks,
    thing_ids: Collection[int],
    object_mask_threshold: float,
    overlap_threshold: float,
) -> tuple[NDArray[np.int32], list[dict[str, Any]]]:
    """Segment ids [H, W] (0: no segment), and `id`, `isthing`, `category_id` and `score` of each segment.

    Args:
        logits: Class logits [Q, K + 1], the last class being "no object".
        masks: Mask logits.
        thing_ids: Classes whose segments stay separate; segments of each other class are merged.
        object_mask_threshold: Class probability above which a query takes part.
        overlap_threshold: Smallest share of a query's mask that it must win against other queries to be kept.
    """
    probabilities = _softmax(logits)
    scores, classes = probabilities.max(axis=1), probabilities.argmax(axis=1)
    kept = np.flatnonzero((classes != logits.shape[1] - 1) & (scores > object_mask_threshold))
    best = np.full(masks.sizes.result, -1, dtype=np.float32)
    winner = np.full(masks.sizes.result, -1, dtype=np.int64)
    inside = np.zeros(masks.sizes.result, dtype=bool)
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
    ids = np.zeros(masks.sizes.result, dtype=np.int32)
    segments: dict[Any, dict[str, Any]] = {}
    for number, query in enumerate(kept):
        won = winner == number
        painted = won & inside
        share = np.float32(np.count_nonzero(won)) / np.float32(max(areas[number], 1))
        if not painted.any() or share < np.float32(overlap_threshold):
            continue
        category, score = int(classes[query]), float(scores[query])
        is_thing = category in thing_ids
        new = {"id": len(segments) + 1, "isthing": is_thing, "category_id": category, "score": score}
        segment = segments.setdefault((category, number if is_thing else None), new)
        segment["score"] = max(segment["score"], score)
        ids[painted] = segment["id"]
    return ids, list(segments.values())


def instances(
    logits: Floats, masks: NumpyMasks, detections: int, classes: Collection[int] | None = None
) -> tuple[NDArray[np.bool_], NDArray[np.int64], Floats]:
    """The best pairs of query and class as instances: masks [N, H, W], classes [N] and scores [N], best first.

    Args:
        logits: Class logits [Q, K + 1], the last class being "no object".
        masks: Mask logits.
        detections: Number of the best of all Q * K pairs that are considered.
        classes: Classes that are kept of these; None keeps all.
    """
    num_classes = logits.shape[1] - 1
    pairs = _softmax(logits)[:, :-1].ravel()
    index = np.argsort(-pairs, kind="stable")[:detections]
    if classes is not None:
        index = index[np.isin(index % num_classes, list(classes))]
    queries, scores = index // num_classes, pairs[index]
    found = np.zeros((len(index), *masks.sizes.result), dtype=bool)
    for query in np.unique(queries):
        mask = masks.whole(query)
        held = mask > 0
        quality = (_sigmoid(mask) * held).sum() / (np.float32(np.count_nonzero(held)) + np.float32(1e-6))
        users = queries == query
        found[users] = held
        scores[users] *= quality
    order = np.argsort(-scores, kind="stable")
    return found[order], (index % num_classes)[order], scores[order]


def _class_scores(logits: Floats, masks: NumpyMasks) -> Iterator[tuple[slice, Floats]]:
    """Yield the range of each strip of rows and its scores [K, rows, W]."""
    probabilities = _softmax(logits)[:, :-1].T
    for rows, strip in masks.strips():
        yield rows, (probabilities @ _sigmoid(strip).reshape(len(strip), -1)).reshape(-1, *strip.shape[1:])


def _softmax(logits: Floats) -> Floats:
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def _sigmoid(logits: Floats) -> Floats:
    # float32 can't hold larger exponentials.
    return 1 / (1 + np.exp(np.minimum(-logits, np.float32(88))))


def _neighbours(source: int, result: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    """The two source positions around each position of the result, and the weight of the second."""
    scale = np.float32(source) / np.float32(result)
    position = np.maximum((np.arange(result, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5), 0)
    first = np.minimum(position.astype(np.int64), source - 1)
    return first, np.minimum(first + 1, source - 1), position - first.astype(np.float32)


def _mix(first: Floats, second: Floats, weight: Floats) -> Floats:
    return first * (1 - weight) + second * weight
