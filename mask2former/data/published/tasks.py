"""What there is to look at in the files of a data set."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from detectron2.data.catalog import Metadata

from mask2former.data.datasets import cityscapes
from mask2former.data.datasets.registry import DatasetDict
from mask2former.data.published.inspect import Task, inspect_image, inspect_labels, inspect_panoptic

# Labels of Cityscapes that pixels can have.
_CITYSCAPES_LABELS = frozenset(range(34))


def label_tasks(metadata: Metadata, record: DatasetDict, *, with_image: bool = False) -> Iterator[Task]:
    """One task per label image of a dict, and one for the image itself."""
    if with_image:
        yield Task(record["file_name"], inspect_image)
    if "sem_seg_file_name" in record:
        allowed = frozenset((*range(len(metadata.stuff_classes)), metadata.ignore_label))
        yield Task(record["sem_seg_file_name"], inspect_labels, (allowed,))
    if "pan_seg_file_name" in record:
        segments = record["segments_info"]
        areas = {segment["id"]: segment.get("area") for segment in segments}
        # Their areas are those before things were pasted over them.
        pasted_over = "ade20k" in metadata.name
        hidden = [s["id"] for s in segments if pasted_over and not s["isthing"]]
        yield Task(record["pan_seg_file_name"], inspect_panoptic, (areas, hidden))
    if metadata.evaluator_type.startswith("cityscapes") and metadata.name.endswith("_val"):
        for path in cityscapes.evaluation_labels(metadata, record):
            yield Task(path, inspect_labels, (_CITYSCAPES_LABELS, 1000))


def instance_problems(metadata: Metadata, dicts: Sequence[DatasetDict]) -> Iterator[tuple[str, str]]:
    """Pairs of a problem and where it is, in instance annotations and in the JSON that evaluation reads beside others.

    (Categories that the data set does not have are errors when it is loaded.)
    """
    for record in dicts:
        for annotation in record.get("annotations", ()):
            segmentation = annotation["segmentation"]
            size = tuple(segmentation["size"]) if isinstance(segmentation, dict) else None
            if size not in (None, (record["height"], record["width"])):
                yield "run lengths of another size than the image", f"{record['file_name']}: {size}"
    if "pan_seg_file_name" in dicts[0] and metadata.get("json_file"):
        yield from _json_problems(metadata, dicts)


def _json_problems(metadata: Metadata, dicts: Sequence[DatasetDict]) -> Iterator[tuple[str, str]]:
    path = metadata.json_file
    try:
        content: dict[str, Any] = json.loads(Path(path).read_text())
        images = {image["id"] for image in content["images"]}
        categories = {annotation["category_id"] for annotation in content["annotations"]}
    except json.JSONDecodeError as error:
        yield "not valid JSON", f"{path}: {error}"
        return
    except (KeyError, TypeError) as error:
        yield "not COCO's instance format", f"{path}: {error!r}"
        return
    if lacking := [record["image_id"] for record in dicts if record["image_id"] not in images]:
        yield "images that the panoptic JSON has are not in it", f"{path}: {lacking[0]} and {len(lacking) - 1} more"
    if unknown := sorted(categories - metadata.thing_dataset_id_to_contiguous_id.keys()):
        yield "label ids outside of the table", f"{path}: categories {unknown}"
