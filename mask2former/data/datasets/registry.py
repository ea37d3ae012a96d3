"""Registration of data sets in Detectron2's catalogs: file locations, metadata, and loaders for COCO's formats.

Files are looked up under DETECTRON2_DATASETS when a data set is used, not when it is registered, so the variable can be
set at any time. A data set in COCO's layout is described by its categories and a `CocoLayout` for all three tasks;
others pass their own loader to `register_dataset`.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.data.datasets.coco import load_sem_seg
from detectron2.structures import BoxMode
from torch.utils.data import Dataset

from dinat_common.errors import UserError
from dinat_common.files import user_path
from mask2former.config import ConfigError
from mask2former.data.datasets.coco_json import (
    AnnotationError,
    FileFinder,
    errors_name,
    read_instances,
    read_json,
    read_panoptic,
)
from mask2former.data.label_maps import IGNORE_LABEL
from mask2former.tasks import TASKS, Task

DatasetDict = dict[str, Any]
DatasetDicts = Sequence[DatasetDict] | Dataset[DatasetDict]

# Detectron2's encoding of panoptic ids in evaluators that number segments per class.
_LABEL_DIVISOR = 1000
_ROOT_VARIABLE = "DETECTRON2_DATASETS"
_DEFAULT_ROOT = "datasets"


class MissingDatasetError(UserError, FileNotFoundError):
    """Files of a data set are missing; the message says where they are expected and where to get them.

    Attributes:
        paths: Missing files and folders, if known.
        source: Description of where to get them.
    """

    def __init__(self, message: str, paths: Sequence[str] = (), source: str = ""):
        super().__init__(message)
        self.paths = paths
        self.source = source


@dataclass(frozen=True)
class Category:
    """A category: its id in the annotation files, its name, its RGB colour, and whether it is a thing."""

    id: int
    name: str
    color: tuple[int, int, int]
    isthing: bool


def categories_from(table: Iterable[Mapping[str, Any]]) -> tuple[Category, ...]:
    """Read categories from a table in COCO's form: dicts with `id`, `name`, `color` and `isthing`."""
    return tuple(Category(entry["id"], entry["name"], tuple(entry["color"]), bool(entry["isthing"])) for entry in table)


class DatasetMetadata(Metadata):
    """Detectron2's metadata of a data set, with path entries that follow DETECTRON2_DATASETS.

    A path entry (`json_file`, `image_root`, ...) is a string, as in Detectron2's own metadata, but is computed each
    time it is read.
    """

    def __init__(self, paths: Mapping[str, str | Path] = MappingProxyType({}), **entries: Any):
        super().__init__(**entries)
        # Bypasses __setattr__, which would look up the name first.
        self.__dict__["_paths"] = dict(paths)

    def __getattr__(self, key: str) -> Any:
        paths = self.__dict__.get("_paths", {})
        if key in paths:
            return str(datasets_root() / paths[key])
        return super().__getattr__(key)

    def as_dict(self) -> dict[str, Any]:
        """All entries, including the paths."""
        entries = super().as_dict()
        return {**{key: getattr(self, key) for key in entries.pop("_paths", {})}, **entries}


def datasets_root() -> Path:
    """Folder that contains the data sets: DETECTRON2_DATASETS, or `datasets` in the working directory."""
    return user_path(os.environ.get(_ROOT_VARIABLE) or _DEFAULT_ROOT)


def dataset_metadata(name: str) -> Metadata:
    """Metadata of a registered data set, with paths under the current DETECTRON2_DATASETS. Its files need not exist.

    Raises:
        ConfigError: No data set has this name.
    """
    if name not in DatasetCatalog:
        raise ConfigError(
            f"unknown data set {name!r}; registered are {', '.join(sorted(DatasetCatalog))}. Data sets of your own are "
            "described in DATASETS.CUSTOM; tools/dataset.py config writes it"
        )
    return MetadataCatalog.get(name)


def predicted_metadata(cfg: CfgNode) -> Metadata:
    """Metadata of the data set whose classes the model of a config predicts.

    Raises:
        ConfigError: The config names no data set, or one that is not registered.
    """
    names = [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]
    if not names:
        raise ConfigError("DATASETS.TEST is empty: set it to the data set whose classes the model predicts")
    return dataset_metadata(names[0])


def register_dataset(
    name: str,
    load: Callable[[Metadata], DatasetDicts],
    *,
    paths: Mapping[str, str | Path],
    source: str,
    **entries: Any,
) -> None:
    """Add a data set to Detectron2's catalogs. A data set of the same name is replaced.

    Args:
        name: Name of the data set in configs.
        load: Function that reads the annotations into Detectron2's standard dicts. It is called with the metadata
            whenever the data set is used.
        paths: Metadata entries for the files and folders that must exist; relative paths start at `datasets_root()`.
        source: Description of where to get the data, for the message about missing files.
        **entries: Other metadata entries.
    """
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.pop(name, None)
    metadata = DatasetMetadata(paths, name=name, **entries)
    MetadataCatalog[name] = metadata
    DatasetCatalog.register(name, partial(_load_existing, load, metadata, dict(paths), source))


def _load_existing(
    load: Callable[[Metadata], DatasetDicts], metadata: Metadata, paths: Mapping[str, str | Path], source: str
) -> DatasetDicts:
    expected = [getattr(metadata, key) for key in paths]
    missing = [path for path in expected if _is_missing(path)]
    if missing:
        setting = os.environ.get(_ROOT_VARIABLE)
        # DETECTRON2_DATASETS has no effect on absolute paths.
        hint = (
            ""
            if all(map(os.path.isabs, paths.values()))
            else f"Data sets are looked for under the folder that {_ROOT_VARIABLE} names "
            f"({f'now {setting}' if setting else f'not set: ./{_DEFAULT_ROOT}'}). "
        )
        listed = ", ".join(map(os.path.abspath, missing))
        raise MissingDatasetError(f"data set {metadata.name!r}: expected {listed}. {hint}{source}", missing, source)
    dicts: Any = load(metadata)
    if not len(dicts):
        raise AnnotationError(f"data set {metadata.name!r} has no images; it was read from {', '.join(expected)}")
    return dicts


def _is_missing(path: str) -> bool:
    if os.path.isdir(path):
        with os.scandir(path) as files:
            return next(files, None) is None
    return not os.path.exists(path)


@dataclass(frozen=True)
class CocoLayout:
    """Files and folders of one split in COCO's layout, absolute or relative to `datasets_root()`.

    Images are `.jpg`, label images `.png` with the same stems. Semantic PNGs contain contiguous ids (positions in the
    list of categories) and 255 for void. The given paths must exist when the data set is loaded.
    """

    image_root: str | Path
    json_file: str | Path | None = None
    panoptic_json: str | Path | None = None
    panoptic_root: str | Path | None = None
    sem_seg_root: str | Path | None = None

    def paths(self) -> dict[str, str | Path]:
        """The given paths, under the keys that Detectron2's evaluators expect in the metadata."""
        return {key: path for key, path in vars(self).items() if path is not None}


def register_coco_layout(
    name: str, task: Task, categories: Sequence[Category], layout: CocoLayout, *, source: str, **entries: Any
) -> None:
    """Register one split of a data set in COCO's layout for one task.

    - panoptic: Dicts have `pan_seg_file_name` and `segments_info`, and `sem_seg_file_name` if the layout has a
      `sem_seg_root`. Evaluating PQ, AP and mIoU requires all five paths.
    - instance: Dicts have `annotations`. Only things count; their contiguous ids are 0, 1, ... in order.
    - semantic: Dicts have `sem_seg_file_name`.

    Args:
        name: Name of the data set in configs. A data set of the same name is replaced.
        task: Task of the dicts and the metadata.
        categories: All categories, in the order of their contiguous ids.
        layout: Files and folders of the split.
        source: Description of where to get the data, for the message about missing files.
        **entries: Other metadata entries. `evaluator_type` replaces that of COCO's own data sets for the task.

    Raises:
        ValueError: The layout lacks a path that the task needs.
    """
    spec = TASKS[task]
    if lacking := [key for key in spec.paths if key not in layout.paths()]:
        raise ValueError(f"data set {name!r}: the {task} task needs {', '.join(lacking)} in its layout")
    loaders = {"panoptic": load_panoptic, "instance": load_instances, "semantic": load_semantic}
    entries = {"evaluator_type": spec.evaluator_type, "ignore_label": IGNORE_LABEL, **entries}
    entries |= category_entries(task, categories)
    register_dataset(name, loaders[task], paths=layout.paths(), source=source, **entries)


def category_entries(task: Task, categories: Sequence[Category]) -> dict[str, Any]:
    """Build the metadata entries for the names, colours and ids of categories.

    - panoptic: As Detectron2's "coco_panoptic_standard". All categories are listed both as things and as stuff, so that
      a contiguous id indexes either list; only the id maps distinguish things from stuff.
    - instance: Only the things, numbered from 0.
    - semantic: Every category is a class of pixels, which Detectron2 calls stuff.
    """
    listed = [category for category in categories if category.isthing or task != "instance"]
    entries: dict[str, Any] = {"label_divisor": _LABEL_DIVISOR} if task == "panoptic" else {}
    for kind in ("thing", "stuff") if task == "panoptic" else (TASKS[task].class_list,):
        mapped = {c.id: i for i, c in enumerate(listed) if task != "panoptic" or c.isthing == (kind == "thing")}
        entries |= {
            f"{kind}_classes": [category.name for category in listed],
            f"{kind}_colors": [list(category.color) for category in listed],
            f"{kind}_dataset_id_to_contiguous_id": mapped,
        }
    return entries


def load_panoptic(metadata: Metadata) -> list[DatasetDict]:
    """Load the dicts of a panoptic split, with contiguous category ids in `segments_info`.

    Raises:
        AnnotationError: The panoptic JSON is damaged, or has categories or files that the data set lacks.
    """
    # Detectron2's function requires numeric image ids, but those of ADE20K are names.
    with errors_name(metadata.panoptic_json):
        dicts = []
        for annotation in read_panoptic(read_json(metadata.panoptic_json), metadata.panoptic_json):
            image_file = os.path.join(metadata.image_root, os.path.splitext(annotation["file_name"])[0] + ".jpg")
            dicts.append(panoptic_dict(annotation, image_file, metadata))
    for path in (dicts[0]["file_name"], dicts[0]["pan_seg_file_name"]) if dicts else ():
        if not os.path.isfile(path):
            raise AnnotationError(f"{metadata.panoptic_json}: does not fit the other files of the data set, no {path}")
    return dicts


def panoptic_dict(annotation: Mapping[str, Any], image_file: str, metadata: Metadata) -> DatasetDict:
    """Build the dict for one annotation of a panoptic JSON, with contiguous category ids."""
    things, stuff = metadata.thing_dataset_id_to_contiguous_id, metadata.stuff_dataset_id_to_contiguous_id
    segments_info = []
    for segment in annotation["segments_info"]:
        isthing = segment["category_id"] in things
        category_id = (things if isthing else stuff)[segment["category_id"]]
        segments_info.append({**segment, "category_id": category_id, "isthing": isthing})
    record = {
        "file_name": image_file,
        "image_id": annotation["image_id"],
        "pan_seg_file_name": os.path.join(metadata.panoptic_root, annotation["file_name"]),
        "segments_info": segments_info,
    }
    if metadata.get("sem_seg_root") is not None:
        record["sem_seg_file_name"] = os.path.join(metadata.sem_seg_root, annotation["file_name"])
    return record


def load_instances(metadata: Metadata, content: Mapping[str, Any] | None = None) -> list[DatasetDict]:
    """Load the dicts of an instance split, with contiguous category ids.

    Polygons with fewer than three corners, or with half a corner, are left out, and annotations of which nothing
    remains, as by Detectron2.

    Args:
        metadata: Metadata of the data set.
        content: Content of the instances JSON if it is read already.

    Raises:
        AnnotationError: The instances JSON is damaged, or has categories that the data set lacks.
    """
    contiguous_id, path = metadata.thing_dataset_id_to_contiguous_id, metadata.json_file
    find, dicts = FileFinder(metadata.image_root), []
    with errors_name(path):
        images, annotations = read_instances(content or read_json(path), path)
        for image in sorted(images, key=lambda image: (isinstance(image["id"], str), image["id"])):
            size = {side: image[side] for side in ("height", "width") if side in image}
            record = {"file_name": str(find(image["file_name"])), "image_id": image["id"], **size}
            record["annotations"] = [
                {**annotation, "category_id": contiguous_id[annotation["category_id"]], "bbox_mode": BoxMode.XYWH_ABS}
                for annotation in annotations[image["id"]]
                if not (polygons := _polygons(annotation)) or _keep_closed(polygons)
            ]
            dicts.append(record)
    return dicts


def _polygons(annotation: Mapping[str, Any]) -> list[Any]:
    return annotation["segmentation"] if isinstance(annotation["segmentation"], list) else []


def _keep_closed(polygons: list[Any]) -> list[Any]:
    """Remove polygons that aren't closed from a list, which is returned."""
    polygons[:] = [polygon for polygon in polygons if len(polygon) % 2 == 0 and len(polygon) >= 6]
    return polygons


def load_semantic(metadata: Metadata) -> list[DatasetDict]:
    """Load the dicts of a semantic split."""
    return load_sem_seg(metadata.sem_seg_root, metadata.image_root)
