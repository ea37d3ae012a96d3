"""ADE20K: semantic maps that start at 0, instances in COCO's format, and both combined as panoptic segmentations."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mask2former.data.coco_format import instance_annotation, segment_info, unused_segment_id
from mask2former.data.datasets import AnnotationError
from mask2former.data.datasets.ade20k import CATEGORIES, INSTANCE_CATEGORIES, SOURCE
from mask2former.data.datasets.custom import class_entry
from mask2former.data.image_io import image_size, read_label_map, read_panoptic_png
from mask2former.data.published.preparation import SPLITS, Job, Made, Part, Summary, run_parts, write_coco
from mask2former.tasks import Task
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
    name, finish, outputs = f"ade20k_{task}_{split}", None, None
    if task == "semantic":
        make, labels, outputs = make_semantic, ("annotations",), folder / "annotations_detectron2" / subfolder
    elif task == "instance":
        make, labels = make_instances, ("annotations_instance",)
        categories = [{"id": category.id, "name": category.name} for category in INSTANCE_CATEGORIES]
        finish = partial(write_coco, folder / f"{name}.json", "instances", categories)
    else:
        make, labels, outputs = make_panoptic, ("annotations", "annotations_instance"), folder / name
        categories = [{**class_entry(category), "isthing": int(category.isthing)} for category in CATEGORIES]
        finish = partial(write_coco, folder / f"{name}.json", "panoptic", categories)
    images, *label_folders = (folder / source / subfolder for source in ("images", *labels))
    jobs = [
        Job(
            image.stem,
            (image, *(labels / f"{image.stem}.png" for labels in label_folders)),
            (outputs / f"{image.stem}.png",) if outputs else (),
        )
        for image in sorted(images.glob("*.jpg"))
    ]
    # Without images, no job reports missing labels.
    missing = [] if jobs else [images, *(path for path in label_folders if not path.exists())]
    return Part(name.replace("_", " "), jobs, make, finish, missing)


def make_semantic(job: Job) -> Made:
    """Contiguous labels of the published semantic map."""
    image, path = job.sources
    # 0 becomes 255, which is void.
    return [_read_semantic(path, image_size(image)) - np.uint8(1)], None


def make_instances(job: Job) -> Made:
    """The image's entry and its annotations, which `write_coco` numbers."""
    image, labels = job.sources
    size = image_size(image)
    instances = read_panoptic_png(labels, size)
    annotations = [
        instance_annotation(mask, 0, job.key, category, polygons=False)
        for category, mask in things_of(labels, instances)
    ]
    return [], {"image": _image_entry(image, size), "instances": annotations}


def make_panoptic(job: Job) -> Made:
    """The panoptic PNG, the image's entry and its annotation."""
    image, semantic_path, instance_path = job.sources
    size = image_size(image)
    labels = _read_semantic(semantic_path, size).astype(np.int64) - 1
    instances = read_panoptic_png(instance_path, size)
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
    return [ids_to_colors(ids)], {"image": _image_entry(image, size), "panoptic": [annotation]}


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


def _read_semantic(path: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
    labels = read_label_map(path, size)
    if labels.size and labels.max() > len(CATEGORIES):
        raise AnnotationError(f"{path}: labels up to {labels.max()}, expected at most {len(CATEGORIES)}")
    return labels.astype(np.uint8)


def _image_entry(image: Path, size: tuple[int, int]) -> dict[str, Any]:
    return {"id": image.stem, "file_name": image.name, "width": size[1], "height": size[0]}
