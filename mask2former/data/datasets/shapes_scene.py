"""Draw one picture of the `shapes` data set and its panoptic segmentation.

Edges are blended in the picture and crisp in the masks: each outline is filled on a finer grid, a pixel is covered by
the fraction of that, and belongs to the frontmost thing that covers at least half of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

from mask2former.data.datasets.coco_layout import Category
from mask2former.data.datasets.shapes import CATEGORIES
from mask2former.data.datasets.shapes_texture import Pixels, rotated_grid, stuff_texture, thing_texture, vivid_color

_THINGS = tuple(category for category in CATEGORIES if category.isthing)
_STUFF = tuple(category for category in CATEGORIES if not category.isthing)

_FINER = 4
# Of things: the smallest visible area (of the image) and the smallest visible part (of the thing).
_MIN_AREA = 0.005
_MIN_VISIBLE = 0.45
_MIN_STUFF_AREA = 0.01
# Distance at which two equal shapes touch, over the sum of their radii.
_TOUCHING = {"disc": 0.95, "square": 0.72, "cross": 0.75, "triangle": 0.62}


@dataclass(frozen=True)
class Segment:
    """A segment: its category, its pixels (bool [H, W]), and whether it stands for a crowd."""

    category: Category
    mask: NDArray[np.bool_]
    iscrowd: bool = False


@dataclass(frozen=True)
class Scene:
    """A picture, uint8 RGB [H, W, 3], and its segments, which don't overlap; pixels in none of them are void."""

    image: NDArray[np.uint8]
    segments: list[Segment]


@dataclass(frozen=True)
class _Thing:
    category: Category
    center: NDArray[np.float64]
    radius: float
    color: NDArray[np.float32]


def draw_scene(rng: RandomState, size: int) -> Scene:
    """Draw a picture of `size` x `size` pixels; the same state of `rng` gives the same picture.

    Backgrounds of one or two kinds; two to six things, often in touching groups of one class, which hide parts of
    each other; now and then a dense crowd, a scribble that is no category (void), or no things at all.
    """
    image, owners, background = _draw_background(rng, size)
    segments = [Segment(category, owners == i) for i, category in enumerate(background)]
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
    kept = [segment for segment in segments if segment.mask.sum() >= _min_pixels(segment, size)]
    return Scene(np.rint(np.clip(noisy, 0, 1) * 255).astype(np.uint8), kept)


def _min_pixels(segment: Segment, size: int) -> float:
    return size**2 * (_MIN_AREA / 2 if segment.category.isthing else _MIN_STUFF_AREA)


def _without(segments: list[Segment], hidden: NDArray[np.bool_]) -> list[Segment]:
    return [Segment(segment.category, segment.mask & ~hidden, segment.iscrowd) for segment in segments]


def _draw_background(rng: RandomState, size: int) -> tuple[Pixels, NDArray[np.int64], list[Category]]:
    """A picture, the index of the kind of background at each pixel, and the kinds."""
    count = rng.choice([1, 2], p=[0.4, 0.6])
    kinds = [_STUFF[i] for i in rng.permutation(len(_STUFF))[:count]]
    image = stuff_texture(rng, kinds[0].name, size)
    owners = np.zeros((size, size), np.int64)
    for i, kind in enumerate(kinds[1:], start=1):
        across, along = rotated_grid(rng.uniform(0, 2 * np.pi), size)
        wave = rng.uniform(0, 0.06) * size * np.sin(along * rng.uniform(2, 5) / size * np.pi + rng.uniform(0, 6))
        border = across + wave - rng.uniform(0, 0.25) * size
        cover = np.clip(border + 0.5, 0, 1)[:, :, None]
        image = image * (1 - cover) + stuff_texture(rng, kind.name, size) * cover
        owners[border >= 0] = i
    return image, owners, kinds


def _draw_things(rng: RandomState, image: Pixels) -> list[Segment]:
    """Paint things into the picture, and return their segments from back to front (those in front not cut out)."""
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
    return [Segment(things[i].category, covers[i] >= 0.5) for i in seen]


def _place_things(rng: RandomState, size: int, count: int) -> list[_Thing]:
    things: list[_Thing] = []
    for _ in range(4 * count):
        if len(things) >= count:
            break
        index = rng.randint(len(_THINGS))
        group = rng.choice([1, 2, 3], p=[0.55, 0.3, 0.15])
        things += _place_group(rng, size, index, min(group, count - len(things)), things)
    return [things[i] for i in rng.permutation(len(things))]


def _place_group(rng: RandomState, size: int, index: int, count: int, others: list[_Thing]) -> Iterator[_Thing]:
    """Things of one class and of similar size and colour, each touching the one before; none where others are."""
    category = _THINGS[index]
    radius = size * rng.uniform(0.12, 0.22)
    center = rng.uniform(0.06, 0.94, 2) * size
    color = vivid_color(rng, index / len(_THINGS))
    for _ in range(count):
        if any(np.hypot(*(center - other.center)) < 0.7 * (radius + other.radius) for other in others):
            return
        yield _Thing(category, center, radius, np.clip(color + rng.normal(0, 0.04, 3), 0, 1).astype(np.float32))
        grown = float(np.clip(radius * rng.uniform(0.8, 1.25), 0.1 * size, 0.22 * size))
        angle = rng.uniform(0, 2 * np.pi)
        distance = _TOUCHING[category.name] * rng.uniform(0.8, 1.02) * (radius + grown)
        center = center + distance * np.array([np.cos(angle), np.sin(angle)])
        radius = grown


def _outline(rng: RandomState, thing: _Thing) -> NDArray[np.float64]:
    """Closed outline [N, 2] in pixels (x, y), turned and stretched at random."""
    unit = _unit_outline(rng, thing.category.name) * [1, rng.uniform(0.8, 1)]
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return thing.center + thing.radius * unit @ turn


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
    raise ValueError(f"unknown shape {name!r}")


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
    layer = thing_texture(rng, color, len(image)) * shade[:, :, None]
    image[:] = image * (1 - cover[:, :, None]) + layer * cover[:, :, None]


def _draw_crowd(rng: RandomState, image: Pixels) -> Segment:
    """Paint a dense group of small things of one class; its mask covers the group with its gaps."""
    size = len(image)
    index = rng.randint(len(_THINGS))
    middle = rng.uniform(0.25, 0.75, 2) * size
    spread = np.array([rng.uniform(0.1, 0.2), rng.uniform(0.06, 0.12)]) * size
    group = np.zeros((size, size), np.uint8)
    for _ in range(rng.randint(14, 22)):
        center = middle + np.clip(rng.standard_normal(2), -1.6, 1.6) * spread
        color = vivid_color(rng, index / len(_THINGS))
        cover = _cover(_outline(rng, _Thing(_THINGS[index], center, size * rng.uniform(0.035, 0.055), color)), size)
        _paint(rng, image, cover, color)
        group |= cover >= 0.5
    closing = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * (size // 25) + 1,) * 2)
    return Segment(_THINGS[index], cv2.morphologyEx(group, cv2.MORPH_CLOSE, closing).astype(bool), iscrowd=True)


def _draw_scribble(rng: RandomState, image: Pixels) -> NDArray[np.bool_]:
    """Paint a thin grey line over everything, and return its pixels, which are void."""
    size = len(image)
    points = np.cumsum(rng.normal(0, 0.08, (6, 2)), axis=0) + rng.uniform(0.1, 0.9, 2)
    fine = np.zeros((size * _FINER, size * _FINER), np.uint8)
    cv2.polylines(fine, [np.rint(points * size * _FINER).astype(np.int32)], False, 1, thickness=_FINER * size // 80)
    cover = _coarse(fine, size)
    image[:] = image * (1 - cover[:, :, None]) + rng.uniform(0, 1) * cover[:, :, None]
    return cover > 0.25
