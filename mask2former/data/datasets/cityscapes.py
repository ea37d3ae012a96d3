"""Cityscapes with fine annotations (19 classes, 8 of them things), under `cityscapes/` in its owners' layout.

The dicts are those of Detectron2's own loaders, but nothing here imports cityscapesscripts.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from detectron2.data.catalog import Metadata
from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES
from detectron2.structures import BoxMode

from dinat_common.files import read_text
from mask2former.data.datasets.registry import (
    IGNORE_LABEL,
    AnnotationError,
    DatasetDict,
    MissingDatasetError,
    categories_from,
    category_entries,
    errors_name,
    register_dataset,
)
from mask2former.tasks import Task
from mask2former.utils.parallel import default_workers, processes

# Ids are those of the owners' labels; the order is that of the train ids.
CATEGORIES = categories_from(CITYSCAPES_CATEGORIES)

_THING_IDS = {name: i for i, name in enumerate(c.name for c in CATEGORIES if c.isthing)}
# Suffix of the class name in the labels of crowds.
GROUP = "group"
# Labels with a negative id are not drawn, so they hide nothing.
_INVISIBLE = {"license plate"}
_IMAGE_SUFFIX = "_leftImg8bit.png"
# Number of polygon files from which on starting processes saves time.
MANY_FILES = 200
# The owners' label images that evaluation reads, by `evaluator_type`.
_EVALUATION_LABELS: Mapping[str, tuple[str, ...]] = {
    "cityscapes_panoptic_seg": ("labelIds", "instanceIds"),
    "cityscapes_instance": ("instanceIds",),
    "cityscapes_sem_seg": ("labelIds",),
}

SOURCE = (
    "Cityscapes (leftImg8bit_trainvaltest, gtFine_trainvaltest) comes from https://www.cityscapes-dataset.com; "
    "datasets/prepare_cityscapes.py makes the labelTrainIds and cityscapes_panoptic files. See datasets/README.md."
)


def register() -> None:
    """Register cityscapes_fine_{panoptic,instance_seg,sem_seg}_{train,val}."""
    for split in ("train", "val"):
        image_dir, gt_dir = f"cityscapes/leftImg8bit/{split}", f"cityscapes/gtFine/{split}"
        panoptic = f"cityscapes/gtFine/cityscapes_panoptic_{split}"
        panoptic_paths = {"image_root": image_dir, "panoptic_root": panoptic, "panoptic_json": f"{panoptic}.json"}
        _register(f"panoptic_{split}", "panoptic", load_panoptic, "panoptic_seg", panoptic_paths | {"gt_dir": gt_dir})
        paths = {"image_dir": image_dir, "gt_dir": gt_dir}
        _register(f"instance_seg_{split}", "instance", load_instances, "instance", paths)
        _register(f"sem_seg_{split}", "semantic", load_semantic, "sem_seg", paths)


def _register(
    name: str, task: Task, load: Callable[[Metadata], list[DatasetDict]], evaluator: str, paths: Mapping[str, str]
) -> None:
    register_dataset(
        f"cityscapes_fine_{name}",
        load,
        paths=paths,
        source=SOURCE,
        evaluator_type=f"cityscapes_{evaluator}",
        ignore_label=IGNORE_LABEL,
        **category_entries(task, CATEGORIES),
    )


def load_semantic(metadata: Metadata) -> list[DatasetDict]:
    """Dicts of a semantic split.

    Raises:
        MissingDatasetError: The labelTrainIds files are missing.
        AnnotationError: An annotation file is damaged.
    """
    dicts = []
    for image, stem in _images(metadata.image_dir, metadata.gt_dir):
        content = _read_json(f"{stem}_polygons.json")
        size = {"height": content["imgHeight"], "width": content["imgWidth"]}
        dicts.append({"file_name": image, "sem_seg_file_name": f"{stem}_labelTrainIds.png", **size})
    _check_first(dicts, "sem_seg_file_name")
    return dicts


def load_instances(metadata: Metadata) -> list[DatasetDict]:
    """Dicts of an instance split: the visible polygons of things, in COCO's form; see `read_polygons`."""
    files = list(_images(metadata.image_dir, metadata.gt_dir))
    if not files:
        return []
    with processes(default_workers() if len(files) >= MANY_FILES else 1) as run:
        return list(run(read_polygons, *zip(*files, strict=True)))


def load_panoptic(metadata: Metadata) -> list[DatasetDict]:
    """Dicts of a panoptic split, with contiguous category ids.

    Raises:
        MissingDatasetError: Images or labelTrainIds files are missing.
        AnnotationError: The panoptic JSON is damaged.
    """
    contiguous = metadata.thing_dataset_id_to_contiguous_id | metadata.stuff_dataset_id_to_contiguous_id
    with errors_name(metadata.panoptic_json):
        dicts = [
            {
                "file_name": _path_of(metadata.image_root, annotation["image_id"], _IMAGE_SUFFIX),
                "image_id": annotation["image_id"],
                "sem_seg_file_name": _path_of(metadata.gt_dir, annotation["image_id"], "_gtFine_labelTrainIds.png"),
                "pan_seg_file_name": os.path.join(metadata.panoptic_root, annotation["file_name"]),
                "segments_info": [
                    {**segment, "category_id": contiguous[segment["category_id"]]}
                    for segment in annotation["segments_info"]
                ],
            }
            for annotation in json.loads(read_text(metadata.panoptic_json))["annotations"]
        ]
    for key in ("file_name", "sem_seg_file_name", "pan_seg_file_name"):
        _check_first(dicts, key)
    return dicts


def read_polygons(image: str, stem: str) -> DatasetDict:
    """The dict of an image, with the visible parts of its things as polygons.

    The file lists objects from back to front. The owners fill outlines on whole pixels, which covers half a pixel
    more than the outline: coordinates are moved to the pixels' centres and outlines are widened by a half. Holes are
    lost, as COCO's polygons have none.

    Args:
        image: Path of the image.
        stem: Path of its annotations up to the last underscore.

    Raises:
        MissingDatasetError: The annotation file is missing.
        AnnotationError: The annotation file is damaged.
    """
    content = _read_json(f"{stem}_polygons.json")
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
            parts = [part for part in shapely.get_parts(visible) if isinstance(part, shapely.Polygon)]
            annotations.append(
                {
                    "iscrowd": label not in _THING_IDS,
                    "category_id": category,
                    "segmentation": [shapely.get_coordinates(part.exterior).ravel().tolist() for part in parts],
                    "bbox": visible.bounds,
                    "bbox_mode": BoxMode.XYXY_ABS,
                }
            )
        in_front = in_front.union(outline)
    return {
        "file_name": image,
        "image_id": os.path.basename(image),
        "height": content["imgHeight"],
        "width": content["imgWidth"],
        "annotations": annotations,
    }


def evaluation_labels(metadata: Metadata, record: DatasetDict) -> list[str]:
    """Paths of the owners' label images that the evaluation of an image reads.

    Args:
        metadata: Metadata of one of these data sets.
        record: Dict of the image.
    """
    image_id = os.path.basename(record["file_name"]).removesuffix(_IMAGE_SUFFIX)
    kinds = _EVALUATION_LABELS[metadata.evaluator_type]
    return [_path_of(metadata.gt_dir, image_id, f"_gtFine_{kind}.png") for kind in kinds]


def _images(image_dir: str, gt_dir: str) -> Iterator[tuple[str, str]]:
    """Paths of the images of all cities, and of their annotations up to the last underscore."""
    for image in sorted(Path(image_dir).glob(f"*/*{_IMAGE_SUFFIX}")):
        yield str(image), _path_of(gt_dir, image.name.removesuffix(_IMAGE_SUFFIX), "_gtFine")


def _path_of(folder: str, image_id: str, suffix: str) -> str:
    return os.path.join(folder, image_id.split("_")[0], image_id + suffix)


def _read_json(path: str) -> dict[str, Any]:
    try:
        with errors_name(path):
            content = json.loads(read_text(path))
    except FileNotFoundError as error:
        raise MissingDatasetError(f"{path}: no such file. {SOURCE}") from error
    if not {"imgHeight", "imgWidth", "objects"} <= content.keys():
        raise AnnotationError(f"{path}: not a polygon file of Cityscapes")
    return content


def _check_first(dicts: list[DatasetDict], key: str) -> None:
    if dicts and not os.path.isfile(dicts[0][key]):
        raise MissingDatasetError(f"{dicts[0][key]}: no such file. {SOURCE}")
