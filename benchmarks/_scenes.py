"""Ground truth in COCO's three formats, and drawn scenes with the predictions of a model that is mostly right."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Instances
from numpy.typing import NDArray
from panopticapi.utils import id2rgb
from PIL import Image
from pycocotools import mask as mask_util

_THINGS, _STUFF = 15, 5
_VOID = 255

Category = Mapping[str, Any]


@dataclass(frozen=True)
class LabeledImage:
    """The segments of one image.

    Attributes:
        ids: Segment ids [H, W], 0 is void.
        classes: Contiguous class of each segment that the annotations list.
        crowd: Ids of the segments that are crowds.
    """

    ids: NDArray[np.int64]
    classes: Mapping[int, int]
    crowd: frozenset[int] = frozenset()


def register(name: str, root: Path, images: Sequence[LabeledImage], categories: Sequence[Category]) -> None:
    """Write annotations in COCO's panoptic, instance and semantic formats, and register them as a panoptic data set.

    Image number i has the id i + 50 and the file name image<i>.jpg, which is not written.

    Args:
        name: Name of the data set.
        root: Folder of the files.
        images: Segments of the images.
        categories: COCO's categories in the order of their contiguous classes, with `id`, `name` and `isthing`.
    """
    rows, panoptic, instances, dicts = [], [], [], []
    for folder in ("panoptic", "labels"):
        (root / folder).mkdir(parents=True)
    for index, image in enumerate(images):
        key, stem, (height, width) = index + 50, f"image{index}", image.ids.shape
        common = {"file_name": f"{stem}.jpg", "height": height, "width": width}
        Image.fromarray(id2rgb(image.ids)).save(root / "panoptic" / f"{stem}.png")
        labels = np.full(image.ids.shape, _VOID, np.uint8)
        segments: list[dict[str, Any]] = []
        for i, class_id in image.classes.items():
            mask, category = image.ids == i, categories[class_id]
            labels[mask] = class_id
            facts = {"category_id": category["id"], "area": int(mask.sum()), "iscrowd": int(i in image.crowd)}
            segments.append({"id": i, "bbox": [0, 0, 1, 1], **facts})
            if category["isthing"]:
                rle = encode(mask)
                found = {"id": len(instances) + 1, "image_id": key, "bbox": mask_util.toBbox(rle).tolist(), **facts}
                instances.append({**found, "segmentation": {**rle, "counts": rle["counts"].decode()}})
        Image.fromarray(labels).save(root / "labels" / f"{stem}.png")
        rows.append({"id": key, **common})
        panoptic.append({"image_id": key, "file_name": f"{stem}.png", "segments_info": segments})
        files = {"sem_seg_file_name": "labels", "pan_seg_file_name": "panoptic"}
        paths = {entry: str(root / folder / f"{stem}.png") for entry, folder in files.items()}
        listed = [{**segment, "category_id": image.classes[segment["id"]]} for segment in segments]
        dicts.append({"image_id": key, **common, **paths, "segments_info": listed})
    for kind, annotations in (("panoptic", panoptic), ("instances", instances)):
        listed = [dict(category) for category in categories if kind == "panoptic" or category["isthing"]]
        content = {"images": rows, "annotations": annotations, "categories": listed}
        (root / f"{kind}.json").write_text(json.dumps(content))
    contiguous = {category["id"]: i for i, category in enumerate(categories)}
    names = [category["name"] for category in categories]
    DatasetCatalog.register(name, lambda: dicts)
    MetadataCatalog.get(name).set(
        evaluator_type="coco_panoptic_seg",
        json_file=str(root / "instances.json"),
        panoptic_json=str(root / "panoptic.json"),
        panoptic_root=str(root / "panoptic"),
        sem_seg_root=str(root / "labels"),
        thing_classes=names,
        stuff_classes=names,
        thing_dataset_id_to_contiguous_id={c["id"]: contiguous[c["id"]] for c in categories if c["isthing"]},
        stuff_dataset_id_to_contiguous_id=contiguous,  # Detectron2's evaluator of class maps needs things here, too
        ignore_label=_VOID,
    )


def draw(index: int, size: tuple[int, int], count: int, categories: Sequence[Category]) -> "Scene":
    """Draw a scene, and predict it: segments are moved a little, and false instances fill up the given number.

    Args:
        index: Number of the scene.
        size: Height and width.
        count: Number of predicted instances.
        categories: Categories as in `register`, things first.
    """
    rng = np.random.default_rng(index)
    (height, width), things = size, sum(bool(category["isthing"]) for category in categories)

    def ellipse() -> NDArray[np.bool_]:
        y, x = np.ogrid[:height, :width]
        cy, cx = rng.uniform(0, height), rng.uniform(0, width)
        ry, rx = rng.uniform(0.03, 0.2, 2) * height
        return ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1

    bands = np.arange(height) * _STUFF // height
    stuff = rng.choice(np.arange(things, len(categories)), _STUFF, replace=False)
    classes, ids = (values[:, None].repeat(width, axis=1) for values in (stuff[bands], bands + 1))
    segments = {i + 1: int(c) for i, c in enumerate(stuff)}
    for thing in range(_THINGS):
        mask, category = ellipse(), int(rng.integers(things))
        ids[mask], classes[mask] = 1000 + thing, category
        segments[1000 + thing] = category
    segments = {i: c for i, c in segments.items() if (ids == i).any()}

    shift = tuple(rng.integers(-3, 4, 2))
    moved_ids, moved_classes = (np.roll(labels, shift, axis=(0, 1)) for labels in (ids, classes))
    found = [(moved_ids == i, c) for i, c in segments.items() if c < things][:count]
    while len(found) < count:
        found.append((ellipse(), int(rng.integers(things))))
    instances = Instances(size)
    instances.pred_masks = torch.from_numpy(np.stack([mask for mask, _ in found]))
    instances.pred_classes = torch.tensor([category for _, category in found])
    instances.scores = torch.from_numpy(rng.random(count).astype(np.float32))
    infos = [{"id": i, "category_id": c, "isthing": c < things} for i, c in segments.items()]
    outputs = {
        "instances": instances,
        "panoptic_seg": (torch.from_numpy(moved_ids.astype(np.int32)), infos),
        "sem_seg": torch.from_numpy(moved_classes.astype(np.int64)),
    }
    return Scene(LabeledImage(ids, segments), outputs)


@dataclass(frozen=True)
class Scene:
    """One image.

    Attributes:
        truth: Its segments.
        outputs: Output of a model for it.
    """

    truth: LabeledImage
    outputs: dict[str, Any]


def encode(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """COCO's encoding of a mask [H, W], by pycocotools."""
    return mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
