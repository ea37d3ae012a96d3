"""Predictions of a mediocre model for the images of a data set: moved borders, swapped classes, forgotten things."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Instances
from PIL import Image
from pycocotools import mask as mask_util

# The smallest and largest numbers of each colour of a panoptic PNG.
SEGMENT_IDS = (1, 255, 256, 65535, 65536, 2**24 - 1)


@dataclass
class TruthSegment:
    pixels: np.ndarray
    category: int  # contiguous
    isthing: bool


def predict(dataset_name, rng):
    """Inputs and outputs of a model that saw a data set, with all outputs."""
    metadata = MetadataCatalog.get(dataset_name)
    inputs = DatasetCatalog.get(dataset_name)
    truth = TRUTH[metadata.evaluator_type]
    outputs = [output(perturb(truth(image, metadata), rng), metadata, size(image), rng) for image in inputs]
    return inputs, outputs


def size(image):
    if "height" in image:
        return image["height"], image["width"]
    with Image.open(image["file_name"]) as file:
        return file.size[::-1]


def perturb(segments, rng):
    """Move all, forget some, cut holes into some, and give some the category of another."""
    changed = []
    for segment in segments:
        if rng.random() < 0.1:
            continue
        pixels = np.roll(segment.pixels, rng.integers(-2, 3, 2), axis=(0, 1))
        if rng.random() < 0.1:
            pixels &= rng.random(pixels.shape) < 0.5
        other = rng.choice([s.category for s in segments if s.isthing == segment.isthing])
        category = other if rng.random() < 0.15 else segment.category
        changed.append(TruthSegment(pixels, int(category), segment.isthing))
    return changed


def output(segments, metadata, size, rng):
    # Some things twice, one without a pixel.
    things = [s for s in segments if s.isthing]
    things += [TruthSegment(np.roll(s.pixels, 1, axis=0), s.category, True) for s in things if rng.random() < 0.3]
    things += [TruthSegment(np.zeros(size, bool), s.category, True) for s in things[:1]]
    instances = Instances(size)
    instances.pred_masks = torch.from_numpy(
        np.stack([s.pixels for s in things]) if things else np.zeros((0, *size), bool)
    )
    # Scores that repeat.
    instances.scores = torch.from_numpy(rng.integers(1, 20, len(things)).astype(np.float32) / 20)
    instances.pred_classes = torch.tensor([s.category for s in things], dtype=torch.int64)
    panoptic = np.zeros(size, np.int32)
    classes = np.zeros(size, np.int64)
    numbers = (*SEGMENT_IDS, *range(2, 255))[: len(segments)]
    for number, segment in zip(numbers, segments, strict=True):
        panoptic[segment.pixels] = number
        classes[segment.pixels] = segment.category
    left = set(np.unique(panoptic).tolist())
    info = [
        {"id": number, "category_id": s.category, "isthing": s.isthing}
        for number, s in zip(numbers, segments, strict=True)
        if number in left
    ]
    return {
        "instances": instances,
        "panoptic_seg": (torch.from_numpy(panoptic), info),
        "sem_seg": torch.from_numpy(classes),
    }


def of_panoptic(image, metadata):
    colors = np.asarray(Image.open(image["pan_seg_file_name"])).astype(np.int64)
    ids = colors[..., 0] + 256 * colors[..., 1] + 65536 * colors[..., 2]
    things = set(metadata.thing_dataset_id_to_contiguous_id.values())
    return [TruthSegment(ids == s["id"], s["category_id"], s["category_id"] in things) for s in image["segments_info"]]


def of_annotations(image, metadata):
    found = []
    for annotation in image["annotations"]:
        rle = annotation["segmentation"]
        if isinstance(rle, list):
            rle = mask_util.merge(mask_util.frPyObjects(rle, image["height"], image["width"]))
        elif isinstance(rle["counts"], list):
            rle = mask_util.frPyObjects(rle, image["height"], image["width"])
        found.append(TruthSegment(mask_util.decode(rle).astype(bool), annotation["category_id"], True))
    return found


def of_instance_ids(image, metadata):
    stem = Path(image["file_name"]).stem.removesuffix("_leftImg8bit")
    ids = np.asarray(Image.open(Path(metadata.gt_dir, stem.split("_")[0], f"{stem}_gtFine_instanceIds.png")))
    labels = {i: i // 1000 if i >= 1000 else i for i in np.unique(ids).tolist()}
    classes = metadata.thing_dataset_id_to_contiguous_id
    return [TruthSegment(ids == i, classes[label], True) for i, label in labels.items() if label in classes]


def of_labels(image, metadata):
    labels = np.asarray(Image.open(image["sem_seg_file_name"]))
    return [TruthSegment(labels == i, i, False) for i in np.unique(labels).tolist() if i != metadata.ignore_label]


TRUTH = {
    "coco": of_annotations,
    "coco_panoptic_seg": of_panoptic,
    "sem_seg": of_labels,
    "cityscapes_instance": of_instance_ids,
    "cityscapes_panoptic_seg": of_panoptic,
    "cityscapes_sem_seg": of_labels,
}
