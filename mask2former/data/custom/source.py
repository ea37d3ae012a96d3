"""The files of a data set as the user names them, and the images, labels and classes that they describe.

Four formats are read; no image is opened here except by `read_class_ids`.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from numpy.typing import NDArray

from mask2former.config import ConfigError
from mask2former.data import problems
from mask2former.data.datasets.custom import class_entry, find_pairs, read_classes, read_file_list, read_json
from mask2former.data.datasets.registry import IGNORE_LABEL, AnnotationError, Category, errors_name
from mask2former.data.image_io import ImageReadError, read_pixels
from mask2former.data.problems import Findings
from mask2former.utils.errors import UserError
from mask2former.utils.label_images import colors_to_ids

Split = Literal["train", "val"]
Format = Literal["coco_instance", "coco_panoptic", "semantic", "semantic_instance"]
# Class id by colour, as R + 256 G + 65536 B.
Palette = Mapping[int, int]

# Options of each format in addition to `images`.
_PARTS: dict[Format, tuple[str, ...]] = {
    "coco_instance": ("annotations",),
    "coco_panoptic": ("annotations", "panoptic"),
    "semantic": ("labels", "classes"),
    "semantic_instance": ("labels", "instances", "classes"),
}
_FOLDERS = ("images", "panoptic", "labels", "instances")
_FILES = ("annotations", "classes", "files")


class SourceError(UserError):
    """Files that do not form a data set: some are missing, or they do not belong together."""


@dataclass(frozen=True)
class Source:
    """The files of one split.

    Attributes:
        images: Folder of the images.
        annotations: COCO's instances JSON, or the panoptic JSON if `panoptic` is given.
        panoptic: Folder of panoptic PNGs.
        labels: Folder of semantic label maps.
        instances: Folder of maps of instance numbers (0: no instance).
        classes: File with the list of classes.
        files: Text file that lists the images to use (semantic formats).
        ignore_label: Value of void in semantic label maps.
        split: Purpose of the files.
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
        """Check that the files form one of the formats.

        Raises:
            SourceError: The files do not form a format, or one of them does not exist.
        """
        given = {key for key in ("annotations", "panoptic", "labels", "instances") if getattr(self, key)}
        if not any(given == set(parts) - {"classes"} for parts in _PARTS.values()):
            formats = "; ".join(f"{name}: {', '.join(('images', *parts))}" for name, parts in _PARTS.items())
            raise SourceError(
                f"{self.split}: {', '.join(sorted(given)) or 'only images'} do not form a format ({formats})"
            )
        if "classes" in _PARTS[self.format] and not self.classes:
            raise SourceError(
                f"{self.split}: label maps need --classes, a file with one name per line (ids start at 0), or a JSON "
                "or YAML list of {id, name, isthing, color}"
            )
        for key in (*_FOLDERS, *_FILES):
            path = getattr(self, key)
            if path is not None and not (path.is_dir() if key in _FOLDERS else path.is_file()):
                raise SourceError(f"{self.split}: {key}: no {'folder' if key in _FOLDERS else 'file'} {path}")

    @property
    def format(self) -> Format:
        """The format that the files form."""
        if self.annotations:
            return "coco_panoptic" if self.panoptic else "coco_instance"
        return "semantic_instance" if self.instances else "semantic"


@dataclass(frozen=True)
class LabelledImage:
    """An image and its annotations, before any file is opened.

    Attributes:
        key: Its id, or its path in the folder of images without extension.
        path: The image file.
        size: Annotated height and width, if there are any.
        label: Semantic label map or panoptic PNG.
        numbers: Map of instance numbers.
        annotations: Entries of COCO's files: annotations of instances, or `segments_info`.
    """

    key: int | str
    path: Path
    size: tuple[int, int] | None = None
    label: Path | None = None
    numbers: Path | None = None
    annotations: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class SplitContent:
    """Classes and annotated images of one split.

    Attributes:
        source: The files that it was read from.
        categories: Classes in the order of the contiguous ids.
        images: The images with their annotations.
        findings: Problems of the annotations that show without opening images.
        void_color: Colour of void in coloured label maps, if the list of classes gives it.
        derive_things: Whether the instance maps have to tell things from stuff because the classes do not.
    """

    source: Source
    categories: tuple[Category, ...]
    images: tuple[LabelledImage, ...]
    findings: Findings = field(default_factory=Findings)
    void_color: tuple[int, int, int] | None = None
    derive_things: bool = False

    @property
    def palette(self) -> Palette:
        """Class ids by the colours of label maps."""
        ids = {category.color: category.id for category in self.categories}
        if self.void_color:
            ids[self.void_color] = self.source.ignore_label
        return {red + 256 * green + 65536 * blue: class_id for (red, green, blue), class_id in ids.items()}


def read_source(source: Source) -> SplitContent:
    """Read a split.

    Raises:
        AnnotationError: An annotation file is not in COCO's format, or there is no image.
        SourceError: The list of classes can't be used.
    """
    content = _read_coco(source, source.annotations) if source.annotations else _read_label_maps(source)
    if not content.images:
        raise AnnotationError(f"{source.split}: no images with annotations in {source.annotations or source.labels}")
    return content


def _read_coco(source: Source, path: Path) -> SplitContent:
    content, findings = read_json(path), Findings()
    with errors_name(str(path)):
        images, annotations = content["images"], content["annotations"]
        categories = _categories(source, content["categories"], findings)
        try:
            if not isinstance(images, list) or not isinstance(annotations, list):
                raise TypeError("images and annotations must be lists")
            _count_ids(images, annotations, source, findings)
            of_image = defaultdict(list)
            listed = {image["id"] for image in images}
            for annotation in annotations:
                if annotation["image_id"] in listed:
                    of_image[annotation["image_id"]].append(annotation)
                else:
                    findings.add(problems.UNKNOWN_IMAGE, f"{path.name}: image {annotation['image_id']}")
            read = [_coco_image(source, image, of_image[image["id"]], findings) for image in images]
        except (TypeError, AttributeError) as error:
            raise AnnotationError(f"{path}: not COCO's format: {error}") from error
    return SplitContent(source, categories, tuple(image for image in read if image), findings)


def _categories(source: Source, found: Any, findings: Findings) -> tuple[Category, ...]:
    path = source.annotations
    if not isinstance(found, list) or not all(isinstance(c, Mapping) and {"id", "name"} <= c.keys() for c in found):
        raise AnnotationError(f"{path}: expected categories with id and name")
    found = _with_listed(found, source, source.classes) if source.classes else found
    if source.format == "coco_panoptic":
        for category in found:
            if "isthing" not in category:
                findings.add(problems.NO_ISTHING, str(category["name"]))
    try:
        categories = read_classes(sorted(map(_known_keys, found), key=lambda c: c["id"]), f"{path}: categories")
    except (ConfigError, TypeError) as error:
        raise AnnotationError(str(error)) from error
    if source.format == "coco_instance":
        # Instance files of panoptic data sets may also list stuff.
        categories = tuple(category for category in categories if category.isthing)
    return categories


def _with_listed(found: Sequence[Mapping[str, Any]], source: Source, classes: Path) -> list[dict[str, Any]]:
    """Categories of an annotation file, with `isthing` and `color` of the listed class of the same name."""
    listed, says_things = read_class_file(classes, first_id=1)
    by_name = {category.name: class_entry(category) for category in listed}
    if unknown := sorted(str(c["name"]) for c in found if str(c["name"]) not in by_name):
        raise AnnotationError(f"{classes}: lacks {', '.join(unknown[:5])}, which {source.annotations} has")
    keys = ("isthing", "color") if says_things else ("color",)
    return [{**c, **{key: by_name[str(c["name"])][key] for key in keys}} for c in found]


def _count_ids(images: Sequence[Any], annotations: Sequence[Any], source: Source, findings: Findings) -> None:
    problem, key = problems.ANNOTATION_ID_TWICE, "id"
    if source.format == "coco_panoptic":
        problem, key = problems.ANNOTATED_TWICE, "image_id"
    for kind, ids in (
        (problems.IMAGE_ID_TWICE, [image["id"] for image in images]),
        (problem, [annotation[key] for annotation in annotations]),
    ):
        for identity, count in Counter(ids).items():
            if count > 1:
                findings.add(kind, f"{identity} ({count} times)")


def _coco_image(
    source: Source, image: Mapping[str, Any], annotations: Sequence[dict[str, Any]], findings: Findings
) -> LabelledImage | None:
    size = (image["height"], image["width"])
    if any(type(side) is not int or side < 1 for side in size):
        raise TypeError(f"image {image['id']} has the height and width {size}")
    labelled = LabelledImage(image["id"], source.images / image["file_name"], size, annotations=tuple(annotations))
    if source.panoptic is None:
        return labelled
    if not annotations:
        findings.add(problems.WITHOUT_LABEL, str(labelled.path))
        return None
    segments = annotations[0]["segments_info"]
    if not isinstance(segments, list) or not all(isinstance(segment, dict) for segment in segments):
        raise TypeError(f"segments_info of image {image['id']} is not a list of segments")
    return replace(labelled, label=source.panoptic / annotations[0]["file_name"], annotations=tuple(segments))


def _read_label_maps(source: Source) -> SplitContent:
    # If 0 is void, a list without ids starts at 1.
    categories, says_things = read_class_file(Path(source.classes or ""), first_id=int(source.ignore_label == 0))
    void_color = next((category.color for category in categories if category.id == source.ignore_label), None)
    categories = tuple(category for category in categories if category.id != source.ignore_label)
    if not categories:
        raise AnnotationError(f"{source.classes}: no class except {source.ignore_label}, which marks void")
    findings, images = Findings(), []
    listed = read_file_list(source.files) if source.files else None
    pairs = find_pairs(source.images, source.labels or "", listed)
    numbered = find_pairs(source.images, source.instances, listed) if source.instances else {}
    for stem, (image, label) in pairs.items():
        numbers = numbered.get(stem, (None, None))[1]
        if image is None:
            problem = problems.MISSING_IMAGE if listed else problems.WITHOUT_IMAGE
            findings.add(problem, str(label or f"{source.images}/{stem}"))
        elif label is None or (source.instances and numbers is None):
            findings.add(problems.MISSING_LABEL if listed else problems.WITHOUT_LABEL, str(image))
        else:
            images.append(LabelledImage(stem, image, label=label, numbers=numbers))
    derive = source.format == "semantic_instance" and not says_things
    return SplitContent(source, categories, tuple(images), findings, void_color, derive_things=derive)


def read_class_file(path: Path, first_id: int) -> tuple[tuple[Category, ...], bool]:
    """Read a list of classes: lines of text, or YAML or JSON with a list of names or dicts.

    A dict with `categories`, as in COCO's files, may take the place of the list.

    Args:
        path: The file.
        first_id: Id of the first class if the file has no ids.

    Returns:
        The classes, and whether all of them say if they are things.

    Raises:
        SourceError: The file is not such a list.
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
        content = [entry.strip() if isinstance(entry, str) else _known_keys(entry) for entry in content]
    try:
        classes = read_classes(content, str(path), first_id)
    except ConfigError as error:
        raise SourceError(str(error)) from error
    return classes, all(isinstance(entry, dict) and "isthing" in entry for entry in content)


def _known_keys(category: Any) -> Any:
    """A category of a COCO file without `supercategory` and other keys that have no meaning here."""
    if not isinstance(category, dict):
        return category
    return {key: category[key] for key in ("id", "name", "isthing", "color") if key in category}


def read_class_ids(path: str | Path, palette: Palette) -> tuple[NDArray[np.int32], bool]:
    """Read the class of each pixel of a semantic label map.

    Args:
        path: Image with one channel, which holds ids, or RGB image with the colours of `palette`.
        palette: Meaning of colours. Other colours become negative numbers; see `label_text`.

    Returns:
        Ids [H, W], and whether the image has colours.

    Raises:
        ImageReadError: The file is missing or damaged, or is neither kind of image.
    """
    pixels = read_pixels(path)
    if pixels.ndim == 2 and pixels.dtype.kind in "bui":
        return pixels.astype(np.int32), False
    if pixels.ndim != 3 or pixels.shape[2] < 3 or pixels.dtype != np.uint8:
        raise ImageReadError(
            f"{path}: expected one channel of ids, or RGB; found {pixels.dtype} of shape {pixels.shape}"
        )
    found, places = np.unique(colors_to_ids(pixels[:, :, :3]), return_inverse=True)
    ids = np.array([palette.get(color, -1 - color) for color in found.tolist()], np.int32)
    return ids[places].reshape(pixels.shape[:2]), True


def label_text(label: int) -> str:
    """An id of `read_class_ids` as text; negative ones as the colour that they stand for."""
    color = -1 - label
    return str(label) if label >= 0 else f"colour ({color & 255}, {color >> 8 & 255}, {color >> 16})"
