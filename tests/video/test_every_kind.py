"""Videos and cameras with a model of every kind."""

import json

import cv2
import numpy as np
import pytest

from examples.moving_shapes import moving_shapes
from mask2former import Predictor
from mask2former.prediction import InstancePrediction
from mask2former.tasks import ARCHITECTURES
from mask2former.video import Tracker, VideoReader, predict_video, run_camera, write_video
from tests.kinds import KINDS

FRAMES, SIZE = 5, 96


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def predictor(kind, weights_of):
    lowest = 0.0 if kind.task in ("panoptic", "instance") else None
    return Predictor.from_config(kind.config, opts=weights_of(kind.name), confidence_threshold=lowest)


@pytest.fixture
def video(tmp_path):
    with write_video(tmp_path / "clip.mkv", "FFV1", 10.0, (SIZE, SIZE)) as write:
        for picture in moving_shapes(FRAMES, SIZE):
            write(picture)
    return tmp_path / "clip.mkv"


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_an_interrupted_video_ends_as_if_it_had_not_been(predictor, kind, video, tmp_path, monkeypatch):
    """Boxes, masks, numbers and classes of the frames before come back from the disk."""
    whole = predict_video(predictor, video, tmp_path / "whole", codec="FFV1", with_json=True)
    update, seen = Tracker.update, []

    def stop(tracker, prediction):
        seen.append(prediction)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return update(tracker, prediction)

    with monkeypatch.context() as patch:
        patch.setattr(Tracker, "update", stop)
        with pytest.raises(KeyboardInterrupt):
            predict_video(predictor, video, tmp_path / "parts", codec="FFV1", with_json=True)
    assert not list(tmp_path.glob("parts*")), "only whole files have their names"
    parts = predict_video(predictor, video, tmp_path / "parts", codec="FFV1", with_json=True)
    assert (whole.frames, parts.frames, parts.kept, parts.failed) == (FRAMES, FRAMES, 4, [])
    assert lines(tmp_path / "parts.jsonl") == lines(tmp_path / "whole.jsonl")
    pictures = zip(VideoReader(parts.output), VideoReader(whole.output), strict=True)
    assert all(np.array_equal(*pair) for pair in pictures)
    if ARCHITECTURES[kind.architecture].boxes:
        boxes = [entry["bbox"] for line in lines(tmp_path / "whole.jsonl") for entry in line["segments_info"]]
        assert boxes and all(isinstance(side, float) for box in boxes for side in box)


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS.values() if kind.task == "instance"], ids=lambda kind: kind.name
)
def test_an_object_of_a_detector_keeps_its_number_and_box(predictor):
    """All that is found moves."""
    tracker, image = Tracker(), next(iter(moving_shapes(1, SIZE)))
    found = predictor(image)
    wide = np.flatnonzero(found.boxes[:, 2:].min(axis=1) > 8)
    visible = found.filter(classes=found.category_ids[wide].tolist())
    # The masks of a random model are too ragged to overlap when they move.
    solid = np.zeros_like(visible.masks)
    for mask, (x, y, width, height) in zip(solid, visible.boxes.round().astype(int), strict=True):
        mask[y : y + height, x : x + width] = True
    assert len(visible.scores) > 1
    numbers = []
    for step in range(3):
        moved = InstancePrediction(
            classes=visible.classes,
            image=image,
            masks=np.roll(solid, step, axis=2),
            category_ids=visible.category_ids,
            scores=visible.scores,
            predicted_boxes=visible.boxes + np.array([step, 0, 0, 0], np.float32),
        )
        tracked = tracker.update(moved)
        np.testing.assert_array_equal(tracked.boxes, moved.boxes)
        assert [entry["bbox"] for entry in tracked.segments()] == moved.boxes.tolist()
        numbers.append(sorted(tracked.track_ids.tolist()))
    assert numbers[0] == numbers[1] == numbers[2] == list(range(1, len(visible.scores) + 1))
    # A box without a mask has a number, too.
    empty = InstancePrediction(
        classes=found.classes, image=image, masks=np.zeros((1, SIZE, SIZE), bool), category_ids=found.category_ids[:1],
        scores=found.scores[:1], predicted_boxes=found.boxes[:1],
    )  # fmt: skip
    assert len(tracker.update(empty).track_ids) == 1


class Camera:
    """Three pictures, and a clock that ticks with each."""

    def __init__(self):
        self.pictures, self.time = list(moving_shapes(3, SIZE)), 0.0

    def __call__(self, number):
        return self

    def isOpened(self):
        return True

    def read(self):
        self.time += 0.1
        return (True, cv2.cvtColor(self.pictures.pop(), cv2.COLOR_RGB2BGR)) if self.pictures else (False, None)

    def get(self, key):
        return 10.0

    def set(self, key, value):
        return True

    def release(self):
        pass


def test_a_camera_is_recorded(predictor, tmp_path, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    source = Camera()
    done = run_camera(predictor, 0, tmp_path / "webcam", codec="FFV1", open_camera=source, clock=lambda: source.time)
    assert (done.frames, done.failed) == (3, 0)
    first = next(iter(VideoReader(done.output)))
    assert first.shape == (SIZE, SIZE, 3) and (first != list(moving_shapes(3, SIZE))[2]).any()
