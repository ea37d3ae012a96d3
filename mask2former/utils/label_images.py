"""Label images and masks as files: PNG, the ids in the colours of panoptic PNGs, and COCO's run-length encoding."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from hotcoco import mask as mask_util
from numpy.typing import NDArray

from dinat_common.files import atomic_write

# Masks that are brought to the CPU at once.
_PIXELS_AT_ONCE = 1 << 22
# In label images most rows repeat the row above: this filter and a fast compression make small files quickly.
_OPTIONS = (cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP)
_BILEVEL = (cv2.IMWRITE_PNG_BILEVEL, 1)
_KINDS = (("bool", ()), ("uint8", ()), ("uint8", (3,)), ("uint16", ()))


def encode_png(pixels: NDArray[Any]) -> bytes:
    """Encode an image as PNG.

    Args:
        pixels: bool [H, W] (1 bit per pixel), uint8 [H, W] (grey) or [H, W, 3] (RGB), or uint16 [H, W] (16-bit grey).

    Raises:
        ValueError: `pixels` has another type or shape.
    """
    kind = (pixels.dtype.name, pixels.shape[2:])
    if pixels.ndim not in (2, 3) or kind not in _KINDS:
        raise ValueError(f"can't write {pixels.dtype} {pixels.shape} as PNG; expected bool, uint8 or uint16")
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    if kind[0] == "bool":
        return cv2.imencode(".png", pixels.view(np.uint8), _BILEVEL)[1].tobytes()
    return cv2.imencode(".png", pixels, _OPTIONS)[1].tobytes()


def write_png(path: str | Path, pixels: NDArray[Any]) -> Path:
    """Write a PNG file that is either complete or absent; see `encode_png`. Missing folders are created.

    Returns:
        The path.
    """
    with atomic_write(path, "wb") as file:
        file.write(encode_png(pixels))
    return Path(path)


def ids_to_colors(ids: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Colours [H, W, 3] of a panoptic PNG for segment ids [H, W] below 2**24: id = R + 256 G + 65536 B."""
    colors = np.ascontiguousarray(ids, dtype="<u4").view(np.uint8).reshape(*ids.shape, 4)
    return np.asarray(cv2.cvtColor(colors, cv2.COLOR_RGBA2RGB), dtype=np.uint8)


def colors_to_ids(colors: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Segment ids [H, W] of the colours [H, W, 3] of a panoptic PNG; see `ids_to_colors`."""
    padded = cv2.cvtColor(np.ascontiguousarray(colors), cv2.COLOR_RGB2RGBA)
    return padded.view("<u4")[..., 0] & np.uint32(0xFFFFFF)


def color_to_id(color: Sequence[int]) -> int:
    """Segment id of one RGB colour; see `ids_to_colors`."""
    red, green, blue = color
    return red + 256 * green + 65536 * blue


def encode_mask(mask: NDArray[np.bool_]) -> str:
    """The `counts` of COCO's compressed run-length encoding of a mask [H, W], equal to pycocotools'."""
    # The encoding goes down the columns: OpenCV transposes faster than the encoder strides over rows.
    columns: Any = cv2.transpose(mask.view(np.uint8)).T
    return mask_util.encode(columns)["counts"].decode("ascii")


def encode_masks(masks: torch.Tensor) -> list[str]:
    """The `counts` of COCO's compressed run-length encoding of each mask, equal to pycocotools'.

    Args:
        masks: [N, H, W] on any device; non-zero pixels belong to the mask. A few masks at a time are copied to the CPU.
    """
    at_once = max(1, _PIXELS_AT_ONCE // max(1, masks[:1].numel()))
    groups = (group.to(torch.bool).cpu().numpy() for group in masks.split(at_once))
    return [encode_mask(mask) for group in groups for mask in group]
