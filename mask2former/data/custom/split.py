"""Divide a data set into one part for training and one for evaluation."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dinat_common.errors import UserError
from dinat_common.files import atomic_write, write_json
from mask2former.data.custom.inspection import InspectedSplit
from mask2former.data.custom.source import LabelledImage, Source, Split
from mask2former.data.datasets.coco_json import ImageIndex, read_images, read_json
from mask2former.data.datasets.pairs import find_pairs


class SplitError(UserError):
    """Images that can't be divided as requested."""


def split(inspected: InspectedSplit, folder: Path, share: float, seed: int) -> dict[Split, InspectedSplit]:
    """Divide a split, and write both parts in its format: two JSON files, or two lists of images.

    Classes are spread over both parts as evenly as whole images allow; images with equal pixels stay together. The
    same data, share and seed give the same parts.

    Args:
        inspected: The split to divide.
        folder: Folder for train.json and val.json, or train.txt and val.txt.
        share: Share of the images for evaluation, between 0 and 1.
        seed: Seed of the random order.

    Raises:
        SplitError: There are fewer than two different images.
    """
    content, divided = inspected.content, {}
    for name, chosen in divide(inspected, share, seed).items():
        images = tuple(content.images[i] for i in chosen)
        source = _write(content.source, name, folder, images)
        scans = tuple(inspected.scans[i] for i in chosen)
        divided[name] = InspectedSplit(replace(content, source=source, images=images), scans)
    return divided


def divide(inspected: InspectedSplit, share: float, seed: int) -> Mapping[Split, list[int]]:
    """Positions of the images of both parts; see `split`.

    Iterative stratification (Sechidis, Tsoumakas and Vlahavas, "On the stratification of multi-label data", 2011): the
    rarest remaining class is distributed first, each image to the part that lacks most of the class.
    """
    rng = np.random.RandomState(seed)
    copies: defaultdict[str, list[int]] = defaultdict(list)
    for i, scan in enumerate(inspected.scans):
        copies[scan.digest or f"unreadable {i}"].append(i)
    groups = list(copies.values())
    if len(groups) < 2:
        raise SplitError("fewer than two different images: nothing to divide")
    present = [frozenset(c for i in group for c in inspected.scans[i].segments) for group in groups]
    total = Counter(category for classes in present for category in classes)
    shares: dict[Split, float] = {"train": 1 - share, "val": share}
    lacking = {part: Counter({c: count * of for c, count in total.items()}) for part, of in shares.items()}
    room = {part: len(inspected.scans) * of for part, of in shares.items()}
    chosen: dict[Split, list[int]] = {"train": [], "val": []}
    left = [int(i) for i in rng.permutation(len(groups))]
    while left:
        counts = Counter(category for i in left for category in present[i])
        rarest = min(counts, key=lambda c: (counts[c], c)) if counts else None
        taken = dict.fromkeys(i for i in left if rarest is None or rarest in present[i])
        for i in taken:
            part = max(shares, key=lambda name: (lacking[name][rarest] if rarest is not None else 0, room[name]))
            chosen[part].append(i)
            lacking[part].subtract(dict.fromkeys(present[i], 1))
            room[part] -= len(groups[i])
        left = [i for i in left if i not in taken]
    for part, other in (("val", "train"), ("train", "val")):
        if not chosen[part]:
            chosen[part].append(chosen[other].pop())
    return {part: sorted(position for i in of_part for position in groups[i]) for part, of_part in chosen.items()}


def _write(source: Source, part: Split, folder: Path, images: Sequence[LabelledImage]) -> Source:
    """Write the list or the annotation file of a part, and return its source."""
    if source.annotations is None:
        path = folder / f"{part}.txt"
        with atomic_write(path) as file:
            file.writelines(f"{line}\n" for line in _lines(source, images))
        return replace(source, files=path, split=part)
    keys = [image.key for image in images]
    content, wanted = read_json(source.annotations), set(keys)
    path = folder / f"{part}.json"
    listed = read_images(content, source.annotations)
    index, where = ImageIndex(listed), str(source.annotations)
    named = [index.find(annotation, where) for annotation in content["annotations"]]
    pairs = zip(content["images"], listed, strict=True)
    kept = {
        "images": [entry for entry, image in pairs if image["id"] in wanted],
        "annotations": [
            annotation
            for annotation, image in zip(content["annotations"], named, strict=True)
            if image and image["id"] in wanted
        ],
    }
    write_json(path, _strict({**content, **kept}))
    return replace(source, annotations=path, split=part)


def _lines(source: Source, images: Sequence[LabelledImage]) -> list[str]:
    """Lines of a list: keys of images, or an image and its label map if their names do not match."""
    if source.files is None or source.labels is None:
        return [str(image.key) for image in images]
    by_name, lines = find_pairs(source.images, source.labels, names=source.names), []
    for image in images:
        listed = str(image.key)
        if image.label is not None and image.label != by_name[listed][1]:
            label = image.label.relative_to(source.labels)
            listed = f"{image.path.relative_to(source.images).as_posix()}\t{label.as_posix()}"
        lines.append(listed)
    return lines


def _strict(content: Any) -> Any:
    """JSON without NaN and infinity, which become null."""
    if isinstance(content, dict):
        return {key: _strict(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_strict(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
