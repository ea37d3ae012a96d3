"""What an entry of DATASETS.CUSTOM says: a data set described in a config file alone."""

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mask2former.config import ConfigError
from mask2former.data.classes import ClassTable
from mask2former.data.datasets.coco_layout import IGNORE_LABEL, Category

# Of each format: keys that name files and folders, needed and optional. `images` is a folder in all of them.
PATH_KEYS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "coco_instance": (("images", "annotations"), ()),
    "coco_panoptic": (("images", "annotations", "panoptic"), ("instances", "semantic")),
    "semantic": (("images", "labels"), ("files",)),
}
_OTHER_KEYS = ("name", "format", "classes", "ignore_label")
_CLASS_KEYS = ("id", "name", "isthing", "color")
_COMBINED = "semantic_instance"


@dataclass(frozen=True)
class CustomDataset:
    """A data set of DATASETS.CUSTOM.

    Attributes:
        name: its name in DATASETS.TRAIN and DATASETS.TEST.
        format: a key of `PATH_KEYS`.
        categories: in the order of the contiguous ids.
        paths: absolute; keys are those of `PATH_KEYS`.
        ignore_label: value of void pixels in label maps.
    """

    name: str
    format: str
    categories: tuple[Category, ...]
    paths: Mapping[str, Path]
    ignore_label: int = IGNORE_LABEL

    def entry(self) -> dict[str, Any]:
        """The entry for a config file that can lie anywhere."""
        return {
            "name": self.name,
            "format": self.format,
            **{key: str(path) for key, path in self.paths.items()},
            "ignore_label": self.ignore_label,
            "classes": [class_entry(category) for category in self.categories],
        }


def class_entry(category: Category) -> dict[str, Any]:
    """A class as entries and lists of classes have it."""
    return {"id": category.id, "name": category.name, "isthing": category.isthing, "color": list(category.color)}


def read_entries(entries: Any, config_dir: str | Path) -> list[CustomDataset]:
    """Read DATASETS.CUSTOM.

    Args:
        entries: its value: a list of dicts.
        config_dir: what relative paths start from.

    Raises:
        ConfigError: an entry that can't be used; the message has its number, the key, and what was expected.
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
    name = entry.get("name")
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{where}: name is {name!r}, expected a text")
    where = f"{where} ({name})"
    needed, optional = _path_keys(entry.get("format"), where)
    _check_keys(entry, (*_OTHER_KEYS, *needed, *optional), where)
    if lacking := [key for key in (*needed, "classes") if entry.get(key) in (None, "", [], ())]:
        raise ConfigError(f"{where}: format {entry['format']} needs {', '.join(lacking)}")
    ignore_label = entry.get("ignore_label", IGNORE_LABEL)
    if type(ignore_label) is not int:
        raise ConfigError(f"{where}: ignore_label is {ignore_label!r}, expected a whole number")
    # COCO's files count categories from 1, label maps from 0.
    categories = read_classes(entry["classes"], f"{where}: classes", first_id=int(entry["format"] != "semantic"))
    _check_classes(categories, entry["format"], ignore_label, where)
    paths = {key: _absolute(entry[key], config_dir, f"{where}: {key}") for key in (*needed, *optional) if key in entry}
    return CustomDataset(name, entry["format"], categories, paths, ignore_label)


def _path_keys(format: Any, where: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if format == _COMBINED:
        raise ConfigError(
            f"{where}: {_COMBINED} is an input of tools/dataset.py; its `config` combines the pairs into coco_panoptic"
        )
    if not isinstance(format, str) or format not in PATH_KEYS:
        raise ConfigError(f"{where}: format is {format!r}, expected one of {', '.join(PATH_KEYS)}")
    return PATH_KEYS[format]


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
                f"{where}: ids of the classes of a semantic set are 0 to {len(categories) - 1} in this order; "
                "tools/dataset.py config writes label maps in these ids for any others"
            )
        if 0 <= ignore_label < len(categories):
            raise ConfigError(f"{where}: ignore_label {ignore_label} is the id of {categories[ignore_label].name!r}")
    elif format == "coco_instance" and not all(category.isthing for category in categories):
        stuff = next(category.name for category in categories if not category.isthing)
        raise ConfigError(f"{where}: class {stuff!r} is no thing; format coco_instance has things alone")


def read_classes(classes: Any, where: str, first_id: int = 0) -> tuple[Category, ...]:
    """Read a list of classes: names, or dicts with `name` and perhaps `id`, `isthing` and `color` (RGB).

    Args:
        classes: the list.
        where: what messages start with.
        first_id: ids of classes without one are their position plus this.

    Raises:
        ConfigError: a class that can't be used, or two of one name or id.
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
    # A number is what YAML makes of a class called 7.
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
    return Category(identity, str(entry["name"]), _read_color(color, where), bool(isthing))


def _read_color(color: Any, where: str) -> tuple[int, int, int]:
    if isinstance(color, list | tuple) and len(color) == 3:
        red, green, blue = color
        if all(type(channel) is int and 0 <= channel <= 255 for channel in color):
            return red, green, blue
    raise ConfigError(f"{where}: color is {color!r}, expected [red, green, blue], each 0 to 255")


def _absolute(path: Any, config_dir: Path, where: str) -> Path:
    if not isinstance(path, str | Path) or not str(path):
        raise ConfigError(f"{where} is {path!r}, expected a path")
    return (config_dir.absolute() / Path(path).expanduser()).resolve()
