"""Writing video files that are either complete or absent."""

import hashlib
import logging
import math
import os
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import cv2
import numpy as np

from mask2former.prediction.drawing import Rgb
from mask2former.video.reader import VideoError

_LOG = logging.getLogger(__name__)
# Bytes of a name to which others can be added; file systems allow 255.
_LONGEST_NAME = 230
# Bytes that must fit on the disk before a video is begun.
_TRIAL = 1 << 16

# Codecs that the wheels of OpenCV can write, and the container for each. Only MJPG writes odd sizes.
CODECS: Mapping[str, str] = {
    "mp4v": ".mp4",  # MPEG-4 part 2: small files for players
    "MJPG": ".avi",  # one JPEG per frame: larger files that any program reads
    "VP80": ".webm",  # for web pages; slow
    "VP90": ".webm",
    "FFV1": ".mkv",  # lossless
    "avc1": ".mp4",  # H.264: only if this OpenCV was built with an encoder
}


def default_codec(size: tuple[int, int]) -> str:
    """The codec for frames of this height and width."""
    return "MJPG" if size[0] % 2 or size[1] % 2 else "mp4v"


def possible_rate(rate: float, size: tuple[int, int]) -> float:
    """The rate that a video of this height and width gets: at odd sizes, the next whole number."""
    odd = size[0] % 2 or size[1] % 2
    return float(max(1, math.ceil(rate - 1e-3))) if odd else rate


def check_output(path: Path) -> None:
    """Check that a file can be written.

    Raises:
        VideoError: It is a folder, its folder can't be created or written, or the disk is full.
    """
    trial = _unfinished(path)
    try:
        if path.is_dir():
            raise VideoError(f"{path}: can't be written, because a folder has this name")
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(trial, "wb") as file:
            file.write(bytes(_TRIAL))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise VideoError(f"{path}: can't be written ({error.strerror})") from error
    finally:
        with suppress(OSError):
            trial.unlink()


@contextmanager
def write_video(
    path: Path, codec: str, rate: float, size: tuple[int, int]
) -> Generator[Callable[[Rgb], None], None, None]:
    """Open a video for writing; it appears under `path` only if the block ends without an error.

    Args:
        path: The file; its suffix selects the container.
        codec: A key of `CODECS`.
        rate: Frames per second.
        size: Height and width of the frames.

    Yields:
        A function that appends a frame, RGB [H, W, 3].

    Raises:
        VideoError: The file can't be written, or not by this OpenCV, or it cannot be read back, as on a full disk.
    """
    check_output(path)
    temporary = _unfinished(path)
    writer = _open(temporary, codec, rate, size)
    written = 0

    def write(frame: Rgb) -> None:
        nonlocal written
        if frame.shape != (*size, 3):
            raise ValueError(f"a frame of shape {frame.shape} for a video of {size[1]}x{size[0]}")
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        written += 1

    try:
        yield write
        writer.release()
        _check(temporary, size, written)
        os.replace(temporary, path)
    except BaseException:
        writer.release()
        temporary.unlink(missing_ok=True)
        raise


def _unfinished(path: Path) -> Path:
    """Path of a file that is being written: hidden, in the same folder, and no longer than file systems allow."""
    stem = path.stem
    if len(os.fsencode(path.name)) > _LONGEST_NAME:
        stem = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:32]
    return path.with_name(f".{stem}.unfinished{path.suffix}")


def _open(path: Path, codec: str, rate: float, size: tuple[int, int]) -> cv2.VideoWriter:
    odd = size[0] % 2 or size[1] % 2
    if odd and codec != "MJPG":
        raise VideoError(f"{codec} supports only even sizes, not {size[1]}x{size[0]}; MJPG supports any size")
    if odd and rate != round(rate):
        _LOG.warning(
            "at an odd size, %s gets %.0f frames per second instead of %.3f",
            *(path.suffix, possible_rate(rate, size), rate),
        )
    # OpenCV's own MJPG encoder accepts odd sizes but only whole rates; FFmpeg's is the other way round.
    backend = cv2.CAP_OPENCV_MJPEG if odd else cv2.CAP_ANY
    rate = possible_rate(rate, size)
    writer = cv2.VideoWriter(str(path), backend, cv2.VideoWriter.fourcc(*codec), rate, size[::-1])
    if not writer.isOpened():
        raise VideoError(
            f"this OpenCV ({cv2.__version__}) can't write {codec} into {path.suffix}, "
            f"{size[1]}x{size[0]} at {rate:g} frames per second; try another codec: {', '.join(CODECS)}"
        )
    return writer


def _check(path: Path, size: tuple[int, int], written: int) -> None:
    """Read a written file back, because OpenCV reports no error when it cannot write."""
    if written == 0:
        raise VideoError(f"{path}: no frame to write")
    capture = cv2.VideoCapture(str(path))
    readable, frame = capture.read()
    count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    capture.release()
    shape = np.shape(frame)[:2] if readable else None
    if shape != size or (count > 0 and count != written):
        raise VideoError(f"{path}: wrote {written} frames of {size}, read {count:.0f} of {shape}; is the disk full?")
