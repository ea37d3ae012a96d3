"""Video files that are either complete or absent."""

import logging
import os
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from mask2former.video.reading import Rgb, VideoError

_LOG = logging.getLogger(__name__)

# Four-letter codes that the wheels of OpenCV write, and the container each goes into. Only MJPG writes odd sizes.
CODECS: Mapping[str, str] = {
    "mp4v": ".mp4",  # MPEG-4 part 2: small, for players
    "MJPG": ".avi",  # a JPEG a frame: larger, for any program
    "VP80": ".webm",  # for web pages; slow
    "VP90": ".webm",
    "FFV1": ".mkv",  # lossless
    "avc1": ".mp4",  # H.264: only where this OpenCV was built with an encoder
}


def default_codec(size: tuple[int, int]) -> str:
    """The codec for frames of this height and width."""
    return "MJPG" if size[0] % 2 or size[1] % 2 else "mp4v"


@contextmanager
def write_video(
    path: Path, codec: str, rate: float, size: tuple[int, int]
) -> Generator[Callable[[Rgb], None], None, None]:
    """Open a video to write; it appears under `path` only when the block ends without an error.

    Args:
        path: its ending names the container.
        codec: of `CODECS`.
        rate: frames per second.
        size: height and width of the frames.

    Yields:
        A function that writes a frame, RGB [H, W, 3].

    Raises:
        VideoError: this OpenCV can't write it, or what was written can't be read again (a full disk, for example).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.unfinished{path.suffix}")
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


def _open(path: Path, codec: str, rate: float, size: tuple[int, int]) -> cv2.VideoWriter:
    code = cv2.VideoWriter.fourcc(*codec)
    odd = size[0] % 2 or size[1] % 2
    if odd and codec != "MJPG":
        raise VideoError(f"{codec} writes even sizes only, not {size[1]}x{size[0]}; MJPG writes any")
    if odd and rate != round(rate):
        _LOG.warning("at an odd size, %s gets %d frames per second instead of %.3f", path.suffix, round(rate), rate)
    # OpenCV's own encoder of MJPG takes odd sizes, but only whole rates; FFmpeg's is the other way round.
    backend = cv2.CAP_OPENCV_MJPEG if odd else cv2.CAP_ANY
    writer = cv2.VideoWriter(str(path), backend, code, rate, size[::-1])
    if not writer.isOpened():
        raise VideoError(
            f"this OpenCV ({cv2.__version__}) can't write {codec} into {path.suffix}, "
            f"{size[1]}x{size[0]} at {rate:g} frames per second; try another codec: {', '.join(CODECS)}"
        )
    return writer


def _check(path: Path, size: tuple[int, int], written: int) -> None:
    if written == 0:
        raise VideoError(f"{path}: no frame to write")
    capture = cv2.VideoCapture(str(path))
    readable, frame = capture.read()
    count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    capture.release()
    shape = np.shape(frame)[:2] if readable else None
    if shape != size or (count > 0 and count != written):
        raise VideoError(f"{path}: wrote {written} frames of {size}, read {count:.0f} of {shape}; is the disk full?")
