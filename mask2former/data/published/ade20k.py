"""ADE20K: semantic maps from 0, instances in COCO's format, and both put together as panoptic segmentations."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mask2former.data.coco_format import instance_annotation, segment_info, unused_segment_id
from mask2former.data.datasets.ade20k import CATEGORIES, INSTANCE_CATEGORIES, SOURCE
from mask2former.data.image_io import image_size, read_label_map, read_panoptic_png
from mask2former.data.published.jobs import Job, Make, Part, Summary, run_parts
from mask2former.utils.files import write_json
from mask2former.utils.label_images import ids_to_colors

SPLITS = ("train", "val")
TASKS = ("semantic", "instance", "panoptic")

_FOLDERS = {"train": "training", "val": "validation"}
# What is read beside the images.
_LABELS = {
    "semantic": ("annotations",),
    "instance": ("annotations_instance",),
    "panoptic": ("annotations", "annotations_instance"),
}
Made = tuple[Sequence[NDArray[Any]], Any]


def prepare_ade20k(
    root: Path, splits: Sequence[str] = SPLITS, *, workers: int = 1, tasks: Sequence[str] = TASKS
) -> list[Summary]:
    """Make what the settings need under `ADEChallengeData2016/`.

    - semantic: `annotations_detectron2/{training,validation}/*.png`, the owners' labels minus 1, 255 for void.
    - instance: `ade20k_instance_{train,val}.json` in COCO's format.
    - panoptic: `ade20k_panoptic_{train,val}.json` and folders in COCO's format. Things cover the stuff that the
      semantic map has at their place; sizes of stuff in the JSON are, as in the published runs, those before that.

    Args:
        root: the folder that DETECTRON2_DATASETS names.
        splits: of "train" and "val".
        workers: number of processes.
        tasks: of "semantic", "instance" and "panoptic".

    Raises:
        MissingDatasetError: files of the owners are missing.
        PreparationError: some are damaged.
    """
    folder = Path(root, "ADEChallengeData2016")
    parts = [_plan(folder, split, task) for split in splits for task in tasks]
    return run_parts(folder, parts, source=SOURCE, workers=workers)


def _plan(folder: Path, split: str, task: str) -> Part:
    """What to do for one task; `folder` is that of the data set."""
    split_folder = _FOLDERS[split]
    outputs = {"semantic": f"annotations_detectron2/{split_folder}", "panoptic": f"ade20k_panoptic_{split}"}
    source_folders = [folder / name / split_folder for name in ("images", *_LABELS[task])]
    images = sorted(source_folders[0].glob("*.jpg"))
    jobs = [
        Job(
            image.stem,
            (image, *(labels / f"{image.stem}.png" for labels in source_folders[1:])),
            (folder / outputs[task] / f"{image.stem}.png",) if task in outputs else (),
        )
        for image in images
    ]
    finish = None
    if task != "semantic":
        finish = partial(_WRITE[task], folder / f"ade20k_{task}_{split}.json")
    # Without an image there is no job that could miss its labels.
    missing = [] if images else [path for path in source_folders if path == source_folders[0] or not path.exists()]
    return Part(f"ade20k {task} {split}", jobs, _MAKE[task], finish, missing)


def make_semantic(job: Job) -> Made:
    """Contiguous labels of the owners' semantic map."""
    image, path = job.sources
    labels = _read_semantic(path)
    _image_entry(job.key, image, path, labels)
    # 0 becomes 255, which is void.
    return [labels - np.uint8(1)], None


def make_instances(job: Job) -> Made:
    """The image's entry and its annotations; their ids are given when all images are together."""
    image, labels = job.sources
    instances = read_panoptic_png(labels)
    annotations = [
        instance_annotation(mask, 0, job.key, category, polygons=False)
        for category, mask in things_of(labels, instances)
    ]
    return [], {"image": _image_entry(job.key, image, labels, instances), "annotations": annotations}


def make_panoptic(job: Job) -> Made:
    """The panoptic PNG, the image's entry and its annotation."""
    image, semantic_path, instance_path = job.sources
    labels = _read_semantic(semantic_path).astype(np.int64) - 1
    instances = read_panoptic_png(instance_path)
    entry = _image_entry(job.key, image, instance_path, instances)
    if labels.shape != instances.shape[:2]:
        raise ValueError(f"{semantic_path}: {labels.shape} pixels, but {instance_path} has {instances.shape[:2]}")
    stuff = [i for i in np.unique(labels).tolist() if i >= 0 and not CATEGORIES[i].isthing]
    segments = [(class_id, labels == class_id) for class_id in stuff]
    segments += things_of(instance_path, instances)
    ids = np.zeros(labels.shape, np.int64)
    segments_info: list[dict[str, Any]] = []
    for class_id, mask in segments:
        taken = {segment["id"] for segment in segments_info}
        segment_id = unused_segment_id(CATEGORIES[class_id].color, taken)
        ids[mask] = segment_id
        segments_info.append(segment_info(mask, segment_id, class_id))
    annotation = {"image_id": job.key, "file_name": f"{job.key}.png", "segments_info": segments_info}
    return [ids_to_colors(ids)], {"image": entry, "annotation": annotation}


def things_of(path: Path, instances: NDArray[np.uint8]) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """Category (0-based of the 150) and mask [H, W] of each thing in an instance map [H, W, 3].

    The red channel has the instance category 1..100, the green one the number of the thing, 0 for none.

    Raises:
        ValueError: a thing has several categories, or one that there is not.
    """
    categories, numbers = instances[:, :, 0], instances[:, :, 1]
    for number in np.unique(numbers).tolist():
        if number == 0:
            continue
        mask = numbers == number
        found = np.unique(categories[mask]).tolist()
        if len(found) > 1 or not 1 <= found[0] <= len(INSTANCE_CATEGORIES):
            expected = f"expected one of 1 to {len(INSTANCE_CATEGORIES)}"
            raise ValueError(f"{path}: thing {number} has instance category {found}, {expected}")
        yield INSTANCE_CATEGORIES[found[0] - 1].id, mask


def write_instances(path: Path, entries: Sequence[dict[str, Any]]) -> None:
    """Write the instances JSON; annotations are numbered from 1."""
    annotations = [annotation for entry in entries for annotation in entry["annotations"]]
    content = {
        "images": [entry["image"] for entry in entries],
        "categories": [{"id": category.id, "name": category.name} for category in INSTANCE_CATEGORIES],
        "annotations": [{**annotation, "id": i} for i, annotation in enumerate(annotations, start=1)],
    }
    write_json(path, content)


def write_panoptic(path: Path, entries: Sequence[dict[str, Any]]) -> None:
    """Write the panoptic JSON."""
    content = {
        "images": [entry["image"] for entry in entries],
        "annotations": [entry["annotation"] for entry in entries],
        "categories": [
            {"name": c.name, "id": c.id, "isthing": int(c.isthing), "color": list(c.color)} for c in CATEGORIES
        ],
    }
    write_json(path, content)


def _read_semantic(path: Path) -> NDArray[np.uint8]:
    labels = read_label_map(path)
    if labels.size and labels.max() > len(CATEGORIES):
        raise ValueError(f"{path}: labels up to {labels.max()}, expected at most {len(CATEGORIES)}")
    return labels.astype(np.uint8)


def _image_entry(stem: str, image: Path, labels: Path, pixels: NDArray[Any]) -> dict[str, Any]:
    size = image_size(image)
    if pixels.shape[:2] != size:
        raise ValueError(f"{labels}: {pixels.shape[:2]} pixels, but {image} has {size}")
    return {"id": stem, "file_name": image.name, "width": size[1], "height": size[0]}


_MAKE: Mapping[str, Make] = {"semantic": make_semantic, "instance": make_instances, "panoptic": make_panoptic}
_WRITE = {"instance": write_instances, "panoptic": write_panoptic}
