"""Resizing of images for the network: by Detectron2's rule with Pillow, or by OpenMMLab's rule with OpenCV."""

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from fvcore.transforms.transform import Transform
from numpy.typing import NDArray

from mask2former.config import ConfigError


class ResizeShortestEdge(T.ResizeShortestEdge):
    """Detectron2's, except that no side becomes shorter than one pixel, whatever the shape of the image."""

    short_edge_length: Sequence[int]
    max_size: int
    is_range: bool

    def get_transform(self, image: NDArray) -> T.Transform:
        """Choose a size for an image [H, W, ...]."""
        return at_least_one_pixel(super().get_transform(image))


class ResizeInside(ResizeShortestEdge):
    """The resizing of models that were trained with OpenMMLab's libraries: another rule and other pixels.

    The image keeps its ratio and is made as large as fits inside a limit for the longer and one for the shorter side;
    sides are rounded half up. OpenCV interpolates 8-bit values bilinearly without smoothing, so that a shrunk image
    differs clearly from Pillow's. A range of lengths scales both limits: `max_size` belongs to its upper end.
    """

    def get_transform(self, image: NDArray) -> "OpenCVResize":
        """Choose a size for an image [H, W, ...]."""
        height, width = image.shape[:2]
        longest = self.max_size
        if self.is_range:
            shortest = np.random.randint(self.short_edge_length[0], self.short_edge_length[1] + 1)
            longest = int(longest * shortest / self.short_edge_length[1])
        else:
            shortest = np.random.choice(self.short_edge_length)
        return OpenCVResize(height, width, *size_inside((height, width), shortest, longest))


def size_inside(size: tuple[int, int], shortest: float, longest: float) -> tuple[int, int]:
    """Largest size of the same ratio inside limits of the two sides.

    Args:
        size: Height and width of an image.
        shortest: Limit of the shorter side.
        longest: Limit of the longer side.

    Returns:
        Height and width, rounded half up, at least 1.
    """
    factor = min(longest / max(size), shortest / min(size))
    height, width = (max(1, int(side * factor + 0.5)) for side in size)
    return height, width


class OpenCVResize(Transform):
    """Resizes images bilinearly and labels to the nearest pixel, with OpenCV."""

    h: int
    w: int
    new_h: int
    new_w: int

    def __init__(self, h: int, w: int, new_h: int, new_w: int):
        """Set the sizes.

        Args:
            h: Height before.
            w: Width before.
            new_h: Height after.
            new_w: Width after.
        """
        super().__init__()
        self.h, self.w, self.new_h, self.new_w = h, w, new_h, new_w

    def apply_image(self, img: NDArray, interp: int = cv2.INTER_LINEAR) -> NDArray:
        """Resize an image [H, W] or [H, W, C]."""
        resized = cv2.resize(np.ascontiguousarray(img), (self.new_w, self.new_h), interpolation=interp)
        return resized.reshape(self.new_h, self.new_w, *img.shape[2:])

    def apply_segmentation(self, segmentation: NDArray) -> NDArray:
        """Resize labels [H, W]."""
        return self.apply_image(segmentation, cv2.INTER_NEAREST)

    def apply_coords(self, coords: NDArray) -> NDArray:
        """Scale points [N, 2] (x, y)."""
        return coords * np.array([self.new_w / self.w, self.new_h / self.h], coords.dtype)

    def inverse(self) -> "OpenCVResize":
        """The way back."""
        return OpenCVResize(self.new_h, self.new_w, self.h, self.w)


# Values of INPUT.RESIZE_WITH.
RESIZES: Mapping[str, type[ResizeShortestEdge]] = {"pillow": ResizeShortestEdge, "opencv": ResizeInside}


def build_resize_kind(cfg: CfgNode) -> type[ResizeShortestEdge]:
    """Return the kind of resizing that INPUT.RESIZE_WITH names.

    Raises:
        ConfigError: There is no such resizing.
    """
    # Detectron2's own configs do not have the key.
    name = cfg.INPUT.get("RESIZE_WITH", "pillow")
    if name not in RESIZES:
        raise ConfigError(f"INPUT.RESIZE_WITH is {name!r}, expected one of {', '.join(RESIZES)}")
    return RESIZES[name]


def build_test_resize(cfg: CfgNode) -> ResizeShortestEdge:
    """Build the resizing of test images (INPUT.RESIZE_WITH, MIN_SIZE_TEST, MAX_SIZE_TEST).

    Raises:
        ConfigError: INPUT.RESIZE_WITH is unknown.
    """
    return build_resize_kind(cfg)([cfg.INPUT.MIN_SIZE_TEST], cfg.INPUT.MAX_SIZE_TEST, "choice")


def at_least_one_pixel(transform: Any) -> T.Transform:
    """Replace a Detectron2 resizing to no pixels by one to at least one pixel in each direction."""
    if not isinstance(transform, T.ResizeTransform) or (transform.new_h and transform.new_w):
        return transform
    sides = max(1, transform.new_h), max(1, transform.new_w)
    return T.ResizeTransform(transform.h, transform.w, *sides, transform.interp)
