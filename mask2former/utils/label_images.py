"""Label images and masks as files: PNG, the ids in the colours of panoptic PNGs, and COCO's run-length encoding."""

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from hotcoco import mask as mask_util
from numpy.typing import NDArray

from dinat_common.files import atomic_write

try:
    from isal.isal_zlib import compressobj
except ImportError:  # systems that isal has no wheel for: files take longer to write
    from zlib import compressobj

# Masks that are brought to the CPU at once.
_PIXELS_AT_ONCE = 1 << 22
# Masks that are encoded at once.
_MASKS_AT_ONCE = 4
# Bits and colour type of the header, by type and channels.
_PNG_KINDS = {("bool", ()): (1, 0), ("uint8", ()): (8, 0), ("uint8", (3,)): (8, 2), ("uint16", ()): (16, 0)}
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# In label images most rows repeat the row above: this filter and a fast compression make small files quickly.
_FILTER_UP, _COMPRESSION = 2, 1
# Bytes that are filtered and compressed at once: they stay in a core's cache.
_BYTES_AT_ONCE = 1 << 18


def encode_png(pixels: NDArray[Any]) -> bytes:
    """Encode an image as PNG.

    Args:
        pixels: bool [H, W] (1 bit per pixel), uint8 [H, W] (grey) or [H, W, 3] (RGB), or uint16 [H, W] (16-bit grey).

    Raises:
        ValueError: `pixels` has another type or shape.
    """
    kind = _PNG_KINDS.get((pixels.dtype.name, pixels.shape[2:]))
    if kind is None or pixels.size == 0:
        raise ValueError(f"can't write {pixels.dtype} {pixels.shape} as PNG; expected bool, uint8 or uint16")
    bits, color_type = kind
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], bits, color_type, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", _compressed(_png_rows(pixels))), (b"IEND", b""))
    return _PNG_SIGNATURE + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )


def _png_rows(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """The bytes of each row of an image in a PNG."""
    if pixels.dtype == np.bool_:
        return np.packbits(pixels, axis=1)
    if pixels.dtype == np.uint16:
        pixels = pixels.astype(">u2")
    return np.ascontiguousarray(pixels).view(np.uint8).reshape(len(pixels), -1)


def _compressed(rows: NDArray[np.uint8]) -> bytes:
    """The compressed differences of rows [H, bytes] from the row above, each after the number of the filter."""
    height, width = rows.shape
    at_once = max(1, _BYTES_AT_ONCE // width)
    compressor, parts = compressobj(_COMPRESSION), []
    filtered = np.full((min(at_once, height), width + 1), _FILTER_UP, dtype=np.uint8)
    filtered[0, 1:] = rows[0]
    for start in range(0, height, at_once):
        first, end = max(1, start), min(start + at_once, height)
        np.subtract(rows[first:end], rows[first - 1 : end - 1], out=filtered[first - start : end - start, 1:])
        parts.append(compressor.compress(filtered[: end - start].data))
    return b"".join([*parts, compressor.flush()])


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
    return _encode_group(mask[None], np.empty((1, *mask.shape[::-1]), np.uint8))[0]


def encode_masks(masks: torch.Tensor) -> list[str]:
    """The `counts` of COCO's compressed run-length encoding of each mask, equal to pycocotools'.

    Args:
        masks: [N, H, W] on any device; non-zero pixels belong to the mask. A few masks at a time are copied to the CPU.
    """
    count, height, width = masks.shape
    # New memory for each mask would take longer than its encoding.
    columns = np.empty((min(count, _MASKS_AT_ONCE), width, height), np.uint8)
    found = []
    for group in masks.split(max(1, _PIXELS_AT_ONCE // max(1, height * width))):
        pixels = group.to(torch.bool).cpu().numpy()
        for start in range(0, len(pixels), _MASKS_AT_ONCE):
            found += _encode_group(pixels[start : start + _MASKS_AT_ONCE], columns)
    return found


def _encode_group(masks: NDArray[np.bool_], columns: NDArray[np.uint8]) -> list[str]:
    """Encode masks [N, H, W], with memory for at least N masks as columns [..., W, H]."""
    # The encoding goes down the columns: OpenCV transposes faster than the encoder strides over rows.
    for mask, transposed in zip(masks.view(np.uint8), columns, strict=False):
        cv2.transpose(mask, dst=transposed)
    stack: Any = columns[: len(masks)].transpose(2, 1, 0)  # [H, W, N]
    return [one["counts"].decode("ascii") for one in mask_util.encode(stack)]
