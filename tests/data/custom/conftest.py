"""Small data sets of drawn shapes in the four formats, and a fixture that removes their registration."""

import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from mask2former.data.coco_format import instance_annotation, segment_info
from mask2former.utils.label_images import ids_to_colors

NAMES = ("grass", "sky", "ball", "box")  # two of stuff, two of things
COCO_IDS = (2, 3, 5, 9)


@pytest.fixture
def registered():
    """Data sets that a test registers are removed from the catalogs afterwards."""
    before = set(DatasetCatalog)
    yield
    for name in set(DatasetCatalog) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def scene(seed: int, size: tuple[int, int] = (40, 60)):
    """An image [H, W, 3], and the class [H, W] and instance number (0: none) [H, W] of its pixels."""
    rng = np.random.RandomState(seed)
    height, width = size
    labels = np.zeros(size, np.uint8)
    labels[: height // 2] = 1
    instances = np.zeros(size, np.uint16)
    for number in range(1, 4):
        y, x = rng.randint(height - 12), rng.randint(width - 12)
        box = np.s_[y : y + 6 + rng.randint(6), x : x + 6 + rng.randint(6)]
        labels[box] = 2 + number % 2
        instances[box] = number
    colors = np.array([[40, 160, 40], [90, 150, 240], [220, 40, 40], [240, 220, 40]])
    picture = np.clip(colors[labels] + rng.randint(-20, 20, (*size, 1)), 0, 255).astype(np.uint8)
    return picture, labels, instances


@pytest.fixture
def draw(tmp_path):
    """A function that draws `count` images in all four formats into a folder of `tmp_path` and returns the folder."""
    return lambda count=3, folder="data", first=0: draw_all(tmp_path / folder, count, first)


def draw_all(root: Path, count: int, first: int = 0) -> Path:
    for name in ("images", "labels", "instances", "panoptic"):
        (root / name).mkdir(parents=True)
    images, panoptic, annotations = [], [], []
    for number in range(first, first + count):
        picture, labels, instances = scene(number)
        stem = f"{number:03}"
        # Both file formats occur in one folder.
        image_name = f"{stem}.{'png' if number % 2 else 'jpg'}"
        Image.fromarray(picture).save(root / "images" / image_name)
        Image.fromarray(labels).save(root / "labels" / f"{stem}.png")
        Image.fromarray(instances).save(root / "instances" / f"{stem}.png")
        images.append({"id": number, "file_name": image_name, "height": labels.shape[0], "width": labels.shape[1]})
        ids, segments = np.zeros(labels.shape, np.int64), []
        for label, instance in sorted({*zip(labels.ravel().tolist(), instances.ravel().tolist(), strict=True)}):
            mask = (labels == label) & (instances == instance)
            ids[mask] = 1 + label + 10 * instance
            segments.append(segment_info(mask, 1 + label + 10 * instance, COCO_IDS[label]))
            if instance:
                annotations.append(instance_annotation(mask, 100 * number + instance, number, COCO_IDS[label]))
        Image.fromarray(ids_to_colors(ids)).save(root / "panoptic" / f"{stem}.png")
        panoptic.append({"image_id": number, "file_name": f"{stem}.png", "segments_info": segments})
    categories = [
        {"id": identity, "name": name, "isthing": int(i >= 2)}
        for i, (identity, name) in enumerate(zip(COCO_IDS, NAMES, strict=True))
    ]
    write(root / "panoptic.json", {"images": images, "annotations": panoptic, "categories": categories})
    write(root / "instances.json", {"images": images, "annotations": annotations, "categories": categories[2:]})
    (root / "classes.txt").write_text("\n".join(NAMES))
    return root


def write(path: Path, content) -> None:
    path.write_text(json.dumps(content))
