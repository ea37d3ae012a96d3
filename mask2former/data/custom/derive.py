"""Make what training and evaluation read: panoptic from pairs, contiguous ids, the labels of other tasks."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mask2former.data.coco_format import instance_annotation, segment_info, unused_segment_id
from mask2former.data.custom.inspection import Inspected
from mask2former.data.custom.label_maps import Palette, read_class_ids
from mask2former.data.custom.scan import label_pairs
from mask2former.data.custom.source import Sample, Source
from mask2former.data.datasets.custom import CustomDataset, class_entry
from mask2former.data.datasets.registry import IGNORE_LABEL, Category
from mask2former.data.image_io import read_label_map, read_panoptic_ids
from mask2former.data.published.jobs import Job, Make, Part, run_parts
from mask2former.utils.files import write_json
from mask2former.utils.label_images import ids_to_colors

Categories = tuple[Category, ...]
Made = tuple[Sequence[NDArray[Any]], Any]


def derive(inspected: Inspected, name: str, folder: Path, workers: int) -> CustomDataset:
    """Make a split ready to be registered; files that an earlier call made from the same ones are kept.

    - coco_instance: is ready.
    - semantic: label maps in contiguous ids are written unless these are such already.
    - coco_panoptic: areas and boxes are counted anew; semantic label maps and an instances JSON are written for the
      evaluation of mIoU and AP.
    - semantic_instance: becomes coco_panoptic. Pixels of a thing without a number are a crowd.

    Args:
        inspected: the split.
        name: of the data set.
        folder: where files go.
        workers: processes.

    Raises:
        PreparationError: labels that can't be read.
    """
    source, categories = inspected.content.source, inspected.content.categories
    if source.format == "coco_instance":
        paths = {"images": source.images, "annotations": _given(source.annotations)}
        return CustomDataset(name, "coco_instance", categories, _absolute(paths))
    if source.format == "semantic":
        return _derive_semantic(inspected, name, folder, workers)
    return _derive_panoptic(inspected, name, folder, workers)


def _derive_semantic(inspected: Inspected, name: str, folder: Path, workers: int) -> CustomDataset:
    source, categories = inspected.content.source, inspected.content.categories
    paths = {"images": source.images, "labels": _given(source.labels)}
    ignore_label = source.ignore_label
    if source.files:
        paths["files"] = source.files
    palette = inspected.content.palette
    colored = any(scan.colored for scan in inspected.scans)
    if colored or [category.id for category in categories] != list(range(len(categories))):
        paths["labels"], ignore_label = folder / "labels", void_label(len(categories))
        make = partial(make_semantic, categories, palette)
        details = _details(categories, ignore_label)
        jobs = [
            Job(str(sample.key), (_given(sample.label),), (folder / "labels" / f"{sample.key}.png",), details)
            for sample in inspected.content.samples
        ]
        run_parts(folder, [Part(f"contiguous ids {source.split}", jobs, make)], source="", workers=workers)
    numbered = tuple(Category(i, c.name, c.color, c.isthing) for i, c in enumerate(categories))
    return CustomDataset(name, "semantic", numbered, _absolute(paths), ignore_label)


def _derive_panoptic(inspected: Inspected, name: str, folder: Path, workers: int) -> CustomDataset:
    source, categories = inspected.content.source, inspected.content.categories
    combines = source.format == "semantic_instance"
    paths = {
        "images": source.images,
        "annotations": folder / "panoptic.json",
        "panoptic": folder / "panoptic" if combines else _given(source.panoptic),
        "semantic": folder / "semantic",
    }
    if any(category.isthing for category in categories):
        paths["instances"] = folder / "instances.json"
    make: Make = partial(make_from_panoptic, categories)
    if combines:
        make = partial(make_combined, categories, inspected.content.palette)
    jobs = [_panoptic_job(source, sample, paths, categories) for sample in inspected.content.samples]
    finish = partial(write_annotations, categories, paths)
    run_parts(folder, [Part(f"panoptic {source.split}", jobs, make, finish)], source="", workers=workers)
    return CustomDataset(name, "coco_panoptic", categories, _absolute(paths), void_label(len(categories)))


def _panoptic_job(source: Source, sample: Sample, paths: Mapping[str, Path], categories: Categories) -> Job:
    label = _given(sample.label)
    name = f"{sample.key}.png" if sample.numbers else label.relative_to(_given(source.panoptic)).as_posix()
    image = {"id": sample.key, "file_name": sample.image.relative_to(source.images).as_posix()}
    details = {"image": image, "label": name, "segments": sample.annotations, **_details(categories, None)}
    if sample.numbers:
        return Job(
            str(sample.key), (label, sample.numbers), (paths["semantic"] / name, paths["panoptic"] / name), details
        )
    return Job(str(sample.key), (label,), (paths["semantic"] / name,), details)


def make_semantic(categories: Categories, palette: Palette, job: Job) -> Made:
    """The label map in contiguous ids."""
    return [contiguous_labels(read_class_ids(job.sources[0], palette)[0], categories)], None


def make_combined(categories: Categories, palette: Palette, job: Job) -> Made:
    """Semantic and panoptic PNG of a pair, and the image's entries."""
    label_file, number_file = job.sources
    labels, numbers = read_class_ids(label_file, palette)[0], read_label_map(number_file)
    ids, segments = combine(labels, numbers, categories)
    return [contiguous_labels(labels, categories), ids_to_colors(ids)], _entries(job, ids, segments, categories)


def make_from_panoptic(categories: Categories, job: Job) -> Made:
    """Semantic PNG of a panoptic one, and the image's entries."""
    ids = read_panoptic_ids(job.sources[0])
    segments = job.details["segments"]
    return [semantic_of(ids, segments, categories)], _entries(job, ids, segments, categories)


def _entries(
    job: Job, ids: NDArray[np.integer], segments: Sequence[Mapping[str, Any]], categories: Categories
) -> dict[str, Any]:
    image = {**job.details["image"], "height": ids.shape[0], "width": ids.shape[1]}
    things = {category.id for category in categories if category.isthing}
    infos, annotations = [], []
    for segment in segments:
        mask, crowd = ids == segment["id"], bool(segment.get("iscrowd", 0))
        infos.append(segment_info(mask, segment["id"], segment["category_id"], crowd))
        if segment["category_id"] in things:
            annotations.append(instance_annotation(mask, 0, image["id"], segment["category_id"], crowd, polygons=False))
    annotation = {"image_id": image["id"], "file_name": job.details["label"], "segments_info": infos}
    return {"image": image, "panoptic": annotation, "instances": annotations}


def write_annotations(categories: Categories, paths: Mapping[str, Path], entries: Sequence[Mapping[str, Any]]) -> None:
    """Write the panoptic and, where there are things, the instances JSON."""
    images = [entry["image"] for entry in entries]
    described = [{**class_entry(category), "isthing": int(category.isthing)} for category in categories]
    panoptic = [entry["panoptic"] for entry in entries]
    write_json(paths["annotations"], {"images": images, "annotations": panoptic, "categories": described})
    if "instances" in paths:
        things = [category for category in described if category["isthing"]]
        annotations = [annotation for entry in entries for annotation in entry["instances"]]
        numbered = [{**annotation, "id": number} for number, annotation in enumerate(annotations, start=1)]
        write_json(paths["instances"], {"images": images, "annotations": numbered, "categories": things})


def combine(
    labels: NDArray[Any], numbers: NDArray[Any], categories: Categories
) -> tuple[NDArray[np.int64], list[dict[str, Any]]]:
    """Join a semantic map and a map of instance numbers.

    Args:
        labels: ids of classes [H, W]; others than those of `categories` are void.
        numbers: instance numbers [H, W]; 0: none. They count for things alone.
        categories: the classes.

    Returns:
        Segment ids [H, W], 0 for void, and for each segment `id`, `category_id` and `iscrowd`.
    """
    by_id = {category.id: category for category in categories}
    ids = np.zeros(labels.shape, np.int64)
    segments: dict[tuple[int, int], dict[str, Any]] = {}
    for label, number in sorted(label_pairs(labels, numbers)):
        category = by_id.get(label)
        key = (label, number if category and category.isthing else 0)
        if category is None or key in segments:
            continue
        segment_id = unused_segment_id(category.color, {segment["id"] for segment in segments.values()})
        mask = labels == label
        ids[mask & (numbers == number) if category.isthing else mask] = segment_id
        crowd = int(category.isthing and number == 0)
        segments[key] = {"id": segment_id, "category_id": label, "iscrowd": crowd}
    return ids, list(segments.values())


def contiguous_labels(labels: NDArray[Any], categories: Categories) -> NDArray[Any]:
    """A map [H, W] of positions in `categories` from one of their ids; all else is `void_label`."""
    return _positions(labels, [(category.id, i) for i, category in enumerate(categories)], len(categories))


def semantic_of(ids: NDArray[Any], segments: Sequence[Mapping[str, Any]], categories: Categories) -> NDArray[Any]:
    """The map [H, W] of positions in `categories` from segment ids [H, W]; void is `void_label`."""
    position = {category.id: i for i, category in enumerate(categories)}
    return _positions(ids, [(s["id"], position[s["category_id"]]) for s in segments], len(categories))


def _positions(values: NDArray[Any], pairs: Sequence[tuple[int, int]], classes: int) -> NDArray[Any]:
    void = void_label(classes)
    found, places = np.unique(values, return_inverse=True)
    position = dict(pairs)
    table = np.array([position.get(value, void) for value in found.tolist()])
    return table.astype(np.uint8 if void < 256 else np.uint16)[places].reshape(values.shape)


def void_label(classes: int) -> int:
    """The value of void in label maps of so many classes: 255, or with more, the largest of 16 bits."""
    return IGNORE_LABEL if classes <= IGNORE_LABEL else 65535


def _details(categories: Categories, ignore_label: int | None) -> dict[str, Any]:
    """What files also depend on."""
    return {"classes": [[c.id, c.isthing, *c.color] for c in categories], "void": ignore_label}


def _given(path: Path | None) -> Path:
    if path is None:
        raise ValueError("a source lacks a path that its format has")
    return path


def _absolute(paths: Mapping[str, Path]) -> dict[str, Path]:
    return {key: path.resolve() for key, path in paths.items()}
