"""Data sets laid out as COCO's: images, an instances JSON, panoptic JSON and PNGs, semantic PNGs.

One description of the files (`CocoLayout`) and of the categories serves three tasks. Detectron2's own functions read
all but panoptic annotations. Images have to be `.jpg`, label images `.png`, and share their stems.
"""

import json
import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from detectron2.data.catalog import Metadata
from detectron2.data.datasets.coco import load_coco_json, load_sem_seg

from mask2former.data.datasets.registry import AnnotationError, DatasetDict, register_dataset

Task = Literal["panoptic", "instance", "semantic"]

IGNORE_LABEL = 255
# Detectron2's encoding of a panoptic id in evaluators that number segments class by class.
LABEL_DIVISOR = 1000


@dataclass(frozen=True)
class Category:
    """A category: its id in the annotation files, its name, an RGB colour, and whether it is a thing."""

    id: int
    name: str
    color: tuple[int, int, int]
    isthing: bool


def categories_from(table: Iterable[Mapping[str, Any]]) -> tuple[Category, ...]:
    """Categories of a table in COCO's form: dicts with `id`, `name`, `color` and `isthing`."""
    return tuple(Category(entry["id"], entry["name"], tuple(entry["color"]), bool(entry["isthing"])) for entry in table)


@dataclass(frozen=True)
class CocoLayout:
    """Files and folders of one split, relative to `datasets_root()` or absolute; those given must exist to load it.

    Semantic PNGs hold contiguous ids (the position in the category list) and 255 for void.
    """

    image_root: str | Path
    json_file: str | Path | None = None
    panoptic_json: str | Path | None = None
    panoptic_root: str | Path | None = None
    sem_seg_root: str | Path | None = None

    def paths(self) -> dict[str, str | Path]:
        """The entries given, under the names that Detectron2's evaluators look for in the metadata."""
        return {key: path for key, path in vars(self).items() if path is not None}


def register_coco_layout(
    name: str,
    task: Task,
    categories: Sequence[Category],
    layout: CocoLayout,
    *,
    source: str,
    evaluator_type: str | None = None,
    **entries: Any,
) -> None:
    """Register a split of a data set in COCO's layout for one task.

    - panoptic: dicts with `pan_seg_file_name` and `segments_info`, and `sem_seg_file_name` where the layout has a
      `sem_seg_root`. Give all five paths for a split that PQ, AP and mIoU are evaluated on.
    - instance: dicts with `annotations`; only things count, their contiguous ids are 0, 1, ... in order.
    - semantic: dicts with `sem_seg_file_name`.

    Args:
        name: the name used in configs; a data set that has it is replaced.
        task: what the dicts and the metadata are made for.
        categories: all of them, in the order of the contiguous ids.
        layout: where the files are.
        source: where the data come from, for the message when they are missing.
        evaluator_type: by default that of COCO's own sets (`coco_panoptic_seg`, `coco`, `sem_seg`).
        entries: further entries of the metadata.

    Raises:
        ValueError: the layout lacks a path that the task needs.
    """
    needed, load, describe, default_evaluator = _TASKS[task]
    lacking = [key for key in needed if key not in layout.paths()]
    if lacking:
        raise ValueError(f"data set {name!r}: the {task} task needs {', '.join(lacking)} in its layout")
    register_dataset(
        name,
        load,
        paths=layout.paths(),
        source=source,
        evaluator_type=evaluator_type or default_evaluator,
        ignore_label=IGNORE_LABEL,
        **describe(categories),
        **entries,
    )


def panoptic_entries(categories: Sequence[Category]) -> dict[str, Any]:
    """Metadata of panoptic sets, as Detectron2 describes "coco_panoptic_standard".

    Class names and colours are listed for all categories both as things and as stuff, so that a contiguous id indexes
    either; the id maps are the ones that tell things from stuff.
    """
    index = {category.id: i for i, category in enumerate(categories)}
    things = {category.id for category in categories if category.isthing}
    return {
        **_names_and_colors("thing", categories),
        **_names_and_colors("stuff", categories),
        "thing_dataset_id_to_contiguous_id": {id: i for id, i in index.items() if id in things},
        "stuff_dataset_id_to_contiguous_id": {id: i for id, i in index.items() if id not in things},
        "label_divisor": LABEL_DIVISOR,
    }


def instance_entries(categories: Sequence[Category]) -> dict[str, Any]:
    """Metadata of instance sets: the things alone, numbered from 0."""
    things = [category for category in categories if category.isthing]
    return {**_names_and_colors("thing", things), "thing_dataset_id_to_contiguous_id": _contiguous_ids(things)}


def semantic_entries(categories: Sequence[Category]) -> dict[str, Any]:
    """Metadata of semantic sets: every category is a class of pixels, which Detectron2 calls stuff."""
    return {**_names_and_colors("stuff", categories), "stuff_dataset_id_to_contiguous_id": _contiguous_ids(categories)}


def load_panoptic(metadata: Metadata) -> list[DatasetDict]:
    """Dicts of a panoptic split; categories in `segments_info` become contiguous ids.

    Raises:
        AnnotationError: the panoptic JSON is damaged, or has categories or files that the data set does not have.
    """
    # Not by Detectron2's function, which wants numbers for image ids: those of ADE20K are names.
    with errors_name(metadata.panoptic_json):
        annotations = json.loads(Path(metadata.panoptic_json).read_text())["annotations"]
        dicts = [panoptic_dict(annotation, metadata, _image_of(annotation, metadata)) for annotation in annotations]
    for path in (dicts[0]["file_name"], dicts[0]["pan_seg_file_name"]) if dicts else ():
        if not os.path.isfile(path):
            raise AnnotationError(f"{metadata.panoptic_json}: does not fit the files beside it, no {path}")
    return dicts


def _image_of(annotation: Mapping[str, Any], metadata: Metadata) -> str:
    return os.path.join(metadata.image_root, os.path.splitext(annotation["file_name"])[0] + ".jpg")


def panoptic_dict(annotation: Mapping[str, Any], metadata: Metadata, image_file: str) -> DatasetDict:
    """The dict of an annotation of a panoptic JSON; its category ids become contiguous."""
    things, stuff = metadata.thing_dataset_id_to_contiguous_id, metadata.stuff_dataset_id_to_contiguous_id
    label_name = annotation["file_name"]
    segments_info = []
    for segment in annotation["segments_info"]:
        isthing = segment["category_id"] in things
        category_id = (things if isthing else stuff)[segment["category_id"]]
        segments_info.append({**segment, "category_id": category_id, "isthing": isthing})
    record = {
        "file_name": image_file,
        "image_id": annotation["image_id"],
        "pan_seg_file_name": os.path.join(metadata.panoptic_root, label_name),
        "segments_info": segments_info,
    }
    sem_seg_root = metadata.get("sem_seg_root")
    if sem_seg_root is not None:
        record["sem_seg_file_name"] = os.path.join(sem_seg_root, label_name)
    return record


def load_instances(metadata: Metadata) -> list[DatasetDict]:
    """Dicts of an instance split, with contiguous category ids.

    Raises:
        AnnotationError: the instances JSON is damaged, or has categories that the data set does not have.
    """
    contiguous_id = metadata.thing_dataset_id_to_contiguous_id
    with errors_name(metadata.json_file):
        # Without a name: else it would derive the ids from the file, and a file that lacks a category shifts them.
        dicts = load_coco_json(metadata.json_file, metadata.image_root)
        for record in dicts:
            for annotation in record["annotations"]:
                annotation["category_id"] = contiguous_id[annotation["category_id"]]
    return dicts


def load_semantic(metadata: Metadata) -> list[DatasetDict]:
    """Dicts of a semantic split."""
    return load_sem_seg(metadata.sem_seg_root, metadata.image_root)


@contextmanager
def errors_name(json_file: str) -> Generator[None, None, None]:
    """Turn what reading an annotation file raises into `AnnotationError`s that name the file."""
    try:
        yield
    except json.JSONDecodeError as error:
        raise AnnotationError(f"{json_file}: not valid JSON ({error})") from error
    except KeyError as error:
        what = "a category id that the data set does not have" if isinstance(error.args[0], int) else "no key"
        raise AnnotationError(f"{json_file}: has {what}: {error}") from error
    except AssertionError as error:
        raise AnnotationError(
            f"{json_file}: does not fit the files beside it or is not COCO's format: {error}"
        ) from error


def _names_and_colors(kind: Literal["thing", "stuff"], categories: Iterable[Category]) -> dict[str, list[Any]]:
    return {
        f"{kind}_classes": [category.name for category in categories],
        f"{kind}_colors": [list(category.color) for category in categories],
    }


def _contiguous_ids(categories: Iterable[Category]) -> dict[int, int]:
    return {category.id: i for i, category in enumerate(categories)}


_Describe = Callable[[Sequence[Category]], dict[str, Any]]
_Load = Callable[[Metadata], list[DatasetDict]]
_TASKS: dict[Task, tuple[tuple[str, ...], _Load, _Describe, str]] = {
    "panoptic": (("panoptic_json", "panoptic_root"), load_panoptic, panoptic_entries, "coco_panoptic_seg"),
    "instance": (("json_file",), load_instances, instance_entries, "coco"),
    "semantic": (("sem_seg_root",), load_semantic, semantic_entries, "sem_seg"),
}
