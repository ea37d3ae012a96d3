"""Live camera pictures with their segments, in a window, a video file, or both."""

import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mask2former.prediction.drawing import Rgb
from mask2former.prediction.files import Refine, predict_each
from mask2former.prediction.predictor import Predictor
from mask2former.video.files import CODECS, default_codec, possible_rate, write_video
from mask2former.video.reader import VideoError, frame_rate
from mask2former.video.tracking import Tracker

_LOG = logging.getLogger(__name__)
_TITLE = "Mask2Former - q or Esc ends"
_ESCAPE = 27
# After this many failed reads in a row, the camera counts as gone.
_MAX_MISSING = 30


@dataclass(frozen=True)
class CameraSummary:
    """Outcome of `run_camera`.

    Attributes:
        frames: Number of pictures.
        seconds: Time from the first picture to the last.
        failed: Number of pictures whose prediction failed.
        output: The video that was written, if any.
    """

    frames: int
    seconds: float
    failed: int
    output: Path | None


def run_camera(
    predictor: Predictor,
    number: int = 0,
    stem: Path | None = None,
    *,
    codec: str | None = None,
    refine: Refine | None = None,
    open_camera: Callable[[int], Any] = cv2.VideoCapture,
    clock: Callable[[], float] = time.monotonic,
) -> CameraSummary:
    """Show the segments in a camera's pictures until the camera stops, q or Esc is pressed, or Ctrl-C.

    A picture whose prediction fails is reported and shown unchanged. The video has the camera's frame rate and plays in
    real time: while the model works on one picture, the one before it is repeated.

    Args:
        predictor: Predictor, used with its own task and threshold.
        number: Index of the camera, as OpenCV counts them.
        stem: Path of the video without its suffix; None writes no video.
        codec: A key of `CODECS`; by default mp4v, or MJPG for odd sizes.
        refine: Function applied to each result before it is drawn, for example to drop segments.
        open_camera: Function that opens the camera with an index.
        clock: Function that returns the time in seconds.

    Raises:
        VideoError: The camera does not exist or returns no picture, the video cannot be written, or there is neither a
            video nor a window.
    """
    windows = has_windows()
    if not windows and stem is None:
        raise VideoError(
            "no window can be shown here (no display, or opencv-python-headless): pass an output folder for a video"
        )
    frames = failed = 0
    tracker = Tracker()
    with ExitStack() as stack:
        capture = open_camera(number)
        stack.callback(capture.release)
        if not capture.isOpened():
            raise VideoError(f"camera {number} can't be opened: is it connected, and not in use by another program?")
        # Without a buffer, each read gives the newest picture instead of one that waited for the model.
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        recorder = _Recorder(stack, stem, codec, frame_rate(capture, f"camera {number}"), clock) if stem else None
        start = clock()
        with suppress(KeyboardInterrupt):
            for frame in _frames(capture):
                if recorder:
                    recorder.open(frame)
                (found,) = predict_each(predictor, [frame])
                frames += 1
                if isinstance(found, str):
                    _LOG.error("camera %d: picture %d skipped: %s", number, frames, found)
                    failed += 1
                    picture = frame
                else:
                    picture = tracker.update(refine(found) if refine else found).draw(enlarge=False)
                if recorder:
                    recorder.show(picture)
                if windows and not _show(picture):
                    break
        seconds = clock() - start
    if windows:
        cv2.destroyAllWindows()
    if frames == 0:
        raise VideoError(f"camera {number} returns no picture")
    return CameraSummary(frames, seconds, failed, recorder.output if recorder else None)


class _Recorder:
    """Writes pictures into a video that plays in real time; the stack that it is given completes the file."""

    def __init__(
        self, stack: ExitStack, stem: Path, codec: str | None, rate: float, clock: Callable[[], float]
    ) -> None:
        self.output: Path | None = None
        self._stack = stack
        self._stem = stem
        self._codec = codec
        self._rate = rate
        self._clock = clock
        self._write: Callable[[Rgb], None] | None = None
        self._start = clock()
        self._written = 0

    def open(self, picture: Rgb) -> None:
        """Open the file for pictures of this size, before anything is predicted; does nothing if it is open."""
        if self._write is None:
            size = (picture.shape[0], picture.shape[1])
            codec = self._codec or default_codec(size)
            self.output = self._stem.with_name(self._stem.name + CODECS[codec])
            self._rate = possible_rate(self._rate, size)
            self._write = self._stack.enter_context(write_video(self.output, codec, self._rate, size))

    def show(self, picture: Rgb) -> None:
        """Repeat a picture in the video until it fills the time up to now."""
        self.open(picture)
        if self._write is None:
            return
        due = math.floor((self._clock() - self._start) * self._rate) + 1
        for _ in range(due - self._written):
            self._write(picture)
        self._written = max(due, self._written)


def has_windows() -> bool:
    """Whether OpenCV can show a window here."""
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        # Without a display, some builds of OpenCV end the process instead of raising an error.
        return False
    try:
        cv2.namedWindow(_TITLE, cv2.WINDOW_NORMAL)
    except cv2.error:
        return False
    return True


def _show(picture: Rgb) -> bool:
    """Show a picture, and return whether to continue."""
    cv2.imshow(_TITLE, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    key = cv2.waitKey(1) & 0xFF
    return key not in (_ESCAPE, ord("q")) and cv2.getWindowProperty(_TITLE, cv2.WND_PROP_VISIBLE) >= 1


def _frames(capture: Any) -> Iterator[Rgb]:
    missing = 0
    while missing < _MAX_MISSING:
        decoded, frame = capture.read()
        missing = 0 if decoded else missing + 1
        if decoded:
            yield np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), np.uint8)
