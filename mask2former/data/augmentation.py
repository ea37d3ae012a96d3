"""The two recipes of training augmentation, and what images are padded with.

The order and the kind of the random draws are those of the published runs: a fixed seed of NumPy (and, for colours, of
`random`) gives the same crops.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from detectron2.data import transforms as T
from detectron2.projects.point_rend import ColorAugSSDTransform
from fvcore.transforms.transform import NoOpTransform
from numpy.typing import NDArray

Flip = Literal["none", "horizontal", "vertical"]

# Of images, in 0..255; padding happens before normalisation.
PADDING_VALUE = 128


@dataclass(frozen=True)
class Crop:
    """A random crop: `type` and `size` as in Detectron2's `RandomCrop`.

    With `single_category_max_area` below 1, up to ten windows are tried until no category but `ignore_label` covers
    more than that part of one, which needs a semantic map.
    """

    type: str
    size: Sequence[float]
    single_category_max_area: float
    ignore_label: int

    @property
    def needs_semantic_map(self) -> bool:
        """Whether where to crop depends on the semantic map."""
        return self.single_category_max_area < 1


def large_scale_jitter(image_size: int, min_scale: float, max_scale: float, flip: Flip) -> T.AugmentationList:
    """Large-scale jittering (Ghiasi et al., "Simple Copy-Paste", 2021), used on COCO.

    A random flip; the image scaled to fit a square of `image_size` pixels, times a factor between the scales; a crop of
    that square, padded at the right and at the bottom.
    """
    return T.AugmentationList(
        [
            *_flips(flip),
            _Contiguous(),
            T.ResizeScale(min_scale, max_scale, image_size, image_size),
            # (Its annotation says tuple[int].)
            T.FixedSizeCrop((image_size, image_size), pad_value=PADDING_VALUE),  # ty: ignore[invalid-argument-type]
        ]
    )


def resize_and_crop(
    short_edges: Sequence[int],
    max_size: int,
    sampling: Literal["choice", "range"],
    crop: Crop | None,
    color_format: Literal["RGB", "BGR"] | None,
    flip: Flip,
) -> T.AugmentationList:
    """The recipe of ADE20K and Cityscapes: the shortest edge resized, a crop, SSD's colour changes, a random flip.

    Args:
        short_edges: lengths to choose from in pixels, or a range.
        max_size: the longest edge is at most this.
        sampling: what `short_edges` are.
        crop: None for no crop.
        color_format: channel order of the images; None for no changes of colour.
        flip: direction of the flip.
    """
    augmentations: list[T.Augmentation | T.Transform] = [T.ResizeShortestEdge(list(short_edges), max_size, sampling)]
    if crop is not None:
        augmentations.append(
            T.RandomCrop_CategoryAreaConstraint(crop.type, crop.size, crop.single_category_max_area, crop.ignore_label)
        )
    if color_format is not None:
        augmentations.append(ColorAugSSDTransform(img_format=color_format))
    return T.AugmentationList([*augmentations, *_flips(flip)])


def pad_to_multiple(pixels: NDArray, divisor: int, value: int) -> NDArray:
    """Pad [..., H, W] at the bottom and at the right to multiples of `divisor`; a divisor below 1 changes nothing."""
    if divisor < 1:
        return pixels
    margins = [(0, -length % divisor) for length in pixels.shape[-2:]]
    return np.pad(pixels, [(0, 0)] * (pixels.ndim - 2) + margins, constant_values=value)


class _Contiguous(NoOpTransform):
    """Copies a flipped array, which is a view, into the order in memory that Pillow reads ten times faster."""

    def apply_image(self, img: NDArray) -> NDArray:
        return np.ascontiguousarray(img)


def _flips(flip: Flip) -> list[T.Augmentation]:
    return [] if flip == "none" else [T.RandomFlip(horizontal=flip == "horizontal", vertical=flip == "vertical")]
