import cv2
import numpy as np
import pytest

from mask2former.data.classes import ClassTable
from mask2former.prediction.results import InstancePrediction, PanopticPrediction
from mask2former.video import write_video

CLASSES = ClassTable(names=("ball", "box"), colors=((220, 60, 50), (60, 110, 230)), thing_ids=frozenset({0, 1}))
SIZE = (192, 320)
# Of each object: class, where it is in frame 0, and how it moves.
OBJECTS = ((0, (50, 50), (0, 7)), (0, (140, 270), (0, -7)), (1, (95, 70), (0, 5)))
RADIUS = 28


def masks_of_frame(number):
    """Masks [3, H, W] of the objects, the later in front."""
    masks = np.zeros((len(OBJECTS), *SIZE), np.uint8)
    for mask, (_, (y, x), (down, right)) in zip(masks, OBJECTS, strict=True):
        cv2.circle(mask, (x + number * right, y + number * down), RADIUS, 1, -1)
    return masks.astype(bool)


def frame(number):
    """The frame as a picture: its number as a shade of grey, which a codec leaves nearly as it is."""
    return np.full((*SIZE, 3), 4 * number, np.uint8)


class ByNumber:
    """Stands for a predictor: knows which frame it sees by its shade, and lists its objects in an order of its own."""

    def __init__(self, task="panoptic", failing=()):
        self.task = task
        self.failing = failing
        self.seen = []
        self.weights = "w"

    def classes(self, task=None):
        return CLASSES

    def fingerprint(self):
        return {"weights": self.weights, "task": self.task}

    def __call__(self, images, batch_size=None):
        numbers = [round(image.mean() / 4) for image in images]
        if set(numbers) & set(self.failing):
            raise RuntimeError(f"frame {numbers} fails")
        self.seen += [numbers]
        return [self.result(number, image) for number, image in zip(numbers, images, strict=True)]

    def result(self, number, image):
        order = np.random.default_rng(number).permutation(len(OBJECTS))
        masks = masks_of_frame(number)[order]
        categories = [OBJECTS[i][0] for i in order]
        if self.task == "instance":
            scores = np.linspace(0.9, 0.7, len(order), dtype=np.float32)
            return InstancePrediction(
                classes=CLASSES, image=image, masks=masks, category_ids=np.array(categories), scores=scores
            )
        ids = np.zeros(SIZE, np.int32)
        for segment_id, mask in enumerate(masks, start=1):
            ids[mask] = segment_id
        infos = [{"id": i, "category_id": c, "isthing": True, "score": 0.9} for i, c in enumerate(categories, start=1)]
        return PanopticPrediction(classes=CLASSES, image=image, ids=ids, segments_info=infos)


class Capture:
    """Stands for `cv2.VideoCapture`: 20 frames, of which some cannot be decoded or have another size."""

    def __init__(self, failing=(), count=20, rate=25.0, shapes=None):
        self.position, self.failing, self.count, self.rate, self.shapes = -1, failing, count, rate, shapes or {}

    def isOpened(self):
        return True

    def read(self):
        self.position += 1
        if self.position >= 20 or self.position in self.failing:
            return False, None
        return True, np.full((*self.shapes.get(self.position, SIZE), 3), 4 * self.position, np.uint8)

    def get(self, key):
        return {cv2.CAP_PROP_FPS: self.rate, cv2.CAP_PROP_FRAME_COUNT: self.count}[key]

    def release(self):
        pass


def write_frames(path, count=20, rate=25.0, codec=None):
    codec = codec or {".avi": "MJPG", ".mp4": "mp4v", ".mkv": "FFV1"}[path.suffix]
    with write_video(path, codec, rate, SIZE) as write:
        for number in range(count):
            write(frame(number))
    return path


@pytest.fixture
def video(tmp_path):
    """20 frames without loss."""
    return write_frames(tmp_path / "in" / "clip.mkv")
