"""Miniature COCO, ADE20K and Cityscapes in their owners' published layouts, the same at every run.

    python -m examples.miniature_datasets --root DIR [--dataset coco] [--images 4] [--size 480 640]

Both splits have odd image sizes (Cityscapes: one size, as published), things in front of stuff and of each other, void,
an image without any annotation (the third), several classes, and every form of label that the owners use.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from mask2former.data.published import PREPARATIONS

from .ade20k import draw_ade20k
from .cityscapes import draw_cityscapes
from .coco import draw_coco
from .scene import Size

Dataset = Literal["coco", "ade20k", "cityscapes"]

_DRAW: Mapping[Dataset, Callable[[Path, int, Size | None, int], None]] = {
    "coco": draw_coco,
    "ade20k": draw_ade20k,
    "cityscapes": draw_cityscapes,
}
DATASETS: tuple[Dataset, ...] = tuple(_DRAW)


def draw_dataset(
    root: Path,
    dataset: Dataset,
    *,
    images: int = 4,
    size: Size | None = None,
    seed: int = 0,
    prepared: bool = True,
) -> None:
    """Draw a data set under `root`, the folder that DETECTRON2_DATASETS names.

    Args:
        root: Folder for the data set, which is created if it is missing.
        dataset: Name of the data set.
        images: Number of images in each of the two splits.
        size: Height and width of every image. Default: small sizes that differ (Cityscapes: 64 x 128).
        seed: Seed of the pictures.
        prepared: Whether the files that `datasets/prepare_*.py` makes are added.
    """
    _DRAW[dataset](Path(root), images, size, seed)
    if prepared:
        PREPARATIONS[dataset](Path(root))
