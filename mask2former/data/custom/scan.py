"""Open the files of one image, and say what is wrong with them and what is on it. Runs in worker processes."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mask2former.data.custom import problems
from mask2former.data.custom.label_maps import Palette, label_text, read_class_ids
from mask2former.data.custom.masks import bad_field, mask_area, segmentation_problems, size_text
from mask2former.data.custom.problems import Found, Problem
from mask2former.data.custom.source import Format, Sample
from mask2former.data.image_io import ImageReadError, read_image, read_label_map, read_panoptic_ids
from mask2former.data.published.inspect import NOT_IN_JSON, NOT_IN_PNG, OTHER_AREA, few, segment_areas, segment_problems

_PANOPTIC: Mapping[str, Problem] = {
    NOT_IN_JSON: problems.NOT_IN_JSON,
    NOT_IN_PNG: problems.NOT_IN_PNG,
    OTHER_AREA: problems.OTHER_AREA,
}


@dataclass
class Scan:
    """What the files of an image say.

    Attributes:
        size: height and width of the image; None if it can't be read.
        digest: of its pixels.
        found: what is wrong.
        pixels: category id -> pixels, and
        segments: category id -> instances, or 1 for a class without instances.
        numbered: category id -> pixels that have an instance number.
        colored: whether the label map is one of colours.
    """

    size: tuple[int, int] | None = None
    digest: str = ""
    found: list[Found] = field(default_factory=list)
    pixels: Counter[int] = field(default_factory=Counter)
    segments: Counter[int] = field(default_factory=Counter)
    numbered: Counter[int] = field(default_factory=Counter)
    colored: bool = False

    def add(self, problem: Problem, where: str) -> None:
        """Note a problem."""
        self.found.append(Found(problem, where))


@dataclass(frozen=True)
class Scanner:
    """Scans images of one format.

    Attributes:
        format: what the labels are.
        category_ids: those of the class list.
        ignore_label: value of void in semantic label maps.
        palette: what the colours of label maps of colours mean.
    """

    format: Format
    category_ids: frozenset[int]
    ignore_label: int
    palette: Palette

    def __call__(self, sample: Sample) -> Scan:
        """Open an image and its labels."""
        scan = Scan()
        self._scan_image(sample, scan)
        if self.format == "coco_instance":
            self._scan_annotations(sample, scan)
        else:
            self._scan_labels(sample, scan)
        if not scan.segments and not scan.found:
            scan.add(problems.NOTHING_LABELLED, str(sample.image))
        return scan

    def _scan_image(self, sample: Sample, scan: Scan) -> None:
        if not sample.image.exists():
            scan.add(problems.MISSING_IMAGE, str(sample.image))
            return
        try:
            pixels = read_image(sample.image)
        except ImageReadError as error:
            scan.add(problems.UNREADABLE_IMAGE, str(error))
            return
        scan.size = pixels.shape[0], pixels.shape[1]
        scan.digest = hashlib.blake2b(repr(scan.size).encode() + pixels.tobytes(), digest_size=16).hexdigest()
        if sample.size not in (None, scan.size):
            scan.add(
                problems.ANNOTATED_SIZE, f"{sample.image}: {size_text(scan.size)}, annotated {size_text(sample.size)}"
            )

    def _scan_labels(self, sample: Sample, scan: Scan) -> None:
        if sample.label is None or not sample.label.exists():
            scan.add(problems.MISSING_LABEL, str(sample.label))
            return
        try:
            if self.format == "coco_panoptic":
                ids = read_panoptic_ids(sample.label)
                self._check_size(scan, sample.label, ids)
                self._scan_panoptic(sample, scan, ids)
                return
            labels, scan.colored = read_class_ids(sample.label, self.palette)
            self._check_size(scan, sample.label, labels)
            numbers = None
            if sample.numbers is not None:
                numbers = read_label_map(sample.numbers)
                self._check_size(scan, sample.numbers, numbers)
                if numbers.shape != labels.shape:
                    return
        except ImageReadError as error:
            scan.add(problems.UNREADABLE_LABEL, str(error))
            return
        self._scan_classes(sample, scan, labels, numbers)

    def _check_size(self, scan: Scan, path: Any, labels: NDArray[Any]) -> None:
        if scan.size is not None and labels.shape != scan.size:
            scan.add(problems.LABEL_SIZE, f"{path}: {size_text(labels.shape)}, image {size_text(scan.size)}")

    def _scan_classes(self, sample: Sample, scan: Scan, labels: NDArray[Any], numbers: NDArray[Any] | None) -> None:
        pairs = label_pairs(labels, numbers)
        outside = sorted({label for label, _ in pairs} - self.category_ids - {self.ignore_label})
        if outside:
            scan.add(problems.OUTSIDE_CLASSES, f"{sample.label}: {', '.join(map(label_text, outside[:5]))}")
        labels_of: dict[int, set[int]] = {}
        for (label, number), pixels in pairs.items():
            if label not in self.category_ids:
                continue
            scan.pixels[label] += pixels
            if number:
                scan.numbered[label] += pixels
                scan.segments[label] += 1
                labels_of.setdefault(number, set()).add(label)
        for label in scan.pixels:
            scan.segments[label] = max(scan.segments[label], 1)
        shared = sorted(number for number, labels in labels_of.items() if len(labels) > 1)
        if shared:
            scan.add(problems.SEVERAL_CLASSES, f"{sample.numbers}: {few(shared)}")

    def _scan_panoptic(self, sample: Sample, scan: Scan, ids: NDArray[np.integer]) -> None:
        found = segment_areas(ids)
        for segment in sample.annotations:
            if field := bad_field(segment):
                scan.add(problems.BAD_FIELD, f"{sample.label}: {field}")
                return
            if segment["category_id"] not in self.category_ids:
                scan.add(problems.OUTSIDE_CLASSES, f"{sample.label}: category {segment['category_id']}")
                continue
            scan.pixels[segment["category_id"]] += found.get(segment["id"], 0)
            scan.segments[segment["category_id"]] += 1
        counts = Counter(segment["id"] for segment in sample.annotations)
        if twice := [identity for identity, count in counts.items() if count > 1]:
            scan.add(problems.SEGMENT_ID_TWICE, f"{sample.label}: {few(twice)}")
        areas = {segment["id"]: segment.get("area") for segment in sample.annotations}
        for problem, details in segment_problems(found, areas).items():
            scan.add(_PANOPTIC[problem], f"{sample.label}: {details}")

    def _scan_annotations(self, sample: Sample, scan: Scan) -> None:
        size = sample.size or scan.size or (0, 0)
        for annotation in sample.annotations:
            where = f"annotation {annotation.get('id')} of {sample.image.name}"
            if field := bad_field(annotation):
                scan.add(problems.BAD_FIELD, f"{where}: {field}")
                continue
            category = annotation["category_id"]
            if category not in self.category_ids:
                scan.add(problems.OUTSIDE_CLASSES, f"{where}: category {category}")
                continue
            found = list(segmentation_problems(annotation.get("segmentation"), size))
            for problem, details in found:
                scan.add(problem, f"{where}{details}")
            if all(not problem.blocks for problem, _ in found):
                scan.pixels[category] += mask_area(annotation["segmentation"], size)
            scan.segments[category] += 1


def label_pairs(labels: NDArray[Any], numbers: NDArray[Any] | None) -> dict[tuple[int, int], int]:
    """(label, instance number) -> pixels, of maps [H, W]; numbers are 0 where there is no map of them."""
    if numbers is None:
        values, counts = np.unique(labels, return_counts=True)
        return {(int(value), 0): int(count) for value, count in zip(values, counts, strict=True)}
    values, counts = np.unique(labels.astype(np.int64) << 32 | numbers.astype(np.int64), return_counts=True)
    return {(int(v) >> 32, int(v) & 0xFFFFFFFF): int(count) for v, count in zip(values, counts, strict=True)}
