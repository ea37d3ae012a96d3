"""The files of a data set as the user names them, and the images, labels and classes that they describe.

Five formats are read; no image is opened here.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn

from mask2former.config import ConfigError
from mask2former.data import problems, values
from mask2former.data.classes import ClassTable
from mask2former.data.custom.class_list import SourceError, known_keys, read_class_file, read_label_classes
from mask2former.data.datasets.class_folders import class_folders, read_class_folders
from mask2former.data.datasets.coco_json import (
    FileFinder,
    ImageIndex,
    entries,
    read_annotation,
    read_images,
    read_json,
    read_panoptic_annotation,
)
from mask2former.data.datasets.custom import class_entry, read_classes
from mask2former.data.datasets.pairs import Names, explain_no_pairs, find_pairs, lossy_label
from mask2former.data.datasets.registry import IGNORE_LABEL, AnnotationError, Category
from mask2former.data.label_maps import LabelCode, ValueMap
from mask2former.data.photographs import ValueRange
from mask2former.data.problems import Findings
from mask2former.utils.journal import Key
from mask2former.utils.label_images import color_to_id

Split = Literal["train", "val"]
Format = Literal["coco_instance", "coco_panoptic", "semantic", "semantic_instance", "class_folders"]

# Options of each format in addition to `images`.
_PARTS: dict[Format, tuple[str, ...]] = {
    "coco_instance": ("annotations",),
    "coco_panoptic": ("annotations", "panoptic"),
    "semantic": ("labels", "classes"),
    "semantic_instance": ("labels", "instances", "classes"),
    "class_folders": (),
}
# Names of folders that divide a data set, in lower case.
_SPLIT_NAMES = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})
_FOLDERS = ("images", "panoptic", "labels", "instances")
_FILES = ("annotations", "classes", "files")


@dataclass(frozen=True)
class Source:
    """The files of one split.

    Attributes:
        images: Folder of the images; without labels, folder of a folder for each class.
        annotations: COCO's instances JSON, or the panoptic JSON if `panoptic` is given.
        panoptic: Folder of panoptic PNGs.
        labels: Folder of semantic label maps.
        instances: Folder of maps of instance numbers (0: no instance).
        classes: File with the list of classes.
        files: Text file that lists the images to use (semantic formats and class folders).
        ignore_label: Value of void in semantic label maps; None if the list of classes determines it.
        split: Purpose of the files.
        values: Class ids of values of label maps that do not stand for themselves.
        names: Parts of the file names that images and label maps do not share.
        instance_names: The same for images and maps of instance numbers.
        value_range: Values that become 0 and 255 in images with more than 8 bits; see `image_io.read_image`.
    """

    images: Path
    annotations: Path | None = None
    panoptic: Path | None = None
    labels: Path | None = None
    instances: Path | None = None
    classes: Path | None = None
    files: Path | None = None
    ignore_label: int | None = None
    split: Split = "train"
    values: ValueMap = field(default_factory=dict)
    names: Names = field(default_factory=Names)
    instance_names: Names = field(default_factory=Names)
    value_range: ValueRange | None = None

    def __post_init__(self):
        """Check that the files form one of the formats.

        Raises:
            SourceError: The files do not form a format, or one of them does not exist.
        """
        given = {key for key in ("annotations", "panoptic", "labels", "instances") if getattr(self, key)}
        if not any(given == set(parts) - {"classes"} for parts in _PARTS.values()):
            self._refuse(given)
        for option, value in {"--map": self.values, "a part of file names": self.names.given()}.items():
            if value and not self.labels:
                raise SourceError(f"{self.split}: {option} is for label maps (--labels); {self.format} has none")
        if "classes" in _PARTS[self.format] and not self.classes:
            raise SourceError(
                f"{self.split}: label maps need --classes, a file with one name per line (ids start at 0), or a JSON "
                "or YAML list of {id, name, isthing, color}"
            )
        for key in (*_FOLDERS, *_FILES):
            path = getattr(self, key)
            if path is not None and not (path.is_dir() if key in _FOLDERS else path.is_file()):
                raise SourceError(f"{self.split}: {key}: no {'folder' if key in _FOLDERS else 'file'} {path}")
        if self.format == "class_folders":
            self._check_class_folders()

    def _refuse(self, given: Collection[str], reason: str = "") -> NoReturn:
        formats = "; ".join(f"{name}: {', '.join(('images', *parts))}" for name, parts in _PARTS.items())
        raise SourceError(
            f"{self.split}: {', '.join(sorted(given)) or 'only images'} do not form a format ({formats} in a folder "
            f"for each class){reason}"
        )

    def _check_class_folders(self) -> None:
        try:
            folders = class_folders(self.images)
        except AnnotationError as error:
            self._refuse((), f"; {error}")
        if not folders:
            self._refuse((), f"; {self.images} is empty")
        if splits := [folder for folder in folders if folder.lower() in _SPLIT_NAMES]:
            raise SourceError(
                f"{self.split}: {self.images} has folders such as {splits[0]}, which are not classes: pass --images "
                f"{self.images}/{splits[0]}, and the images for evaluation as --val-images"
            )
        if self.classes:
            raise SourceError(f"{self.split}: --classes: the names of the folders in {self.images} are the classes")

    @property
    def format(self) -> Format:
        """The format that the files form."""
        if self.annotations:
            return "coco_panoptic" if self.panoptic else "coco_instance"
        if self.labels:
            return "semantic_instance" if self.instances else "semantic"
        return "class_folders"


@dataclass(frozen=True)
class LabelledImage:
    """An image and its annotations, before any file is opened.

    Attributes:
        key: Its id, or its path in the folder of images without extension.
        path: The image file.
        size: Annotated height and width, if there are any.
        label: Semantic label map or panoptic PNG.
        numbers: Map of instance numbers.
        annotations: Entries of COCO's files: annotations of instances, or `segments_info`; of an image in a class
            folder, its `category_id`.
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
        code: Meaning of the pixels of label maps.
        void: Class id of void pixels in label maps.
        assumed_void: Whether neither the user nor the list of classes says what void is.
        shifted: Whether a list of classes without ids begins with 1, because 0 is void.
        derive_things: Whether the instance maps have to tell things from stuff because the classes do not.
    """

    source: Source
    categories: tuple[Category, ...]
    images: tuple[LabelledImage, ...]
    findings: Findings = field(default_factory=Findings)
    code: LabelCode = field(default_factory=LabelCode)
    void: int = IGNORE_LABEL
    assumed_void: bool = False
    shifted: bool = False
    derive_things: bool = False


def read_source(source: Source) -> SplitContent:
    """Read a split.

    Raises:
        AnnotationError: An annotation file is not in COCO's format, or there is no image.
        SourceError: The list of classes can't be used.
    """
    if source.format == "class_folders":
        return _read_class_folders(source)
    content = _read_coco(source, source.annotations) if source.annotations else _read_label_maps(source)
    if not content.images:
        pairs = find_pairs(source.images, source.labels, source.files, source.names) if source.labels else {}
        if source.instances and any(image and label for image, label in pairs.values()):
            names = source.instance_names
            why = explain_no_pairs(source.images, source.instances, source.files, names, kind="instance")
            raise AnnotationError(f"{source.split}: {why}")
        if source.labels:
            why = explain_no_pairs(source.images, source.labels, source.files, source.names)
            raise AnnotationError(f"{source.split}: {why}")
        reasons = "".join(f"; {message}" for message in content.findings.messages(blocks=True))
        raise AnnotationError(f"{source.split}: no images with annotations in {source.annotations}{reasons}")
    return content


def _read_class_folders(source: Source) -> SplitContent:
    names, table = class_folders(source.images), ClassTable()
    categories = tuple(Category(i, name, table.color(i), isthing=True) for i, name in enumerate(names))
    images = tuple(
        LabelledImage(image["image_id"], Path(image["file_name"]), annotations=({"category_id": image["label"]},))
        for image in read_class_folders(source.images, names, source.files)
    )
    if not images:
        raise AnnotationError(f"{source.split}: no image in the folders of {source.images}")
    return SplitContent(source, categories, images)


def _read_coco(source: Source, path: Path) -> SplitContent:
    content, findings = read_json(path), Findings()
    images = read_images(content, path)
    categories = _categories(source, entries(content, "categories", path), findings)
    index_of_images, listed = ImageIndex(images), {image["id"] for image in images}
    find_image = FileFinder(source.images)
    read, note = read_annotation, partial(findings.add, problems.ODD_FIELD)
    if source.panoptic is not None:
        read, find_label = read_panoptic_annotation, FileFinder(source.panoptic, png=True)
    of_image: defaultdict[Key, list[dict[str, Any]]] = defaultdict(list)
    for index, entry in enumerate(entries(content, "annotations", path)):
        try:
            annotation = read(entry, index, path, index_of_images, note)
        except AnnotationError as error:
            findings.add(problems.BAD_FIELD, str(error))
            continue
        if annotation["image_id"] in listed:
            of_image[annotation["image_id"]].append(annotation)
        else:
            findings.add(problems.UNKNOWN_IMAGE, f"{path.name}: image {entry['image_id']}")
    _count_ids(images, of_image, source, findings)
    labelled = []
    for image in images:
        size = (image["height"], image["width"]) if "height" in image else None
        annotations, label = tuple(of_image[image["id"]]), None
        path = find_image(image["file_name"])
        if source.panoptic is not None:
            if not annotations:
                findings.add(problems.WITHOUT_LABEL, str(path))
                continue
            label, annotations = find_label(annotations[0]["file_name"]), tuple(annotations[0]["segments_info"])
        labelled.append(LabelledImage(image["id"], path, size, label, annotations=annotations))
    return SplitContent(source, categories, tuple(labelled), findings)


def _categories(source: Source, found: list[Any], findings: Findings) -> tuple[Category, ...]:
    where = f"{source.annotations}: categories"
    found = [known_keys(category) if isinstance(category, dict) else {"name": category} for category in found]
    found = _with_listed(found, source, source.classes) if source.classes else found
    for index, category in enumerate(found):
        if category.get("id") is None:
            raise AnnotationError(f"{where}[{index}]: {category} has no id")
        if source.format == "coco_panoptic" and category.get("isthing") is None:
            findings.add(problems.NO_ISTHING, str(category["name"]))
    try:
        categories = tuple(sorted(read_classes(found, where), key=lambda category: category.id))
    except ConfigError as error:
        raise AnnotationError(str(error)) from error
    if source.format == "coco_panoptic":
        return categories
    # Instance files of panoptic data sets may also list stuff.
    if not (things := tuple(category for category in categories if category.isthing)):
        raise AnnotationError(f"{where}: no class is a thing (isthing is 0 everywhere), but instances are things")
    return things


def _with_listed(found: Sequence[Mapping[str, Any]], source: Source, classes: Path) -> list[dict[str, Any]]:
    """Categories of an annotation file, with `isthing` and `color` of the listed class of the same name."""
    listed = read_class_file(classes, first_id=1)
    by_name = {category.name: class_entry(category) for category in listed.categories}
    names = [values.name(category.get("name")) or "a class without a name" for category in found]
    if unknown := sorted(name for name in names if name not in by_name):
        raise AnnotationError(f"{classes}: lacks {', '.join(unknown[:5])}, which {source.annotations} has")
    keys = ("isthing", "color") if listed.says_things else ("color",)
    return [{**c, **{key: by_name[name][key] for key in keys}} for name, c in zip(names, found, strict=True)]


def _count_ids(
    images: Sequence[Mapping[str, Any]], of_image: Mapping[Key, Sequence[Any]], source: Source, findings: Findings
) -> None:
    counted = [(problems.IMAGE_ID_TWICE, Counter(image["id"] for image in images))]
    if source.format == "coco_panoptic":
        counted.append((problems.ANNOTATED_TWICE, Counter({key: len(listed) for key, listed in of_image.items()})))
    else:
        counted.append((problems.ANNOTATION_ID_TWICE, Counter(a["id"] for listed in of_image.values() for a in listed)))
    for problem, counts in counted:
        for identity, count in counts.items():
            if count > 1:
                findings.add(problem, f"{identity} ({count} times)")


def _read_label_maps(source: Source) -> SplitContent:
    classes = read_label_classes(Path(source.classes or ""), source.ignore_label, source.values)
    listed, findings, images = classes.listed, Findings(), []
    labels = source.labels or Path()
    pairs = find_pairs(source.images, labels, source.files, source.names)
    numbered = {}
    if source.instances:
        numbered = find_pairs(source.images, source.instances, source.files, source.instance_names, listed_labels=False)
    for key, (image, label) in pairs.items():
        numbers = numbered.get(key, (None, None))[1]
        if image is None:
            problem = problems.MISSING_IMAGE if source.files else problems.WITHOUT_IMAGE
            findings.add(problem, str(label or f"{source.images}/{key}"))
        elif label is None and (lossy := lossy_label(labels, key, source.names)):
            findings.add(problems.LOSSY_LABEL, str(lossy))
        elif label is None or (source.instances and numbers is None):
            findings.add(problems.MISSING_LABEL if source.files else problems.WITHOUT_LABEL, str(image))
        else:
            images.append(LabelledImage(key, image, label=label, numbers=numbers))
    palette = {color_to_id(category.color): category.id for category in listed.categories}
    if classes.void_color:
        palette[color_to_id(classes.void_color)] = classes.void
    return SplitContent(
        source,
        listed.categories,
        tuple(images),
        findings,
        LabelCode(palette, grey_is_id=not listed.says_colors, values=source.values),
        classes.void,
        classes.assumed,
        classes.shifted,
        derive_things=source.format == "semantic_instance" and not listed.says_things,
    )
