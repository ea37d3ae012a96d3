"""Segments matched as by the official API, which reads pictures of them."""

import contextlib
import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from mask2former.evaluation.label_files import read_panoptic_ids
from mask2former.evaluation.panoptic_matching import count_segment_pairs, match_segments

CATEGORIES = {3: {"isthing": 1}, 7: {"isthing": 1}, 11: {"isthing": 0}, 20: {"isthing": 0}}
IDS = np.array([0, 1, 5, 255, 256, 300, 65535, 65536, 70000, 2**24 - 1])


def draw(rng):
    """Ids [H, W] of cells, about a fifth void, and the category of each id."""
    size = rng.integers(1, 9, 2)
    names = np.where(rng.random(len(IDS)) < 0.2, 0, IDS)
    ids = names[rng.integers(0, len(names), size)].repeat(3, axis=0).repeat(4, axis=1)
    return ids, {int(i): int(rng.choice(list(CATEGORIES))) for i in np.unique(ids) if i}


def perturb(rng, ids, categories):
    """What a model would say: moved, holes, one segment divided or joined with another, some categories changed."""
    found = np.roll(ids, rng.integers(-1, 2, 2), axis=(0, 1))
    found = np.where(rng.random(found.shape) < rng.choice([0, 0.1, 0.4]), rng.choice(IDS), found)
    if rng.random() < 0.1:
        found = np.zeros_like(found)
    changed = {int(i): categories.get(int(i), 3) for i in np.unique(found) if i}
    return found, {i: int(rng.choice(list(CATEGORIES))) if rng.random() < 0.2 else c for i, c in changed.items()}


def segments_of(rng, ids, categories):
    """With crowds; some segments of the picture are not listed."""
    return [
        {"id": i, "category_id": c, "area": int((ids == i).sum()), "iscrowd": int(rng.random() < 0.25)}
        for i, c in categories.items()
        if rng.random() < 0.95
    ]


def save(path, ids):
    channels = [ids % 256, ids // 256 % 256, ids // 65536]
    Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8)).save(path)


def official(evaluation, folder, truth, segments, predicted, categories):
    save(folder / "truth.png", truth)
    save(folder / "predicted.png", predicted)
    infos = [{"id": i, "category_id": c} for i, c in categories.items()]
    pair = (
        {"image_id": 1, "file_name": "truth.png", "segments_info": segments},
        {"image_id": 1, "file_name": "predicted.png", "segments_info": infos},
    )
    with contextlib.redirect_stdout(io.StringIO()):
        stat = evaluation.pq_compute_single_core(0, [pair], str(folder), str(folder), CATEGORIES)
    return {category: (found.iou, found.tp, found.fp, found.fn) for category, found in stat.pq_per_cat.items()}


def ours(folder, segments, predicted, categories):
    truth = read_panoptic_ids(folder / "truth.png", predicted.shape)
    pairs = count_segment_pairs(truth, predicted.astype(np.int32))
    return match_segments(pairs, {segment["id"]: segment for segment in segments}, categories)


def test_matches_are_panopticapis(tmp_path):
    evaluation = pytest.importorskip("panopticapi.evaluation")
    rng = np.random.default_rng(0)
    seen = Counter()
    for _ in range(200):
        truth, truth_categories = draw(rng)
        segments = segments_of(rng, truth, truth_categories)
        predicted, categories = perturb(rng, truth, truth_categories)
        expected = official(evaluation, tmp_path, truth, segments, predicted, categories)
        found = ours(tmp_path, segments, predicted, categories)
        assert found.keys() == expected.keys()
        for category, (iou, *counts) in expected.items():
            assert found[category] == (pytest.approx(iou, abs=1e-12), *counts)
            seen.update(dict(zip(("matched", "wrong", "missed"), counts, strict=True)))
        seen["ignored"] += len(categories) - sum(matched + wrong for _, matched, wrong, _ in expected.values())
        seen["nothing predicted"] += not categories
    assert min(seen[kind] for kind in ("matched", "wrong", "missed", "ignored", "nothing predicted")) >= 10


def test_ids_that_are_not_listed_have_no_pixel_or_do_not_fit_are_errors(tmp_path):
    truth = np.ones((4, 6), np.int64)
    segments = {1: {"id": 1, "category_id": 3, "area": 24, "iscrowd": 0}}
    predicted = np.array([[2, 5], [2, 0]]).repeat(2, axis=0).repeat(3, axis=1)
    pairs = count_segment_pairs(truth, predicted)
    assert pairs == {(1, 0): 6, (1, 2): 12, (1, 5): 6}
    with pytest.raises(ValueError, match=r"segments \[2\] have pixels, but are not in segments_info"):
        match_segments(pairs, segments, {5: 3})
    with pytest.raises(ValueError, match=r"segments \[4\] of segments_info have no pixel"):
        match_segments(pairs, segments, {2: 3, 4: 7, 5: 3})
    with pytest.raises(ValueError, match=r"segment 1 of the ground truth has more pixels than its area says, 0"):
        match_segments({(1, 2): 12, (0, 2): 6}, {1: {**segments[1], "area": 0}}, {2: 3})
    for wrong in (-1, 2**24):
        predicted[0, 0] = wrong
        with pytest.raises(ValueError, match=rf"segment ids from .*{wrong}.*; expected 0 to 16777215"):
            count_segment_pairs(truth, predicted)
