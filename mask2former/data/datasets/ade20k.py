"""ADE20K (150 categories, 100 of them things), under `ADEChallengeData2016/`, with what its preparation adds."""

from dataclasses import replace

from mask2former.data.datasets.ade20k_categories import TABLE
from mask2former.data.datasets.coco_layout import Category, CocoLayout, register_coco_layout

# The prepared annotations have ids 0..149.
CATEGORIES = tuple(Category(i, name, color, thing is not None) for i, (name, color, thing) in enumerate(TABLE))
# The instance benchmark names some things otherwise.
INSTANCE_CATEGORIES = tuple(
    replace(category, name=thing)
    for category, (_, _, thing) in zip(CATEGORIES, TABLE, strict=True)
    if thing is not None
)

# What the owners call the categories in label images, which results are handed in with.
_OWNERS_LABELS = tuple(category.id + 1 for category in CATEGORIES)

_ROOT = "ADEChallengeData2016"
_FOLDERS = {"train": "training", "val": "validation"}
SOURCE = (
    "ADE20K's images and annotations (ADEChallengeData2016 and annotations_instance) come from "
    "http://sceneparsing.csail.mit.edu; datasets/prepare_ade20k.py makes the other files. See datasets/README.md."
)


def register() -> None:
    """Register ade20k_{sem_seg,panoptic,instance}_{train,val}."""
    for split, folder in _FOLDERS.items():
        image_root = f"{_ROOT}/images/{folder}"
        sem_seg_root = f"{_ROOT}/annotations_detectron2/{folder}"
        instances_json = f"{_ROOT}/ade20k_instance_{split}.json"
        panoptic = CocoLayout(
            image_root,
            # Evaluation alone needs it.
            json_file=instances_json if split == "val" else None,
            panoptic_json=f"{_ROOT}/ade20k_panoptic_{split}.json",
            panoptic_root=f"{_ROOT}/ade20k_panoptic_{split}",
            sem_seg_root=sem_seg_root,
        )
        register_coco_layout(
            f"ade20k_panoptic_{split}",
            "panoptic",
            CATEGORIES,
            panoptic,
            source=SOURCE,
            submission_labels=_OWNERS_LABELS,
        )
        register_coco_layout(
            f"ade20k_instance_{split}",
            "instance",
            INSTANCE_CATEGORIES,
            CocoLayout(image_root, json_file=instances_json),
            source=SOURCE,
        )
        register_coco_layout(
            f"ade20k_sem_seg_{split}",
            "semantic",
            CATEGORIES,
            CocoLayout(image_root, sem_seg_root=sem_seg_root),
            source=SOURCE,
            submission_labels=_OWNERS_LABELS,
        )
