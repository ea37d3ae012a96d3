"""Photographs from files to 8-bit RGB: the one reading for training, evaluation, prediction and exported models.

This file imports only NumPy and Pillow and nothing of this project, so that it can be copied: tools/onnx_infer.py loads
it by its path. `mask2former.data.image_io` is its interface for the rest of the project.

    file -> `open_photograph` -> stored values and orientation -> `to_rgb`: scaled to 8 bits, upright RGB

Pillow decodes, but never sees metadata: it stops at blocks that other programs skip.

Shapes:
    H, W: height and width; C: channels
"""

import io
import logging
import math
import mmap
import os
import re
import struct
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

Pixels = NDArray[np.uint8]
# Values that become 0 and 255.
ValueRange = tuple[float, float]

# Environment variable with the largest number of megapixels that a file may have, and its default.
LIMIT_VARIABLE = "DINAT_MAX_MEGAPIXELS"
DEFAULT_LIMIT = 500.0
# Raised by Pillow for files that are missing, truncated, damaged or no images, depending on the format.
DECODING_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError),
    *(ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError),
)

_ORIENTATION = 0x0112
# Tags of a TIFF file that decoding needs: sizes, storage, and the meaning of the samples.
_TIFF_TAGS = frozenset(
    {*range(254, 260), 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, *range(320, 326), 332, 338, 339, 347}
    | {*range(512, 522), *range(529, 533)}
)
_TIFF_TYPES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
# None, LZW, two kinds of Deflate, PackBits, LZMA and Zstandard: these keep any bytes.
_LOSSLESS = frozenset({1, 5, 8, 32946, 32773, 34925, 50000})
# 16-bit values below a quarter of their range give an image that is nearly black.
_DARK = 1 << 14
_OPTIONS = (
    'INPUT.VALUE_RANGE "{range}", or --value-range {words} of tools/dataset.py and tools/onnx_infer.py, sets the range'
)
_LOG = logging.getLogger(__name__)
# Memory that forked processes, such as the workers of a data loader, share.
_HINTED = mmap.mmap(-1, 1)


class PhotographError(ValueError):
    """A file that can't be read as a photograph; the message names the file and the cause.

    Attributes:
        caused_by_user: Mark of errors whose message is enough for the user.
    """

    caused_by_user = True


@dataclass(frozen=True)
class Photograph:
    """A photograph as it is stored.

    Attributes:
        name: Path or description, for messages.
        content: Pillow image, or values [H, W] or [H, W, C] of more than 8 bits.
        orientation: EXIF orientation, 1 to 8, that has not been applied; 0 if only the loaded Pillow image knows it.
        kind: Name of the file format, as Pillow calls it; empty if the image is not from a file.
        inverted: Whether the smallest value is white.
        bits: Number of bits of a value in a 16-bit image.
    """

    name: str
    content: Image.Image | NDArray[Any]
    orientation: int = 0
    kind: str = ""
    inverted: bool = False
    bits: int = 16

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, upright."""
        if isinstance(self.content, Image.Image):
            width, height = self.content.size
        else:
            height, width = self.content.shape[:2]
        return (width, height) if self.orientation > 4 else (height, width)


def read_rgb(path: str | Path, value_range: ValueRange | None = None) -> Pixels:
    """Read a photograph as uint8 RGB [H, W, 3], upright; see `to_rgb`.

    Raises:
        PhotographError: The file is missing, damaged or too large, or its values have no 8-bit form.
    """
    with _opened(path, values=True) as photo:
        return to_rgb(photo, value_range)


def read_stored(path: str | Path) -> NDArray[Any]:
    """Read an image without any conversion, [H, W] or [H, W, C]; only TIFF files are turned upright.

    Raises:
        PhotographError: The file is missing, damaged or too large.
    """
    with _opened(path, values=False) as photo:
        check_size(photo.name, *photo.size)
        return turn(np.array(photo.content), photo.orientation if photo.kind == "TIFF" else 1)


def read_size(path: str | Path) -> tuple[int, int]:
    """Read the height and width of a photograph, upright; nothing is decoded.

    Raises:
        PhotographError: The file is missing or no image.
    """
    with _opened(path, values=False) as photo:
        return photo.size


@contextmanager
def _opened(path: str | Path, *, values: bool) -> Generator[Photograph, None, None]:
    """Open a file, and name it in all errors."""
    try:
        with open(path, "rb") as file:
            yield open_photograph(file, str(path), values=values)
    except FileNotFoundError as error:
        raise PhotographError(f"{path}: no such file") from error
    except PhotographError:
        raise
    except DECODING_ERRORS as error:
        raise PhotographError(f"{path}: can't be read as an image ({error})") from error


def to_rgb(photo: Photograph, value_range: ValueRange | None = None) -> Pixels:
    """Turn a photograph into uint8 RGB [H, W, 3], upright.

    Grey images get three equal channels, palettes are looked up, CMYK, YCbCr and LAB are converted, and an alpha
    channel is dropped. Animations and files with several pages give the first picture.

    Args:
        photo: Photograph.
        value_range: Values that become 0 and 255, for images with more than 8 bits; values outside are clipped. None:
            16-bit values are divided by 257, and numbers without a fixed range are refused.

    Raises:
        PhotographError: The file is too large, or its values have no 8-bit form.
    """
    check_size(photo.name, *photo.size)
    content = photo.content
    if isinstance(content, Image.Image) and content.mode[0] in "IF":
        content = np.asarray(content)
        if content.dtype == np.int32 and photo.kind != "TIFF" and content.min() >= 0 and content.max() <= 0xFFFF:
            # Older releases of Pillow open 16-bit grey as 32-bit "I".
            content = content.astype(np.uint16)
    if value_range is None and photo.bits < 16:
        value_range = (0, (1 << photo.bits) - 1)
    pixels = _convert(content) if isinstance(content, Image.Image) else scale(content, photo.name, value_range)
    if photo.inverted:
        pixels = 255 - pixels
    orientation = photo.orientation
    if orientation == 0 and isinstance(photo.content, Image.Image):
        orientation = _block_orientation(photo.content)
    return np.ascontiguousarray(turn(three_channels(pixels), orientation))


def scale(values: NDArray[Any], name: str, value_range: ValueRange | None) -> Pixels:
    """Scale values of any type to 8 bits, as `to_rgb` does; `name` is for messages.

    Raises:
        PhotographError: The type has no fixed range and `value_range` is None.
    """
    if value_range is not None:
        low, high = value_range
        if values.dtype == np.uint16:
            # A table of all values is faster than arithmetic on each pixel.
            return scale(np.arange(1 << 16, dtype=np.float64), name, value_range)[values]
        scaled = (values - np.float64(low)) * (255 / (high - low))
        return np.rint(np.clip(np.nan_to_num(scaled, posinf=255.0), 0, 255)).astype(np.uint8)
    if values.dtype == np.uint16:
        _hint_if_dark(values, name)
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    kind = "floating-point" if values.dtype.kind == "f" else values.dtype.name
    finite = values[np.isfinite(values)]
    found = [float(value) for value in (finite.min(), finite.max())] if finite.size else [0.0, 0.0]
    low, high = min(0, math.floor(found[0])), max(1, math.ceil(found[1]))
    raise PhotographError(
        f"{name}: {kind} values (here {found[0]:g} to {found[1]:g}) have no fixed 8-bit range; {_options(low, high)}"
    )


def _options(low: float, high: float) -> str:
    return _OPTIONS.format(range=f"({low}, {high})", words=f"{low} {high}")


def _hint_if_dark(values: NDArray[np.uint16], name: str) -> None:
    """Say once that an image is nearly black because its values use few of their 16 bits."""
    largest = 0 if _HINTED[0] else int(values.max())
    if 0 < largest < _DARK:
        _HINTED[0] = 1
        bits = max(8, largest.bit_length())
        _LOG.warning(
            "%s: its 16-bit values are at most %d, so it becomes nearly black; if the data have %d bits, %s",
            *(name, largest, bits, _options(0, (1 << bits) - 1)),
        )


def checked_range(values: Sequence[Any], source: str) -> ValueRange | None:
    """Check a range of values given by the user; None if there is none.

    Args:
        values: Two numbers, the lower first; or none.
        source: Name of the key or option, for the message.

    Raises:
        PhotographError: The values are no range.
    """
    if len(values) == 0:
        return None
    numbers = [float(value) for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(values) != 2 or len(numbers) != 2 or not -np.inf < numbers[0] < numbers[1] < np.inf:
        raise PhotographError(f"{source} is {tuple(values)}, expected two numbers, the lower first, such as (0, 4095)")
    return numbers[0], numbers[1]


def check_size(name: str, height: int, width: int) -> None:
    """Refuse an image with more pixels than the limit, which the environment variable `LIMIT_VARIABLE` sets.

    Raises:
        PhotographError: The image is too large, or the variable has no number.
    """
    text = os.environ.get(LIMIT_VARIABLE, "")
    try:
        limit = float(text) if text.strip() else DEFAULT_LIMIT
    except ValueError as error:
        message = f"the environment variable {LIMIT_VARIABLE} is {text!r}, expected a number of megapixels"
        raise PhotographError(message) from error
    if height * width > limit * 1e6:
        raise PhotographError(
            f"{name}: {width} x {height} pixels are {height * width / 1e6:.4g} megapixels, and the limit is {limit:g}; "
            f"the environment variable {LIMIT_VARIABLE} sets it"
        )


def turn(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """View of stored pixels [H, W, ...] as the EXIF orientation says."""
    if orientation > 4:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels


def three_channels(pixels: Pixels) -> Pixels:
    """RGB [H, W, 3] of pixels [H, W] or [H, W, C]: one or two channels are grey (without and with alpha)."""
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    return np.repeat(pixels[:, :, :1], 3, axis=2) if pixels.shape[2] < 3 else np.ascontiguousarray(pixels[:, :, :3])


def _convert(image: Image.Image) -> Pixels:
    """RGB [H, W, 3] of a Pillow image with 8 bits per channel."""
    if image.mode == "LAB":
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(image, *profiles, outputMode="RGB") or image
    elif image.mode == "P" and "transparency" in image.info:
        # When it converts these to RGB directly, Pillow warns that it ignores the transparency.
        image = image.convert("RGBA")
    elif image.mode == "La":
        image = image.convert("LA")
    return np.array(image.convert("RGB"))


def open_photograph(file: BinaryIO, name: str, *, values: bool = True) -> Photograph:
    """Open a file; of most formats only the header is read.

    Args:
        file: File at its beginning. It has to stay open until the image is loaded.
        name: Path, for messages.
        values: Whether channels with more than 8 bits are returned as values. Otherwise Pillow drops the lower bits
            of colours.

    Raises:
        PhotographError: The file is too large.
        DECODING_ERRORS: The file is damaged or no image.
    """
    start = file.read(33)
    file.seek(0)
    if start.startswith(b"\xff\xd8\xff"):
        plain, orientation = _plain_jpeg(file.read())
        return Photograph(name, _open(io.BytesIO(plain)), orientation, "JPEG")
    if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _open_tiff(file.read(), name, values)
    if start[4:12] in (b"ftypavif", b"ftypavis"):
        # Only transformations of the container count, as in browsers: the EXIF item gets another type.
        item = rb"(infe(?:\x02.{3}.{2}|\x03.{3}.{4}).{2})Exif"
        file = io.BytesIO(re.sub(item, rb"\1none", file.read(), flags=re.DOTALL))
    image = _open(file)
    orientation = _block_orientation(image) if "exif" in image.info else 0
    kind = image.format or ""
    if values and kind == "PNG" and start[24] == 16 and start[25] in _PNG_CHANNELS:
        check_size(name, image.height, image.width)
        file.seek(0)
        return Photograph(name, _png_values(file.read(), image.size), orientation, kind)
    return Photograph(name, image, orientation, kind)


def _open(file: BinaryIO) -> Image.Image:
    """Image.open without Pillow's own limit of the size, which is one number for the whole process."""
    tried: set[str] = set()
    start = file.read(16)
    if not start:
        raise OSError("the file is empty")
    for register in (Image.preinit, Image.init):
        register()
        for name in [name for name in Image.ID if name not in tried]:
            tried.add(name)
            factory, accept = Image.OPEN[name]
            if accept is None or accept(start) is True:
                file.seek(0)
                try:
                    return factory(file, "")
                except (SyntaxError, IndexError, TypeError, struct.error):  # not this format
                    continue
    raise OSError("no known image format")


def exif_orientation(block: bytes) -> int:
    """Orientation, 1 to 8, in an EXIF block that begins with its TIFF header; 0 if the block has none.

    As in OpenCV, only the first orientation tag of the first directory is looked at, and the type and the count of the
    tag don't matter. Other tags are not read, and broken blocks end where they break.
    """
    order = "<" if block.startswith(b"II") else ">"
    try:
        magic, directory = struct.unpack_from(f"{order}HI", block, 2)
        (count,) = struct.unpack_from(f"{order}H", block, directory)
        for entry in range(directory + 2, directory + 2 + 12 * count, 12) if magic == 42 else ():
            if struct.unpack_from(f"{order}H", block, entry)[0] == _ORIENTATION:
                (value,) = struct.unpack_from(f"{order}H", block, entry + 8)
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 0


def _block_orientation(image: Image.Image) -> int:
    """Orientation in the EXIF block of a Pillow image."""
    block = image.info.get("exif")
    if not isinstance(block, bytes):
        return 1
    block = block.removeprefix(b"Exif\0\0")
    # libpng drops blocks that begin otherwise.
    return 1 if image.format == "PNG" and block[:2] not in (b"II", b"MM") else exif_orientation(block) or 1


def _plain_jpeg(data: bytes) -> tuple[bytes, int]:
    """A JPEG file without metadata, and the orientation of its first EXIF block that has one (1 if none has)."""
    parts, position, orientation = [data[:2]], 2, 0
    while data[position : position + 1] == b"\xff":
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        end = position + 2 + length
        # From the first scan on, there are other things than segments.
        if not 0xC0 <= marker <= 0xFE or 0xD0 <= marker <= 0xDA or end > len(data):
            break
        if marker == 0xE1 and not orientation and data[position + 4 : position + 10] == b"Exif\0\0":
            orientation = exif_orientation(data[position + 10 : end])
        # Of the application segments, decoding needs the colour spaces of JFIF and Adobe.
        if not 0xE1 <= marker <= 0xEF or marker == 0xEE:
            parts.append(data[position:end])
        position = end
    return b"".join([*parts, data[position:]]), orientation or 1


def _png_values(data: bytes, size: tuple[int, int]) -> NDArray[np.uint16]:
    """Values [H, W, C] of a 16-bit PNG file with colours or alpha, of which Pillow gives only the higher bytes."""
    chunks, position = [], 8
    while position + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        if data[position + 4 : position + 8] == b"IDAT":
            chunks.append(data[position + 8 : position + 8 + length])
        position += length + 12
    compressed, interlaced = b"".join(chunks), data[28]
    mode, *raw_modes = _PNG_CHANNELS[data[25]]
    planes = [np.asarray(Image.frombytes(mode, size, compressed, "zip", raw, interlaced)) for raw in raw_modes]
    if len(planes) == 1:
        # Both bytes of grey and of alpha.
        return planes[0].view(">u2").astype(np.uint16)
    return planes[0].astype(np.uint16) << 8 | planes[1]


# By the colour type of the header: mode of Pillow, and its raw modes for the higher and the lower bytes.
_PNG_CHANNELS: Mapping[int, Sequence[str]] = {
    2: ("RGB", "RGB;16B", "RGB;16L"),
    4: ("RGBA", "RGBA"),
    6: ("RGBA", "RGBA;16B", "RGBA;16L"),
}


class _Tiff:
    """The first directory of a TIFF or BigTIFF file.

    Attributes:
        data: The file.
        order: Byte order, as in `struct`.
        entries: Entries of the directory by tag.
    """

    def __init__(self, data: bytes) -> None:
        """Read the directory, up to the end of the file.

        Raises:
            struct.error: There is no directory.
        """
        self.data = data
        self.order = "<" if data.startswith(b"I") else ">"
        big = data[2:4] in (b"+\0", b"\0+")
        # Position and format of the offset of the directory, of the number of entries, and of an entry.
        self._offset, self._count, self._entry = (8, "Q", "HHQQ") if big else (4, "I", "HHII")
        (start,) = struct.unpack_from(self.order + self._count, data, self._offset)
        number_format = self.order + ("Q" if big else "H")
        (count,) = struct.unpack_from(number_format, data, start)
        start += struct.calcsize(number_format)
        size = struct.calcsize(f"={self._entry}")
        self.entries: dict[int, bytes] = {}
        for position in range(start, min(start + size * count, len(data) - size + 1), size):
            entry = data[position : position + size]
            self.entries.setdefault(struct.unpack_from(f"{self.order}H", entry)[0], entry)

    def numbers(self, tag: int, default: Sequence[int] = ()) -> tuple[int, ...]:
        """Integers of a tag; `default` if it is missing or has another type.

        Raises:
            struct.error: The numbers are not in the file.
        """
        entry = self.entries.get(tag, b"")
        kind, count = struct.unpack_from(f"{self.order}H{self._count}", entry, 2) if entry else (0, 0)
        if kind not in _TIFF_TYPES or count > 1 << 16:
            return tuple(default)
        format = f"{self.order}{count}{_TIFF_TYPES[kind]}"
        at = struct.calcsize(f"=HH{self._count}")
        if struct.calcsize(format) <= len(entry) - at:
            return struct.unpack_from(format, entry, at)
        (offset,) = struct.unpack_from(self.order + self._count, entry, at)
        return struct.unpack_from(format, self.data, offset)

    def with_directory(self, entries: Mapping[int, bytes]) -> bytes:
        """The file with another first directory.

        Raises:
            struct.error: The file becomes too large for its format.
        """
        number = struct.pack(self.order + ("Q" if self._count == "Q" else "H"), len(entries))
        end = len(self.data) + len(self.data) % 2
        head = self.data[: self._offset] + struct.pack(self.order + self._count, end)
        directory = [number, *(entries[tag] for tag in sorted(entries)), bytes(8)]
        return b"".join([head, self.data[len(head) :], bytes(end - len(self.data)), *directory])

    def entry(self, tag: int, value: int) -> bytes:
        """An entry with one number."""
        kind = 16 if self._count == "Q" else 4
        return struct.pack(self.order + self._entry, tag, kind, 1, value)


class _Samples(NamedTuple):
    """How a TIFF file stores values that Pillow can't read, or not with all their bits, and uncompressed YCbCr.

    Pillow decodes such a file as one channel of bytes, which become values here.

    Attributes:
        dtype: Type of a value, in the byte order of the file.
        channels: Number of values of a pixel.
        predictor: 1 none; 2 differences of values; 3 differences of the bytes of floating-point numbers.
        tile: Width of the tiles in pixels, or of the image if it has none.
        inverted: Whether the smallest value is white.
        luminance: Whether the channels are YCbCr.
    """

    dtype: np.dtype[Any]
    channels: int
    predictor: int
    tile: int
    inverted: bool
    luminance: bool

    @classmethod
    def of(cls, tiff: _Tiff) -> "_Samples | None":
        """The samples of a file; None if Pillow reads it."""
        bits, formats = {*tiff.numbers(258, (1,))}, {*tiff.numbers(339, (1,))}
        width, compression, meaning, channels, planes, predictor = (
            tiff.numbers(tag, (1,))[0] for tag in (256, 259, 262, 277, 284, 317)
        )
        known = bits in ({16}, {32}, {64}) and formats in ({1}, {2}, {3}) and meaning in (0, 1, 2)
        luminance = meaning == 6 and bits == {8} and channels == 3 and set(tiff.numbers(530, (2, 2))) == {1}
        readable = compression in _LOSSLESS and predictor in (1, 2, 3) and (channels == 1 or planes == 1)
        # Pillow divides colours by an alpha that they were multiplied with.
        if not readable or not (known or luminance) or 1 in tiff.numbers(338):
            return None
        dtype = np.dtype(f"{tiff.order}{'uif'[formats.pop() - 1]}{bits.pop() // 8}")
        return cls(dtype, channels, predictor, tiff.numbers(322, (width,))[0], meaning == 0, luminance)

    @property
    def pixel_bytes(self) -> int:
        """Number of bytes of a pixel."""
        return self.channels * self.dtype.itemsize

    def entries(self, tiff: _Tiff) -> dict[int, bytes]:
        """Directory of the file as an image of one channel of bytes."""
        changed = {256: tiff.numbers(256)[0] * self.pixel_bytes, 258: 8, 262: 1, 277: 1}
        if 322 in tiff.entries:
            changed[322] = self.tile * self.pixel_bytes
        kept = _TIFF_TAGS - {284, 317, 320, 338, 339}
        return {
            **{tag: entry for tag, entry in tiff.entries.items() if tag in kept},
            **{tag: tiff.entry(tag, value) for tag, value in changed.items()},
        }

    def values(self, stored: Pixels) -> NDArray[Any]:
        """Values [H, W, C] from decoded bytes [H, W * bytes of a pixel]."""
        step = self.tile * self.pixel_bytes
        tiles = [stored[:, left : left + step] for left in range(0, stored.shape[1], step)]
        return np.concatenate([self._undo(np.ascontiguousarray(tile)) for tile in tiles], axis=1)

    def _undo(self, tile: Pixels) -> NDArray[Any]:
        """Undo the prediction in one column of tiles."""
        height, size = tile.shape[0], self.dtype.itemsize
        if self.predictor == 3:
            summed = tile.reshape(height, -1, self.channels).cumsum(axis=1, dtype=np.uint8)
            # The highest bytes of all values come first.
            values = summed.reshape(height, size, -1).swapaxes(1, 2)
            tile, dtype = np.ascontiguousarray(values).reshape(height, -1), self.dtype.newbyteorder(">")
            return tile.view(dtype).reshape(height, -1, self.channels).astype(self.dtype.newbyteorder("="))
        if self.predictor == 2:
            whole = np.dtype(f"{self.dtype.byteorder}u{size}")
            differences = tile.view(whole).astype(f"u{size}").reshape(height, -1, self.channels)
            native = self.dtype.newbyteorder("=")
            return differences.cumsum(axis=1, dtype=f"u{size}").view(native)
        return tile.view(self.dtype).reshape(height, -1, self.channels).astype(self.dtype.newbyteorder("="))


def _open_tiff(data: bytes, name: str, values: bool) -> Photograph:
    """Open a TIFF file without its metadata, which Pillow reads together with the tags for decoding."""
    try:
        tiff = _Tiff(data)
        orientation, bits = tiff.numbers(_ORIENTATION, (1,))[0], tiff.numbers(258, (1,))[0]
        samples = _Samples.of(tiff) if values else None
        kept = {tag: entry for tag, entry in tiff.entries.items() if tag in _TIFF_TAGS}
        plain = tiff.with_directory(samples.entries(tiff) if samples else kept)
    except (struct.error, IndexError):
        return Photograph(name, _open(io.BytesIO(data)), 1, "TIFF")
    orientation = orientation if 1 <= orientation <= 8 else 1
    image = _open(io.BytesIO(plain))
    if samples is None:
        return Photograph(name, image, orientation, "TIFF", bits=bits if bits == 12 else 16)
    check_size(name, image.height, image.width // samples.pixel_bytes)
    found: Image.Image | NDArray[Any] = samples.values(np.asarray(image))
    if samples.luminance:
        found = Image.frombytes("YCbCr", (found.shape[1], found.shape[0]), found.tobytes())
    return Photograph(name, found, orientation, "TIFF", inverted=samples.inverted)
