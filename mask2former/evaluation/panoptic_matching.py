"""Segments of a panoptic prediction matched with those of the ground truth, as the COCO panoptic API does it."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

from mask2former.evaluation.label_files import Ids, common_runs

VOID = 0
# Ids are below it.
END_OF_IDS = 1 << 24

Pairs = Mapping[tuple[int, int], int]


def count_segment_pairs(truth: Ids, predicted: Ids) -> dict[tuple[int, int], int]:
    """Count the pixels of each pair (id in the ground truth, predicted id) that occurs.

    Args:
        truth: ids [H, W], 0 to 2^24 - 1.
        predicted: the same.

    Raises:
        ValueError: predicted ids that a picture in COCO's format can't hold.
    """
    of_truth, of_predicted, lengths = common_runs(truth, predicted)
    if of_predicted.min(initial=0) < 0 or of_predicted.max(initial=0) >= END_OF_IDS:
        raise ValueError(
            f"segment ids from {of_predicted.min()} to {of_predicted.max()}; expected 0 to {END_OF_IDS - 1}"
        )
    of_runs = of_truth.astype(np.int64) * END_OF_IDS + of_predicted
    pairs = np.unique(of_runs)
    pixels = np.bincount(np.searchsorted(pairs, of_runs), lengths).astype(np.int64)
    ids = zip(*(values.tolist() for values in np.divmod(pairs, END_OF_IDS)), strict=True)
    return dict(zip(ids, pixels.tolist(), strict=True))


def match_segments(
    pairs: Pairs, truth: Mapping[int, Mapping[str, Any]], predicted: Mapping[int, int]
) -> dict[int, tuple[float, int, int, int]]:
    """Match the segments of an image: of one category, and with an IoU above 1/2, which at most one other has.

    Void does not count in an IoU. Predictions that are more than half void or crowd of their category are not wrong.

    Args:
        pairs: pixels of each pair (id in the ground truth, predicted id), 0 is void.
        truth: `category_id`, `area` and `iscrowd` of each id.
        predicted: the category of each id.

    Returns:
        Category -> (sum of IoU, matches, wrong, missed), without those that have nothing of it.

    Raises:
        ValueError: predicted ids that have no category, or categories of ids that have no pixel; areas that can't be.
        KeyError: what is known of a segment of the ground truth lacks an entry.
    """
    areas: Counter[int] = Counter()
    for (_, p), pixels in pairs.items():
        areas[p] += pixels
    _require_same(set(areas), set(predicted))

    found: defaultdict[int, list[Any]] = defaultdict(lambda: [0.0, 0, 0, 0])
    matched_truth, matched = set(), set()
    for (t, p), pixels in pairs.items():
        if t not in truth or p not in predicted:
            continue
        segment = truth[t]
        if segment["iscrowd"] or segment["category_id"] != predicted[p]:
            continue
        union = areas[p] + segment["area"] - pixels - pairs.get((VOID, p), 0)
        if union <= 0:
            raise ValueError(f"segment {t} of the ground truth has more pixels than its area says, {segment['area']}")
        if 2 * pixels > union:
            found[predicted[p]][0] += pixels / union
            found[predicted[p]][1] += 1
            matched_truth.add(t)
            matched.add(p)
    crowds = {}
    for t, segment in truth.items():
        if t not in matched_truth:
            if segment["iscrowd"]:
                # Of several crowds of one category the last counts, as in the API.
                crowds[segment["category_id"]] = t
            else:
                found[segment["category_id"]][3] += 1
    for p, category in predicted.items():
        if p not in matched:
            ignored = pairs.get((VOID, p), 0) + (pairs.get((crowds[category], p), 0) if category in crowds else 0)
            if 2 * ignored <= areas[p]:
                found[category][2] += 1
    return {category: (iou, matches, wrong, missed) for category, (iou, matches, wrong, missed) in found.items()}


def _require_same(in_picture: set[int], listed: set[int]) -> None:
    unknown, empty = in_picture - listed - {VOID}, listed - in_picture
    if unknown:
        raise ValueError(f"segments {sorted(unknown)} have pixels, but are not in segments_info")
    if empty:
        raise ValueError(f"segments {sorted(empty)} of segments_info have no pixel")
