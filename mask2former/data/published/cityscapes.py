"""Cityscapes: train ids and panoptic segmentations, the same as those of cityscapesscripts' `preparation`."""

import json
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mask2former.data.coco_format import segment_info
from mask2former.data.datasets.cityscapes import GROUP, SOURCE
from mask2former.data.datasets.registry import IGNORE_LABEL
from mask2former.data.image_io import read_label_map
from mask2former.data.published.jobs import Job, Part, Summary, run_parts
from mask2former.utils.files import write_json
from mask2former.utils.label_images import ids_to_colors

SPLITS = ("train", "val")
TASKS = ("semantic", "panoptic")

# Ids from here on are 1000 times the class plus the number of the thing.
_FIRST_INSTANCE = 1000


def prepare_cityscapes(
    root: Path, splits: Sequence[str] = SPLITS, *, workers: int = 1, tasks: Sequence[str] = TASKS
) -> list[Summary]:
    """Make what the settings need under `cityscapes/gtFine/`.

    - semantic: `{train,val}/CITY/*_labelTrainIds.png`, drawn from the polygons.
    - panoptic: `cityscapes_panoptic_{train,val}.json` and folders in COCO's format, with the owners' label ids.

    Args:
        root: the folder that DETECTRON2_DATASETS names.
        splits: of "train" and "val".
        workers: number of processes.
        tasks: of "semantic" and "panoptic".

    Raises:
        MissingDatasetError: files of the owners are missing.
        PreparationError: some are damaged.
    """
    folder = Path(root, "cityscapes")
    parts = [_PLANS[task](folder / "gtFine", split) for split in splits for task in tasks]
    return run_parts(folder, parts, source=SOURCE, workers=workers)


def _plan_semantic(folder: Path, split: str) -> Part:
    ending = "_polygons.json"
    files = _files(folder, split, ending)
    jobs = [
        Job(path.name, (path,), (path.with_name(path.name.replace(ending, "_labelTrainIds.png")),)) for path in files
    ]
    return Part(f"cityscapes semantic {split}", jobs, make_train_ids, missing=[] if files else [folder / split])


def _plan_panoptic(folder: Path, split: str) -> Part:
    ending = "_instanceIds.png"
    outputs = folder / f"cityscapes_panoptic_{split}"
    files = _files(folder, split, ending)
    jobs = [Job(path.name, (path,), (outputs / path.name.replace(ending, "_panoptic.png"),)) for path in files]
    finish = partial(write_panoptic, outputs.with_suffix(".json"))
    missing = [] if files else [folder / split]
    return Part(f"cityscapes panoptic {split}", jobs, make_panoptic, finish, missing)


_PLANS = {"semantic": _plan_semantic, "panoptic": _plan_panoptic}


def _files(folder: Path, split: str, ending: str) -> list[Path]:
    return sorted((folder / split).glob(f"*/*_gtFine{ending}"))


def make_train_ids(job: Job) -> tuple[Sequence[NDArray[Any]], Any]:
    """Train ids of the frontmost polygon at each pixel; outlines belong to their polygons."""
    (path,) = job.sources
    by_name, _ = _labels()
    try:
        content = json.loads(path.read_text())
        canvas = Image.new("L", (content["imgWidth"], content["imgHeight"]), IGNORE_LABEL)
        drawer = ImageDraw.Draw(canvas)
        for drawn in content["objects"]:
            if drawn.get("deleted"):
                continue
            label = by_name.get(drawn["label"]) or by_name[drawn["label"].removesuffix(GROUP)]
            # Labels with a negative id are drawn nowhere.
            if label.id >= 0:
                drawer.polygon([tuple(point) for point in drawn["polygon"]], fill=label.trainId)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a polygon file of Cityscapes, or an unknown label: {error!r}") from error
    return [np.asarray(canvas)], None


def make_panoptic(job: Job) -> tuple[Sequence[NDArray[Any]], Any]:
    """The panoptic PNG, the image's entry and its annotation; what is not evaluated is void."""
    (path,) = job.sources
    _, by_id = _labels()
    instances = read_label_map(path)
    segments_info = []
    evaluated = np.zeros_like(instances)
    for segment_id in np.unique(instances).tolist():
        is_thing = segment_id >= _FIRST_INSTANCE
        label = by_id.get(segment_id // _FIRST_INSTANCE if is_thing else segment_id)
        if label is None:
            raise ValueError(f"{path}: unknown label id {segment_id}")
        if label.ignoreInEval:
            continue
        mask = instances == segment_id
        evaluated[mask] = segment_id
        # A class of things without a number is a group.
        segments_info.append(segment_info(mask, segment_id, label.id, iscrowd=label.hasInstances and not is_thing))
    stem = path.name.removesuffix("_instanceIds.png")
    image_id = stem.removesuffix("_gtFine")
    height, width = instances.shape
    # Not the name of the image's file, but the one that cityscapesscripts writes; nobody reads it.
    image = {"id": image_id, "width": width, "height": height, "file_name": f"{stem}_leftImg8bit.png"}
    annotation = {"image_id": image_id, "file_name": f"{stem}_panoptic.png", "segments_info": segments_info}
    return [ids_to_colors(evaluated)], {"image": image, "annotation": annotation}


def write_panoptic(path: Path, entries: Sequence[dict[str, Any]]) -> None:
    """Write the panoptic JSON."""
    by_name, _ = _labels()
    categories = [
        {
            "id": label.id,
            "name": label.name,
            "color": list(label.color),
            "supercategory": label.category,
            "isthing": int(label.hasInstances),
        }
        for label in by_name.values()
        if not label.ignoreInEval
    ]
    content = {
        "images": [entry["image"] for entry in entries],
        "annotations": [entry["annotation"] for entry in entries],
        "categories": categories,
    }
    write_json(path, content)


@cache
def _labels() -> tuple[Mapping[str, Any], Mapping[int, Any]]:
    """The owners' labels by name and by id."""
    from cityscapesscripts.helpers.labels import id2label, name2label

    return name2label, id2label
