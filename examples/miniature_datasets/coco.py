"""COCO 2017: JPEGs with numeric names, instances as polygons and run lengths, panoptic PNGs."""

from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from numpy.typing import NDArray
from pycocotools import mask as mask_util

from dinat_common.files import write_json
from mask2former.data.coco_format import encode_rle, encode_runs, tight_box
from mask2former.utils.label_images import ids_to_colors

from .scene import SPLITS, Item, LayeredScene, Size, compose, paint, save, size_of, stream

THINGS = ("person", "dog", "car", "umbrella", "chair")
STUFF = ("sky-other-merged", "grass-merged", "road", "tree-merged")

_IDS = {category["name"]: category["id"] for category in COCO_CATEGORIES}
_INFO = {"description": "A miniature in the layout of COCO 2017", "version": "1.0", "year": 2017}


def draw_coco(root: Path, images: int, size: Size | None, seed: int) -> None:
    """Write `coco/` with `images` images in each split."""
    folder = root / "coco"
    for split in SPLITS:
        records = [_draw_image(folder, split, i, size_of(i, size), seed) for i in range(images)]
        entries = [record["image"] for record in records]
        things = [category for category in COCO_CATEGORIES if category["isthing"]]
        instances = {
            "info": _INFO,
            "licenses": [],
            "images": entries,
            "annotations": [annotation for record in records for annotation in record["instances"]],
            "categories": [{"supercategory": "", "id": c["id"], "name": c["name"]} for c in things],
        }
        panoptic = {
            "info": _INFO,
            "licenses": [],
            "images": entries,
            "annotations": [record["panoptic"] for record in records],
            "categories": [
                {"supercategory": "", "isthing": c["isthing"], "id": c["id"], "name": c["name"]}
                for c in COCO_CATEGORIES
            ],
        }
        write_json(folder / f"annotations/instances_{split}2017.json", instances)
        write_json(folder / f"annotations/panoptic_{split}2017.json", panoptic)


def _draw_image(folder: Path, split: str, index: int, size: Size, seed: int) -> dict[str, Any]:
    rng = stream(seed, split, index)
    scene = compose(rng, index, size, len(THINGS), len(STUFF))
    image_id = 139 + 146 * index + 500_000 * SPLITS.index(split)
    name = f"{image_id:012d}"
    picture = paint(rng, scene)
    # Some of COCO's photographs are grey.
    save(picture if index % 4 != 3 else picture[:, :, 0], folder / f"{split}2017/{name}.jpg", quality=90)
    owners = scene.owners()
    ids = np.zeros(size, np.int64)
    segments, instances = [], []
    # Stuff of one class is one segment.
    stuff_ids: dict[int, int] = {}
    for i, item in enumerate(scene.items):
        visible = owners == i
        if item.kind == "void" or not visible.any():
            continue
        # Any unused number below 2 ** 24.
        segment_id = 1_000_003 + 70_001 * i
        if item.kind == "stuff":
            segment_id = stuff_ids.setdefault(item.slot, segment_id)
        ids[visible] = segment_id
        if item.kind != "stuff":
            annotation_id = 1000 * image_id + i
            instances.append({"image_id": image_id, "id": annotation_id, **_instance(scene, item, visible)})
        if item.kind != "stuff" or segment_id not in {segment["id"] for segment in segments}:
            segments.append({"id": segment_id, "category_id": _category(item), "iscrowd": int(item.kind == "crowd")})
    for segment in segments:
        mask = ids == segment["id"]
        segment |= {"area": int(mask.sum()), "bbox": tight_box(mask)}
    save(ids_to_colors(ids), folder / f"panoptic_{split}2017/{name}.png")
    return {
        "image": {"license": 1, "file_name": f"{name}.jpg", "height": size[0], "width": size[1], "id": image_id},
        "instances": instances,
        "panoptic": {"segments_info": segments, "file_name": f"{name}.png", "image_id": image_id},
    }


def _category(item: Item) -> int:
    return _IDS[STUFF[item.slot] if item.kind == "stuff" else THINGS[item.slot]]


def _instance(scene: LayeredScene, item: Item, visible: NDArray[np.bool_]) -> dict[str, Any]:
    """Annotation of an instance without its ids: a polygon, run lengths for a hole, a list of them for a crowd."""
    if item.kind == "crowd":
        segmentation: Any = encode_runs(visible)
        mask = visible
    elif item.hole is not None:
        mask = scene.mask(item)
        segmentation = encode_rle(mask)
    else:
        # Annotators draw between pixels, and behind what is in front.
        outline = item.outline + 0.25
        segmentation = [outline.ravel().round(2).tolist()]
        mask = mask_util.decode(mask_util.merge(mask_util.frPyObjects(segmentation, *scene.size))).astype(bool)
    return {
        "segmentation": segmentation,
        "area": float(mask.sum()),
        "bbox": [float(value) for value in tight_box(mask)],
        "iscrowd": int(item.kind == "crowd"),
        "category_id": _category(item),
    }
