"""Reading video files in any container that OpenCV decodes, and writing files that are either complete or absent."""

import logging
import math
import os
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mask2former.prediction.results import Rgb
from mask2former.utils.errors import UserError

_LOG = logging.getLogger(__name__)
# Frames per second of a source that does not report its rate.
_DEFAULT_RATE = 25.0
# After this many damaged frames in a row, the rest of a file is given up.
_MAX_DAMAGED = 250

# Codecs that the wheels of OpenCV can write, and the container for each. Only MJPG writes odd sizes.
CODECS: Mapping[str, str] = {
    "mp4v": ".mp4",  # MPEG-4 part 2: small files for players
    "MJPG": ".avi",  # one JPEG per frame: larger files that any program reads
    "VP80": ".webm",  # for web pages; slow
    "VP90": ".webm",
    "FFV1": ".mkv",  # lossless
    "avc1": ".mp4",  # H.264: only if this OpenCV was built with an encoder
}


class VideoError(UserError):
    """A video or camera that cannot be read, or a video that cannot be written; the message names it and says why."""


class VideoReader:
    """Iterator over the frames of a video file; it can be used once.

    Attributes:
        path: The file.
        rate: Frames per second.
        size: Height and width of every frame.
        count: Number of frames according to the container; None if it does not report one.
    """

    def __init__(self, path: str | Path):
        """Open a file and decode its first frame.

        Raises:
            VideoError: The file is missing, or is not a video that OpenCV can decode.
        """
        self.path = Path(path)
        if not self.path.is_file():
            raise VideoError(f"{path}: no such file")
        self._capture = cv2.VideoCapture(str(path))
        opened, first = self._capture.read() if self._capture.isOpened() else (False, None)
        if not opened or first is None:
            raise VideoError(f"{path}: not a video that this OpenCV ({cv2.__version__}) can decode")
        self._first = first
        self.size = (first.shape[0], first.shape[1])
        self.rate = frame_rate(self._capture, str(path))
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.count = int(count) if math.isfinite(count) and count > 0 else None

    def __iter__(self) -> Iterator[Rgb | None]:
        """Yield the frames, RGB [H, W, 3]; None for a frame that cannot be decoded while later ones can."""
        yield self._converted(self._first)
        given, damaged = 1, 0
        while not damaged or (self.count is not None and given + damaged < self.count and damaged < _MAX_DAMAGED):
            decoded, frame = self._capture.read()
            if not decoded:
                damaged += 1
                continue
            for _ in range(damaged):
                yield None
            yield self._converted(frame)
            given, damaged = given + damaged + 1, 0
        if self.count is not None and given < self.count:
            _LOG.warning("%s ends after %d frames; its container promises %d", self.path, given, self.count)
        self._capture.release()

    def _converted(self, frame: NDArray[Any]) -> Rgb:
        if frame.shape[:2] != self.size:
            frame = np.asarray(cv2.resize(frame, self.size[::-1], interpolation=cv2.INTER_AREA), np.uint8)
        return np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), np.uint8)


def frame_rate(capture: Any, name: str) -> float:
    """Frames per second of an open `cv2.VideoCapture`; 25, with a warning that gives `name`, if it reports none."""
    rate = capture.get(cv2.CAP_PROP_FPS)
    if math.isfinite(rate) and rate > 0:
        return rate
    _LOG.warning("%s does not report its frame rate: assuming %g frames per second", name, _DEFAULT_RATE)
    return _DEFAULT_RATE


def default_codec(size: tuple[int, int]) -> str:
    """The codec for frames of this height and width."""
    return "MJPG" if size[0] % 2 or size[1] % 2 else "mp4v"


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
        VideoError: This OpenCV cannot write such a file, or the written file cannot be read back, as on a full disk.
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
    odd = size[0] % 2 or size[1] % 2
    if odd and codec != "MJPG":
        raise VideoError(f"{codec} supports only even sizes, not {size[1]}x{size[0]}; MJPG supports any size")
    if odd and rate != round(rate):
        _LOG.warning("at an odd size, %s gets %d frames per second instead of %.3f", path.suffix, round(rate), rate)
    # OpenCV's own MJPG encoder accepts odd sizes but only whole rates; FFmpeg's is the other way round.
    backend = cv2.CAP_OPENCV_MJPEG if odd else cv2.CAP_ANY
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
