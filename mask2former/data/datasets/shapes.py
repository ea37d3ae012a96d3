"""The `shapes` data sets that `datasets/prepare_shapes.py` draws: categories, layout under `shapes/`, and pictures.

The set for classification, in class folders under `shape_classes/`, has pictures of one thing, or of one kind of stuff.

Category ids have gaps and do not start at 0, as COCO's, so that code that works here must map them. Edges are
anti-aliased in the picture and crisp in the masks: each outline is filled on a finer grid, and a pixel belongs to the
frontmost thing that covers at least half of it. While they are drawn, pictures are float32 RGB [H, W, 3] in 0..1.
"""

import colorsys
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

from mask2former.data.datasets.class_folders import register_class_folders
from mask2former.data.datasets.registry import Category, CocoLayout, register_coco_layout
from mask2former.tasks import SEGMENTATION_SWITCHES

Pixels = NDArray[np.float32]

CATEGORIES = (
    Category(1, "disc", (220, 60, 50), True),
    Category(2, "square", (60, 110, 230), True),
    Category(4, "triangle", (250, 190, 30), True),
    Category(5, "cross", (245, 120, 190), True),
    Category(20, "stripes", (120, 130, 90), False),
    Category(21, "checks", (150, 105, 80), False),
    Category(23, "gradient", (190, 200, 210), False),
)

# Classes of whole pictures, in the order of their folders.
THING_CLASSES = ("arrow", "bar", "cross", "disc", "square", "star", "triangle")
PICTURE_CLASSES = tuple(sorted((*THING_CLASSES, "checks", "gradient", "stripes")))

_THINGS = tuple(category for category in CATEGORIES if category.isthing)
_STUFF = tuple(category for category in CATEGORIES if not category.isthing)
_SOURCE = "Draw it with: python datasets/prepare_shapes.py"

_FINER = 4
# Smallest visible area of a thing (as a fraction of the image) and smallest visible fraction of it.
_MIN_AREA = 0.005
_MIN_VISIBLE = 0.45
_MIN_STUFF_AREA = 0.01
# Distance at which two equal shapes touch, divided by the sum of their radii.
_TOUCHING = {"disc": 0.95, "square": 0.72, "cross": 0.75, "triangle": 0.62}
_STUFF_HUES = {"stripes": 0.33, "checks": 0.0, "gradient": 0.66}


def register() -> None:
    """Register shapes_{train,val}_{panoptic,instance,semantic,classification}."""
    for split in ("train", "val"):
        layout = CocoLayout(
            image_root=f"shapes/{split}",
            json_file=f"shapes/annotations/instances_{split}.json",
            panoptic_json=f"shapes/annotations/panoptic_{split}.json",
            panoptic_root=f"shapes/panoptic_{split}",
            sem_seg_root=f"shapes/panoptic_semseg_{split}",
        )
        for task in SEGMENTATION_SWITCHES:
            register_coco_layout(f"shapes_{split}_{task}", task, CATEGORIES, layout, source=_SOURCE)
        register_class_folders(
            f"shapes_{split}_classification",
            f"shape_classes/{split}",
            PICTURE_CLASSES,
            source=f"{_SOURCE} --classes",
        )


@dataclass(frozen=True)
class ShapesSegment:
    """A segment: its category, its pixels (bool [H, W]), and whether it is a crowd."""

    category: Category
    mask: NDArray[np.bool_]
    iscrowd: bool = False


@dataclass(frozen=True)
class ShapesScene:
    """A picture, uint8 RGB [H, W, 3], and its segments, which do not overlap; the other pixels are void."""

    image: NDArray[np.uint8]
    segments: list[ShapesSegment]


@dataclass(frozen=True)
class Thing:
    """A thing to draw: its category, its centre [2] (x, y) and radius in pixels, and its RGB colour [3] in 0..1."""

    category: Category
    center: NDArray[np.float64]
    radius: float
    color: NDArray[np.float32]


def draw_scene(rng: RandomState, size: int) -> ShapesScene:
    """Draw a picture of `size` x `size` pixels; the same state of `rng` gives the same picture.

    The background has one or two kinds of stuff. In front are two to six things, often in touching groups of one class,
    which hide parts of each other. Some pictures have a dense crowd, a void scribble, or no things.
    """
    image, owners, background = _draw_background(rng, size)
    segments = [ShapesSegment(category, owners == i) for i, category in enumerate(background)]
    kind = rng.rand()
    if kind < 0.05:
        crowd = _draw_crowd(rng, image)
        segments = [*_without(segments, crowd.mask), crowd]
    if kind < 0.95:
        for segment in _draw_things(rng, image):
            segments = [*_without(segments, segment.mask), segment]
    if rng.rand() < 0.25:
        segments = _without(segments, _draw_scribble(rng, image))
    noisy = image + rng.normal(0, rng.uniform(0.005, 0.025), image.shape)
    smallest = {True: size**2 * _MIN_AREA / 2, False: size**2 * _MIN_STUFF_AREA}
    kept = [segment for segment in segments if segment.mask.sum() >= smallest[segment.category.isthing]]
    return ShapesScene(np.rint(np.clip(noisy, 0, 1) * 255).astype(np.uint8), kept)


def draw_picture(rng: RandomState, name: str, size: int) -> NDArray[np.uint8]:
    """Draw a picture of a class of `PICTURE_CLASSES`, uint8 RGB [size, size, 3]: a thing on a gradient, or stuff."""
    image = stuff_texture(rng, "gradient" if name in THING_CLASSES else name, size)
    if name in THING_CLASSES:
        color = vivid_color(rng, THING_CLASSES.index(name) / len(THING_CLASSES), spread=0.02, odd=0.0)
        radius = size * rng.uniform(0.3, 0.45)
        center = rng.uniform(0.42, 0.58, 2) * size
        paint_thing(rng, image, Thing(Category(0, name, (0, 0, 0), True), center, radius, color))
    noisy = image + rng.normal(0, rng.uniform(0.005, 0.025), image.shape)
    return np.rint(np.clip(noisy, 0, 1) * 255).astype(np.uint8)


def paint_thing(rng: RandomState, image: Pixels, thing: Thing) -> Pixels:
    """Paint a thing into the picture, in place, and return the fraction of each pixel [size, size] that it covers."""
    cover = _cover(_outline(rng, thing), len(image))
    _paint(rng, image, cover, thing.color)
    return cover


def _without(segments: list[ShapesSegment], hidden: NDArray[np.bool_]) -> list[ShapesSegment]:
    return [ShapesSegment(segment.category, segment.mask & ~hidden, segment.iscrowd) for segment in segments]


def _draw_background(rng: RandomState, size: int) -> tuple[Pixels, NDArray[np.int64], list[Category]]:
    """A picture, the index of the kind of stuff at each pixel, and the kinds."""
    count = rng.choice([1, 2], p=[0.4, 0.6])
    kinds = [_STUFF[i] for i in rng.permutation(len(_STUFF))[:count]]
    image = stuff_texture(rng, kinds[0].name, size)
    owners = np.zeros((size, size), np.int64)
    for i, kind in enumerate(kinds[1:], start=1):
        across, along = _rotated_grid(rng.uniform(0, 2 * np.pi), size)
        wave = rng.uniform(0, 0.06) * size * np.sin(along * rng.uniform(2, 5) / size * np.pi + rng.uniform(0, 6))
        border = across + wave - rng.uniform(0, 0.25) * size
        cover = np.clip(border + 0.5, 0, 1)[:, :, None]
        image = image * (1 - cover) + stuff_texture(rng, kind.name, size) * cover
        owners[border >= 0] = i
    return image, owners, kinds


def _draw_things(rng: RandomState, image: Pixels) -> list[ShapesSegment]:
    """Paint things into the picture, and return their segments from back to front; masks include hidden pixels."""
    size = len(image)
    things = _place_things(rng, size, count=rng.randint(2, 7))
    covers = [_cover(_outline(rng, thing), size) for thing in things]
    seen: list[int] = []
    taken = np.zeros((size, size), bool)
    for i in reversed(range(len(things))):
        mask = covers[i] >= 0.5
        visible = (mask & ~taken).sum()
        if visible >= max(_MIN_AREA * size**2, _MIN_VISIBLE * mask.sum()):
            taken |= mask
            seen.insert(0, i)
    for i in seen:
        _paint(rng, image, covers[i], things[i].color)
    return [ShapesSegment(things[i].category, covers[i] >= 0.5) for i in seen]


def _place_things(rng: RandomState, size: int, count: int) -> list[Thing]:
    things: list[Thing] = []
    for _ in range(4 * count):
        if len(things) >= count:
            break
        index = rng.randint(len(_THINGS))
        group = rng.choice([1, 2, 3], p=[0.55, 0.3, 0.15])
        things += _place_group(rng, size, index, min(group, count - len(things)), things)
    return [things[i] for i in rng.permutation(len(things))]


def _place_group(rng: RandomState, size: int, index: int, count: int, others: list[Thing]) -> Iterator[Thing]:
    """Things of one class and of similar size and colour, each touching the one before, where there are no others."""
    category = _THINGS[index]
    radius = size * rng.uniform(0.12, 0.22)
    center = rng.uniform(0.06, 0.94, 2) * size
    color = vivid_color(rng, index / len(_THINGS))
    for _ in range(count):
        if any(np.hypot(*(center - other.center)) < 0.7 * (radius + other.radius) for other in others):
            return
        yield Thing(category, center, radius, np.clip(color + rng.normal(0, 0.04, 3), 0, 1).astype(np.float32))
        grown = float(np.clip(radius * rng.uniform(0.8, 1.25), 0.1 * size, 0.22 * size))
        angle = rng.uniform(0, 2 * np.pi)
        distance = _TOUCHING[category.name] * rng.uniform(0.8, 1.02) * (radius + grown)
        center = center + distance * np.array([np.cos(angle), np.sin(angle)])
        radius = grown


def _outline(rng: RandomState, thing: Thing) -> NDArray[np.float64]:
    """Closed outline [N, 2] in pixels (x, y), randomly rotated and stretched."""
    unit = _unit_outline(rng, thing.category.name) * [1, rng.uniform(0.8, 1)]
    angle = rng.uniform(0, 2 * np.pi)
    return thing.center + thing.radius * unit @ _turned(angle)


def _unit_outline(rng: RandomState, name: str) -> NDArray[np.float64]:
    if name == "disc":
        return _polar(np.ones(40))
    if name == "square":
        return _polar(np.ones(4)) * [1, rng.uniform(0.85, 1)]
    if name == "triangle":
        return _polar(np.ones(3))
    if name == "cross":
        arm = rng.uniform(0.26, 0.34)
        corner = np.array([[1, -arm], [1, arm], [arm, arm]])
        quarter = np.array([[0, 1], [-1, 0]])
        return np.concatenate([corner @ np.linalg.matrix_power(quarter, i) for i in range(4)])
    if name == "bar":
        return _polar(np.ones(4)) @ _turned(np.pi / 4) * [1.2, rng.uniform(0.25, 0.35)]
    if name == "star":
        return _polar(np.tile([1, rng.uniform(0.4, 0.5)], 5))
    if name == "arrow":
        shaft, head = rng.uniform(0.15, 0.2), rng.uniform(0.5, 0.65)
        half = np.array([[1, 0], [0.1, head], [0.1, shaft], [-1, shaft]])
        return np.concatenate([half, half[:0:-1] * [1, -1]])
    raise ValueError(f"unknown shape {name!r}")


def _turned(angle: float) -> NDArray[np.float64]:
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def _polar(radii: NDArray[np.float64]) -> NDArray[np.float64]:
    angles = 2 * np.pi * np.arange(len(radii)) / len(radii)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _cover(outline: NDArray[np.float64], size: int) -> Pixels:
    """The fraction of each pixel [size, size] inside an outline."""
    fine = np.zeros((size * _FINER, size * _FINER), np.uint8)
    cv2.fillPoly(fine, [np.rint(outline * _FINER).astype(np.int32)], 1)
    return _coarse(fine, size)


def _coarse(fine: NDArray[np.uint8], size: int) -> Pixels:
    return np.asarray(cv2.resize(fine.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA), np.float32)


def _paint(rng: RandomState, image: Pixels, cover: Pixels, color: NDArray[np.float32]) -> None:
    """Blend a textured thing with a darker rim into the picture, in place."""
    inside = cv2.erode(cover, np.ones((3, 3), np.uint8))
    shade = 1 - rng.uniform(0.15, 0.6) * (1 - inside)
    layer = _thing_texture(rng, color, len(image)) * shade[:, :, None]
    image[:] = image * (1 - cover[:, :, None]) + layer * cover[:, :, None]


def _draw_crowd(rng: RandomState, image: Pixels) -> ShapesSegment:
    """Paint a dense group of small things of one class; its mask includes the gaps."""
    size = len(image)
    index = rng.randint(len(_THINGS))
    middle = rng.uniform(0.25, 0.75, 2) * size
    spread = np.array([rng.uniform(0.1, 0.2), rng.uniform(0.06, 0.12)]) * size
    group = np.zeros((size, size), np.uint8)
    for _ in range(rng.randint(14, 22)):
        center = middle + np.clip(rng.standard_normal(2), -1.6, 1.6) * spread
        color = vivid_color(rng, index / len(_THINGS))
        group |= paint_thing(rng, image, Thing(_THINGS[index], center, size * rng.uniform(0.035, 0.055), color)) >= 0.5
    closing = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * (size // 25) + 1,) * 2)
    return ShapesSegment(_THINGS[index], cv2.morphologyEx(group, cv2.MORPH_CLOSE, closing).astype(bool), iscrowd=True)


def _draw_scribble(rng: RandomState, image: Pixels) -> NDArray[np.bool_]:
    """Paint a thin grey line over everything, and return its pixels, which become void."""
    size = len(image)
    points = np.cumsum(rng.normal(0, 0.08, (6, 2)), axis=0) + rng.uniform(0.1, 0.9, 2)
    fine = np.zeros((size * _FINER, size * _FINER), np.uint8)
    cv2.polylines(fine, [np.rint(points * size * _FINER).astype(np.int32)], False, 1, thickness=_FINER * size // 80)
    cover = _coarse(fine, size)
    image[:] = image * (1 - cover[:, :, None]) + rng.uniform(0, 1) * cover[:, :, None]
    return cover > 0.25


def stuff_texture(rng: RandomState, kind: str, size: int) -> Pixels:
    """Texture of a stuff category ("stripes", "checks" or "gradient"), in two muted colours."""
    dark, light = _muted_colors(rng, _STUFF_HUES[kind])
    across, along = _rotated_grid(rng.uniform(0, np.pi), size)
    if kind == "stripes":
        period = size * rng.uniform(0.06, 0.12)
        weight = np.clip(2 * np.sin(2 * np.pi * across / period + rng.uniform(0, 6)) + 0.5, 0, 1)
    elif kind == "checks":
        cell = size * rng.uniform(0.05, 0.09)
        weight = np.clip(3 * np.sin(np.pi * across / cell) * np.sin(np.pi * along / cell) + 0.5, 0, 1)
    elif kind == "gradient":
        weight = across / np.ptp(across) + 0.5 + 0.08 * _smooth_noise(rng, size, sigma=size / 16)
    else:
        raise ValueError(f"unknown stuff texture {kind!r}")
    return _blend(dark, light, weight)


def _thing_texture(rng: RandomState, color: NDArray[np.float32], size: int) -> Pixels:
    """Faint texture around one colour: plain, shaded, striped or mottled."""
    across, _ = _rotated_grid(rng.uniform(0, 2 * np.pi), size)
    kind = rng.randint(4)
    if kind == 0:
        weight = np.zeros((size, size))
    elif kind == 1:
        weight = across / np.ptp(across) * 2
    elif kind == 2:
        weight = np.sin(2 * np.pi * across / (size * rng.uniform(0.03, 0.06))) / 2
    else:
        weight = _smooth_noise(rng, size, sigma=1.5)
    return np.clip(color * (1 + 0.3 * weight[:, :, None]), 0, 1).astype(np.float32)


def vivid_color(rng: RandomState, hue: float, spread: float = 0.05, odd: float = 0.05) -> NDArray[np.float32]:
    """Bright RGB colour of a hue near the given one (0..1), see `_near`."""
    color = colorsys.hsv_to_rgb(_near(rng, hue, spread, odd), rng.uniform(0.45, 1), rng.uniform(0.55, 1))
    return np.array(color, np.float32)


def _near(rng: RandomState, hue: float, spread: float = 0.05, odd: float = 0.05) -> float:
    """A hue near the typical one of a category, but sometimes any, so that colour does not decide the class.

    Args:
        rng: Random numbers.
        hue: Typical hue, 0..1.
        spread: Standard deviation of the hue.
        odd: Share of the hues that are any.
    """
    drawn = rng.normal(hue, spread) if rng.rand() < 1 - odd else rng.rand()
    return float(drawn % 1)


def _rotated_grid(angle: float, size: int) -> tuple[Pixels, Pixels]:
    """Pixel coordinates [size, size] relative to the centre, along `angle` (radians) and across it."""
    y, x = np.mgrid[:size, :size].astype(np.float32) - (size - 1) / 2
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def _muted_colors(rng: RandomState, typical_hue: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    hue, value = _near(rng, typical_hue), rng.uniform(0.2, 0.6)
    dark = colorsys.hsv_to_rgb(hue, rng.uniform(0.25, 0.55), value)
    light = colorsys.hsv_to_rgb((hue + rng.normal(0, 0.05)) % 1, rng.uniform(0.25, 0.55), value + rng.uniform(0.2, 0.4))
    return np.array(dark, np.float32), np.array(light, np.float32)


def _smooth_noise(rng: RandomState, size: int, sigma: float) -> Pixels:
    """Noise that is smooth over `sigma` pixels, with mean 0 and standard deviation 1."""
    noise = cv2.GaussianBlur(rng.standard_normal((size, size)).astype(np.float32), (0, 0), sigma)
    return (noise - noise.mean()) / noise.std()


def _blend(first: NDArray[np.float32], second: NDArray[np.float32], weight: NDArray[np.floating]) -> Pixels:
    weight = np.clip(weight, 0, 1)[:, :, None]
    return (first * (1 - weight) + second * weight).astype(np.float32)
