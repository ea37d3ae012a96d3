"""Cityscapes: train ids and panoptic segmentations, equal to those of cityscapesscripts' `preparation`."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from dinat_common.files import read_text
from mask2former.data.coco_format import segment_info
from mask2former.data.datasets import AnnotationError
from mask2former.data.datasets.cityscapes import GROUP, SOURCE
from mask2former.data.datasets.registry import IGNORE_LABEL
from mask2former.data.image_io import read_label_map
from mask2former.data.published.preparation import SPLITS, Job, Made, Part, Summary, run_parts, write_coco
from mask2former.tasks import Task
from mask2former.utils.label_images import ids_to_colors

PREPARED_TASKS: tuple[Task, ...] = ("semantic", "panoptic")

# Ids from here on are 1000 times the class plus the number of the thing.
_FIRST_INSTANCE = 1000


def prepare_cityscapes(
    root: Path, splits: Sequence[str] = SPLITS, *, workers: int = 1, tasks: Sequence[Task] = PREPARED_TASKS
) -> list[Summary]:
    """Make the files that the settings need under `cityscapes/gtFine/`.

    - semantic: `{train,val}/CITY/*_labelTrainIds.png`, drawn from the polygons.
    - panoptic: `cityscapes_panoptic_{train,val}.json` and folders in COCO's format, with the published label ids.

    Args:
        root: The folder that DETECTRON2_DATASETS names.
        splits: Any of "train" and "val".
        workers: Number of processes.
        tasks: Any of "semantic" and "panoptic".

    Raises:
        MissingDatasetError: Published files are missing.
        PreparationError: Published files are damaged.
    """
    folder = Path(root, "cityscapes")
    parts = [_plan(folder / "gtFine", split, task) for split in splits for task in tasks]
    return run_parts(folder, parts, source=SOURCE, workers=workers)


def _plan(folder: Path, split: str, task: Task) -> Part:
    ending = "_polygons.json" if task == "semantic" else "_instanceIds.png"
    files = sorted((folder / split).glob(f"*/*_gtFine{ending}"))
    name, missing = f"cityscapes {task} {split}", [] if files else [folder / split]
    if task == "semantic":
        outputs = [path.with_name(path.name.replace(ending, "_labelTrainIds.png")) for path in files]
        make, finish = make_train_ids, None
    else:
        panoptic = folder / f"cityscapes_panoptic_{split}"
        outputs = [panoptic / path.name.replace(ending, "_panoptic.png") for path in files]
        make, finish = make_panoptic, partial(write_coco, panoptic.with_suffix(".json"), "panoptic", _categories())
    jobs = [Job(path.name, (path,), (output,)) for path, output in zip(files, outputs, strict=True)]
    return Part(name, jobs, make, finish, missing)


def make_train_ids(job: Job) -> Made:
    """Train id of the frontmost polygon at each pixel; polygons include their outlines."""
    from cityscapesscripts.helpers.labels import name2label

    (path,) = job.sources
    try:
        content = json.loads(read_text(path))
        canvas = Image.new("L", (content["imgWidth"], content["imgHeight"]), IGNORE_LABEL)
        drawer = ImageDraw.Draw(canvas)
        for drawn in content["objects"]:
            if drawn.get("deleted"):
                continue
            label = name2label.get(drawn["label"]) or name2label[drawn["label"].removesuffix(GROUP)]
            # Labels with a negative id are not drawn.
            if label.id >= 0:
                drawer.polygon([tuple(point) for point in drawn["polygon"]], fill=label.trainId)
    except json.JSONDecodeError as error:
        raise AnnotationError(f"{path}: not valid JSON ({error})") from error
    except (KeyError, TypeError) as error:
        raise AnnotationError(f"{path}: not a polygon file of Cityscapes, or an unknown label: {error!r}") from error
    return [np.asarray(canvas)], None


def make_panoptic(job: Job) -> Made:
    """The panoptic PNG, the image's entry and its annotation; labels that are not evaluated are void."""
    from cityscapesscripts.helpers.labels import id2label

    (path,) = job.sources
    instances = read_label_map(path)
    segments_info = []
    evaluated = np.zeros_like(instances)
    for segment_id in np.unique(instances).tolist():
        is_thing = segment_id >= _FIRST_INSTANCE
        label = id2label.get(segment_id // _FIRST_INSTANCE if is_thing else segment_id)
        if label is None:
            raise AnnotationError(f"{path}: unknown label id {segment_id}")
        if label.ignoreInEval:
            continue
        mask = instances == segment_id
        evaluated[mask] = segment_id
        # A class of things without a number is a group.
        segments_info.append(segment_info(mask, segment_id, label.id, iscrowd=label.hasInstances and not is_thing))
    stem = path.name.removesuffix("_instanceIds.png")
    image_id = stem.removesuffix("_gtFine")
    height, width = instances.shape
    # Not the name of the image file, but the one that cityscapesscripts writes; it is never read.
    image = {"id": image_id, "width": width, "height": height, "file_name": f"{stem}_leftImg8bit.png"}
    annotation = {"image_id": image_id, "file_name": f"{stem}_panoptic.png", "segments_info": segments_info}
    return [ids_to_colors(evaluated)], {"image": image, "panoptic": [annotation]}


def _categories() -> list[dict[str, Any]]:
    from cityscapesscripts.helpers.labels import name2label

    return [
        {
            "id": label.id,
            "name": label.name,
            "color": list(label.color),
            "supercategory": label.category,
            "isthing": int(label.hasInstances),
        }
        for label in name2label.values()
        if not label.ignoreInEval
    ]
