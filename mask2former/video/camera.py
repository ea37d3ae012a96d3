"""Live pictures of a camera, in a window, a video file, or both."""

import logging
import math
import os
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from mask2former.prediction.predict_each import Refine, predict_each
from mask2former.prediction.predictor import Predictor
from mask2former.prediction.results import Rgb
from mask2former.video.reading import USUAL_RATE, VideoError
from mask2former.video.tracking import Tracker
from mask2former.video.writing import CODECS, default_codec, write_video

if TYPE_CHECKING:
    from typing_extensions import Self

_LOG = logging.getLogger(__name__)
_TITLE = "Mask2Former - q or Esc ends"
_ESCAPE = 27
# Pictures in a row that a camera fails to give before it counts as gone.
_MAX_MISSING = 30


@dataclass(frozen=True)
class CameraSummary:
    """How many pictures were predicted in how many seconds, how many failed, and the video, if one was written."""

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
    """Show what a camera sees with its segments, until its end, q or Esc in the window, or an interruption (Ctrl-C).

    A picture that fails is reported and shown as it is. The video has the camera's rate and runs as fast as what it
    shows: while the model works on one picture, the one before it is repeated.

    Args:
        predictor: gives the results of its task.
        number: of the camera, as OpenCV counts them.
        stem: the video without ending; None: no video.
        codec: of `writing.CODECS`; by default mp4v, or MJPG for odd sizes.
        refine: applied to each result before it is drawn, e.g. to leave segments out.
        open_camera: what opens it.
        clock: seconds that pass.

    Raises:
        VideoError: there is no camera or no picture; the video can't be written; or there is neither video nor window.
    """
    windows = has_windows()
    if not windows and stem is None:
        raise VideoError(
            "no window can be shown here (no display, or opencv-python-headless): name an output folder for a video"
        )
    frames = failed = 0
    tracker = Tracker()
    with _opened(open_camera(number), number) as capture, _Recorder(stem, codec, _rate(capture), clock) as recorder:
        start = clock()
        with suppress(KeyboardInterrupt):
            for frame in _frames(capture):
                (found,) = predict_each(predictor, [frame])
                frames += 1
                if isinstance(found, str):
                    _LOG.error("camera %d: picture %d skipped: %s", number, frames, found)
                    failed += 1
                    picture = frame
                else:
                    picture = tracker.update(refine(found) if refine else found).draw(enlarge=False)
                recorder.show(picture)
                if windows and not _show(picture):
                    break
        seconds = clock() - start
    if windows:
        cv2.destroyAllWindows()
    if frames == 0:
        raise VideoError(f"camera {number} gives no picture")
    return CameraSummary(frames, seconds, failed, recorder.output)


class _Recorder:
    """A video that runs as fast as the clock; without a stem, none."""

    def __init__(self, stem: Path | None, codec: str | None, rate: float, clock: Callable[[], float]) -> None:
        self.output: Path | None = None
        self._stem = stem
        self._codec = codec
        self._rate = rate
        self._clock = clock
        self._stack = ExitStack()
        self._write: Callable[[Rgb], None] | None = None
        self._start = clock()
        self._written = 0

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *error: Any) -> bool | None:
        return self._stack.__exit__(*error)

    def show(self, picture: Rgb) -> None:
        """Write a picture as often as it takes to fill the time up to now."""
        if self._stem is None:
            return
        if self._write is None:
            size = (picture.shape[0], picture.shape[1])
            codec = self._codec or default_codec(size)
            self.output = self._stem.with_name(self._stem.name + CODECS[codec])
            self._write = self._stack.enter_context(write_video(self.output, codec, self._rate, size))
        due = math.floor((self._clock() - self._start) * self._rate) + 1
        for _ in range(due - self._written):
            self._write(picture)
        self._written = max(due, self._written)


def has_windows() -> bool:
    """Whether OpenCV can show a window here."""
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        # Without a display, some builds end the process instead of raising an error.
        return False
    try:
        cv2.namedWindow(_TITLE, cv2.WINDOW_NORMAL)
    except cv2.error:
        return False
    return True


def _show(picture: Rgb) -> bool:
    """Show a picture; whether to go on."""
    cv2.imshow(_TITLE, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    key = cv2.waitKey(1) & 0xFF
    return key not in (_ESCAPE, ord("q")) and cv2.getWindowProperty(_TITLE, cv2.WND_PROP_VISIBLE) >= 1


@contextmanager
def _opened(capture: Any, number: int) -> Generator[Any, None, None]:
    try:
        if not capture.isOpened():
            raise VideoError(f"camera {number} can't be opened: is it there, and used by no other program?")
        # The newest picture, not one that waited while the model worked.
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        yield capture
    finally:
        capture.release()


def _rate(capture: Any) -> float:
    rate = capture.get(cv2.CAP_PROP_FPS)
    return rate if math.isfinite(rate) and rate > 0 else USUAL_RATE


def _frames(capture: Any) -> Iterator[Rgb]:
    missing = 0
    while missing < _MAX_MISSING:
        decoded, frame = capture.read()
        missing = 0 if decoded else missing + 1
        if decoded:
            yield np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), np.uint8)
