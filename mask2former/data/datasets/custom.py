"""Data sets that a config file describes (DATASETS.CUSTOM), in Detectron2's catalogs.

Nothing is read when they are registered: names, colours and numbers of the classes stand in the config, so that a model
can be used where its data are not.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata

from mask2former.config import ConfigError
from mask2former.data.datasets.coco_layout import (
    Category,
    errors_name,
    instance_entries,
    load_instances,
    panoptic_dict,
    panoptic_entries,
    semantic_entries,
)
from mask2former.data.datasets.custom_entry import CustomDataset, read_entries
from mask2former.data.datasets.registry import AnnotationError, DatasetDict, register_dataset

# Names in the metadata, which Detectron2's evaluators and ours look for, of what entries name.
_METADATA_KEYS: Mapping[str, Mapping[str, str]] = {
    "coco_instance": {"images": "image_root", "annotations": "json_file"},
    "coco_panoptic": {
        "images": "image_root",
        "annotations": "panoptic_json",
        "panoptic": "panoptic_root",
        "instances": "json_file",
        "semantic": "sem_seg_root",
    },
    "semantic": {"images": "image_root", "labels": "sem_seg_root", "files": "file_list"},
}
_IMAGE_ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})
_LABEL_ENDINGS = frozenset({".png", ".tif", ".tiff", ".bmp"})
_SOURCE = "It is described in DATASETS.CUSTOM of the config; relative paths there start from the config file's folder."


def register_custom_datasets(entries: Any, config_dir: str | Path) -> list[dict[str, Any]]:
    """Register the data sets of DATASETS.CUSTOM; those registered before under the same names are replaced.

    Args:
        entries: the value of DATASETS.CUSTOM; see `mask2former.data.datasets.custom_entry`.
        config_dir: the folder of the config file, which relative paths start from.

    Returns:
        The entries in full: absolute paths, and classes with ids and colours. Put these into the config, so that a
        copy of it can lie anywhere.

    Raises:
        ConfigError: an entry that can't be used, or a name that a published data set has.
    """
    datasets = read_entries(entries, config_dir)
    for dataset in datasets:
        if dataset.name in DatasetCatalog and not MetadataCatalog.get(dataset.name).get("custom"):
            raise ConfigError(f"DATASETS.CUSTOM: {dataset.name!r} is the name of another data set; choose a new one")
    for dataset in datasets:
        register_custom_dataset(dataset)
    return [dataset.entry() for dataset in datasets]


def register_custom_dataset(dataset: CustomDataset) -> None:
    """Register one data set under its name."""
    load, describe, evaluator_type = _FORMATS[dataset.format]
    keys = _METADATA_KEYS[dataset.format]
    register_dataset(
        dataset.name,
        load,
        paths={keys[key]: path for key, path in dataset.paths.items()},
        source=_SOURCE,
        evaluator_type=evaluator_type,
        ignore_label=dataset.ignore_label,
        custom=True,
        **describe(dataset.categories),
    )


def _load_instances(metadata: Metadata) -> list[DatasetDict]:
    _check_categories(metadata.json_file, metadata.thing_dataset_id_to_contiguous_id, metadata.thing_classes)
    return load_instances(metadata)


def _load_panoptic(metadata: Metadata) -> list[DatasetDict]:
    path = metadata.panoptic_json
    ids = {**metadata.thing_dataset_id_to_contiguous_id, **metadata.stuff_dataset_id_to_contiguous_id}
    _check_categories(path, ids, metadata.stuff_classes)
    with errors_name(path):
        content = read_json(path)
        images = {image["id"]: image for image in content["images"]}
        dicts = []
        for annotation in content["annotations"]:
            if annotation["image_id"] not in images:
                raise AnnotationError(f"{path}: an annotation is of image {annotation['image_id']}, which it lacks")
            image = images[annotation["image_id"]]
            image_file = os.path.join(metadata.image_root, image["file_name"])
            size = {key: image[key] for key in ("height", "width") if key in image}
            dicts.append({**panoptic_dict(annotation, metadata, image_file), **size})
    return dicts


def _load_semantic(metadata: Metadata) -> list[DatasetDict]:
    listed = metadata.get("file_list")
    pairs = find_pairs(metadata.image_root, metadata.sem_seg_root, listed and read_file_list(listed))
    return [
        {"file_name": str(image), "image_id": stem, "sem_seg_file_name": str(label)}
        for stem, (image, label) in pairs.items()
        if image and label
    ]


def find_pairs(
    images: str | Path, labels: str | Path, stems: Sequence[str] | None = None
) -> dict[str, tuple[Path | None, Path | None]]:
    """Match images and label maps by their paths in the two folders, without endings.

    Args:
        images: folder of the images, searched with its subfolders.
        labels: folder of the label maps, the same.
        stems: those to take; by default all.

    Returns:
        stem -> (image, label map), in the order of the stems; None for one that is missing.

    Raises:
        AnnotationError: two files of a folder differ in their endings alone.
    """
    found = _by_stem(Path(images), _IMAGE_ENDINGS), _by_stem(Path(labels), _LABEL_ENDINGS)
    wanted = sorted(found[0].keys() | found[1].keys()) if stems is None else stems
    return {stem: (found[0].get(stem), found[1].get(stem)) for stem in wanted}


def read_file_list(path: str | Path) -> list[str]:
    """The images that a text file lists, a line each: paths in the folder of images, with or without endings."""
    lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    return [_without_image_ending(line) for line in dict.fromkeys(lines) if line]


def _without_image_ending(name: str) -> str:
    stem, ending = os.path.splitext(name)
    return stem if ending.lower() in _IMAGE_ENDINGS else name


def _by_stem(folder: Path, endings: frozenset[str]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in sorted(_files_below(folder)):
        if path.suffix.lower() in endings:
            stem = path.relative_to(folder).with_suffix("").as_posix()
            if stem in files:
                raise AnnotationError(
                    f"{path} and {files[stem]}: which of them is {stem}? Names differ in endings alone"
                )
            files[stem] = path
    return files


def _files_below(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder, followlinks=True):
        yield from (Path(parent, name) for name in names if not name.startswith("."))


def read_json(path: str | Path) -> dict[str, Any]:
    """The content of an annotation file, a JSON object.

    Raises:
        AnnotationError: it is something else.
    """
    with errors_name(str(path)):
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise AnnotationError(f"{path}: expected COCO's format, an object with images, annotations and categories")
    return content


def _check_categories(path: str, contiguous_ids: Mapping[int, int], names: Sequence[str]) -> None:
    """Compare the classes of the config with those of an annotation file."""
    with errors_name(path):
        found = {category["id"]: str(category["name"]) for category in read_json(path)["categories"]}
    for identity, position in contiguous_ids.items():
        if found.get(identity, names[position]) != names[position]:
            raise AnnotationError(
                f"{path}: category {identity} is {found[identity]!r}, in DATASETS.CUSTOM it is {names[position]!r}; "
                "give the classes as {id: ..., name: ...} as tools/dataset.py config writes them"
            )


_Load = Callable[[Metadata], list[DatasetDict]]
_Describe = Callable[[Sequence[Category]], dict[str, Any]]
_FORMATS: Mapping[str, tuple[_Load, _Describe, str]] = {
    "coco_instance": (_load_instances, instance_entries, "coco"),
    "coco_panoptic": (_load_panoptic, panoptic_entries, "coco_panoptic_seg"),
    "semantic": (_load_semantic, semantic_entries, "sem_seg"),
}
