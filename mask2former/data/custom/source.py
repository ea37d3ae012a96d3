"""The files of a data set as a user names them, and the images and annotations that they hold."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from mask2former.config import ConfigError
from mask2former.data.custom.label_maps import Palette, pack
from mask2former.data.custom.problems import Findings
from mask2former.data.datasets.custom import read_classes
from mask2former.data.datasets.registry import IGNORE_LABEL, Category
from mask2former.utils.errors import UserError

Split = Literal["train", "val"]
Format = Literal["coco_instance", "coco_panoptic", "semantic", "semantic_instance"]
# What each format takes besides `images`; the longest match is meant.
_PARTS: dict[Format, tuple[str, ...]] = {
    "coco_instance": ("annotations",),
    "coco_panoptic": ("annotations", "panoptic"),
    "semantic": ("labels", "classes"),
    "semantic_instance": ("labels", "instances", "classes"),
}


class SourceError(UserError):
    """Files that make no data set: some are missing, or don't belong together."""


@dataclass(frozen=True)
class Source:
    """The files of one split.

    Attributes:
        images: folder of the images.
        annotations: COCO's instances JSON, or the panoptic one if `panoptic` is given.
        panoptic: folder of panoptic PNGs.
        labels: folder of semantic label maps.
        instances: folder of maps of instance numbers (0: none).
        classes: file with the list of classes.
        files: text file that lists the images to take of the folder (semantic formats).
        ignore_label: value of void in semantic label maps.
        split: what it is for.
    """

    images: Path
    annotations: Path | None = None
    panoptic: Path | None = None
    labels: Path | None = None
    instances: Path | None = None
    classes: Path | None = None
    files: Path | None = None
    ignore_label: int = IGNORE_LABEL
    split: Split = "train"

    def __post_init__(self):
        """Check that the files make one of the formats.

        Raises:
            SourceError: they don't, or one does not exist.
        """
        given = {key for key in ("annotations", "panoptic", "labels", "instances") if getattr(self, key)}
        if not any(given == set(parts) - {"classes"} for parts in _PARTS.values()):
            formats = "; ".join(f"{name}: {', '.join(('images', *parts))}" for name, parts in _PARTS.items())
            raise SourceError(f"{self.split}: {', '.join(sorted(given)) or 'images alone'} make no format ({formats})")
        if "classes" in _PARTS[self.format] and not self.classes:
            raise SourceError(
                f"{self.split}: label maps need --classes, a file with a name per line (ids from 0 on), or a JSON or "
                "YAML list of {id, name, isthing, color}"
            )
        for key, isfolder in (
            *((key, True) for key in ("images", "panoptic", "labels", "instances")),
            *((key, False) for key in ("annotations", "classes", "files")),
        ):
            path = getattr(self, key)
            if path is not None and not (path.is_dir() if isfolder else path.is_file()):
                raise SourceError(f"{self.split}: {key}: no {'folder' if isfolder else 'file'} {path}")

    @property
    def format(self) -> Format:
        """Which of the four it is."""
        if self.annotations:
            return "coco_panoptic" if self.panoptic else "coco_instance"
        return "semantic_instance" if self.instances else "semantic"


@dataclass(frozen=True)
class Sample:
    """An image and what is said about it, before any file is opened.

    Attributes:
        key: its id, or its path in the folder of images without ending.
        image: the file.
        size: annotated height and width, where there are any.
        label: semantic label map or panoptic PNG.
        numbers: map of instance numbers.
        annotations: those of COCO's files: annotations of instances, or `segments_info`.
    """

    key: int | str
    image: Path
    size: tuple[int, int] | None = None
    label: Path | None = None
    numbers: Path | None = None
    annotations: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Content:
    """A split, read.

    Attributes:
        source: where it is from.
        categories: its classes, in the order of the contiguous ids.
        samples: the images.
        findings: what is wrong with the annotations, as far as that shows without opening images.
        void_color: of void in label maps of colours, if the list of classes says so.
        derive_things: whether the classes don't say which are things, so that the instance maps have to.
    """

    source: Source
    categories: tuple[Category, ...]
    samples: tuple[Sample, ...]
    findings: Findings = field(default_factory=Findings)
    void_color: tuple[int, int, int] | None = None
    derive_things: bool = False

    @property
    def palette(self) -> Palette:
        """What the colours of label maps mean."""
        void = {pack(self.void_color): self.source.ignore_label} if self.void_color else {}
        return {**{pack(category.color): category.id for category in self.categories}, **void}

    def with_things(self, things: frozenset[int]) -> "Content":
        """The same with these category ids as the things."""
        categories = tuple(replace(category, isthing=category.id in things) for category in self.categories)
        return replace(self, categories=categories, derive_things=False)


def read_class_file(path: Path, first_id: int) -> tuple[tuple[Category, ...], bool]:
    """Read a list of classes: lines of text, or YAML or JSON with a list of names or dicts.

    A dict with `categories` stands for the list there, as in COCO's files.

    Args:
        path: of the file.
        first_id: id of the first class where the file has none.

    Returns:
        The classes, and whether all say if they are things.

    Raises:
        SourceError: the file is no such list.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content: Any = text.splitlines()
        if path.suffix.lower() in (".json", ".yaml", ".yml"):
            content = json.loads(text) if path.suffix.lower() == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise SourceError(f"{path}: not a list of classes: {error}") from error
    if isinstance(content, dict):
        content = content.get("categories")
    if isinstance(content, list):
        content = [entry for entry in content if not isinstance(entry, str) or entry.strip()]
        content = [entry.strip() if isinstance(entry, str) else known_keys(entry) for entry in content]
    try:
        classes = read_classes(content, str(path), first_id)
    except ConfigError as error:
        raise SourceError(str(error)) from error
    return classes, all(isinstance(entry, dict) and "isthing" in entry for entry in content)


def known_keys(category: Any) -> Any:
    """A category of a COCO file without `supercategory` and other keys that mean nothing here."""
    if not isinstance(category, dict):
        return category
    return {key: category[key] for key in ("id", "name", "isthing", "color") if key in category}
