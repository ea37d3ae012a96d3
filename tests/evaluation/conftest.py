"""Small random data sets in COCO's panoptic, instance and semantic layouts, and predictions that are partly right."""

import json
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from pycocotools import mask as mask_util

from mask2former.utils.label_images import ids_to_colors

from .predictions import predict

# Category ids have gaps.
THINGS = {3: 0, 7: 1}
STUFF = {11: 2, 20: 3, 33: 4}
CONTIGUOUS = THINGS | STUFF
NAMES = {3: "cat", 7: "dog", 11: "sky", 20: "sea", 33: "sand"}
VOID = 255


@dataclass
class LabeledImage:
    """Segment ids [H, W] (0: void), and the dataset's category id and crowd flag of each segment that is listed."""

    ids: np.ndarray
    categories: dict[int, int]
    crowd: frozenset[int] = frozenset()


def draw(rng, index):
    """Void pixels, ids that use all three channels, one crowd region in all; one class never occurs."""
    names = np.array([0, 1, 300, 70000, 4, 5, 6])
    ids = names[np.kron(rng.integers(0, 7, (6, 8)), np.ones((8, 8), dtype=np.int64))]
    kinds = dict(zip(names[1:].tolist(), [3, 3, 7, 3, 11, 20], strict=True))
    present = set(np.unique(ids).tolist())
    crowd = frozenset({4} & present if index == 0 else ())
    return LabeledImage(ids, {i: k for i, k in kinds.items() if i in present}, crowd)


def write_truth(root, images):
    """The files of a data set's ground truth; returns the dicts of its images."""
    rows, panoptic, instances, dicts = [], [], [], []
    for folder in ("images", "panoptic", "labels"):
        (root / folder).mkdir(parents=True)
    for index, image in enumerate(images):
        stem, key, (height, width) = f"image{index}", index + 50, image.ids.shape
        rows.append({"id": key, "file_name": f"{stem}.jpg", "height": height, "width": width})
        Image.new("RGB", (width, height)).save(root / "images" / f"{stem}.jpg")
        Image.fromarray(ids_to_colors(image.ids)).save(root / "panoptic" / f"{stem}.png")
        labels = np.full(image.ids.shape, VOID, dtype=np.uint8)
        segments = []
        for i, kind in image.categories.items():
            pixels = image.ids == i
            labels[pixels] = CONTIGUOUS[kind]
            common = {"category_id": kind, "iscrowd": int(i in image.crowd), "area": int(pixels.sum())}
            segments.append({"id": i, "bbox": [0, 0, 1, 1], **common})
            if kind in THINGS:
                rle = mask_util.encode(np.asfortranarray(pixels, dtype=np.uint8))
                box = mask_util.toBbox(rle).tolist()
                rle["counts"] = rle["counts"].decode()
                found = {"id": len(instances) + 1, "image_id": key, "bbox": box, "segmentation": rle}
                instances.append({**found, **common})
        Image.fromarray(labels).save(root / "labels" / f"{stem}.png")
        panoptic.append({"image_id": key, "file_name": f"{stem}.png", "segments_info": segments})
        paths = {"file_name": f"images/{stem}.jpg", "sem_seg_file_name": f"labels/{stem}.png"}
        paths["pan_seg_file_name"] = f"panoptic/{stem}.png"
        listed = [{**s, "category_id": CONTIGUOUS[s["category_id"]]} for s in segments]
        dicts.append({**{k: str(root / v) for k, v in paths.items()}, "image_id": key, "segments_info": listed})
    categories = [{"id": i, "name": name, "isthing": int(i in THINGS)} for i, name in NAMES.items()]
    things = [category for category in categories if category["isthing"]]
    for name, kinds, annotations in (("panoptic", categories, panoptic), ("instances", things, instances)):
        content = {"images": rows, "categories": kinds, "annotations": annotations}
        (root / f"{name}.json").write_text(json.dumps(content))
    return dicts


@pytest.fixture
def make_dataset(tmp_path):
    """Registers a data set of given images; returns its name and folder, and what a model says that saw all images."""
    name = "evaluated_in_a_test"

    def make(images, rng):
        root = tmp_path / "ground_truth"
        dicts = write_truth(root, images)
        DatasetCatalog.register(name, lambda: dicts)
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
        inputs, outputs = predict(name, rng)
        return SimpleNamespace(name=name, root=root, images=images, inputs=[dict(i) for i in inputs], outputs=outputs)

    yield make
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.fixture
def dataset(make_dataset):
    """A data set of five images; the model gives scores for its classes."""
    rng = np.random.default_rng(7)
    made = make_dataset([draw(rng, index) for index in range(5)], rng)
    for output in made.outputs:
        scores = torch.nn.functional.one_hot(output["sem_seg"], len(NAMES)).permute(2, 0, 1)
        output["sem_seg"] = scores + torch.from_numpy(rng.random(scores.shape)) * 0.1
    return made
