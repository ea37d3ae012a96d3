"""The `shapes` data set that `datasets/prepare_shapes.py` draws: its categories and its layout under `shapes/`.

Ids have gaps and start away from 0, as COCO's do, so that what works here has mapped them.
"""

from mask2former.data.datasets.coco_layout import Category, CocoLayout, register_coco_layout

CATEGORIES = (
    Category(1, "disc", (220, 60, 50), True),
    Category(2, "square", (60, 110, 230), True),
    Category(4, "triangle", (250, 190, 30), True),
    Category(5, "cross", (245, 120, 190), True),
    Category(20, "stripes", (120, 130, 90), False),
    Category(21, "checks", (150, 105, 80), False),
    Category(23, "gradient", (190, 200, 210), False),
)

_SOURCE = "Draw it with: python datasets/prepare_shapes.py"


def layout(split: str) -> CocoLayout:
    """Files of a split ("train" or "val")."""
    return CocoLayout(
        image_root=f"shapes/{split}",
        json_file=f"shapes/annotations/instances_{split}.json",
        panoptic_json=f"shapes/annotations/panoptic_{split}.json",
        panoptic_root=f"shapes/panoptic_{split}",
        sem_seg_root=f"shapes/panoptic_semseg_{split}",
    )


def register() -> None:
    """Register shapes_{train,val}_{panoptic,instance,semantic}."""
    for split in ("train", "val"):
        for task in ("panoptic", "instance", "semantic"):
            register_coco_layout(f"shapes_{split}_{task}", task, CATEGORIES, layout(split), source=_SOURCE)
