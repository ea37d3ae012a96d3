"""Open the files of one image, and list its segments and its problems. Runs in worker processes."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from hotcoco import mask as mask_util
from numpy.typing import NDArray

from mask2former.data import problems
from mask2former.data.coco_format import mask_area
from mask2former.data.custom.source import Format, LabelledImage
from mask2former.data.image_io import ImageReadError, read_image, read_label_map, read_panoptic_ids
from mask2former.data.label_maps import LabelCode, label_text
from mask2former.data.photographs import ValueRange
from mask2former.data.problems import Found, Problem, compare_segments, few, segment_areas, size_text

# Pixels by which a polygon may extend beyond the image: tools round coordinates in many ways.
_MARGIN = 1.0
# At larger distances, rasterisation would overflow.
_FAR = 1e5


@dataclass(frozen=True)
class Scan:
    """Content of an image's files.

    Attributes:
        size: Height and width of the image; None if it is unreadable.
        digest: Digest of its pixels.
        found: Problems.
        pixels: Number of pixels by category id.
        segments: Number of instances by category id, without crowds; 1 for a class without instances, or of an image.
        crowds: Number of crowds by category id; they are no targets.
        others: Number of pixels of a label map by value that no category has, such as void.
        numbered: Number of pixels with an instance number by category id.
        converted: Whether training can't read the label map as it is, such as one with colours instead of ids.
    """

    size: tuple[int, int] | None = None
    digest: str = ""
    found: list[Found] = field(default_factory=list)
    pixels: Counter[int] = field(default_factory=Counter)
    segments: Counter[int] = field(default_factory=Counter)
    crowds: Counter[int] = field(default_factory=Counter)
    others: Counter[int] = field(default_factory=Counter)
    numbered: Counter[int] = field(default_factory=Counter)
    converted: bool = False

    def add(self, problem: Problem, where: str) -> None:
        """Add a problem."""
        self.found.append(Found(problem, where))

    def count(self, annotation: Mapping[str, Any]) -> None:
        """Count an annotation of a COCO file as a segment or as a crowd."""
        (self.crowds if annotation["iscrowd"] else self.segments)[annotation["category_id"]] += 1


@dataclass(frozen=True)
class Scanner:
    """Scans images of one format.

    Attributes:
        format: Format of the labels.
        category_ids: Ids of the class list.
        void: Class id of void in semantic label maps.
        code: Meaning of the pixels of label maps.
        value_range: Values that become 0 and 255 in images with more than 8 bits; see `image_io.read_image`.
    """

    format: Format
    category_ids: frozenset[int]
    void: int
    code: LabelCode
    value_range: ValueRange | None = None

    def __call__(self, image: LabelledImage) -> Scan:
        """Open an image and its labels."""
        scan = self._scan_image(image)
        if self.format == "class_folders":
            scan.segments.update(annotation["category_id"] for annotation in image.annotations)
        elif self.format == "coco_instance":
            self._scan_annotations(image, scan)
        else:
            try:
                scan = replace(scan, converted=self._scan_labels(image, scan))
            except ImageReadError as error:
                scan.add(problems.UNREADABLE_LABEL, str(error))
        if not scan.segments and not scan.crowds and not scan.found:
            scan.add(problems.NOTHING_LABELLED, str(image.path))
        return scan

    def _scan_image(self, image: LabelledImage) -> Scan:
        if not image.path.exists():
            return Scan(found=[Found(problems.MISSING_IMAGE, str(image.path))])
        try:
            pixels = read_image(image.path, value_range=self.value_range)
        except ImageReadError as error:
            return Scan(found=[Found(problems.UNREADABLE_IMAGE, str(error))])
        size = pixels.shape[0], pixels.shape[1]
        scan = Scan(size, hashlib.blake2b(repr(size).encode() + pixels.tobytes(), digest_size=16).hexdigest())
        if image.size not in (None, size):
            sizes = f"{size_text(size)}, annotated {size_text(image.size)}"
            scan.add(problems.ANNOTATED_SIZE, f"{image.path}: {sizes}")
        return scan

    def _scan_labels(self, image: LabelledImage, scan: Scan) -> bool:
        """Scan the label images, and return whether training needs another label map."""
        if image.label is None or not image.label.exists():
            scan.add(problems.MISSING_LABEL, str(image.label))
            return False
        if self.format == "coco_panoptic":
            ids = read_panoptic_ids(image.label)
            self._check_size(scan, image.label, ids)
            self._scan_panoptic(image, scan, ids)
            return False
        labels, plain = self.code.read(image.label)
        self._check_size(scan, image.label, labels)
        numbers = None
        if image.numbers is not None:
            numbers = read_label_map(image.numbers)
            self._check_size(scan, image.numbers, numbers)
            if numbers.shape != labels.shape:
                return not plain
        self._scan_classes(image, scan, labels, numbers)
        return not plain

    def _check_size(self, scan: Scan, path: Path, labels: NDArray[Any]) -> None:
        if scan.size is not None and labels.shape != scan.size:
            scan.add(problems.LABEL_SIZE, f"{path}: {size_text(labels.shape)}, image {size_text(scan.size)}")

    def _scan_classes(
        self, image: LabelledImage, scan: Scan, labels: NDArray[Any], numbers: NDArray[Any] | None
    ) -> None:
        pairs = label_pairs(labels, numbers)
        outside = sorted({label for label, _ in pairs} - self.category_ids - {self.void})
        if outside:
            scan.add(problems.OUTSIDE_CLASSES, f"{image.label}: {', '.join(map(label_text, outside[:5]))}")
        labels_of: dict[int, set[int]] = {}
        for (label, number), pixels in pairs.items():
            if label not in self.category_ids:
                scan.others[label] += pixels
                continue
            scan.pixels[label] += pixels
            if number:
                scan.numbered[label] += pixels
                scan.segments[label] += 1
                labels_of.setdefault(number, set()).add(label)
        for label in scan.pixels:
            scan.segments[label] = max(scan.segments[label], 1)
        if shared := [number for number, labels in labels_of.items() if len(labels) > 1]:
            scan.add(problems.SEVERAL_CLASSES, f"{image.numbers}: {few(shared)}")

    def _scan_panoptic(self, image: LabelledImage, scan: Scan, ids: NDArray[np.integer]) -> None:
        found = segment_areas(ids)
        for segment in image.annotations:
            if segment["category_id"] not in self.category_ids:
                scan.add(problems.OUTSIDE_CLASSES, f"{image.label}: category {segment['category_id']}")
                continue
            scan.pixels[segment["category_id"]] += found.get(segment["id"], 0)
            scan.count(segment)
        counts = Counter(segment["id"] for segment in image.annotations)
        if twice := [identity for identity, count in counts.items() if count > 1]:
            scan.add(problems.SEGMENT_ID_TWICE, f"{image.label}: {few(twice)}")
        listed = {segment["id"]: segment.get("area") for segment in image.annotations}
        for problem, details in compare_segments(found, listed):
            scan.add(problem, f"{image.label}: {details}")

    def _scan_annotations(self, image: LabelledImage, scan: Scan) -> None:
        size = image.size or scan.size or (0, 0)
        for annotation in image.annotations:
            where = f"annotation {annotation['id']} of {image.path.name}"
            category = annotation["category_id"]
            if category not in self.category_ids:
                scan.add(problems.OUTSIDE_CLASSES, f"{where}: category {category}")
                continue
            found = list(segmentation_problems(annotation["segmentation"], size))
            for problem, details in found:
                scan.add(problem, f"{where}{details}")
            if all(not problem.blocks for problem, _ in found):
                scan.pixels[category] += mask_area(annotation["segmentation"], size)
            scan.count(annotation)


def label_pairs(labels: NDArray[Any], numbers: NDArray[Any] | None) -> dict[tuple[int, int], int]:
    """Number of pixels by (label, instance number) of maps [H, W]; without `numbers` all numbers are 0."""
    if numbers is None:
        values, counts = np.unique(labels, return_counts=True)
        return {(int(value), 0): int(count) for value, count in zip(values, counts, strict=True)}
    values, counts = np.unique(labels.astype(np.int64) << 32 | numbers.astype(np.int64), return_counts=True)
    return {(int(v) >> 32, int(v) & 0xFFFFFFFF): int(count) for v, count in zip(values, counts, strict=True)}


def segmentation_problems(segmentation: Any, size: tuple[int, int]) -> Iterator[Found]:
    """Problems of a `segmentation` in COCO's format on an image of `size` (height, width), with details."""
    if not segmentation:
        yield Found(problems.NO_SEGMENTATION, "")
    elif isinstance(segmentation, dict):
        yield from _rle_problems(segmentation, size)
    elif isinstance(segmentation, list) and all(isinstance(polygon, list) for polygon in segmentation):
        yield from _polygon_problems(segmentation, size)
    else:
        yield Found(problems.BAD_MASK, "")


def _rle_problems(rle: Mapping[str, Any], size: tuple[int, int]) -> Iterator[Found]:
    stated, counts = rle.get("size"), rle.get("counts")
    if not isinstance(stated, list) or len(stated) != 2 or not isinstance(counts, str | list):
        yield Found(problems.BAD_MASK, "")
        return
    if tuple(stated) != size:
        yield Found(problems.RLE_SIZE, f": {size_text(stated)}, image {size_text(size)}")
        return
    if isinstance(counts, list):
        numbers = all(type(count) is int and count >= 0 for count in counts)
        if not numbers or sum(counts) != size[0] * size[1]:
            details = f": runs of {sum(counts)} pixels, image {size_text(size)}" if numbers else ""
            yield Found(problems.BAD_MASK, details)
            return
    else:
        try:
            mask_util.decode({"size": stated, "counts": counts})
        except (ValueError, TypeError):
            yield Found(problems.BAD_MASK, ": runs that don't fill the image")
            return
    if mask_area(rle, size) < 1:
        yield Found(problems.EMPTY_MASK, "")


def _polygon_problems(polygons: Sequence[list[Any]], size: tuple[int, int]) -> Iterator[Found]:
    if not all(_is_number(coordinate) for polygon in polygons for coordinate in polygon):
        yield Found(problems.BAD_MASK, "")
        return
    if any(len(polygon) < 6 or len(polygon) % 2 for polygon in polygons):
        yield Found(problems.FEW_POINTS, f": {min(len(polygon) for polygon in polygons)} coordinates")
        return
    corners = np.concatenate([np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in polygons])
    beyond = max(0.0, float(-corners.min()), float((corners - [size[1], size[0]]).max()))
    if beyond > _FAR:
        yield Found(problems.BAD_MASK, f": {beyond:.0f} pixels outside the image")
        return
    if beyond > _MARGIN:
        yield Found(problems.POLYGON_OUTSIDE, f": by {beyond:.0f} pixels")
    if mask_area(polygons, size) < 1:
        yield Found(problems.EMPTY_MASK, "")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
