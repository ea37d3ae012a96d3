"""ADE20K's scene parsing benchmark: JPEGs, semantic label maps that count from 1, instance maps."""

from pathlib import Path

import numpy as np

from .scene import SPLITS, Size, compose, paint, save, size_of, stream

# (Semantic label 1..150, instance category 1..100).
THINGS = ((8, 1), (13, 4), (16, 6), (20, 8), (21, 9))  # bed, person, table, chair, car
STUFF = (1, 2, 3, 4, 5)  # wall, building, sky, floor, tree

_FOLDERS = {"train": "training", "val": "validation"}


def draw_ade20k(root: Path, images: int, size: Size | None, seed: int) -> None:
    """Write `ADEChallengeData2016/` with `images` images in each split."""
    for split in SPLITS:
        for i in range(images):
            _draw_image(root / "ADEChallengeData2016", split, i, size_of(i, size), seed)


def _draw_image(folder: Path, split: str, index: int, size: Size, seed: int) -> None:
    rng = stream(seed, split, index)
    scene = compose(rng, index, size, len(THINGS), len(STUFF))
    name = f"ADE_{split}_{index + 1:08d}"
    save(paint(rng, scene), folder / f"images/{_FOLDERS[split]}/{name}.jpg", quality=90)
    owners = scene.owners()
    labels = np.zeros(size, np.uint8)
    instances = np.zeros((*size, 3), np.uint8)
    kinds = np.array([item.kind for item in scene.items])
    number = 0
    for i, item in enumerate(scene.items):
        if item.kind == "void":
            continue
        labels[owners == i] = STUFF[item.slot] if item.kind == "stuff" else THINGS[item.slot][0]
        # Crowds are in the label map, but have no instances.
        if item.kind == "thing":
            number += 1
            # The two maps disagree a little, as the published ones do: instances also cover void in front of them.
            annotated = scene.mask(item) & ((owners == i) | (kinds[owners] == "void"))
            instances[annotated] = (THINGS[item.slot][1], number, 0)
    save(labels, folder / f"annotations/{_FOLDERS[split]}/{name}.png")
    save(instances, folder / f"annotations_instance/{_FOLDERS[split]}/{name}.png")
