"""Frames of video files, of any container that OpenCV reads."""

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mask2former.utils.errors import UserError

Rgb = NDArray[np.uint8]

_LOG = logging.getLogger(__name__)
# For containers that do not say.
USUAL_RATE = 25.0
# Damaged frames in a row after which nothing more is expected of a file.
_MAX_DAMAGED = 250


class VideoError(UserError):
    """A video that can't be read or written; the message names it and says why."""


class VideoReader:
    """The frames of a video file, in order, once.

    Attributes:
        path: the file.
        rate: frames per second.
        size: height and width of every frame.
        count: how many frames the container promises; None if it does not say.
    """

    def __init__(self, path: str | Path):
        """Open a file and decode its first frame.

        Raises:
            VideoError: the file is missing, or no video that OpenCV can decode.
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
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        if not math.isfinite(rate) or rate <= 0:
            _LOG.warning("%s does not say its rate: %g frames per second are assumed", path, USUAL_RATE)
            rate = USUAL_RATE
        self.rate = rate
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.count = int(count) if math.isfinite(count) and count > 0 else None

    def __iter__(self) -> Iterator[Rgb | None]:
        """Frames, RGB [H, W, 3]; None for one that can't be decoded while others follow."""
        yield self._converted(self._first)
        given, damaged = 1, 0
        while self._may_follow(given + damaged, damaged):
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

    def _may_follow(self, position: int, damaged: int) -> bool:
        if damaged == 0:
            return True
        return self.count is not None and position < self.count and damaged < _MAX_DAMAGED

    def _converted(self, frame: NDArray[Any]) -> Rgb:
        if frame.shape[:2] != self.size:
            frame = np.asarray(cv2.resize(frame, self.size[::-1], interpolation=cv2.INTER_AREA), np.uint8)
        return np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), np.uint8)
