"""Write the files that training reads: label maps in contiguous ids, COCO's panoptic format, and a config."""

import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from dinat_common.files import atomic_write
from mask2former.data.coco_format import instance_annotation, segment_info, unused_segment_id
from mask2former.data.custom.inspection import InspectedSplit
from mask2former.data.custom.recipe import Recipe
from mask2former.data.custom.scan import label_pairs
from mask2former.data.custom.source import LabelledImage, Split, SplitContent
from mask2former.data.datasets.custom import CustomDataset, class_entry
from mask2former.data.datasets.pairs import Names
from mask2former.data.datasets.registry import Category
from mask2former.data.image_io import read_label_map, read_panoptic_ids
from mask2former.data.label_maps import IGNORE_LABEL, LabelCode, unused_value
from mask2former.data.published.preparation import Job, Made, Make, Part, run_parts, write_coco
from mask2former.utils.label_images import ids_to_colors

Categories = tuple[Category, ...]


def derive(inspected: InspectedSplit, name: str, folder: Path, workers: int) -> CustomDataset:
    """Make a split ready for registration; files that an earlier call made from the same data are kept.

    - coco_instance and class_folders: used as they are.
    - semantic: label maps in contiguous ids are written unless the given ones already have such ids.
    - coco_panoptic: areas and boxes are computed again; semantic label maps and an instances JSON are written for the
      evaluation of mIoU and AP.
    - semantic_instance: becomes coco_panoptic. Pixels of a thing without a number are a crowd.

    Args:
        inspected: The split.
        name: Name of the data set.
        folder: Folder for the files.
        workers: Number of processes.

    Raises:
        PreparationError: Labels are unreadable.
    """
    source, categories = inspected.content.source, inspected.content.categories
    if source.format == "semantic":
        return _derive_semantic(inspected, name, folder, workers)
    if source.format == "class_folders":
        return CustomDataset(
            name, "class_folders", categories, _absolute({"images": source.images, "files": source.files})
        )
    if source.format == "coco_instance":
        paths = _absolute({"images": source.images, "annotations": source.annotations})
        return CustomDataset(name, "coco_instance", categories, paths)
    combines = source.format == "semantic_instance"
    images = common_folder(source.images, [image.path for image in inspected.content.images])
    labels = [image.label for image in inspected.content.images if image.label]
    paths = _absolute(
        {
            "images": images,
            "annotations": folder / "panoptic.json",
            "panoptic": folder / "panoptic" if combines else common_folder(source.panoptic or Path(), labels),
            "semantic": folder / "semantic",
            "instances": folder / "instances.json" if any(category.isthing for category in categories) else None,
        }
    )
    make: Make = partial(make_from_panoptic, categories)
    if combines:
        make = partial(make_combined, categories, inspected.content.code)
    jobs = [_panoptic_job(inspected.content, image, paths) for image in inspected.content.images]
    finish = partial(write_annotations, categories, paths)
    run_parts(folder, [Part(f"panoptic {source.split}", jobs, make, finish)], source="", workers=workers)
    return CustomDataset(name, "coco_panoptic", categories, paths, void_label(len(categories)))


def _derive_semantic(inspected: InspectedSplit, name: str, folder: Path, workers: int) -> CustomDataset:
    content = inspected.content
    source, categories, code = content.source, content.categories, content.code
    numbered = tuple(replace(category, id=i) for i, category in enumerate(categories))
    paths = {"images": source.images, "labels": source.labels, "files": source.files}
    readable = not any(scan.converted for scan in inspected.scans)
    if readable and [category.id for category in categories] == list(range(len(categories))):
        return CustomDataset(
            name, "semantic", numbered, _absolute(paths), content.void, dict(code.values), source.names
        )
    void = void_label(len(categories))
    paths["labels"] = folder / "labels"
    details = _details(content, void)
    jobs = [
        Job(str(image.key), _sources(image), (folder / "labels" / f"{image.key}.png",), details)
        for image in content.images
    ]
    make = partial(make_semantic, categories, code)
    run_parts(folder, [Part(f"contiguous ids {source.split}", jobs, make)], source="", workers=workers)
    if source.files:
        # The list may name the label maps that were converted.
        paths["files"] = folder / "files.txt"
        with atomic_write(paths["files"]) as file:
            file.writelines(f"{image.key}\n" for image in content.images)
    names = Names(source.names.image_prefix, source.names.image_suffix)
    return CustomDataset(name, "semantic", numbered, _absolute(paths), void, names=names)


def as_instances(dataset: CustomDataset) -> CustomDataset:
    """The things of a data set that `derive` made, for a model of instances; one of instances stays as it is."""
    if dataset.format == "coco_instance":
        return dataset
    things = tuple(category for category in dataset.categories if category.isthing)
    paths = {"images": dataset.paths["images"], "annotations": dataset.paths["instances"]}
    return CustomDataset(dataset.name, "coco_instance", things, paths)


def common_folder(folder: Path, files: Sequence[Path]) -> Path:
    """The folder if it contains all files; otherwise, the smallest one that does. Links to folders are followed."""
    folder, places = folder.resolve(), {path.parent.resolve() for path in files}
    if all(place.is_relative_to(folder) for place in places):
        return folder
    return Path(os.path.commonpath(places))


def _name_in(folder: Path, path: Path) -> str:
    return (path.parent.resolve() / path.name).relative_to(folder).as_posix()


def _panoptic_job(content: SplitContent, image: LabelledImage, paths: Mapping[str, Path]) -> Job:
    name = f"{image.key}.png"
    if image.label and not image.numbers:
        name = _name_in(paths["panoptic"], image.label)
    entry = {"id": image.key, "file_name": _name_in(paths["images"], image.path)}
    details = {"image": entry, "label": name, "segments": image.annotations, **_details(content, None)}
    folders = ("semantic", "panoptic") if image.numbers else ("semantic",)
    return Job(str(image.key), _sources(image), tuple(paths[folder] / name for folder in folders), details)


def _sources(image: LabelledImage) -> tuple[Path, ...]:
    return tuple(path for path in (image.label, image.numbers) if path)


def _details(content: SplitContent, ignore_label: int | None) -> dict[str, Any]:
    """Everything except sources that files depend on."""
    return {
        "classes": [[c.id, c.isthing, *c.color] for c in content.categories],
        "void": ignore_label,
        "values": sorted(content.code.values.items()),
        "grey_is_id": content.code.grey_is_id,
    }


def _absolute(paths: Mapping[str, Path | None]) -> dict[str, Path]:
    """The paths that are given, made absolute."""
    return {key: path.resolve() for key, path in paths.items() if path}


def make_semantic(categories: Categories, code: LabelCode, job: Job) -> Made:
    """The label map in contiguous ids."""
    return [contiguous_labels(code.read(job.sources[0])[0], categories)], None


def make_combined(categories: Categories, code: LabelCode, job: Job) -> Made:
    """Semantic and panoptic PNG of a pair of label maps, and the image's entries."""
    label_file, number_file = job.sources
    labels, numbers = code.read(label_file)[0], read_label_map(number_file)
    ids, segments = combine(labels, numbers, categories)
    return [contiguous_labels(labels, categories), ids_to_colors(ids)], _entries(job, ids, segments, categories)


def make_from_panoptic(categories: Categories, job: Job) -> Made:
    """Semantic PNG of a panoptic PNG, and the image's entries."""
    ids, segments = read_panoptic_ids(job.sources[0]), job.details["segments"]
    index = {category.id: i for i, category in enumerate(categories)}
    labels = _replace(ids, {s["id"]: index[s["category_id"]] for s in segments}, len(categories))
    return [labels], _entries(job, ids, segments, categories)


def _entries(
    job: Job, ids: NDArray[np.integer], segments: Sequence[Mapping[str, Any]], categories: Categories
) -> dict[str, Any]:
    """The image's entries in the panoptic and the instances JSON."""
    image = {**job.details["image"], "height": ids.shape[0], "width": ids.shape[1]}
    things = {category.id for category in categories if category.isthing}
    infos, annotations = [], []
    for segment in segments:
        mask, crowd = ids == segment["id"], bool(segment.get("iscrowd", 0))
        infos.append(segment_info(mask, segment["id"], segment["category_id"], crowd))
        if segment["category_id"] in things:
            annotations.append(instance_annotation(mask, 0, image["id"], segment["category_id"], crowd, polygons=False))
    annotation = {"image_id": image["id"], "file_name": job.details["label"], "segments_info": infos}
    return {"image": image, "panoptic": [annotation], "instances": annotations}


def write_annotations(categories: Categories, paths: Mapping[str, Path], entries: Sequence[Mapping[str, Any]]) -> None:
    """Write the panoptic JSON and, if there are things, the instances JSON."""
    described = [{**class_entry(category), "isthing": int(category.isthing)} for category in categories]
    write_coco(paths["annotations"], "panoptic", described, entries)
    if "instances" in paths:
        things = [category for category in described if category["isthing"]]
        write_coco(paths["instances"], "instances", things, entries)


def combine(
    labels: NDArray[Any], numbers: NDArray[Any], categories: Categories
) -> tuple[NDArray[np.int64], list[dict[str, Any]]]:
    """Join a semantic map and a map of instance numbers.

    Args:
        labels: Class ids [H, W]; ids that are not in `categories` are void.
        numbers: Instance numbers [H, W]; 0 for none. They are used for things only.
        categories: The classes.

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
    """Positions in `categories` [H, W] of a map of their ids; `void_label` for all other ids."""
    return _replace(labels, {category.id: i for i, category in enumerate(categories)}, len(categories))


def _replace(values: NDArray[Any], positions: Mapping[int, int], classes: int) -> NDArray[Any]:
    """Replace each value by its position; `void_label` for values without one."""
    void = void_label(classes)
    found, places = np.unique(values, return_inverse=True)
    replaced = [positions.get(value, void) for value in found.tolist()]
    table = np.array(replaced, np.uint8 if void == IGNORE_LABEL else np.uint16)
    return table[places].reshape(values.shape)


def void_label(classes: int) -> int:
    """Value of void in label maps with this number of classes: 255, or the largest of 16 bits if 255 is a class."""
    return unused_value(range(classes))


def write_config(
    path: Path, recipe: Recipe, datasets: Mapping[Split, CustomDataset], base_folder: Path, command: str
) -> None:
    """Write a config file, which is either complete or absent.

    Args:
        path: The file.
        recipe: The settings.
        datasets: Data sets for training and evaluation.
        base_folder: The folder configs/_base_.
        command: Command that made the config, for its first line.
    """
    folder = path.parent.resolve()
    values = {
        **recipe.values,
        "DATASETS.TRAIN": [datasets["train"].name],
        "DATASETS.TEST": [datasets["val"].name],
        "DATASETS.CUSTOM": [
            {**dataset.entry(), **{key: _near(path, folder) for key, path in dataset.paths.items()}}
            for dataset in datasets.values()
        ],
        "OUTPUT_DIR": str(folder / "training"),
    }
    content: dict[str, Any] = {"_BASE_": [_near((base_folder / base).resolve(), folder) for base in recipe.bases]}
    for key, value in values.items():
        *sections, last = key.split(".")
        node = content
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = value
    with atomic_write(path) as file:
        for comment in (f"Written by: {command}", "", *recipe.lines()):
            for line in textwrap.wrap(comment, 116, subsequent_indent="  ") or [""]:
                file.write(f"# {line}".rstrip() + "\n")
        yaml.safe_dump(content, file, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)


def _near(path: Path, folder: Path) -> str:
    """A path relative to a config's folder if it is near, so that both can be moved together."""
    near = path.is_relative_to(folder.parent)
    return Path(os.path.relpath(path, folder)).as_posix() if near else str(path)
