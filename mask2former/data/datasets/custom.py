"""Data sets that a config file alone describes: the entries of DATASETS.CUSTOM.

Nothing is read when they are registered. Names, colours and ids of the classes are part of the config, so a model can
be used where its data are not.
"""

import difflib
import os
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata

from dinat_common.files import user_path
from mask2former.config import ConfigError
from mask2former.data import values
from mask2former.data.classes import ClassTable
from mask2former.data.datasets.class_folders import ClassImages, class_folders, read_class_folders
from mask2former.data.datasets.coco_json import FileFinder, entries, errors_name, read_json, read_panoptic
from mask2former.data.datasets.pairs import Names, explain_no_pairs, find_pairs
from mask2former.data.datasets.registry import (
    IGNORE_LABEL,
    AnnotationError,
    Category,
    DatasetDict,
    DatasetDicts,
    category_entries,
    load_instances,
    panoptic_dict,
    register_dataset,
)
from mask2former.data.label_maps import ValueMap, unused_value
from mask2former.data.values import described
from mask2former.tasks import TASKS, Task

_OTHER_KEYS = ("name", "format", "classes", "ignore_label")
_CLASS_KEYS = ("id", "name", "isthing", "color")
# Keys of semantic data sets that are no paths.
_NAME_KEYS = tuple(part.name for part in fields(Names))
_VALUES = "map"
_COMBINED = "semantic_instance"
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
        values: Classes of values of label maps that do not stand for themselves.
        names: Parts of the file names that images and label maps do not share.
    """

    name: str
    format: str
    categories: tuple[Category, ...]
    paths: Mapping[str, Path]
    ignore_label: int = IGNORE_LABEL
    values: ValueMap = field(default_factory=dict)
    names: Names = field(default_factory=Names)

    def entry(self) -> dict[str, Any]:
        """The entry for a config file in any folder."""
        return {
            "name": self.name,
            "format": self.format,
            **{key: str(path) for key, path in self.paths.items()},
            **self.names.given(),
            **({_VALUES: dict(self.values)} if self.values else {}),
            **({} if FORMATS[self.format].task == "classification" else {"ignore_label": self.ignore_label}),
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
        sem_seg_values=dict(dataset.values),
        file_names=dataset.names,
        **category_entries(format.task, dataset.categories),
    )


def read_entries(entries: Any, config_dir: str | Path) -> list[CustomDataset]:
    """Read DATASETS.CUSTOM; see `register_custom_datasets`.

    Raises:
        ConfigError: An entry cannot be used; the message has its number, the key, and what was expected.
    """
    if not isinstance(entries, list | tuple):
        raise ConfigError(f"DATASETS.CUSTOM: expected a list of data sets, found {entries!r}")
    read = [_read_entry(entry, f"DATASETS.CUSTOM[{i}]", user_path(config_dir)) for i, entry in enumerate(entries)]
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
    needed, optional, task = FORMATS[format].needed, FORMATS[format].optional, FORMATS[format].task
    semantic, folders = format == "semantic", task == "classification"
    keys = _OTHER_KEYS[:-1] if folders else _OTHER_KEYS
    _check_keys(entry, (*keys, *needed, *optional, *((_VALUES, *_NAME_KEYS) if semantic else ())), where)
    asked = needed if folders else (*needed, "classes")
    if lacking := [key for key in asked if entry.get(key) in (None, "", [], ())]:
        raise ConfigError(f"{where}: format {format} needs {', '.join(lacking)}")
    paths = {}
    for key in (*needed, *optional):
        if key in entry:
            path = entry[key]
            if not isinstance(path, str | Path) or not str(path):
                raise ConfigError(f"{where}: {key} is {path!r}, expected a path")
            paths[key] = (config_dir.absolute() / user_path(path)).resolve()
    classes = entry.get("classes") or (_folder_classes(paths["images"], where) if folders else None)
    # COCO's files count categories from 1, label maps and class folders from 0.
    categories = read_classes(classes, f"{where}: classes", first_id=int(not semantic and not folders))
    ignore_label = entry.get("ignore_label", unused_value(range(len(categories))))
    if type(ignore_label) is not int:
        raise ConfigError(f"{where}: ignore_label is {ignore_label!r}, expected a whole number")
    _check_classes(categories, format, ignore_label, where)
    names = {key: entry[key] for key in _NAME_KEYS if semantic and entry.get(key)}
    for key, part in names.items():
        if not isinstance(part, str) or "/" in part:
            raise ConfigError(f"{where}: {key} is {part!r}, expected a part of a file name, such as '_mask'")
    values = _read_values(entry.get(_VALUES) or {}, {*range(len(categories)), ignore_label}, where)
    return CustomDataset(name, format, categories, paths, ignore_label, values, Names(**names))


def _folder_classes(images: Path, where: str) -> tuple[str, ...]:
    """Names of the class folders, where an entry does not list the classes."""
    if not images.is_dir() or not (names := class_folders(images)):
        raise ConfigError(f"{where}: no folder with class folders, {images}, and no classes; expected one of them")
    return names


def _read_values(entry: Any, allowed: Collection[int], where: str) -> dict[int, int]:
    """The values of label maps that stand for other classes."""
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{where}: {_VALUES} is {entry!r}, expected a class id by value, such as {{255: 1}}")
    read = {}
    for value, class_id in entry.items():
        # Keys of JSON are text.
        number = int(value) if isinstance(value, str) and value.isdecimal() else value
        if type(number) is not int or type(class_id) is not int or class_id not in allowed:
            raise ConfigError(
                f"{where}: {_VALUES} has {value!r}: {class_id!r}, expected a whole number and the id of a class or "
                "ignore_label"
            )
        read[number] = class_id
    return read


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
    entry = entry if isinstance(entry, Mapping) else {"name": entry}
    name = values.name(entry.get("name"))
    if name is None:
        raise ConfigError(
            f"{where}: the name is {described(entry.get('name'))}, expected text, in quotes if YAML takes it for "
            "something else"
        )
    _check_keys(entry, _CLASS_KEYS, where)
    # Null is as good as nothing.
    given = {key: value for key, value in entry.items() if value is not None}
    identity = values.whole_number(given.get("id", first_id + index))
    isthing = values.flag(given.get("isthing", True))
    color = values.color(given.get("color", ClassTable().color(index)))
    if identity is None or identity < 0:
        raise ConfigError(f"{where}: id is {described(given['id'])}, expected a whole number from 0")
    if isthing is None:
        raise ConfigError(f"{where}: isthing is {described(given['isthing'])}, expected true or false")
    if color is None:
        raise ConfigError(
            f"{where}: color is {described(given['color'])}, expected [red, green, blue], each 0 to 255, or text such "
            "as '#7b01ce'"
        )
    return Category(identity, name, color, isthing)


def _load_instances(metadata: Metadata) -> list[DatasetDict]:
    path, ids = metadata.json_file, metadata.thing_dataset_id_to_contiguous_id
    content = read_json(path)
    _check_categories(content, path, ids, metadata.thing_classes)
    return load_instances(metadata, content)


def _load_panoptic(metadata: Metadata) -> list[DatasetDict]:
    path = metadata.panoptic_json
    ids = {**metadata.thing_dataset_id_to_contiguous_id, **metadata.stuff_dataset_id_to_contiguous_id}
    content = read_json(path)
    _check_categories(content, path, ids, metadata.stuff_classes)
    find_image, find_label, dicts = FileFinder(metadata.image_root), FileFinder(metadata.panoptic_root, png=True), []
    with errors_name(path):
        for annotation in read_panoptic(content, path):
            image = annotation["image"]
            if image is None:
                raise AnnotationError(
                    f"{path}: an annotation refers to image {annotation['image_id']}, which is not in `images`"
                )
            size = {key: image[key] for key in ("height", "width") if key in image}
            record = panoptic_dict(annotation, str(find_image(image["file_name"])), metadata)
            dicts.append({**record, "pan_seg_file_name": str(find_label(annotation["file_name"])), **size})
    return _with_result_names(dicts, metadata.image_root)


def _check_categories(
    content: Mapping[str, Any], path: str, contiguous_ids: Mapping[int, int], names: Sequence[str]
) -> None:
    """Compare the classes of the config with those of an annotation file."""
    found = {}
    for category in entries(content, "categories", path):
        if isinstance(category, Mapping):
            found[values.whole_number(category.get("id"))] = values.name(category.get("name"))
    for identity, position in contiguous_ids.items():
        if found.get(identity, names[position]) != names[position]:
            raise AnnotationError(
                f"{path}: category {identity} is {found[identity]!r}, in DATASETS.CUSTOM it is {names[position]!r}; "
                "give the classes as {id: ..., name: ...} as tools/dataset.py config writes them"
            )


def _load_semantic(metadata: Metadata) -> list[DatasetDict]:
    images, labels, listed = metadata.image_root, metadata.sem_seg_root, metadata.get("file_list")
    names, values = metadata.get("file_names", Names()), metadata.get("sem_seg_values")
    given = {"sem_seg_values": values} if values else {}
    dicts = [
        {"file_name": str(image), "image_id": key, "sem_seg_file_name": str(label), **given}
        for key, (image, label) in find_pairs(images, labels, listed, names).items()
        if image and label
    ]
    if not dicts:
        raise AnnotationError(f"data set {metadata.name!r}: {explain_no_pairs(images, labels, listed, names)}")
    return _with_result_names(dicts, images)


def _load_class_folders(metadata: Metadata) -> ClassImages:
    return read_class_folders(metadata.image_root, metadata.image_classes, metadata.get("file_list"))


def _with_result_names(dicts: list[DatasetDict], root: str | Path) -> list[DatasetDict]:
    """Add `result_name`, under which results are written, where images of different folders or endings share a stem."""
    names = [Path(record["file_name"]).stem for record in dicts]
    paths = [os.path.relpath(record["file_name"], root).replace(os.pardir + os.sep, "") for record in dicts]
    for longer in ([os.path.splitext(path)[0] for path in paths], paths):
        counts = Counter(names)
        names = [other if counts[name] > 1 else name for name, other in zip(names, longer, strict=True)]
    return [
        record if name == Path(record["file_name"]).stem else {**record, "result_name": name}
        for name, record in zip(names, dicts, strict=True)
    ]


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
    load: Callable[[Metadata], DatasetDicts]
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
    "class_folders": CustomFormat(
        "classification", _load_class_folders, {"images": "image_root"}, {"files": "file_list"}
    ),
}
