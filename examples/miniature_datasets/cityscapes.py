"""Cityscapes with fine annotations: PNG images of one size, polygons, and the three label images beside them."""

from pathlib import Path

import numpy as np
from cityscapesscripts.helpers.labels import name2label
from PIL import Image, ImageDraw

from dinat_common.files import write_json

from .scene import SPLITS, Item, LayeredScene, Size, compose, paint, save, stream

THINGS = ("person", "car", "rider", "bicycle", "bus")
STUFF = ("road", "building", "sky", "vegetation")

_CITIES = {"train": ("aachen", "bochum"), "val": ("frankfurt", "munster")}
_SIZE = (64, 128)


def draw_cityscapes(root: Path, images: int, size: Size | None, seed: int) -> None:
    """Write `cityscapes/` with `images` images in each split, in two cities."""
    for split in SPLITS:
        for i in range(images):
            _draw_image(root / "cityscapes", split, i, size or _SIZE, seed)


def _draw_image(folder: Path, split: str, index: int, size: Size, seed: int) -> None:
    rng = stream(seed, split, index)
    scene = compose(rng, index, size, len(THINGS), len(STUFF))
    city = _CITIES[split][index % 2]
    image_id = f"{city}_{index:06d}_000019"
    save(paint(rng, scene), folder / f"leftImg8bit/{split}/{city}/{image_id}_leftImg8bit.png")
    stem = folder / f"gtFine/{split}/{city}/{image_id}_gtFine"
    objects = _objects(scene)
    content = {"imgHeight": size[0], "imgWidth": size[1], "objects": objects}
    write_json(stem.with_name(f"{stem.name}_polygons.json"), content, indent=4)
    instances = _draw(size, objects)
    # The id of an instance is 1000 times its class plus a number.
    labels = np.where(instances >= 1000, instances // 1000, instances)
    colors = np.zeros((256, 3), np.uint8)
    for label in name2label.values():
        colors[label.id] = label.color
    save(labels.astype(np.uint8), stem.with_name(f"{stem.name}_labelIds.png"))
    save(instances.astype(np.uint16), stem.with_name(f"{stem.name}_instanceIds.png"))
    save(np.dstack([colors[labels], np.full(size, 255, np.uint8)]), stem.with_name(f"{stem.name}_color.png"))


def _objects(scene: LayeredScene) -> list[dict]:
    """Polygons from back to front, including void, invisible and deleted ones."""
    height, width = scene.size
    border = [[0, 0], [width - 1, 0], [width - 1, 1], [0, 1]]
    objects = [{"label": _label(item), "polygon": item.outline.tolist()} for item in scene.items]
    if not objects:
        return []
    plate = scene.items[-2].outline
    middle = plate.mean(axis=0).astype(int).tolist()
    objects.append({"label": "license plate", "polygon": [middle, [middle[0] + 3, middle[1]], plate[0].tolist()]})
    objects.append({"label": "truck", "polygon": plate.tolist(), "deleted": 1})
    objects.append({"label": "trailer", "polygon": [[width - 9, height - 9], [width - 1, height - 9], [width - 1, 2]]})
    objects.append({"label": "out of roi", "polygon": border})
    return objects


def _label(item: Item) -> str:
    if item.kind == "void":
        return "ego vehicle"
    if item.kind == "stuff":
        return STUFF[item.slot]
    return THINGS[item.slot] + ("group" if item.kind == "crowd" else "")


def _draw(size: Size, objects: list[dict]) -> np.ndarray:
    """The instance ids [H, W] that the owners' scripts draw: 1000 times the class plus a number, or the class."""
    canvas = Image.new("I", size[::-1], 0)
    drawer = ImageDraw.Draw(canvas)
    seen: dict[str, int] = {}
    for drawn in objects:
        if "deleted" in drawn:
            continue
        label = name2label.get(drawn["label"]) or name2label[drawn["label"].removesuffix("group")]
        value = label.id
        if label.hasInstances and drawn["label"] == label.name:
            number = seen.get(label.name, 0)
            seen[label.name] = number + 1
            value = 1000 * label.id + number
        if value >= 0:
            drawer.polygon([tuple(point) for point in drawn["polygon"]], fill=value)
    return np.asarray(canvas)
