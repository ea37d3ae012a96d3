"""Write PNG files of label maps: pictures of few values that rarely change from one pixel to the next.

Libraries look for the best filter of each row, which takes most of their time and gains little on such pictures; not
all versions that are supported can be told otherwise. The format: W3C, "Portable Network Graphics Specification".
"""

import struct
import zlib
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB = 0, 2
_UP = 2


def encode_png(pixels: NDArray[Any]) -> bytes:
    """Encode a picture.

    Args:
        pixels: bool [H, W] (1 bit), uint8 [H, W] (grey) or [H, W, 3] (RGB), or uint16 [H, W] (16-bit grey).

    Raises:
        ValueError: another type or shape.
    """
    height, width = pixels.shape[:2]
    kind = (pixels.dtype.name, pixels.shape[2:])
    if kind == ("bool", ()):
        depth, color, rows = 1, _GREY, np.packbits(pixels, axis=1)
    elif kind == ("uint8", ()):
        depth, color, rows = 8, _GREY, pixels
    elif kind == ("uint8", (3,)):
        depth, color, rows = 8, _RGB, pixels.reshape(height, 3 * width)
    elif kind == ("uint16", ()):
        depth, color, rows = 16, _GREY, np.ascontiguousarray(pixels, dtype=">u2").view(np.uint8)
    else:
        raise ValueError(f"{pixels.dtype} {pixels.shape} is no picture; expected bool, uint8 or uint16")
    # Each row less the one above, which leaves zeros but for the outlines, behind the number of this filter.
    filtered = np.empty((height, 1 + rows.shape[1]), dtype=np.uint8)
    filtered[:, 0] = _UP
    filtered[:1, 1:] = rows[:1]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    compressor = zlib.compressobj(level=1, strategy=zlib.Z_RLE)
    data = compressor.compress(filtered.data) + compressor.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def panoptic_colors(ids: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Segment ids [H, W] below 2**24 as the colours [H, W, 3] of a panoptic PNG: id = R + 256 G + 65536 B."""
    colors = np.ascontiguousarray(ids, dtype="<u4").view(np.uint8).reshape(*ids.shape, 4)
    return np.asarray(cv2.cvtColor(colors, cv2.COLOR_RGBA2RGB), dtype=np.uint8)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(name)))
