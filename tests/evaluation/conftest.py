"""A small random data set in COCO's panoptic, instance and semantic layouts, and predictions that are partly right.

Category ids have gaps, one crowd region is there, some pixels are void, and one class never occurs.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Instances
from PIL import Image
from pycocotools import mask as mask_util

SIZE = (48, 64)
THINGS = {3: 0, 7: 1}
STUFF = {11: 2, 20: 3, 33: 4}
NAMES = {3: "cat", 7: "dog", 11: "sky", 20: "sea", 33: "sand"}
VOID = 255


@dataclass
class Scene:
    """Segment ids [H, W] (0: void), and the dataset's category id and crowd flag of each segment."""

    ids: np.ndarray
    categories: dict[int, int]
    crowd: frozenset[int] = frozenset()


def draw_scene(rng, index):
    cells = rng.integers(0, 7, (6, 8))
    ids = np.kron(cells, np.ones((8, 8), dtype=np.int64))
    # Ids above 255 and 65535 use all three channels.
    names = np.array([0, 1, 300, 70000, 4, 5, 6])
    ids = names[ids]
    kinds = dict(zip(names[1:].tolist(), [3, 3, 7, 3, 11, 20], strict=True))
    present = set(np.unique(ids).tolist())
    return Scene(ids, {i: k for i, k in kinds.items() if i in present}, frozenset({4} & present if index == 0 else ()))


def perturb(rng, scene):
    """What a mediocre model would say: moved borders, swapped classes, void filled."""
    ids = np.roll(scene.ids, rng.integers(-2, 3, 2), axis=(0, 1))
    new_names = {old: new for new, old in enumerate(np.unique(ids[ids > 0]).tolist(), start=1)}
    predicted = np.zeros_like(ids)
    categories = {}
    for old, new in new_names.items():
        predicted[ids == old] = new
        kind = scene.categories[old]
        categories[new] = {3: 7, 11: 20}.get(kind, kind) if rng.random() < 0.25 else kind
    return Scene(predicted, categories)


def as_output(scene, rng):
    contiguous = {**THINGS, **STUFF}
    segments = [
        {"id": i, "category_id": contiguous[kind], "isthing": kind in THINGS} for i, kind in scene.categories.items()
    ]
    things = [segment for segment in segments if segment["isthing"]]
    instances = Instances(SIZE)
    masks = [torch.from_numpy(scene.ids == segment["id"]) for segment in things]
    instances.pred_masks = torch.stack(masks) if masks else torch.zeros(0, *SIZE, dtype=torch.bool)
    instances.scores = torch.from_numpy(rng.random(len(things)).astype(np.float32))
    instances.pred_classes = torch.tensor([segment["category_id"] for segment in things], dtype=torch.int64)
    sem_seg = torch.from_numpy(rng.random((5, *SIZE)).astype(np.float32)) * 0.1
    for segment in segments:
        sem_seg[segment["category_id"]] += torch.from_numpy(scene.ids == segment["id"]).float()
    panoptic = torch.from_numpy(scene.ids.astype(np.int32))
    return {"panoptic_seg": (panoptic, segments), "instances": instances, "sem_seg": sem_seg}


def write_ground_truth(root, scenes):
    contiguous = {**THINGS, **STUFF}
    categories = [{"id": i, "name": name, "isthing": int(i in THINGS)} for i, name in NAMES.items()]
    images, panoptic, instances = [], [], []
    for folder in ("panoptic", "labels"):
        (root / folder).mkdir()
    for index, scene in enumerate(scenes):
        stem = f"image{index}"
        images.append({"id": index + 50, "file_name": f"{stem}.jpg", "height": SIZE[0], "width": SIZE[1]})
        channels = [scene.ids % 256, scene.ids // 256 % 256, scene.ids // 65536]
        Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8)).save(root / "panoptic" / f"{stem}.png")
        labels = np.full(SIZE, VOID, dtype=np.uint8)
        segments = []
        for i, kind in scene.categories.items():
            pixels = scene.ids == i
            labels[pixels] = contiguous[kind]
            common = {"category_id": kind, "iscrowd": int(i in scene.crowd), "area": int(pixels.sum())}
            segments.append({"id": i, "bbox": [0, 0, 1, 1], **common})
            if kind in THINGS:
                rle = mask_util.encode(np.asfortranarray(pixels, dtype=np.uint8))
                box = mask_util.toBbox(rle).tolist()
                rle["counts"] = rle["counts"].decode()
                found = {"id": len(instances) + 1, "image_id": index + 50, "bbox": box, "segmentation": rle}
                instances.append({**found, **common})
        Image.fromarray(labels).save(root / "labels" / f"{stem}.png")
        panoptic.append({"image_id": index + 50, "file_name": f"{stem}.png", "segments_info": segments})
    things = [category for category in categories if category["isthing"]]
    for name, kinds, annotations in (("panoptic", categories, panoptic), ("instances", things, instances)):
        content = {"images": images, "categories": kinds, "annotations": annotations}
        (root / f"{name}.json").write_text(json.dumps(content))


@pytest.fixture
def dataset(tmp_path):
    """The data set's name, its folder, and the inputs and outputs of a model that saw all its images."""
    rng = np.random.default_rng(7)
    scenes = [draw_scene(rng, index) for index in range(5)]
    root = Path(tmp_path, "ground_truth")
    root.mkdir()
    write_ground_truth(root, scenes)
    inputs = [
        {"image_id": index + 50, "file_name": f"images/image{index}.jpg", "height": SIZE[0], "width": SIZE[1]}
        for index in range(len(scenes))
    ]
    outputs = [as_output(perturb(rng, scene), rng) for scene in scenes]
    name = "evaluated_in_a_test"
    records = [{**i, "sem_seg_file_name": str(root / "labels" / f"{Path(i['file_name']).stem}.png")} for i in inputs]
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(
        evaluator_type="coco_panoptic_seg",
        panoptic_json=str(root / "panoptic.json"),
        panoptic_root=str(root / "panoptic"),
        json_file=str(root / "instances.json"),
        sem_seg_root=str(root / "labels"),
        thing_classes=list(NAMES.values()),
        stuff_classes=list(NAMES.values()),
        thing_dataset_id_to_contiguous_id=THINGS,
        stuff_dataset_id_to_contiguous_id=STUFF,
        ignore_label=VOID,
    )
    yield SimpleNamespace(name=name, root=root, scenes=scenes, inputs=inputs, outputs=outputs)
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)
