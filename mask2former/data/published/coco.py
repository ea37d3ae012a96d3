"""COCO: semantic maps of the panoptic annotations, for the evaluation of mIoU."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dinat_common.files import read_text
from mask2former.data.datasets.coco import CATEGORIES, SOURCE
from mask2former.data.datasets.registry import IGNORE_LABEL
from mask2former.data.image_io import read_panoptic_ids
from mask2former.data.published.preparation import SPLITS, Job, Made, Part, PreparationError, Summary, run_parts

_CONTIGUOUS = {category.id: i for i, category in enumerate(CATEGORIES)}


def prepare_coco(root: Path, splits: Sequence[str] = SPLITS, *, workers: int = 1) -> list[Summary]:
    """Make `coco/panoptic_semseg_{train,val}2017/`: 8-bit PNGs of contiguous ids 0..132, 255 for void.

    Args:
        root: The folder that DETECTRON2_DATASETS names.
        splits: Any of "train" and "val".
        workers: Number of processes.

    Raises:
        MissingDatasetError: Published files are missing.
        PreparationError: Published files are damaged.
    """
    folder = Path(root, "coco")
    return run_parts(folder, [_plan(folder, split) for split in splits], source=SOURCE, workers=workers)


def _plan(folder: Path, split: str) -> Part:
    name = f"coco semantic {split}"
    annotations = folder / f"annotations/panoptic_{split}2017.json"
    pngs, outputs = folder / f"panoptic_{split}2017", folder / f"panoptic_semseg_{split}2017"
    if not annotations.exists():
        return Part(name, [], make_semantic, missing=[path for path in (annotations, pngs) if not path.exists()])
    jobs = []
    try:
        for annotation in json.loads(read_text(annotations))["annotations"]:
            file_name = annotation["file_name"]
            classes = {segment["id"]: _CONTIGUOUS[segment["category_id"]] for segment in annotation["segments_info"]}
            jobs.append(Job(file_name, (pngs / file_name,), (outputs / file_name,), list(classes.items())))
    except json.JSONDecodeError as error:
        raise PreparationError(f"{annotations}: not valid JSON ({error})") from error
    except (KeyError, TypeError) as error:
        raise PreparationError(f"{annotations}: not COCO's panoptic format or its categories: {error!r}") from error
    return Part(name, jobs, make_semantic)


def make_semantic(job: Job) -> Made:
    """The semantic map of a panoptic PNG; the job's details are pairs of segment id and contiguous class."""
    ids = read_panoptic_ids(job.sources[0])
    labels = np.full(ids.shape, IGNORE_LABEL, np.uint8)
    for segment_id, class_id in job.details:
        labels[ids == segment_id] = class_id
    return [labels], None
