import struct

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

    def __init__(self, failing=(), count=20, rate=25.0, shapes=None, times=None):
        self.position, self.failing, self.count, self.rate, self.shapes = -1, failing, count, rate, shapes or {}
        self.times = np.zeros(20) if times is None else times

    def isOpened(self):
        return True

    def grab(self):
        self.position += 1
        return self.position < 20 and self.position not in self.failing

    def retrieve(self):
        return True, np.full((*self.shapes.get(self.position, SIZE), 3), 4 * self.position, np.uint8)

    def get(self, key):
        time = 1000 * self.times[min(self.position, 19)]
        known = {cv2.CAP_PROP_FPS: self.rate, cv2.CAP_PROP_FRAME_COUNT: self.count, cv2.CAP_PROP_POS_MSEC: time}
        return known.get(key, 0.0)

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


def _insert_box(content, path, box, *, replace=False):
    """The content of an MP4 with a box behind (or instead of) the fixed part of the box at `path`."""
    places, start = [], 0
    for name in path:
        start = content.index(name, start)
        places.append(start - 4)
    data = bytearray(content)
    (size,) = struct.unpack_from(">I", data, places[-1])
    end = places[-1] + size
    added = len(box) - size if replace else len(box)
    data[places[-1] if replace else end : end] = box
    for place in places[:-1] if replace else places:
        (size,) = struct.unpack_from(">I", data, place)
        struct.pack_into(">I", data, place, size + added)
    return bytes(data)


def write_varying(path, shades, milliseconds, *, pixel_aspect=None):
    """Write an MP4 of a variable rate: the shade of each frame, and how long it is shown. OpenCV itself can't."""
    with write_video(path, "mp4v", 1000.0, SIZE) as write:
        for shade in shades:
            write(np.full((*SIZE, 3), shade, np.uint8))
    content = bytearray(path.read_bytes().replace(b"edts", b"free"))  # the edit list repeats the old duration
    header = content.index(b"mdhd")
    (scale,) = struct.unpack_from(">I", content, header + 16)  # units of time per second
    struct.pack_into(">I", content, header + 20, sum(milliseconds) * scale // 1000)
    entries = b"".join(struct.pack(">II", 1, duration * scale // 1000) for duration in milliseconds)
    table = struct.pack(">I4sII", 16 + len(entries), b"stts", 0, len(milliseconds)) + entries
    parents = [b"moov", b"trak", b"mdia", b"minf", b"stbl"]
    content = _insert_box(bytes(content), [*parents, b"stts"], table, replace=True)
    if pixel_aspect:
        box = struct.pack(">I4sII", 16, b"pasp", *pixel_aspect)
        content = _insert_box(content, [*parents, b"stsd", b"mp4v"], box)
    path.write_bytes(content)
    return path
