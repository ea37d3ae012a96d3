"""Data sets that a config file alone describes: the entries of DATASETS.CUSTOM.

Nothing is read when they are registered. Names, colours and ids of the classes are part of the config, so a model can
be used where its data are not.
"""

import difflib
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata

from mask2former.config import ConfigError
from mask2former.data.classes import ClassTable
from mask2former.data.datasets.registry import (
    IGNORE_LABEL,
    AnnotationError,
    Category,
    DatasetDict,
    category_entries,
    errors_name,
    load_instances,
    panoptic_dict,
    register_dataset,
)
from mask2former.tasks import TASKS, Task

_OTHER_KEYS = ("name", "format", "classes", "ignore_label")
_CLASS_KEYS = ("id", "name", "isthing", "color")
_COMBINED = "semantic_instance"
_IMAGE_ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})
_LABEL_ENDINGS = frozenset({".png", ".tif", ".tiff", ".bmp"})
_SOURCE = "It is described in DATASETS.CUSTOM of the config; relative paths there start from the config file's folder."


@dataclass(frozen=True)
class CustomDataset:
    """A data set of DATASETS.CUSTOM.

    Attributes:
        name: Name in DATASETS.TRAIN and DATASETS.TEST.
        format: Key of `FORMATS`.
        categories: Classes in the order of the contiguous ids.
        paths: Absolute paths, under the keys of the format.
        ignore_label: Value of void pixels in label maps.
    """

    name: str
    format: str
    categories: tuple[Category, ...]
    paths: Mapping[str, Path]
    ignore_label: int = IGNORE_LABEL

    def entry(self) -> dict[str, Any]:
        """The entry for a config file in any folder."""
        return {
            "name": self.name,
            "format": self.format,
            **{key: str(path) for key, path in self.paths.items()},
            "ignore_label": self.ignore_label,
            "classes": [class_entry(category) for category in self.categories],
        }


def class_entry(category: Category) -> dict[str, Any]:
    """A class in the form that entries and lists of classes have."""
    return {"id": category.id, "name": category.name, "isthing": category.isthing, "color": list(category.color)}


def register_custom_datasets(entries: Any, config_dir: str | Path) -> list[dict[str, Any]]:
    """Register the data sets of DATASETS.CUSTOM, in place of those registered before under the same names.

    Args:
        entries: Value of DATASETS.CUSTOM, a list of dicts.
        config_dir: Folder of the config file, which relative paths start from.

    Returns:
        The complete entries, with absolute paths, and with ids and colours of the classes. A config with these entries
        can be copied anywhere.

    Raises:
        ConfigError: An entry cannot be used, or has the name of a published data set.
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
    format = FORMATS[dataset.format]
    keys = {**format.needed, **format.optional}
    register_dataset(
        dataset.name,
        format.load,
        paths={keys[key]: path for key, path in dataset.paths.items()},
        source=_SOURCE,
        evaluator_type=TASKS[format.task].evaluator_type,
        ignore_label=dataset.ignore_label,
        custom=True,
        **category_entries(format.task, dataset.categories),
    )


def read_entries(entries: Any, config_dir: str | Path) -> list[CustomDataset]:
    """Read DATASETS.CUSTOM; see `register_custom_datasets`.

    Raises:
        ConfigError: An entry cannot be used; the message has its number, the key, and what was expected.
    """
    if not isinstance(entries, list | tuple):
        raise ConfigError(f"DATASETS.CUSTOM: expected a list of data sets, found {entries!r}")
    read = [_read_entry(entry, f"DATASETS.CUSTOM[{i}]", Path(config_dir)) for i, entry in enumerate(entries)]
    names = [dataset.name for dataset in read]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"DATASETS.CUSTOM: two data sets are called {min(twice)!r}")
    return read


def _read_entry(entry: Any, where: str, config_dir: Path) -> CustomDataset:
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{where}: expected keys name, format, images, classes, ...; found {entry!r}")
    name, format = entry.get("name"), entry.get("format")
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{where}: name is {name!r}, expected a string")
    where = f"{where} ({name})"
    if format == _COMBINED:
        raise ConfigError(
            f"{where}: {_COMBINED} is an input of tools/dataset.py; its `config` combines the pairs into coco_panoptic"
        )
    if not isinstance(format, str) or format not in FORMATS:
        raise ConfigError(f"{where}: format is {format!r}, expected one of {', '.join(FORMATS)}")
    needed, optional = FORMATS[format].needed, FORMATS[format].optional
    _check_keys(entry, (*_OTHER_KEYS, *needed, *optional), where)
    if lacking := [key for key in (*needed, "classes") if entry.get(key) in (None, "", [], ())]:
        raise ConfigError(f"{where}: format {format} needs {', '.join(lacking)}")
    ignore_label = entry.get("ignore_label", IGNORE_LABEL)
    if type(ignore_label) is not int:
        raise ConfigError(f"{where}: ignore_label is {ignore_label!r}, expected a whole number")
    # COCO's files count categories from 1, label maps from 0.
    categories = read_classes(entry["classes"], f"{where}: classes", first_id=int(format != "semantic"))
    _check_classes(categories, format, ignore_label, where)
    paths = {}
    for key in (*needed, *optional):
        if key in entry:
            path = entry[key]
            if not isinstance(path, str | Path) or not str(path):
                raise ConfigError(f"{where}: {key} is {path!r}, expected a path")
            paths[key] = (config_dir.absolute() / Path(path).expanduser()).resolve()
    return CustomDataset(name, format, categories, paths, ignore_label)


def _check_keys(entry: Mapping[Any, Any], known: Sequence[str], where: str) -> None:
    for key in entry:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f" (did you mean {close[0]}?)" if close else f"; known are {', '.join(known)}"
            raise ConfigError(f"{where}: unknown key {key!r}{hint}")


def _check_classes(categories: Sequence[Category], format: str, ignore_label: int, where: str) -> None:
    if format == "semantic":
        if [category.id for category in categories] != list(range(len(categories))):
            raise ConfigError(
                f"{where}: class ids of a semantic data set must be 0 to {len(categories) - 1} in this order; "
                "tools/dataset.py config converts label maps with other ids"
            )
        if 0 <= ignore_label < len(categories):
            raise ConfigError(f"{where}: ignore_label {ignore_label} is the id of {categories[ignore_label].name!r}")
    elif format == "coco_instance" and not all(category.isthing for category in categories):
        stuff = next(category.name for category in categories if not category.isthing)
        raise ConfigError(f"{where}: class {stuff!r} is not a thing; format coco_instance has only things")


def read_classes(classes: Any, where: str, first_id: int = 0) -> tuple[Category, ...]:
    """Read a list of classes: names, or dicts with `name` and optional `id`, `isthing` and `color` (RGB).

    Args:
        classes: List of classes.
        where: Beginning of error messages.
        first_id: Id of the first class. A class without an id gets its position plus this number.

    Raises:
        ConfigError: A class cannot be used, or two have the same name or id.
    """
    if not isinstance(classes, list | tuple) or not classes:
        raise ConfigError(f"{where}: expected a list of names, or of dicts with {', '.join(_CLASS_KEYS)}")
    read = tuple(_read_class(entry, i, first_id, f"{where}[{i}]") for i, entry in enumerate(classes))
    for key in ("id", "name"):
        counts = Counter(getattr(category, key) for category in read)
        if twice := [value for value, count in counts.items() if count > 1]:
            raise ConfigError(f"{where}: two classes have the {key} {twice[0]!r}")
    return read


def _read_class(entry: Any, index: int, first_id: int, where: str) -> Category:
    # YAML reads a class called 7 as a number.
    entry = {"name": str(entry)} if isinstance(entry, str | int | float) else entry
    if not isinstance(entry, Mapping) or not str(entry.get("name") or ""):
        raise ConfigError(f"{where}: expected a name, or a dict with {', '.join(_CLASS_KEYS)}; found {entry!r}")
    _check_keys(entry, _CLASS_KEYS, where)
    identity, isthing = entry.get("id", first_id + index), entry.get("isthing", True)
    color = entry.get("color", ClassTable().color(index))
    if type(identity) is not int or identity < 0:
        raise ConfigError(f"{where}: id is {identity!r}, expected a whole number")
    if isthing not in (0, 1):
        raise ConfigError(f"{where}: isthing is {isthing!r}, expected true or false")
    if not isinstance(color, list | tuple) or len(color) != 3 or not all(_is_channel(channel) for channel in color):
        raise ConfigError(f"{where}: color is {color!r}, expected [red, green, blue], each 0 to 255")
    return Category(identity, str(entry["name"]), (color[0], color[1], color[2]), bool(isthing))


def _is_channel(value: Any) -> bool:
    return type(value) is int and 0 <= value <= 255


def _load_instances(metadata: Metadata) -> list[DatasetDict]:
    _check_categories(metadata.json_file, metadata.thing_dataset_id_to_contiguous_id, metadata.thing_classes)
    return load_instances(metadata)


def _load_panoptic(metadata: Metadata) -> list[DatasetDict]:
    path = metadata.panoptic_json
    ids = {**metadata.thing_dataset_id_to_contiguous_id, **metadata.stuff_dataset_id_to_contiguous_id}
    content = _check_categories(path, ids, metadata.stuff_classes)
    with errors_name(path):
        images = {image["id"]: image for image in content["images"]}
        dicts = []
        for annotation in content["annotations"]:
            if annotation["image_id"] not in images:
                raise AnnotationError(
                    f"{path}: an annotation refers to image {annotation['image_id']}, which is not in `images`"
                )
            image = images[annotation["image_id"]]
            size = {key: image[key] for key in ("height", "width") if key in image}
            image_file = os.path.join(metadata.image_root, image["file_name"])
            dicts.append({**panoptic_dict(annotation, image_file, metadata), **size})
    return dicts


def _check_categories(path: str, contiguous_ids: Mapping[int, int], names: Sequence[str]) -> dict[str, Any]:
    """Compare the classes of the config with those of an annotation file, whose content is returned."""
    content = read_json(path)
    with errors_name(path):
        found = {category["id"]: str(category["name"]) for category in content["categories"]}
    for identity, position in contiguous_ids.items():
        if found.get(identity, names[position]) != names[position]:
            raise AnnotationError(
                f"{path}: category {identity} is {found[identity]!r}, in DATASETS.CUSTOM it is {names[position]!r}; "
                "give the classes as {id: ..., name: ...} as tools/dataset.py config writes them"
            )
    return content


def read_json(path: str | Path) -> dict[str, Any]:
    """Content of an annotation file, a JSON object.

    Raises:
        AnnotationError: The file is not a JSON object.
    """
    with errors_name(str(path)):
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise AnnotationError(f"{path}: expected COCO's format, an object with images, annotations and categories")
    return content


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
    """Pair images and label maps by their paths in the two folders, without file name endings.

    Args:
        images: Folder of the images, which is searched with its subfolders.
        labels: Folder of the label maps, searched in the same way.
        stems: Paths without endings to pair. Default: all.

    Returns:
        Mapping from stems, in their order, to (image, label map); None for a file that is missing.

    Raises:
        AnnotationError: The names of two files of a folder differ only in their endings.
    """
    found = _by_stem(Path(images), _IMAGE_ENDINGS), _by_stem(Path(labels), _LABEL_ENDINGS)
    wanted = sorted(found[0].keys() | found[1].keys()) if stems is None else stems
    return {stem: (found[0].get(stem), found[1].get(stem)) for stem in wanted}


def read_file_list(path: str | Path) -> list[str]:
    """Images listed in a text file, one per line, as paths in the folder of images without file name endings."""
    lines = (line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines())
    split = [os.path.splitext(line) for line in dict.fromkeys(lines) if line]
    return [stem if ending.lower() in _IMAGE_ENDINGS else stem + ending for stem, ending in split]


def _by_stem(folder: Path, endings: frozenset[str]) -> dict[str, Path]:
    below = (Path(parent, name) for parent, _, names in os.walk(folder, followlinks=True) for name in names)
    files: dict[str, Path] = {}
    for path in sorted(path for path in below if path.suffix.lower() in endings and not path.name.startswith(".")):
        stem = path.relative_to(folder).with_suffix("").as_posix()
        if stem in files:
            raise AnnotationError(
                f"{path} and {files[stem]}: two files for {stem}; their names differ only in their endings"
            )
        files[stem] = path
    return files


@dataclass(frozen=True)
class CustomFormat:
    """How a format of annotations is read.

    Attributes:
        task: Task that the annotations describe most fully.
        load: Function that reads the annotations, given the metadata.
        needed: Keys of entries for files and folders that must exist, and their names in the metadata.
        optional: Keys of entries for files and folders that may be given, and their names in the metadata.
    """

    task: Task
    load: Callable[[Metadata], list[DatasetDict]]
    needed: Mapping[str, str]
    optional: Mapping[str, str] = field(default_factory=dict)


FORMATS: Mapping[str, CustomFormat] = {
    "coco_instance": CustomFormat("instance", _load_instances, {"images": "image_root", "annotations": "json_file"}),
    "coco_panoptic": CustomFormat(
        "panoptic",
        _load_panoptic,
        {"images": "image_root", "annotations": "panoptic_json", "panoptic": "panoptic_root"},
        {"instances": "json_file", "semantic": "sem_seg_root"},
    ),
    "semantic": CustomFormat(
        "semantic", _load_semantic, {"images": "image_root", "labels": "sem_seg_root"}, {"files": "file_list"}
    ),
}
