"""Reading videos: frames, the times at which they are shown, their rate and size.

Any container that OpenCV decodes is read, and animated images (GIF, PNG, WebP, AVIF) as Pillow reads them.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from dinat_common.errors import UserError
from mask2former.prediction.drawing import Rgb
from mask2former.utils.parallel import report_interval

_LOG = logging.getLogger(__name__)
# Frames per second of a source that does not report its rate.
_DEFAULT_RATE = 25.0
# A higher rate in a container is a placeholder: 90000 and 1000000 are units of time stamps.
_MAX_RATE = 1000.0
# Frames of a variable rate are shown at one of these rates, or at a multiple of the container's.
_USUAL_RATES = (24.0, 25.0, 30.0, 50.0, 60.0, 100.0, 120.0, 240.0)
# At a higher rate, a video takes too long to write for what the more exact times are worth.
_MODERATE_RATE = 60.0
# After this many damaged frames in a row, the rest of a file is given up.
_MAX_DAMAGED = 250
# Seconds; a longer pause between two frames is damage of the time stamps.
_MAX_PAUSE = 600.0
# Pixels that are longer than this, relative to their other side, are damage of the header.
_MAX_PIXEL_ASPECT = 8.0
# Seconds to which containers round times, twice.
_RESOLUTION = 0.002
_ANIMATED_IMAGES = frozenset({".gif", ".png", ".apng", ".webp", ".avif"})


class VideoError(UserError):
    """A video or camera that cannot be read, or a video that cannot be written; the message names it and says why."""


class _Source(Protocol):
    """The part of `cv2.VideoCapture` that reading needs."""

    def isOpened(self) -> bool: ...

    def grab(self) -> bool: ...

    def retrieve(self) -> tuple[bool, Any]: ...

    def get(self, key: int, /) -> float: ...

    def release(self) -> None: ...


class VideoReader:
    """Frames of a video file.

    A file is read twice: first for the times alone, then, by each iteration, for the frames. The first frames are
    skipped if they are damaged. Frames are upright, and have square pixels: if those of the file are not square, one
    side of the frames is stretched.

    Attributes:
        path: The file.
        rate: Frames per second. At this rate, every frame of a variable rate has a place within half an interval of
            its time.
        size: Height and width of every frame.
        times: Time in seconds at which each frame is shown, from the start of the file.
        end: Time in seconds at which the last frame ends.
        count: Number of frames.
    """

    def __init__(self, path: str | Path):
        """Open a file, and read the times of its frames.

        Raises:
            VideoError: The file is missing, or is not a video that OpenCV can decode.
        """
        self.path = Path(path)
        if not self.path.is_file():
            raise VideoError(f"{path}: no such file")
        source = _open(self.path)
        stamps: list[float | None] = []
        first = None
        frames = _decoded(source, first_only=True)
        for frame in tqdm(frames, f"{self.path.name}: times", unit="frame", delay=5, mininterval=report_interval()):
            stamps.append(None if frame is None else frame[0])
            if frame is not None and first is None:
                first = frame[1]
                self.size = self._square_pixels(source, (first.shape[0], first.shape[1]))
        if first is None:
            raise VideoError(f"{path}: not a video that this OpenCV ({cv2.__version__}) can decode")
        self.count = len(stamps)
        self._find_times(stamps, source.get(cv2.CAP_PROP_FPS), source.get(cv2.CAP_PROP_FRAME_COUNT))
        source.release()

    def __iter__(self) -> Iterator[Rgb | None]:
        """Yield the frames, RGB [H, W, 3]; None for a frame that cannot be decoded while later ones can."""
        source = _open(self.path)
        for _, frame in zip(range(self.count), _decoded(source), strict=False):
            yield None if frame is None else self._converted(frame[1])
        source.release()

    def places(self, rate: float) -> tuple[list[int], int]:
        """Position of each frame in a video of a constant rate, and the number of frames that this video has.

        Args:
            rate: Frames per second of that video.
        """
        times = np.array([*self.times, self.end])
        if self._constant and rate == self.rate:
            # Rounded together, because single times differ by the resolution of the container.
            places = math.floor(times[0] * rate + 0.5) + np.rint((times - times[0]) * rate).astype(int)
        else:
            places = np.floor(times * rate + 0.5).astype(int)
        return places[:-1].tolist(), max(int(places[-1]), int(places[-2]) + 1)

    def _find_times(self, stamps: Sequence[float | None], rate: float, promised: float) -> None:
        """Set `times`, `end` and `rate` from the time stamps, rate and number of frames in the container."""
        interval = 1 / rate if math.isfinite(rate) and 0 < rate <= _MAX_RATE else None
        sound = [index for index, stamp in enumerate(stamps) if stamp is not None]
        known = [stamp for stamp in stamps if stamp is not None]
        times, jumps = _without_jumps(known)
        if jumps == len(times) - 1:
            # No frame has a time of its own.
            jumps = 0
            times = [index * (interval or 1 / _DEFAULT_RATE) for index in sound]
            if interval is None:
                _warn_no_rate(str(self.path))
        if jumps:
            _LOG.warning(
                "%s: the times of its frames jump %d times; the usual interval is taken there", self.path, jumps
            )
        self.rate, self._constant = _best_rate(times, interval)
        if lost := _lost(times, self.rate):
            _LOG.warning("%s: %d frames follow another too fast to be shown at %g Hz", self.path, lost, self.rate)
        pauses = np.diff(times)
        usual, longest = (float(np.median(pauses)), float(pauses.max())) if len(pauses) else (1 / self.rate,) * 2
        duration = promised * (interval or 0.0) if math.isfinite(promised) else 0.0
        last = duration - times[-1]
        # A file that was cut off promises more time than it has.
        ends = last > 0 and (len(known) == promised or last <= 2 * longest) and not jumps
        self.end = times[-1] + (last if ends else usual)
        if duration > self.end + 2 * longest and not jumps:
            _LOG.warning(
                "%s ends after %d frames, at %.2f s; its container promises %.2f s",
                *(self.path, self.count, self.end, duration),
            )
        self.times: list[float] = np.interp(range(len(stamps)), sound, times).tolist()

    def _square_pixels(self, source: _Source, size: tuple[int, int]) -> tuple[int, int]:
        """Size of a frame after it was stretched so that its pixels are square."""
        wide, high = (source.get(key) for key in (cv2.CAP_PROP_SAR_NUM, cv2.CAP_PROP_SAR_DEN))
        if not (wide > 0 and high > 0) or wide == high:
            return size
        if not 1 / _MAX_PIXEL_ASPECT <= wide / high <= _MAX_PIXEL_ASPECT:
            _LOG.warning(
                "%s: pixels of the shape %g:%g can't be meant; they are taken for square", self.path, wide, high
            )
            return size
        if source.get(cv2.CAP_PROP_ORIENTATION_META) % 180:
            wide, high = high, wide  # the shape is that of the stored pixels, before OpenCV turns them
        stretched = [size[0] * max(1.0, high / wide), size[1] * max(1.0, wide / high)]
        even = all(side % 2 == 0 for side in size)
        height, width = (2 * round(side / 2) if even else round(side) for side in stretched)
        _LOG.info(
            "%s: its pixels are not square (%g:%g), so frames of %dx%d become %dx%d",
            *(self.path, wide, high, size[1], size[0], width, height),
        )
        return height, width

    def _converted(self, frame: NDArray[Any]) -> Rgb:
        if frame.shape[:2] != self.size:
            shrinks = frame.shape[0] > self.size[0] or frame.shape[1] > self.size[1]
            method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
            frame = np.asarray(cv2.resize(frame, self.size[::-1], interpolation=method), np.uint8)
        return np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), np.uint8)


class _Animation:
    """The frames of an animated image, with the methods of `cv2.VideoCapture`; `Image` knows their times exactly."""

    def __init__(self, image: Image.Image) -> None:
        self._image = image
        self._next = 0
        self._time = self._end = 0.0

    def isOpened(self) -> bool:
        return True

    def grab(self) -> bool:
        if self._next >= getattr(self._image, "n_frames", 1):
            return False
        self._next += 1
        try:
            self._image.seek(self._next - 1)
            self._image.load()
        except (OSError, EOFError, ValueError, SyntaxError):
            return False
        self._time = self._end
        # Browsers show frames without a duration for a tenth of a second.
        self._end += (self._image.info.get("duration") or 100) / 1000
        return True

    def retrieve(self) -> tuple[bool, Any]:
        return True, np.asarray(self._image.convert("RGBA").convert("RGB"))[:, :, ::-1]

    def get(self, key: int, /) -> float:
        if key == cv2.CAP_PROP_POS_MSEC:
            return 1000 * self._time
        if key == cv2.CAP_PROP_FRAME_COUNT:
            return float(self._next)
        # The mean rate gives the end of the last frame together with the number of frames.
        return self._next / self._end if key == cv2.CAP_PROP_FPS and self._end else 0.0

    def release(self) -> None:
        self._image.close()


def frame_rate(capture: Any, name: str) -> float:
    """Frames per second of an open `cv2.VideoCapture`; 25, with a warning that gives `name`, if it reports none."""
    rate = capture.get(cv2.CAP_PROP_FPS)
    if math.isfinite(rate) and 0 < rate <= _MAX_RATE:
        return rate
    _warn_no_rate(name)
    return _DEFAULT_RATE


def _warn_no_rate(name: str) -> None:
    _LOG.warning("%s does not report its frame rate: assuming %g frames per second", name, _DEFAULT_RATE)


def _open(path: Path) -> _Source:
    if path.suffix.lower() in _ANIMATED_IMAGES:
        try:
            image = Image.open(path)
            if getattr(image, "n_frames", 1) > 1:
                return _Animation(image)
            image.close()
        except (OSError, EOFError, ValueError, SyntaxError):
            pass  # OpenCV may decode what Pillow does not
    return cv2.VideoCapture(str(path))


def _decoded(source: _Source, *, first_only: bool = False) -> Iterator[tuple[float, Any] | None]:
    """Yield the time in seconds and the pixels (BGR) of each frame; None for a damaged frame before a sound one.

    Args:
        source: Open source.
        first_only: Whether only the first frame gets its pixels, which takes less time.
    """
    damaged = 0
    wanted = True
    while source.isOpened() and damaged < _MAX_DAMAGED:
        if not source.grab():
            damaged += 1
            continue
        found, pixels = source.retrieve() if wanted else (True, None)
        if not found:
            damaged += 1
            continue
        yield from [None] * damaged
        yield source.get(cv2.CAP_PROP_POS_MSEC) / 1000, pixels
        damaged = 0
        wanted = not first_only


def _without_jumps(stamps: Sequence[float]) -> tuple[list[float], int]:
    """Time stamps in rising order, and the number of those that did not follow the one before.

    Where the stamps jump, the median pause is taken.
    """
    pauses = np.diff(np.asarray(stamps, float))
    sound = np.isfinite(pauses) & (pauses > 0) & (pauses <= _MAX_PAUSE)
    if sound.all() or not sound.any():
        return list(stamps), int((~sound).sum())
    start = stamps[0] if math.isfinite(stamps[0]) else 0.0
    steps = np.cumsum(np.where(sound, pauses, np.median(pauses[sound])))
    return [start, *(start + steps).tolist()], int((~sound).sum())


def _best_rate(times: Sequence[float], interval: float | None) -> tuple[float, bool]:
    """Rate at which to show frames with these times, in frames per second, and whether their own rate is constant."""
    reported = [] if interval is None else [1 / interval]
    if len(times) == 1:
        return (reported or [_DEFAULT_RATE])[0], True
    pauses = np.diff(times)
    mean = round(1 / float(pauses.mean()), 6)

    def deviation(rate: float) -> float:
        """Largest distance of a frame from its time at a constant rate, to the millisecond that containers keep."""
        return round(float(np.abs(times[0] + np.arange(len(times)) / rate - times).max()), 3)

    best = min([*reported, mean], key=deviation)
    if deviation(best) < 0.25 / best:
        return best, True

    def rank(rate: float) -> tuple[int, bool, float]:
        """Order of rates: those that lose no frame, then moderate ones that keep the times, then the lowest."""
        misplaced = np.abs(np.rint(np.asarray(times) * rate) / rate - times).max()
        return _lost(times, rate), rate > _MODERATE_RATE or bool(misplaced > _RESOLUTION), rate

    multiples = [factor * rate for rate in reported for factor in range(1, 9)]
    rates = [*_USUAL_RATES, *multiples, 1 / float(pauses.min())]
    return min((rate for rate in rates if rate <= _USUAL_RATES[-1]), key=rank), False


def _lost(times: Sequence[float], rate: float) -> int:
    """Number of frames that have to share their place with another at this rate."""
    return int((np.diff(np.floor(np.asarray(times) * rate + 0.5)) < 1).sum())
