"""Prediction of video files: each frame is predicted and drawn, and the objects of segmentations are tracked."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from dinat_common.files import atomic_write
from mask2former.prediction.base import Prediction
from mask2former.prediction.drawing import Rgb
from mask2former.prediction.files import ERRORS_OF_ONE_INPUT, Refine, described, predict_each
from mask2former.prediction.predictor import RESULTS, Predictor
from mask2former.utils.journal import Journal
from mask2former.utils.parallel import report_interval
from mask2former.video.files import CODECS, check_output, default_codec, possible_rate, write_video
from mask2former.video.reader import VideoError, VideoReader
from mask2former.video.tracking import Tracker

_LOG = logging.getLogger(__name__)
# If this many frames in a row fail, the frames are not the cause.
_MAX_FAILED = 50


@dataclass(frozen=True)
class VideoSummary:
    """Outcome of `predict_video`.

    Attributes:
        output: The video that was written.
        frames: Number of frames of the input.
        failed: Number (from 0) and error of each frame without a result.
        kept: Number of frames whose results come from an earlier, interrupted run.
    """

    output: Path
    frames: int
    failed: list[tuple[int, str]]
    kept: int


def predict_video(
    predictor: Predictor,
    video: Path,
    stem: Path,
    *,
    codec: str | None = None,
    batch_size: int = 1,
    with_json: bool = False,
    refine: Refine | None = None,
) -> VideoSummary:
    """Draw the result of each frame; an object keeps its number and colour from frame to frame.

    The output has the duration of the input, square pixels, and no sound. Its rate is constant: that of the input, or,
    if that varies, one at which each picture begins within half an interval of its time. A frame whose prediction fails
    is reported and copied unchanged; a frame that can't be decoded is replaced by the previous picture. Predictions are
    kept in a file next to the output until it is complete, so that another call for the same video, model and task
    continues from them.

    Args:
        predictor: Predictor, used with its own task and threshold.
        video: Path of the input.
        stem: Path of the output without its suffix, which depends on the codec.
        codec: A key of `CODECS`; by default mp4v, or MJPG for odd sizes.
        batch_size: Number of frames per batch of the model.
        with_json: Whether to also write STEM.jsonl, with one line of JSON per frame: `frame` (from 0), `time` (seconds
            from the start, as the container gives it) and `segments_info` or `classes`, or `error`.
        refine: Function applied to each result before it is drawn or written, for example to drop segments.

    Raises:
        VideoError: The video cannot be read, 50 frames in a row fail, or the output cannot be written, which is known
            before the first prediction unless the disk becomes full.
    """
    reader = VideoReader(video)
    codec = codec or default_codec(reader.size)
    output = stem.with_name(stem.name + CODECS[codec])
    if with_json:
        check_output(stem.with_name(f"{stem.name}.jsonl"))
    status = video.stat()
    identity = [video.name, status.st_size, status.st_mtime_ns]
    fingerprint = {**predictor.fingerprint(), "video": identity, "frames": reader.count}
    with ExitStack() as stack:
        journal = stack.enter_context(Journal(stem.with_name(f".{stem.name}.journal"), fingerprint))
        if journal.kept:
            _LOG.info("%s: %d frames are kept from an interrupted run", video, journal.kept)
        rate = possible_rate(reader.rate, reader.size)
        write = stack.enter_context(write_video(output, codec, rate, reader.size))
        lines = stack.enter_context(atomic_write(stem.with_name(f"{stem.name}.jsonl"))) if with_json else None
        rendering = _Rendering(reader, rate, write, lines, refine)
        numbered = tqdm(enumerate(reader), video.name, reader.count, unit="frame", mininterval=report_interval())
        for index, frame, found in _predicted(predictor, numbered, journal, batch_size):
            rendering.add(index, frame, found)
        rendering.finish()
    # The output has been moved to its final path by now.
    journal.path.unlink(missing_ok=True)
    return VideoSummary(output, rendering.frames, rendering.failed, journal.kept)


class _Rendering:
    """Tracks the objects of the frames, and writes pictures and lines of JSON."""

    def __init__(
        self,
        reader: VideoReader,
        rate: float,
        write: Callable[[Rgb], None],
        lines: IO[str] | None,
        refine: Refine | None,
    ) -> None:
        self._reader = reader
        self._places, self._length = reader.places(rate)
        self._write = write
        self._lines = lines
        self._refine = refine
        self._tracker = Tracker()
        self._picture: Rgb | None = None
        self._written = 0
        self._failed_in_a_row = 0
        self.frames = 0
        self.failed: list[tuple[int, str]] = []

    def add(self, index: int, frame: Rgb | None, found: Prediction | str) -> None:
        if frame is not None:
            # The first picture also fills the time of damaged frames before it.
            self._fill(self._places[index])
        if isinstance(found, Prediction):
            try:
                record = self._draw(found)
            except ERRORS_OF_ONE_INPUT as error:
                record = self._skip(index, frame, described(error))
        else:
            record = self._skip(index, frame, found)
        self.frames += 1
        if self._lines:
            time = round(self._reader.times[index], 3)
            self._lines.write(json.dumps({"frame": index, "time": time, **record}) + "\n")

    def finish(self) -> None:
        """Show the last picture until the end of the video."""
        self._fill(self._length)

    def _fill(self, place: int) -> None:
        """Show the present picture until the place of the next one."""
        if self._picture is None:
            return
        for _ in range(place - self._written):
            self._write(self._picture)
        self._written = max(self._written, place)

    def _draw(self, found: Prediction) -> dict[str, Any]:
        found = self._tracker.update(self._refine(found) if self._refine else found)
        record = found.content() if self._lines else {}
        self._picture = found.draw(enlarge=False)
        self._failed_in_a_row = 0
        return record

    def _skip(self, index: int, frame: Rgb | None, error: str) -> dict[str, Any]:
        _LOG.error("%s: frame %d skipped: %s", self._reader.path, index, error)
        self.failed.append((index, error))
        if frame is not None:
            self._picture = frame
            self._failed_in_a_row += 1
        if self._failed_in_a_row == _MAX_FAILED:
            raise VideoError(
                f"{self._reader.path}: no result for {_MAX_FAILED} frames in a row; the last error: {error}"
            )
        return {"error": error}


def _predicted(
    predictor: Predictor, frames: Iterable[tuple[int, Rgb | None]], journal: Journal, batch_size: int
) -> Iterator[tuple[int, Rgb | None, Prediction | str]]:
    """Yield the number, the pixels, and the result or the error of each frame."""
    remaining = iter(frames)
    while batch := list(islice(remaining, batch_size)):
        new = {index: frame for index, frame in batch if index not in journal and frame is not None}
        results = dict(zip(new, predict_each(predictor, list(new.values())), strict=True))
        for index, frame in batch:
            if frame is None:
                yield index, None, "it can't be decoded"
                continue
            found = results.get(index)
            if found is None:
                size = (frame.shape[0], frame.shape[1])
                found = RESULTS[predictor.task].from_record(journal[index], size, predictor.classes(), frame)
            elif isinstance(found, Prediction):
                journal.add(index, found.record())
            yield index, frame, found
