"""Lists of classes in text, JSON and YAML files, and which value of label maps marks void."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dinat_common.errors import UserError
from dinat_common.files import TextFileError, read_text
from mask2former.config import ConfigError
from mask2former.data.datasets.custom import read_classes
from mask2former.data.datasets.registry import Category
from mask2former.data.label_maps import IGNORE_LABEL, ValueMap, unused_value

# Keys under which files keep their list of classes.
_LIST_KEYS = ("categories", "names", "classes", "labels", "id2label", "label2id")
_NUMBERED = re.compile(r"(\d+)(?:\s*[:;,=)]\s*|\.?\s+)([^\d\s].*)")
_HEX_COLOR = re.compile(r"#([0-9a-fA-F]{6}|[0-9a-fA-F]{8})")
_VOID_NAME = re.compile(r"void|ignored?|unlabell?ed|ignore label|(do not|don'?t) ?care|not labell?ed|no label")


class SourceError(UserError):
    """Files that do not form a data set: some are missing, or they do not belong together."""


@dataclass(frozen=True)
class ClassList:
    """A list of classes.

    Attributes:
        categories: The classes.
        says_things: Whether all of them say if they are things.
        says_colors: Whether any of them has a colour.
        says_ids: Whether the file gives the ids.
    """

    categories: tuple[Category, ...]
    says_things: bool
    says_colors: bool
    says_ids: bool


@dataclass(frozen=True)
class LabelClasses:
    """Classes of label maps, without void.

    Attributes:
        listed: The classes.
        void: Class id of void pixels.
        void_color: Colour of void, if the list gives it.
        assumed: Whether void is a value that neither the user nor the list names.
        shifted: Whether a list without ids begins with 1, because 0 is void.
    """

    listed: ClassList
    void: int
    void_color: tuple[int, int, int] | None
    assumed: bool
    shifted: bool


def read_class_file(path: Path, first_id: int) -> ClassList:
    """Read a list of classes: lines of text, or YAML or JSON with a list of names or dicts.

    Lines may begin with an id; those that begin with # are comments, except colours such as #7b01ce. JSON and YAML may
    also hold a mapping from ids to names or from names to ids. A dict with `categories`, as in COCO's files, or with
    `names` or `classes` may take the place of the list.

    Args:
        path: The file.
        first_id: Id of the first class if the file has no ids.

    Raises:
        SourceError: The file is not such a list.
    """
    try:
        content = _parse(path)
    except TextFileError as error:
        raise SourceError(str(error)) from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise SourceError(f"{path}: not a list of classes: {' '.join(str(error).split())}") from error
    if isinstance(content, dict):
        content = next((content[key] for key in _LIST_KEYS if content.get(key)), content)
    if isinstance(content, dict):
        content = _of_mapping(content, path)
    if isinstance(content, list):
        content = [known_keys(entry) for entry in content]
    try:
        classes = read_classes(content, str(path), first_id)
    except ConfigError as error:
        raise SourceError(str(error)) from error
    given = [entry.keys() if isinstance(entry, dict) else () for entry in content]
    return ClassList(
        classes,
        says_things=all("isthing" in keys for keys in given),
        says_colors=any("color" in keys for keys in given),
        says_ids=all("id" in keys for keys in given),
    )


def _parse(path: Path) -> Any:
    text = read_text(path)
    if path.suffix.lower() == ".json":
        return json.loads(text)
    if path.suffix.lower() in (".yaml", ".yml"):
        # Without types: YAML takes `no` for false, 010 for 8, and 1:30 for 90.
        return yaml.load(text, yaml.BaseLoader)  # noqa: S506 - it makes nothing but text, lists and dicts
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    marked = [line.startswith("#") and not _HEX_COLOR.fullmatch(line) for line in lines]
    lines = [line for line, comment in zip(lines, marked, strict=True) if not comment]
    numbered = [_NUMBERED.fullmatch(line) for line in lines]
    # A single line such as "4 wheeler" is a name.
    if len(lines) > 1 and all(numbered) and len({match[1] for match in numbered if match}) == len(lines):
        return [{"id": int(match[1]), "name": match[2]} for match in numbered if match]
    return lines


def _of_mapping(content: Mapping[Any, Any], path: Path) -> list[dict[str, Any]]:
    """Classes of a mapping from ids to names, or from names to ids."""
    pairs = list(content.items())
    if pairs and all(str(key).isdecimal() for key, _ in pairs):
        return [{"id": int(key), **(name if isinstance(name, dict) else {"name": name})} for key, name in pairs]
    if pairs and all(type(value) is int or (isinstance(value, str) and value.isdecimal()) for _, value in pairs):
        return [{"id": int(value), "name": key} for key, value in pairs]
    raise SourceError(
        f"{path}: expected a list of classes, a mapping from ids to names, or one of the keys {', '.join(_LIST_KEYS)}; "
        f"found the keys {', '.join(map(str, list(content)[:5]))}"
    )


def known_keys(category: Any) -> Any:
    """A category of a COCO file without `supercategory` and other keys that have no meaning here."""
    if not isinstance(category, dict):
        return category
    return {key: category[key] for key in ("id", "name", "isthing", "color") if key in category}


def read_label_classes(path: Path, ignore_label: int | None, values: ValueMap) -> LabelClasses:
    """Read the list of classes of label maps, and find out what marks void.

    Void is the value that the user gives, or 255 if the list has no class of this id; an entry that is called void,
    unlabeled or the like gives its colour.

    Args:
        path: The list.
        ignore_label: Value of void that the user gives; None if there is none.
        values: Classes of values that do not stand for themselves.

    Raises:
        SourceError: The list can't be used, or contradicts `ignore_label` or `values`.
    """
    # If 0 is void, a list without ids starts at 1.
    listed = read_class_file(path, first_id=int(ignore_label == 0))
    by_id = {category.id: category for category in listed.categories}
    void = ignore_label if ignore_label is not None else IGNORE_LABEL
    entry = by_id.get(void)
    if entry and not _VOID_NAME.fullmatch(re.sub(r"[\s_-]+", " ", entry.name.strip().lower())):
        if ignore_label is not None:
            free = unused_value(by_id)
            raise SourceError(
                f"{path}: class {entry.name!r} has the id {void}, which --ignore-label says is void: if it is void, "
                f"remove it from the list{'' if listed.says_ids else ' or give all classes their ids'}; if it is a "
                f"class, pass another --ignore-label, such as {free}"
            )
        void, entry = unused_value(by_id), None
    categories = tuple(category for category in listed.categories if category is not entry)
    if not categories:
        raise SourceError(f"{path}: no class except {void}, which marks void")
    known = {void, *(category.id for category in categories)}
    for value, class_id in values.items():
        if class_id not in known:
            ids = [category.id for category in categories]
            raise SourceError(
                f"--map {value}={class_id}: {path} has no class with the id {class_id} (its ids are {min(ids)} to "
                f"{max(ids)}), and void is {void}"
            )
        if value == ignore_label and class_id != value:
            raise SourceError(f"--map {value}={class_id}: --ignore-label says that {value} is void; remove one of them")
    return LabelClasses(
        ClassList(categories, listed.says_things, listed.says_colors, listed.says_ids),
        void,
        entry.color if entry and listed.says_colors else None,
        assumed=ignore_label is None and entry is None,
        shifted=ignore_label == 0 and not listed.says_ids,
    )
