"""Cityscapes with fine annotations (19 classes, 8 of them things), under `cityscapes/` as its owners lay it out.

The dicts are those of Detectron2's own loaders, but nothing here imports cityscapesscripts.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from detectron2.data.catalog import Metadata
from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES
from detectron2.structures import BoxMode

from mask2former.data.datasets.coco_layout import (
    IGNORE_LABEL,
    categories_from,
    instance_entries,
    panoptic_entries,
    semantic_entries,
)
from mask2former.data.datasets.registry import DatasetDict, MissingDatasetError, register_dataset
from mask2former.utils.parallel import default_workers, processes

# Ids are those of the owners' labels; the order is that of the train ids.
CATEGORIES = categories_from(CITYSCAPES_CATEGORIES)

_THING_IDS = {name: i for i, name in enumerate(c.name for c in CATEGORIES if c.isthing)}
# Crowds are labelled with the name of the class and this.
GROUP = "group"
# Labels with a negative id: drawn nowhere, so they hide nothing.
_INVISIBLE = {"license plate"}
_IMAGE_SUFFIX = "_leftImg8bit.png"
# From here on, reading polygons is worth starting processes.
_MANY_FILES = 200

SOURCE = (
    "Cityscapes (leftImg8bit_trainvaltest, gtFine_trainvaltest) comes from https://www.cityscapes-dataset.com; "
    "datasets/prepare_cityscapes.py makes the labelTrainIds and cityscapes_panoptic files. See datasets/README.md."
)


def register() -> None:
    """Register cityscapes_fine_{panoptic,instance_seg,sem_seg}_{train,val}."""
    for split in ("train", "val"):
        image_dir, gt_dir = f"cityscapes/leftImg8bit/{split}", f"cityscapes/gtFine/{split}"
        panoptic = f"cityscapes/gtFine/cityscapes_panoptic_{split}"
        common = {"source": SOURCE, "ignore_label": IGNORE_LABEL}
        register_dataset(
            f"cityscapes_fine_panoptic_{split}",
            load_panoptic,
            paths={
                "image_root": image_dir,
                "gt_dir": gt_dir,
                "panoptic_root": panoptic,
                "panoptic_json": f"{panoptic}.json",
            },
            evaluator_type="cityscapes_panoptic_seg",
            **common,
            **panoptic_entries(CATEGORIES),
        )
        register_dataset(
            f"cityscapes_fine_instance_seg_{split}",
            load_instances,
            paths={"image_dir": image_dir, "gt_dir": gt_dir},
            evaluator_type="cityscapes_instance",
            **common,
            **instance_entries(CATEGORIES),
        )
        register_dataset(
            f"cityscapes_fine_sem_seg_{split}",
            load_semantic,
            paths={"image_dir": image_dir, "gt_dir": gt_dir},
            evaluator_type="cityscapes_sem_seg",
            **common,
            **semantic_entries(CATEGORIES),
        )


def load_semantic(metadata: Metadata) -> list[DatasetDict]:
    """Dicts of a semantic split.

    Raises:
        MissingDatasetError: there are no labelTrainIds files.
    """
    dicts = []
    for image, stem in _images(metadata.image_dir, metadata.gt_dir):
        height, width = _annotated_size(f"{stem}_polygons.json")
        label = f"{stem}_labelTrainIds.png"
        dicts.append({"file_name": image, "sem_seg_file_name": label, "height": height, "width": width})
    _check_first(dicts, "sem_seg_file_name")
    return dicts


def load_instances(metadata: Metadata) -> list[DatasetDict]:
    """Dicts of an instance split: the visible polygons of things, in COCO's form."""
    files = list(_images(metadata.image_dir, metadata.gt_dir))
    if not files:
        return []
    with processes(default_workers() if len(files) >= _MANY_FILES else 1) as run:
        return list(run(read_polygons, *zip(*files, strict=True)))


def load_panoptic(metadata: Metadata) -> list[DatasetDict]:
    """Dicts of a panoptic split, with contiguous category ids.

    Raises:
        MissingDatasetError: images or labelTrainIds files are missing.
        ValueError: the panoptic JSON is damaged.
    """
    contiguous = metadata.thing_dataset_id_to_contiguous_id | metadata.stuff_dataset_id_to_contiguous_id
    try:
        annotations = json.loads(Path(metadata.panoptic_json).read_text())["annotations"]
        dicts = [
            {
                "file_name": _image_of(metadata.image_root, annotation["image_id"]),
                "image_id": annotation["image_id"],
                "sem_seg_file_name": _labels_of(metadata.gt_dir, annotation["image_id"]) + "_labelTrainIds.png",
                "pan_seg_file_name": os.path.join(metadata.panoptic_root, annotation["file_name"]),
                "segments_info": [
                    {**segment, "category_id": contiguous[segment["category_id"]]}
                    for segment in annotation["segments_info"]
                ],
            }
            for annotation in annotations
        ]
    except json.JSONDecodeError as error:
        raise ValueError(f"{metadata.panoptic_json}: not valid JSON ({error})") from error
    except (KeyError, TypeError) as error:
        raise ValueError(f"{metadata.panoptic_json}: not Cityscapes' panoptic format, no {error}") from error
    for key in ("file_name", "sem_seg_file_name", "pan_seg_file_name"):
        _check_first(dicts, key)
    return dicts


def read_polygons(image: str, stem: str) -> DatasetDict:
    """The dict of an image with the visible parts of its things as polygons.

    The file lists objects from back to front. The owners fill outlines on whole pixels, which covers half a pixel
    more than the outline: coordinates are moved to the pixels' centres and outlines are widened by a half. Holes are
    lost, as COCO's polygons have none.

    Args:
        image: path of the image.
        stem: path of its annotations up to the last underscore.

    Raises:
        ValueError: the annotation file is damaged.
    """
    path = f"{stem}_polygons.json"
    content = _read_json(path)
    annotations: list[dict[str, Any]] = []
    in_front = shapely.Polygon()
    for drawn in reversed(content["objects"]):
        label = drawn["label"]
        if "deleted" in drawn or label in _INVISIBLE:
            continue
        outline = shapely.Polygon(np.asarray(drawn["polygon"], np.float32) + 0.5).buffer(0.5, quad_segs=4)
        category = _THING_IDS.get(label, _THING_IDS.get(label.removesuffix(GROUP)))
        if category is not None:
            visible = outline.difference(in_front)
            if visible.is_empty:
                continue
            annotations.append(_annotation(visible, category, iscrowd=label not in _THING_IDS))
        in_front = in_front.union(outline)
    return {
        "file_name": image,
        "image_id": os.path.basename(image),
        "height": content["imgHeight"],
        "width": content["imgWidth"],
        "annotations": annotations,
    }


def _annotation(visible: shapely.Geometry, category: int, iscrowd: bool) -> dict[str, Any]:
    parts = [part for part in shapely.get_parts(visible) if isinstance(part, shapely.Polygon)]
    return {
        "iscrowd": iscrowd,
        "category_id": category,
        "segmentation": [shapely.get_coordinates(part.exterior).ravel().tolist() for part in parts],
        "bbox": visible.bounds,
        "bbox_mode": BoxMode.XYXY_ABS,
    }


def evaluation_labels(metadata: Metadata, record: DatasetDict) -> list[str]:
    """Paths of the owners' label images that the evaluation of an image reads.

    Args:
        metadata: of one of these data sets.
        record: one of its dicts.
    """
    kinds = {
        "cityscapes_sem_seg": ["labelIds"],
        "cityscapes_instance": ["instanceIds"],
        "cityscapes_panoptic_seg": ["labelIds", "instanceIds"],
    }
    stem = _labels_of(metadata.gt_dir, os.path.basename(record["file_name"]).removesuffix(_IMAGE_SUFFIX))
    return [f"{stem}_{kind}.png" for kind in kinds[metadata.evaluator_type]]


def _images(image_dir: str, gt_dir: str) -> Iterator[tuple[str, str]]:
    """Paths of the images of all cities, and of their annotations up to the last underscore."""
    for image in sorted(Path(image_dir).glob(f"*/*{_IMAGE_SUFFIX}")):
        yield str(image), _labels_of(gt_dir, image.name.removesuffix(_IMAGE_SUFFIX))


def _image_of(image_dir: str, image_id: str) -> str:
    return os.path.join(image_dir, image_id.split("_")[0], image_id + _IMAGE_SUFFIX)


def _labels_of(gt_dir: str, image_id: str) -> str:
    return os.path.join(gt_dir, image_id.split("_")[0], f"{image_id}_gtFine")


def _annotated_size(path: str) -> tuple[int, int]:
    content = _read_json(path)
    return content["imgHeight"], content["imgWidth"]


def _read_json(path: str) -> dict[str, Any]:
    try:
        content = json.loads(Path(path).read_text())
    except FileNotFoundError as error:
        raise MissingDatasetError(f"{path}: no such file. {SOURCE}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    if not {"imgHeight", "imgWidth", "objects"} <= content.keys():
        raise ValueError(f"{path}: not a polygon file of Cityscapes")
    return content


def _check_first(dicts: list[DatasetDict], key: str) -> None:
    if dicts and not os.path.isfile(dicts[0][key]):
        raise MissingDatasetError(f"{dicts[0][key]}: no such file. {SOURCE}")
