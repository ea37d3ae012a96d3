"""Miniature trees of COCO, ADE20K and Cityscapes in their owners' published layouts, drawn the same way every time.

    python -m tests.trees --root DIR [--dataset coco] [--images 4] [--size 480 640]

Every tree has, in both splits: odd image sizes (Cityscapes: one size, as published), things over stuff and over each
other, void, an image without any annotation (the third), several classes, and every form of label that its owners use.
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


def draw_tree(
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
        root: made where it is missing.
        dataset: which one.
        images: how many in each of the two splits.
        size: height and width of every image; by default small ones that differ (Cityscapes: 64 x 128).
        seed: chooses the pictures.
        prepared: also run the preparation of `datasets/prepare_*.py` on it.
    """
    _DRAW[dataset](Path(root), images, size, seed)
    if prepared:
        PREPARATIONS[dataset](Path(root))
