"""Draw the `shapes` data set: pictures with their panoptic, instance and semantic segmentation in COCO's layout.

With --classes, the set for classification instead: pictures of ten classes, in a folder for each class.

The same options always give the same files. A finished data set with a manifest of the same options is kept, an
interrupted one is completed, and one of other options is replaced when the new one is complete.
"""

import argparse
import json
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import RandomState
from PIL import Image
from tqdm import tqdm

from dinat_common.errors import UserError, report_errors, run_script
from dinat_common.files import atomic_write, check_folder, user_path, write_json, writing
from mask2former.data.coco_format import instance_annotation, segment_info, unused_segment_id
from mask2former.data.datasets import datasets_root
from mask2former.data.datasets.registry import IGNORE_LABEL
from mask2former.data.datasets.shapes import (
    CATEGORIES,
    PICTURE_CLASSES,
    ShapesSegment,
    draw_picture,
    draw_scene,
)
from mask2former.utils.label_images import ids_to_colors
from mask2former.utils.parallel import default_workers, processes, report_interval

# To be increased when the same options draw other files than before.
VERSION = 4
CLASSES_VERSION = 1
SPLITS = ("train", "val")
MANIFEST = "manifest.json"
MIN_SIZE = 48
# So many images are drawn before other processes have started.
_FEW = 100


class ShapesError(UserError):
    """The data set cannot be drawn here; the message says why."""


def prepare(root: str | Path, *, train: int = 1200, val: int = 150, size: int = 128, seed: int = 0) -> Path:
    """Draw the data set into `root`/shapes, unless it exists.

    Args:
        root: Folder that DETECTRON2_DATASETS names.
        train: Number of images to train on.
        val: Number of images to validate on, from another stream of random numbers.
        size: Height and width of the images in pixels.
        seed: Seed of the pictures.

    Returns:
        The folder of the data set.

    Raises:
        ShapesError: An option is out of range, or the folder exists but was not made by this script.
    """
    _check(train, val, size, seed)
    manifest = {"version": VERSION, "train": train, "val": val, "size": size, "seed": seed}
    return _prepare(Path(root, "shapes"), manifest, _draw_split)


def prepare_classes(root: str | Path, *, train: int = 3000, val: int = 500, size: int = 64, seed: int = 0) -> Path:
    """Draw the data set for classification into `root`/shape_classes, unless it exists.

    Args:
        root: Folder that DETECTRON2_DATASETS names.
        train: Number of images to train on, the same for each class as far as possible.
        val: Number of images to validate on, from another stream of random numbers.
        size: Height and width of the images in pixels.
        seed: Seed of the pictures.

    Returns:
        The folder of the data set.

    Raises:
        ShapesError: An option is out of range, or the folder exists but was not made by this script.
    """
    _check(train, val, size, seed, least=len(PICTURE_CLASSES))
    manifest = {"version": CLASSES_VERSION, "train": train, "val": val, "size": size, "seed": seed}
    return _prepare(Path(root, "shape_classes"), manifest, _draw_classes)


def _check(train: int, val: int, size: int, seed: int, least: int = 1) -> None:
    if min(train, val) < least or size < MIN_SIZE or seed < 0:
        raise ShapesError(f"expected train >= {least}, val >= {least}, size >= {MIN_SIZE} and seed >= 0")


def _prepare(folder: Path, manifest: dict[str, int], draw_split: Callable[[Path, str, dict[str, int]], None]) -> Path:
    train, val, size = manifest["train"], manifest["val"], manifest["size"]
    found = _read_manifest(folder)
    if found == manifest:
        print(f"{folder} is complete: {train} + {val} images of {size} x {size} pixels")
        return folder
    if found is None and folder.exists():
        raise ShapesError(
            f"{folder} was not written by this script (it has no {MANIFEST}) and is left unchanged: please move it"
        )
    unfinished = folder.with_name(f"{folder.name}.partial")
    check_folder(unfinished)
    if _read_manifest(unfinished) != manifest:
        shutil.rmtree(unfinished, ignore_errors=True)
        write_json(unfinished / MANIFEST, manifest)
    for split in SPLITS:
        draw_split(unfinished, split, manifest)
    _move_into_place(unfinished, folder)
    print(f"{folder}: {train} + {val} images of {size} x {size} pixels")
    return folder


def _draw_split(folder: Path, split: str, manifest: dict[str, int]) -> None:
    """Draw the missing images, then write the annotation files of the split."""
    records = folder / "records" / split
    # As in COCO, no image id is in both splits.
    first_id = 1 + 1_000_000 * SPLITS.index(split)
    lacking = [index for index in range(manifest[split]) if not (records / f"{index}.json").exists()]
    draw_index = partial(_draw_and_record, folder, split, first_id, manifest)
    with processes(default_workers() if len(lacking) > _FEW else 1) as parallel:
        drawings = parallel(draw_index, lacking)
        for _ in tqdm(drawings, f"shapes {split}", len(lacking), unit="image", mininterval=report_interval()):
            pass
    drawn = [json.loads((records / f"{index}.json").read_text()) for index in range(manifest[split])]
    images = [record["image"] for record in drawn]
    categories = [
        {"id": c.id, "name": c.name, "color": list(c.color), "isthing": int(c.isthing), "supercategory": "shape"}
        for c in CATEGORIES
    ]
    panoptic = {"images": images, "annotations": [r["panoptic"] for r in drawn], "categories": categories}
    instances = {
        "images": images,
        "annotations": [annotation for record in drawn for annotation in record["instances"]],
        "categories": [category for category in categories if category["isthing"]],
    }
    write_json(folder / "annotations" / f"panoptic_{split}.json", panoptic)
    write_json(folder / "annotations" / f"instances_{split}.json", instances)


def _draw_and_record(folder: Path, split: str, first_id: int, manifest: dict[str, int], index: int) -> None:
    """Draw an image, and write its record last: an image with a record is complete."""
    rng = RandomState([manifest["seed"], SPLITS.index(split), index])
    record = _draw_image(folder, split, first_id + index, rng, manifest["size"])
    write_json(folder / "records" / split / f"{index}.json", record)


def _draw_image(folder: Path, split: str, image_id: int, rng: RandomState, size: int) -> dict[str, Any]:
    """Write the three pictures of one image, and return its entries for the annotation files."""
    scene = draw_scene(rng, size)
    ids = np.zeros((size, size), np.int64)
    labels = np.full((size, size), IGNORE_LABEL, np.uint8)
    segments_info, instances = [], []
    for segment_id, segment in _with_ids(scene.segments).items():
        ids[segment.mask] = segment_id
        labels[segment.mask] = CATEGORIES.index(segment.category)
        mask, category, iscrowd = segment.mask, segment.category, segment.iscrowd
        segments_info.append(segment_info(mask, segment_id, category.id, iscrowd))
        if category.isthing:
            annotation_id = 100 * image_id + len(instances)
            instances.append(instance_annotation(mask, annotation_id, image_id, category.id, iscrowd))
    name = f"{image_id:012d}"
    _save(scene.image, folder / split / f"{name}.jpg", "JPEG", quality=95, subsampling=0)
    _save(ids_to_colors(ids), folder / f"panoptic_{split}" / f"{name}.png", "PNG")
    _save(labels, folder / f"panoptic_semseg_{split}" / f"{name}.png", "PNG")
    return {
        "image": {"id": image_id, "file_name": f"{name}.jpg", "height": size, "width": size},
        "panoptic": {"image_id": image_id, "file_name": f"{name}.png", "segments_info": segments_info},
        "instances": instances,
    }


def _draw_classes(folder: Path, split: str, manifest: dict[str, int]) -> None:
    """Draw the missing images of a split into class folders."""
    draw_index = partial(_draw_of_class, folder, split, manifest)
    with processes(default_workers() if manifest[split] > _FEW else 1) as parallel:
        drawings = parallel(draw_index, range(manifest[split]))
        for _ in tqdm(drawings, f"classes {split}", manifest[split], unit="image", mininterval=report_interval()):
            pass


def _draw_of_class(folder: Path, split: str, manifest: dict[str, int], index: int) -> None:
    name = PICTURE_CLASSES[index % len(PICTURE_CLASSES)]
    path = folder / split / name / f"{index // len(PICTURE_CLASSES):05d}.jpg"
    if not path.exists():
        rng = RandomState([manifest["seed"], SPLITS.index(split), index])
        _save(draw_picture(rng, name, manifest["size"]), path, "JPEG", quality=95, subsampling=0)


def _with_ids(segments: Sequence[ShapesSegment]) -> dict[int, ShapesSegment]:
    """Segments by ids whose colours are near those of their categories, as in COCO's panoptic PNGs."""
    numbered: dict[int, ShapesSegment] = {}
    for segment in segments:
        numbered[unused_segment_id(segment.category.color, numbered)] = segment
    return numbered


def _save(pixels: np.ndarray, path: Path, format: str, **options: Any) -> None:
    with atomic_write(path, "wb") as file:
        Image.fromarray(pixels).save(file, format, **options)


def _move_into_place(partial: Path, folder: Path) -> None:
    shutil.rmtree(partial / "records", ignore_errors=True)
    replaced = folder.with_name(f"{folder.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    with writing(folder):
        if folder.exists():
            folder.rename(replaced)
        partial.rename(folder)
    shutil.rmtree(replaced, ignore_errors=True)


def _read_manifest(folder: Path) -> dict[str, int] | None:
    try:
        return json.loads((folder / MANIFEST).read_text())
    except (OSError, json.JSONDecodeError):
        return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--root", type=user_path, default=datasets_root(), help="default: DETECTRON2_DATASETS or datasets"
    )
    parser.add_argument("--classes", action="store_true", help="draw the set for classification")
    parser.add_argument("--train", type=int, metavar="N", help="images to train on; default: 1200, of classes 3000")
    parser.add_argument("--val", type=int, metavar="N", help="images to validate on; default: 150, of classes 500")
    parser.add_argument("--size", type=int, metavar="PIXELS", help="side of the images; default: 128, of classes 64")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    options = parser.parse_args(arguments)
    with report_errors():
        given = {key: vars(options)[key] for key in ("train", "val", "size") if vars(options)[key] is not None}
        draw = prepare_classes if options.classes else prepare
        draw(options.root, seed=options.seed, **given)
    return 0


if __name__ == "__main__":
    run_script(main)
