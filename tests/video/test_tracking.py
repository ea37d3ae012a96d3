from dataclasses import replace

import numpy as np
import pytest

from mask2former.prediction.results import InstancePrediction, SemanticPrediction
from mask2former.video import Tracker

from .conftest import CLASSES, SIZE, ByNumber, frame, masks_of_frame


def owners(prediction, number):
    """Track number of each object of `OBJECTS` that a prediction of this frame has."""
    masks = masks_of_frame(number)
    found = {}
    for entry, mask in prediction.entries_and_masks():
        overlaps = [(mask & m).sum() / m.sum() for m in masks]
        found[int(np.argmax(overlaps))] = entry["track_id"]
    return found


@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_objects_keep_their_numbers_whatever_order_they_come_in(task):
    predictor, tracker = ByNumber(task), Tracker()
    seen = [owners(tracker.update(predictor.result(n, frame(n))), n) for n in range(20)]
    assert all(numbers == seen[0] for numbers in seen)
    assert sorted(seen[0].values()) == [1, 2, 3]


def without(prediction, number, index):
    """Instances without an object of `OBJECTS`."""
    mask = masks_of_frame(number)[index]
    kept = (prediction.masks & mask).sum((1, 2)) < mask.sum() / 2
    masks, categories, scores = prediction.masks[kept], prediction.category_ids[kept], prediction.scores[kept]
    return replace(prediction, masks=masks, category_ids=categories, scores=scores)


def test_an_object_that_is_missing_for_a_while_moves_on_and_keeps_its_number():
    predictor, tracker = ByNumber("instance"), Tracker(max_missed=8)
    before = owners(tracker.update(predictor.result(0, frame(0))), 0)
    for n in range(1, 15):
        result = predictor.result(n, frame(n))
        # Away for 8 frames, in which it moves by its own diameter: only where it should be tells that it is the same.
        now = owners(tracker.update(without(result, n, 0) if 5 <= n < 13 else result), n)
        assert now.items() <= before.items()
        assert (0 in now) == (not 5 <= n < 13)


def test_an_object_that_is_missing_for_longer_is_a_new_one():
    predictor, tracker = ByNumber("instance"), Tracker(max_missed=1)
    for n in range(6):
        result = predictor.result(n, frame(n))
        now = owners(tracker.update(without(result, n, 0) if 2 <= n < 4 else result), n)
    assert now[0] == 4 and now[1] in (1, 2, 3)


def flipped(prediction, number, index):
    """Instances of which an object of `OBJECTS` has another class."""
    mask = masks_of_frame(number)[index]
    it = (prediction.masks & mask).sum((1, 2)) > mask.sum() / 2
    return replace(prediction, category_ids=np.where(it, 1 - prediction.category_ids, prediction.category_ids))


@pytest.mark.parametrize("flips", [{5}, {5, 6}, {5, 7, 9}, {4, 5, 6, 7, 8, 9}, set(range(5, 15))])
@pytest.mark.parametrize("hidden", [set(), {5}, {6}, {4, 5}])
def test_an_object_whose_class_flips_keeps_its_number(flips, hidden):
    predictor, tracker = ByNumber("instance"), Tracker()
    first = owners(tracker.update(predictor.result(0, frame(0))), 0)
    for n in range(1, 15):
        result = predictor.result(n, frame(n))
        result = flipped(result, n, 0) if n in flips else result
        result = without(result, n, 0) if n in hidden else result
        now = owners(tracker.update(result), n)
        assert now == {index: number for index, number in first.items() if index != 0 or n not in hidden}


def test_the_class_of_panoptic_segments_flips_and_stuff_has_no_number():
    predictor, tracker = ByNumber("panoptic"), Tracker()
    result = predictor.result(0, frame(0))
    first = [entry["track_id"] for entry in tracker.update(result).segments()]
    infos = [info | {"category_id": 1 - info["category_id"]} for info in result.segments_info]
    second = [entry["track_id"] for entry in tracker.update(replace(result, segments_info=infos)).segments()]
    assert first == second
    stuff = [info | {"isthing": False} for info in result.segments_info]
    assert not any("track_id" in entry for entry in tracker.update(replace(result, segments_info=stuff)).segments())


def numbers_at(tracker, *categories):
    """Track numbers of instances of these classes, whose masks are equal."""
    count = len(categories)
    masks = np.zeros((count, *SIZE), bool)
    masks[:, 40:90, 60:140] = True
    prediction = InstancePrediction(
        classes=CLASSES,
        image=frame(0),
        masks=masks,
        category_ids=np.array(categories, int),
        scores=np.full(count, 0.9, np.float32),
    )
    return tracker.update(prediction).track_ids.tolist()


def test_two_classes_at_one_place_are_two_objects():
    tracker = Tracker()
    assert numbers_at(tracker, 0, 1) == [1, 2]
    assert numbers_at(tracker, 1, 0) == [2, 1], "each keeps the number of its class"
    assert numbers_at(tracker, 1) == [2]
    assert numbers_at(tracker, 0, 1) == [1, 2]
    assert sorted(numbers_at(tracker, 1, 1)) == [1, 2], "the first is taken for the second class in one frame"
    assert numbers_at(tracker, 0, 1) == [1, 2]


def test_a_second_class_that_comes_to_one_place_is_a_second_object():
    tracker = Tracker()
    for _ in range(3):
        assert numbers_at(tracker, 0) == [1]
    assert numbers_at(tracker, 1, 0) == [2, 1]
    assert numbers_at(tracker, 1) == [2]


def test_another_class_at_a_place_that_was_empty_is_another_object():
    tracker = Tracker()
    assert numbers_at(tracker, 0) == [1]
    for _ in range(4):
        numbers_at(tracker)
    assert numbers_at(tracker, 1) == [2]


def test_frames_without_objects_and_semantic_results():
    tracker = Tracker()
    empty = ByNumber("instance").result(0, frame(0)).filter(classes=[])
    assert tracker.update(empty).segments() == []
    semantic = SemanticPrediction(classes=CLASSES, image=frame(0), labels=np.zeros(SIZE, np.int32))
    assert tracker.update(semantic) is semantic


def test_the_best_sum_of_overlaps_wins_not_the_first_match():
    """Two objects side by side move by less than half their width: each overlaps both of the frame before."""
    tracker = Tracker(min_iou=0.05)
    prediction = ByNumber("instance").result(0, frame(0))

    def row(*starts):
        masks = np.zeros((len(starts), *SIZE), bool)
        for mask, start in zip(masks, starts, strict=True):
            mask[40:60, start : start + 20] = True
        return replace(prediction, masks=masks, category_ids=np.zeros(2, int), scores=np.full(2, 0.9, np.float32))

    assert tracker.update(row(20, 40)).track_ids.tolist() == [1, 2]
    assert tracker.update(row(49, 29)).track_ids.tolist() == [2, 1]
