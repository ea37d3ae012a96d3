"""ADE20K: semantic maps that start at 0, instances in COCO's format, and both combined as panoptic segmentations."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mask2former.data.coco_format import instance_annotation, segment_info, unused_segment_id
from mask2former.data.datasets import AnnotationError
from mask2former.data.datasets.ade20k import CATEGORIES, INSTANCE_CATEGORIES, SOURCE
from mask2former.data.image_io import image_size, read_label_map, read_panoptic_png
from mask2former.data.problems import size_text
from mask2former.data.published.preparation import SPLITS, Job, Made, Make, Part, Summary, run_parts
from mask2former.tasks import Task
from mask2former.utils.files import write_json
from mask2former.utils.label_images import ids_to_colors

PREPARED_TASKS: tuple[Task, ...] = ("semantic", "instance", "panoptic")


def prepare_ade20k(
    root: Path, splits: Sequence[str] = SPLITS, *, workers: int = 1, tasks: Sequence[Task] = PREPARED_TASKS
) -> list[Summary]:
    """Make the files that the settings need under `ADEChallengeData2016/`.

    - semantic: `annotations_detectron2/{training,validation}/*.png`, the published labels minus 1, 255 for void.
    - instance: `ade20k_instance_{train,val}.json` in COCO's format.
    - panoptic: `ade20k_panoptic_{train,val}.json` and folders in COCO's format. Things cover the stuff that the
      semantic map has in the same place. As in the published runs, areas of stuff in the JSON include covered pixels.

    Args:
        root: The folder that DETECTRON2_DATASETS names.
        splits: Any of "train" and "val".
        workers: Number of processes.
        tasks: Any of "semantic", "instance" and "panoptic".

    Raises:
        MissingDatasetError: Published files are missing.
        PreparationError: Published files are damaged.
    """
    folder = Path(root, "ADEChallengeData2016")
    parts = [_plan(folder, split, task) for split in splits for task in tasks]
    return run_parts(folder, parts, source=SOURCE, workers=workers)


def _plan(folder: Path, split: str, task: Task) -> Part:
    subfolder = {"train": "training", "val": "validation"}[split]
    name = f"ade20k_{task}_{split}"
    make: Make
    write: Callable[..., None] | None
    if task == "semantic":
        make, labels, write = make_semantic, ("annotations",), None
        outputs = folder / "annotations_detectron2" / subfolder
    elif task == "instance":
        make, labels, write, outputs = make_instances, ("annotations_instance",), write_instances, None
    else:
        make, labels, write = make_panoptic, ("annotations", "annotations_instance"), write_panoptic
        outputs = folder / name
    images, *label_folders = (folder / source / subfolder for source in ("images", *labels))
    jobs = [
        Job(
            image.stem,
            (image, *(labels / f"{image.stem}.png" for labels in label_folders)),
            (outputs / f"{image.stem}.png",) if outputs else (),
        )
        for image in sorted(images.glob("*.jpg"))
    ]
    finish = partial(write, folder / f"{name}.json") if write else None
    # Without images, no job reports missing labels.
    missing = [] if jobs else [images, *(path for path in label_folders if not path.exists())]
    return Part(name.replace("_", " "), jobs, make, finish, missing)


def make_semantic(job: Job) -> Made:
    """Contiguous labels of the published semantic map."""
    image, path = job.sources
    labels = _read_semantic(path)
    _image_entry(job.key, image, path, labels)
    # 0 becomes 255, which is void.
    return [labels - np.uint8(1)], None


def make_instances(job: Job) -> Made:
    """The image's entry and its annotations, whose ids are assigned by `write_instances`."""
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
        sizes = f"{size_text(labels.shape)} pixels, but {instance_path} has {size_text(instances.shape)}"
        raise AnnotationError(f"{semantic_path}: {sizes}")
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
    """Category (0-based position among the 150) and mask [H, W] of each thing in an instance map [H, W, 3].

    The red channel holds the instance category 1..100, the green channel the number of the thing, 0 for none.

    Raises:
        AnnotationError: A thing has several categories or an unknown one.
    """
    categories, numbers = instances[:, :, 0], instances[:, :, 1]
    for number in np.unique(numbers).tolist():
        if number == 0:
            continue
        mask = numbers == number
        found = np.unique(categories[mask]).tolist()
        if len(found) > 1 or not 1 <= found[0] <= len(INSTANCE_CATEGORIES):
            expected = f"expected one of 1 to {len(INSTANCE_CATEGORIES)}"
            raise AnnotationError(f"{path}: thing {number} has instance category {found}, {expected}")
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
        raise AnnotationError(f"{path}: labels up to {labels.max()}, expected at most {len(CATEGORIES)}")
    return labels.astype(np.uint8)


def _image_entry(stem: str, image: Path, labels: Path, pixels: NDArray[Any]) -> dict[str, Any]:
    size = image_size(image)
    if pixels.shape[:2] != size:
        raise AnnotationError(f"{labels}: {size_text(pixels.shape)} pixels, but {image} has {size_text(size)}")
    return {"id": stem, "file_name": image.name, "width": size[1], "height": size[0]}
