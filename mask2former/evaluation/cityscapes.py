"""Facts about Cityscapes' benchmarks and the files of its ground truth."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_IMAGE_SUFFIX = "_leftImg8bit"

# The classes that count, by the group of classes that they belong to.
GROUPS: Mapping[str, tuple[str, ...]] = {
    "flat": ("road", "sidewalk"),
    "construction": ("building", "wall", "fence"),
    "object": ("pole", "traffic light", "traffic sign"),
    "nature": ("vegetation", "terrain"),
    "sky": ("sky",),
    "human": ("person", "rider"),
    "vehicle": ("car", "truck", "bus", "train", "motorcycle", "bicycle"),
}
# Groups all of whose classes are things.
THING_GROUPS = ("human", "vehicle")

# Average pixels of an instance, which iIoU weighs instances with (Cordts et al., "The Cityscapes Dataset", CVPR 2016).
INSTANCE_PIXELS: Mapping[str, float] = {
    "person": 3462.4756337644,
    "rider": 3930.4788056518,
    "car": 12794.0202738185,
    "truck": 27855.1264367816,
    "bus": 35732.1511111111,
    "train": 67583.7075812274,
    "motorcycle": 6298.7200839748,
    "bicycle": 4672.3249222261,
}

# Ids of labels are below it; instance n of a label has the id label * 1000 + n, a label alone is stuff or a crowd.
FIRST_INSTANCE = 1000
LABELS = 34
# Labels of pixels that do not count.
VOID_LABELS = (0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30)


def image_stem(image: Mapping[str, Any]) -> str:
    """city_sequence_frame of an image."""
    return Path(image["file_name"]).stem.removesuffix(_IMAGE_SUFFIX)


def truth_file(gt_dir: str, stem: str, kind: str) -> Path:
    """Path of the ground truth of an image.

    Args:
        gt_dir: the folder of a split.
        stem: city_sequence_frame.
        kind: "labelIds" or "instanceIds".
    """
    return Path(gt_dir, stem.split("_")[0], f"{stem}_gtFine_{kind}.png")


def truth_stems(gt_dir: str, kind: str) -> set[str]:
    """city_sequence_frame of all images that have ground truth of a kind."""
    ending = f"_gtFine_{kind}.png"
    return {path.name.removesuffix(ending) for path in Path(gt_dir).glob(f"*/*{ending}")}
