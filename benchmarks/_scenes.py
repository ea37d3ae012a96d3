"""Drawn scenes with ground truth in COCO's three formats, and what a model that is mostly right says of them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.structures import Instances
from numpy.typing import NDArray
from panopticapi.utils import id2rgb
from PIL import Image
from pycocotools import mask as mask_util

NAME = "drawn_by_benchmarks_evaluate"
IDS = [category["id"] for category in COCO_CATEGORIES]
_IS_THING = [bool(category["isthing"]) for category in COCO_CATEGORIES]
_THINGS, _STUFF = 15, 5
_NUM_THINGS = sum(_IS_THING)
_VOID = 255


class Scene:
    """One image: what is there, and what a model that is mostly right says of it."""

    def __init__(self, index: int, size: tuple[int, int], instances: int):
        """Draw image number `index` with so many predicted instances."""
        self._rng = np.random.default_rng(index)
        self.size = size
        self.stem = f"{index + 1:012d}"
        self.inputs: dict[str, Any] = {"image_id": index + 1, "file_name": f"{self.stem}.jpg"}
        height, width = size
        bands = np.arange(height) * _STUFF // height
        stuff = self._rng.choice(np.arange(_NUM_THINGS, len(IDS)), _STUFF, replace=False)
        self.classes = stuff[bands][:, None].repeat(width, axis=1)
        self.ids = (bands + 1)[:, None].repeat(width, axis=1)
        self.segments = {i + 1: int(c) for i, c in enumerate(stuff)}
        for thing in range(_THINGS):
            mask, category = self._ellipse(), int(self._rng.integers(_NUM_THINGS))
            self.ids[mask], self.classes[mask] = 1000 + thing, category
            self.segments[1000 + thing] = category
        self.segments = {i: c for i, c in self.segments.items() if (self.ids == i).any()}
        self.outputs = self._predict(instances)

    def _ellipse(self) -> NDArray[np.bool_]:
        height, width = self.size
        y, x = np.ogrid[:height, :width]
        cy, cx = self._rng.uniform(0, height), self._rng.uniform(0, width)
        ry, rx = self._rng.uniform(0.03, 0.2, 2) * height
        return ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1

    def _predict(self, count: int) -> dict[str, Any]:
        shift = tuple(self._rng.integers(-3, 4, 2))
        ids, classes = (np.roll(labels, shift, axis=(0, 1)) for labels in (self.ids, self.classes))
        found = [(ids == i, c) for i, c in self.segments.items() if _IS_THING[c]][:count]
        while len(found) < count:
            found.append((self._ellipse(), int(self._rng.integers(_NUM_THINGS))))
        instances = Instances(self.size)
        instances.pred_masks = torch.from_numpy(np.stack([mask for mask, _ in found]))
        instances.pred_classes = torch.tensor([category for _, category in found])
        instances.scores = torch.from_numpy(self._rng.random(count).astype(np.float32))
        segments = [{"id": i, "category_id": c, "isthing": _IS_THING[c]} for i, c in self.segments.items()]
        return {
            "instances": instances,
            "panoptic_seg": (torch.from_numpy(ids.astype(np.int32)), segments),
            "sem_seg": torch.from_numpy(classes.astype(np.int64)),
        }


def write_ground_truth(root: Path, scenes: Sequence[Scene]) -> None:
    """Write annotations in COCO's three formats, and register them."""
    images, panoptic, instances = [], [], []
    for folder in ("panoptic", "labels"):
        (root / folder).mkdir()
    for scene in scenes:
        key, stem = scene.inputs["image_id"], scene.stem
        images.append({"id": key, "file_name": f"{stem}.jpg", "height": scene.size[0], "width": scene.size[1]})
        Image.fromarray(id2rgb(scene.ids)).save(root / "panoptic" / f"{stem}.png")
        Image.fromarray(scene.classes.astype(np.uint8)).save(root / "labels" / f"{stem}.png")
        segments = []
        for i, category in scene.segments.items():
            mask = scene.ids == i
            common = {"category_id": IDS[category], "area": int(mask.sum()), "iscrowd": 0}
            segments.append({"id": i, "bbox": [0, 0, 1, 1], **common})
            if _IS_THING[category]:
                rle = encode(mask)
                box = mask_util.toBbox(rle).tolist()
                rle["counts"] = rle["counts"].decode()
                found = {"id": len(instances) + 1, "image_id": key, "segmentation": rle, "bbox": box}
                instances.append({**found, **common})
        panoptic.append({"image_id": key, "file_name": f"{stem}.png", "segments_info": segments})
    categories = [{"id": c["id"], "name": c["name"], "isthing": c["isthing"]} for c in COCO_CATEGORIES]
    for name, annotations in (("panoptic", panoptic), ("instances", instances)):
        kinds = [c for c in categories if name == "panoptic" or c["isthing"]]
        content = {"images": images, "annotations": annotations, "categories": kinds}
        (root / f"{name}.json").write_text(json.dumps(content))
    _register(root, scenes)


def _register(root: Path, scenes: Sequence[Scene]) -> None:
    records = [{**s.inputs, "sem_seg_file_name": str(root / "labels" / f"{s.stem}.png")} for s in scenes]
    DatasetCatalog.register(NAME, lambda: records)
    contiguous = {category: i for i, category in enumerate(IDS)}
    MetadataCatalog.get(NAME).set(
        json_file=str(root / "instances.json"),
        panoptic_json=str(root / "panoptic.json"),
        panoptic_root=str(root / "panoptic"),
        sem_seg_root=str(root / "labels"),
        stuff_classes=[category["name"] for category in COCO_CATEGORIES],
        thing_dataset_id_to_contiguous_id={c: i for c, i in contiguous.items() if _IS_THING[i]},
        stuff_dataset_id_to_contiguous_id=contiguous,  # Detectron2's evaluator of class maps wants things here, too
        ignore_label=_VOID,
    )


def encode(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """COCO's encoding of a mask [H, W], by pycocotools."""
    return mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
