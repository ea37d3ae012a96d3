"""COCO 2017 with its 133 panoptic categories, under `coco/` as its owners lay it out."""

from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from mask2former.data.datasets.registry import CocoLayout, categories_from, register_coco_layout

CATEGORIES = categories_from(COCO_CATEGORIES)

SOURCE = (
    "COCO's images and annotations come from https://cocodataset.org (2017 images, train/val annotations, panoptic "
    "annotations); datasets/prepare_coco.py makes the panoptic_semseg folders. See datasets/README.md."
)


def register() -> None:
    """Register the COCO names of the published settings over those that Detectron2 has at a fixed root."""
    for split in ("train", "val"):
        image_root = f"coco/{split}2017"
        instances_json = f"coco/annotations/instances_{split}2017.json"
        panoptic = {
            "panoptic_json": f"coco/annotations/panoptic_{split}2017.json",
            "panoptic_root": f"coco/panoptic_{split}2017",
        }
        register_coco_layout(
            f"coco_2017_{split}", "instance", CATEGORIES, CocoLayout(image_root, instances_json), source=SOURCE
        )
        register_coco_layout(
            f"coco_2017_{split}_panoptic", "panoptic", CATEGORIES, CocoLayout(image_root, **panoptic), source=SOURCE
        )
        register_coco_layout(
            f"coco_2017_{split}_panoptic_with_sem_seg",
            "panoptic",
            CATEGORIES,
            CocoLayout(image_root, instances_json, **panoptic, sem_seg_root=f"coco/panoptic_semseg_{split}2017"),
            source=SOURCE,
        )
