"""Random scenes, from which all three data sets are written: outlines from back to front, and their picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from dinat_common.files import atomic_write

Size = tuple[int, int]
Kind = Literal["stuff", "thing", "crowd", "void"]

SPLITS = ("train", "val")
# Heights and widths that no stride divides.
ODD_SIZES = ((75, 97), (97, 71), (63, 101), (83, 85), (121, 67))
# Index of the image without annotations in each split.
WITHOUT_ANNOTATION = 2


@dataclass(frozen=True)
class Item:
    """An item of a scene: its kind, the index of its class among those of its kind, its outline, and a hole in it.

    Outlines are [N, 2] whole pixels (x, y); pixels on them belong to the item.
    """

    kind: Kind
    slot: int
    outline: NDArray[np.int64]
    hole: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class LayeredScene:
    """Height and width of an image, and its items from back to front. Pixels of no item are void."""

    size: Size
    items: Sequence[Item]

    def owners(self) -> NDArray[np.int64]:
        """The index of the frontmost item at each pixel [H, W], -1 for pixels without items."""
        owners = np.full(self.size, -1, np.int64)
        for i, item in enumerate(self.items):
            owners[self.mask(item)] = i
        return owners

    def mask(self, item: Item) -> NDArray[np.bool_]:
        """All pixels [H, W] of an item, including hidden ones."""
        canvas = Image.new("L", self.size[::-1], 0)
        drawer = ImageDraw.Draw(canvas)
        drawer.polygon([tuple(point) for point in item.outline.tolist()], fill=1)
        if item.hole is not None:
            drawer.polygon([tuple(point) for point in item.hole.tolist()], fill=0)
        return np.asarray(canvas, bool)


def compose(rng: np.random.RandomState, index: int, size: Size, things: int, stuff: int) -> LayeredScene:
    """Compose the scene of an image.

    Scenes alternate between things that hide parts of each other, a crowd, nothing (the third image only), and one kind
    of stuff with a thing that has a hole.

    Args:
        rng: Source of all random numbers.
        index: Index of the image in its split.
        size: Height and width of the image.
        things: Number of classes of things.
        stuff: Number of classes of stuff.
    """
    if index == WITHOUT_ANNOTATION:
        return LayeredScene(size, [])
    turn = index % 4
    items = _background(rng, size, stuff, parts=1 if turn == 3 else 3)
    for i in range(2 if turn == 3 else 4):
        items.append(Item("thing", (index + i) % things, _blob(rng, size, rng.uniform(0.1, 0.22), corners=4 + 3 * i)))
    if turn == 1:
        items.insert(-1, Item("crowd", rng.randint(things), _blob(rng, size, 0.2, corners=9)))
    if turn == 3:
        outline = _blob(rng, size, 0.3, corners=12)
        items.append(Item("thing", rng.randint(things), outline, hole=_shrunk(outline, 0.4)))
    items.append(Item("void", 0, _rectangle(size, 0.0, 0.93, 0.4, 1.0)))
    return LayeredScene(size, items)


def paint(rng: np.random.RandomState, scene: LayeredScene) -> NDArray[np.uint8]:
    """A noisy picture, uint8 [H, W, 3], in which every item has about the colour of its class."""
    owners = scene.owners()
    palette = np.full((len(scene.items) + 1, 3), 100.0)  # the last is for pixels of no item
    for i, item in enumerate(scene.items):
        of_class = np.random.RandomState([("stuff", "thing", "crowd", "void").index(item.kind), item.slot])
        palette[i] = of_class.uniform(30, 225, 3) + rng.uniform(-15, 15, 3)
    return np.clip(palette[owners] + rng.normal(0, 8, (*scene.size, 1)), 0, 255).astype(np.uint8)


def stream(seed: int, split: str, index: int) -> np.random.RandomState:
    """Source of the random numbers of one image."""
    return np.random.RandomState([seed, SPLITS.index(split), index])


def size_of(index: int, size: Size | None) -> Size:
    """Height and width of the image with this index: `size` if it is given."""
    return size or ODD_SIZES[index % len(ODD_SIZES)]


def save(pixels: NDArray[Any], path: Path, **options: Any) -> None:
    """Write a JPEG or PNG file and its folder."""
    with atomic_write(path, "wb") as file:
        Image.fromarray(pixels).save(file, "JPEG" if path.suffix == ".jpg" else "PNG", **options)


def _background(rng: np.random.RandomState, size: Size, stuff: int, parts: int) -> list[Item]:
    first = rng.randint(stuff)
    items = [Item("stuff", first, _rectangle(size, 0.0, 0.0, 1.0, 1.0))]
    for i in range(1, parts):
        edge = i / parts + rng.uniform(-0.08, 0.08)
        items.append(Item("stuff", (first + i) % stuff, _rectangle(size, 0.0, edge, 1.0, 1.0)))
    return items


def _rectangle(size: Size, left: float, top: float, right: float, bottom: float) -> NDArray[np.int64]:
    corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    return np.rint(corners * (size[1] - 1, size[0] - 1)).astype(np.int64)


def _blob(rng: np.random.RandomState, size: Size, radius: float, corners: int) -> NDArray[np.int64]:
    """A random outline within the image; the radius is a fraction of the shorter side."""
    angles = 2 * np.pi * (np.arange(corners) + rng.uniform(0, 1)) / corners
    radii = min(size) * radius * rng.uniform(0.8, 1.2, corners)
    center = rng.uniform(0.15, 0.85, 2) * size[::-1]
    outline = center + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return np.rint(np.clip(outline, 0, (size[1] - 1, size[0] - 1))).astype(np.int64)


def _shrunk(outline: NDArray[np.int64], factor: float) -> NDArray[np.int64]:
    middle = outline.mean(axis=0)
    return np.rint(middle + factor * (outline - middle)).astype(np.int64)
