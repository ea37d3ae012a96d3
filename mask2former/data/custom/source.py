"""The files of a data set as the user names them, and the images, labels and classes that they describe.

Four formats are read; no image is opened here.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from mask2former.config import ConfigError
from mask2former.data import problems
from mask2former.data.custom.class_list import SourceError, read_class_file, read_label_classes
from mask2former.data.datasets.custom import class_entry, read_classes, read_json
from mask2former.data.datasets.pairs import Names, explain_no_pairs, find_pairs, lossy_label
from mask2former.data.datasets.registry import IGNORE_LABEL, AnnotationError, Category, errors_name
from mask2former.data.label_maps import LabelCode, ValueMap
from mask2former.data.problems import Findings
from mask2former.utils.label_images import color_to_id

Split = Literal["train", "val"]
Format = Literal["coco_instance", "coco_panoptic", "semantic", "semantic_instance"]

# Options of each format in addition to `images`.
_PARTS: dict[Format, tuple[str, ...]] = {
    "coco_instance": ("annotations",),
    "coco_panoptic": ("annotations", "panoptic"),
    "semantic": ("labels", "classes"),
    "semantic_instance": ("labels", "instances", "classes"),
}
_FOLDERS = ("images", "panoptic", "labels", "instances")
_FILES = ("annotations", "classes", "files")


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
        ignore_label: Value of void in semantic label maps; None if the list of classes determines it.
        split: Purpose of the files.
        values: Class ids of values of label maps that do not stand for themselves.
        names: Parts of the file names that images and label maps do not share.
        instance_names: The same for images and maps of instance numbers.
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
        raise AnnotationError(f"{source.split}: no images with annotations in {source.annotations}")
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
    listed = read_class_file(classes, first_id=1)
    by_name = {category.name: class_entry(category) for category in listed.categories}
    if unknown := sorted(str(c["name"]) for c in found if str(c["name"]) not in by_name):
        raise AnnotationError(f"{classes}: lacks {', '.join(unknown[:5])}, which {source.annotations} has")
    keys = ("isthing", "color") if listed.says_things else ("color",)
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


def _known_keys(category: Any) -> Any:
    """A category of a COCO file without `supercategory` and other keys that have no meaning here."""
    if not isinstance(category, dict):
        return category
    return {key: category[key] for key in ("id", "name", "isthing", "color") if key in category}
