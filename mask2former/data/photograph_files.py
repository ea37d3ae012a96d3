"""Files of photographs: opened with Pillow or OpenCV, without their metadata, as stored values and an orientation.

    file -> `open_photograph` -> `Photograph`, which `photographs` turns into 8-bit RGB

Pillow decodes, but never sees metadata of JPEG and TIFF files: it stops at blocks that other programs skip. OpenCV
decodes what Pillow can't read, or not with all bits: colours with more than 8 bits per channel, and some TIFF files. It
is imported only for these, and can be missing elsewhere.

This file imports nothing of this project, because tools/onnx_infer.py loads it by its path.

Shapes:
    H, W: height and width; C: channels
"""

import io
import os
import re
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

# Environment variable with the largest number of megapixels that a file may have, and its default.
LIMIT_VARIABLE = "DINAT_MAX_MEGAPIXELS"
DEFAULT_LIMIT = 500.0
# Raised by Pillow for files that are missing, truncated, damaged or no images, depending on the format.
DECODING_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError),
    *(ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError),
)


_ORIENTATION = 0x0112
# Types of TIFF's integers, as in `struct`.
_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}
# Tags of a TIFF file that decoding needs: sizes, storage, and the meaning of the samples.
_TIFF_TAGS = frozenset(
    {*range(254, 260), 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, *range(320, 326), 332, 338, 339, 347}
    | {*range(512, 522), *range(529, 533)}
)


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


def open_photograph(file: BinaryIO, name: str, *, values: bool = True) -> Photograph:
    """Open a file; of most formats only the header is read.

    Args:
        file: File at its beginning. It has to stay open until the image is loaded.
        name: Path, for messages.
        values: Whether the values will be used, with all their bits, and not only the size.

    Raises:
        PhotographError: The file is too large, or needs OpenCV, which is missing.
        DECODING_ERRORS: The file is damaged or no image, or of a kind that is not supported.
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
    orientation = block_orientation(image) if "exif" in image.info else 0
    kind = image.format or ""
    if values and kind == "PNG" and start[24] == 16 and start[25] in (2, 4, 6):
        # Colours or alpha, of which Pillow keeps only the higher bytes.
        check_size(name, image.height, image.width)
        image.load()
        file.seek(0)
        return Photograph(name, _by_opencv(file.read(), name, np.dtype(np.uint16)), block_orientation(image), kind)
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


def block_orientation(image: Image.Image) -> int:
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


def _open_tiff(data: bytes, name: str, values: bool) -> Photograph:
    """Open a TIFF file with Pillow, or with OpenCV where Pillow can't read it, or not right or not all bits."""
    plain, tags, orientation = _plain_tiff(data)
    bits, formats = (tags.get(tag, (1,)) for tag in (258, 339))
    compression, meaning, channels, planes = (tags.get(tag, 1) for tag in (259, 262, 277, 284))
    # Pillow divides colours by an alpha that they were multiplied with; OpenCV does not.
    wide = {*bits} in ({16}, {32}, {64}) and {*formats} in ({1}, {2}, {3}) and meaning in (0, 1, 2)
    wide = wide and 1 not in tags.get(338, ())
    inverted = wide and meaning == 0
    if values and channels > 1 and planes != 1 and max(bits) > 8:
        # Both libraries take them for interleaved channels.
        raise OSError("channels of more than 8 bits in separate planes are not supported; save it interleaved")
    try:
        image = _open(io.BytesIO(plain))
    except OSError:
        if not wide:
            raise
        image = None
    # Pillow drops bits of colours and signs of 32-bit numbers, and mixes up the bytes of compressed big-endian numbers
    # and the channels of YCbCr without compression.
    exact = (meaning, compression) != (6, 1)
    if wide:
        safe = {(16, 1), (16, 2), (32, 2), (32, 3)} if plain.startswith(b"II") else {(16, 1)}
        exact = channels == 1 and (bits[0], formats[0]) in safe
    if image is not None and (exact or not values):
        return Photograph(name, image, orientation, "TIFF", inverted, bits[0] if bits[0] == 12 else 16)
    check_size(name, tags[257], tags[256])
    dtype = np.dtype(f"{'uif'[formats[0] - 1]}{bits[0] // 8}")
    return Photograph(name, _by_opencv(plain, name, dtype), orientation, "TIFF", inverted)


def _plain_tiff(data: bytes) -> tuple[bytes, TiffImagePlugin.ImageFileDirectory_v2, int]:
    """A TIFF or BigTIFF file of one directory without metadata, its tags, and the orientation that it had.

    Raises:
        struct.error: There is no directory.
    """
    order = "<" if data.startswith(b"II") else ">"
    # Formats of offsets and of the number of entries, position of the first offset, and size of an entry.
    big = 43 in data[2:4]
    word, number, first, size = ("Q", "Q", 8, 20) if big else ("I", "H", 4, 12)
    (directory,) = struct.unpack_from(order + word, data, first)
    (count,) = struct.unpack_from(order + number, data, directory)
    start = directory + struct.calcsize(number)
    entries: dict[int, bytes] = {}
    for position in range(start, min(start + size * count, len(data) - size + 1), size):
        entry = data[position : position + size]
        entries.setdefault(struct.unpack_from(f"{order}H", entry)[0], entry)
    entry, orientation = entries.get(_ORIENTATION, bytes(size)), 1
    kind, values = struct.unpack_from(f"{order}H{word}", entry, 2)
    # As in libtiff, which OpenCV uses, one integer of any type counts.
    if values == 1 and kind in _INTEGERS:
        (orientation,) = struct.unpack_from(order + _INTEGERS[kind], entry, size - struct.calcsize(word))
    kept = sorted(_TIFF_TAGS & entries.keys())
    changed = struct.pack(order + number, len(kept)) + b"".join(entries[tag] for tag in kept)
    changed += bytes(struct.calcsize(word))
    plain = data[:directory] + changed + data[directory + len(changed) :]
    # Pillow knows big-endian BigTIFF only if it gets the byte order in this way.
    header = b"II+\0" + bytes(12) if big else b"II*\0" + bytes(4)
    tags = TiffImagePlugin.ImageFileDirectory_v2(header, prefix=data[:2])
    file = io.BytesIO(plain)
    file.seek(directory)
    tags.load(file)
    return plain, tags, orientation if 1 <= orientation <= 8 else 1


def _by_opencv(data: bytes, name: str, dtype: np.dtype[Any]) -> Image.Image | NDArray[Any]:
    """Stored values of a file, [H, W] or [H, W, C], RGB; a Pillow image if they have 8 bits.

    Raises:
        PhotographError: OpenCV is not installed.
        OSError: OpenCV can't read the file as values of this type.
    """
    try:
        import cv2
    except ImportError as error:
        raise PhotographError(f"{name}: this kind of image needs OpenCV: pip install opencv-python-headless") from error
    # The function has two places, depending on the release. Errors are raised here, and need no log.
    set_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel
    level = set_level(0)
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise OSError(f"OpenCV {cv2.__version__}: {error.err or error}") from error
    finally:
        set_level(level)
    if pixels is None or pixels.dtype != dtype:
        raise OSError(f"it is damaged, or OpenCV {cv2.__version__} doesn't know this kind of {dtype.name} image")
    if pixels.ndim == 3:
        pixels = pixels[:, :, [2, 1, 0, 3][: pixels.shape[2]]]
    return Image.fromarray(pixels) if dtype == np.uint8 else pixels
