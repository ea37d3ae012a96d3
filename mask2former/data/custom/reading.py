"""Read the annotations of a split in any of the four formats; no image is opened."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mask2former.config import ConfigError
from mask2former.data.custom import problems
from mask2former.data.custom.problems import Findings
from mask2former.data.custom.source import Content, Sample, Source, known_keys, read_class_file
from mask2former.data.datasets.custom import class_entry, find_pairs, read_classes, read_file_list, read_json
from mask2former.data.datasets.registry import AnnotationError, Category, errors_name


def read_source(source: Source) -> Content:
    """Read a split.

    Raises:
        AnnotationError: an annotation file that isn't in COCO's format, or no image at all.
        SourceError: a list of classes that can't be used.
    """
    content = _read_coco(source) if source.annotations else _read_label_maps(source)
    if not content.samples:
        raise AnnotationError(f"{source.split}: no images with annotations in {source.annotations or source.labels}")
    return content


def _read_coco(source: Source) -> Content:
    path = Path(source.annotations or "")
    content, findings = read_json(path), Findings()
    with errors_name(str(path)):
        images, annotations = content["images"], content["annotations"]
        categories = _categories(source, content["categories"], findings)
        try:
            if not isinstance(images, list) or not isinstance(annotations, list):
                raise TypeError("images and annotations have to be lists")
            _count_ids(images, annotations, source, findings)
            of_image = defaultdict(list)
            listed = {image["id"] for image in images}
            for annotation in annotations:
                if annotation["image_id"] in listed:
                    of_image[annotation["image_id"]].append(annotation)
                else:
                    findings.add(problems.UNKNOWN_IMAGE, f"{path.name}: image {annotation['image_id']}")
            samples = [_coco_sample(source, image, of_image[image["id"]], findings) for image in images]
        except (TypeError, AttributeError) as error:
            raise AnnotationError(f"{path}: not COCO's format: {error}") from error
    return Content(source, categories, tuple(sample for sample in samples if sample), findings)


def _categories(source: Source, found: Any, findings: Findings) -> tuple[Category, ...]:
    path = source.annotations
    if not isinstance(found, list) or not all(isinstance(c, Mapping) and {"id", "name"} <= c.keys() for c in found):
        raise AnnotationError(f"{path}: expected categories with id and name")
    found = _with_listed(found, source) if source.classes else found
    if source.format == "coco_panoptic":
        for category in found:
            if "isthing" not in category:
                findings.add(problems.NO_ISTHING, str(category["name"]))
    try:
        categories = read_classes(sorted(map(known_keys, found), key=lambda c: c["id"]), f"{path}: categories")
    except (ConfigError, TypeError) as error:
        raise AnnotationError(str(error)) from error
    if source.format == "coco_instance":
        # Instance files of panoptic sets may list stuff, too.
        categories = tuple(category for category in categories if category.isthing)
    return categories


def _with_listed(found: Sequence[Mapping[str, Any]], source: Source) -> list[dict[str, Any]]:
    """Categories of an annotation file, with kind and colour of the list of classes; they are matched by name."""
    listed, says_things = read_class_file(Path(source.classes or ""), first_id=1)
    by_name = {category.name: class_entry(category) for category in listed}
    if unknown := sorted(str(c["name"]) for c in found if str(c["name"]) not in by_name):
        raise AnnotationError(f"{source.classes}: lacks {', '.join(unknown[:5])}, which {source.annotations} has")
    keys = ("isthing", "color") if says_things else ("color",)
    return [{**c, **{key: by_name[str(c["name"])][key] for key in keys}} for c in found]


def _count_ids(images: Sequence[Any], annotations: Sequence[Any], source: Source, findings: Findings) -> None:
    checks = [(problems.IMAGE_ID_TWICE, [image["id"] for image in images])]
    if source.format == "coco_panoptic":
        checks.append((problems.ANNOTATED_TWICE, [annotation["image_id"] for annotation in annotations]))
    else:
        checks.append((problems.ANNOTATION_ID_TWICE, [annotation["id"] for annotation in annotations]))
    for problem, ids in checks:
        for identity, count in Counter(ids).items():
            if count > 1:
                findings.add(problem, f"{identity} ({count} times)")


def _coco_sample(
    source: Source, image: Mapping[str, Any], annotations: Sequence[dict[str, Any]], findings: Findings
) -> Sample | None:
    size = (image["height"], image["width"])
    if any(type(side) is not int or side < 1 for side in size):
        raise TypeError(f"image {image['id']} has the height and width {size}")
    sample = Sample(image["id"], source.images / image["file_name"], size, annotations=tuple(annotations))
    if source.panoptic is None:
        return sample
    if not annotations:
        findings.add(problems.WITHOUT_LABEL, str(sample.image))
        return None
    (annotation, *_) = annotations
    segments = annotation["segments_info"]
    if not isinstance(segments, list) or not all(isinstance(segment, dict) for segment in segments):
        raise TypeError(f"segments_info of image {image['id']} is no list of segments")
    return replace(sample, label=source.panoptic / annotation["file_name"], annotations=tuple(segments))


def _read_label_maps(source: Source) -> Content:
    # With 0 for void, a list without ids counts from 1.
    categories, says_things = read_class_file(Path(source.classes or ""), first_id=int(source.ignore_label == 0))
    void_color = next((category.color for category in categories if category.id == source.ignore_label), None)
    categories = tuple(category for category in categories if category.id != source.ignore_label)
    if not categories:
        raise AnnotationError(f"{source.classes}: no class but {source.ignore_label}, which marks void")
    findings, samples = Findings(), []
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
            samples.append(Sample(stem, image, label=label, numbers=numbers))
    derive = source.format == "semantic_instance" and not says_things
    return Content(source, categories, tuple(samples), findings, void_color, derive_things=derive)
