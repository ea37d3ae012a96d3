"""Everything the web page does that does not need Gradio: photographs in, overlays and files out.

The network sees each photograph once, and the page shows its segments, or its most probable classes. Task, thresholds
and classes apply to the raw output, so changing them is fast.
"""

import hashlib
import logging
import shutil
import threading
from collections import Counter, OrderedDict
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dinat_common.errors import UserError
from dinat_common.files import user_path, write_json
from mask2former.data.image_io import ImageReadError, image_size, read_image
from mask2former.data.photographs import ValueRange
from mask2former.prediction.base import Prediction, SegmentPrediction
from mask2former.prediction.drawing import Rgb, draw_boxes
from mask2former.prediction.files import ERRORS_OF_ONE_INPUT
from mask2former.prediction.predictor import Analysis, Predictor, shrunk
from mask2former.tasks import TASKS, Task
from mask2former.utils.label_images import write_png

_LOG = logging.getLogger(__name__)
# Columns of the table, for results with segments and for those without.
SEGMENT_HEADERS = ("Segment", "Score, %", "Area, %", "Box: x, y, width, height")
CLASS_HEADERS = ("Class", "Probability, %")
# Longer side of the picture on the page, in pixels; downloads have the size of the photograph.
_SHOWN_SIDE = 1024
# Memory for the photographs of all visitors together.
_MAX_BYTES = 1_000_000_000
# Opacity of a mask where an instance with a higher score covers it, relative to the rest of the mask.
_COVERED = 0.3
# Photographs that come with scikit-image.
_SAMPLES = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png")
# Largest ratio of the sides of a thumbnail.
_THUMBNAIL_RATIO = 2
# With more thumbnails, the page would take long to load.
_MAX_SAMPLES = 24


class PhotoError(UserError):
    """A photograph that the page does not accept; the message is shown there and contains no path of the server."""


class SamplesError(UserError):
    """A folder without sample images; the message names it."""


@dataclass(frozen=True)
class Limits:
    """Largest photographs that are accepted.

    Attributes:
        megapixels: Size in millions of pixels.
        megabytes: Size of the file in MiB.
    """

    megapixels: float = 25.0
    megabytes: float = 50.0


@dataclass(frozen=True)
class Upload:
    """A photograph on the server.

    Attributes:
        path: The file.
        name: Name that the visitor knows it by.
    """

    path: str
    name: str


@dataclass(frozen=True)
class Choice:
    """Settings that a visitor chose.

    Attributes:
        task: Task of the result.
        confidence: Lowest score shown, 0 to 1; ignored for tasks without such a threshold.
        overlap: Smallest share of its mask that a panoptic segment keeps next to others, 0 to 1.
        classes: Names of the classes to show; empty shows all.
    """

    task: Task
    confidence: float
    overlap: float
    classes: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class Overlay:
    """A result as the page shows it.

    Attributes:
        photo: RGB photograph [H, W, 3] at the size shown, with the boxes of a detector; with the most probable classes
            in it, if there are no segments.
        masks: Opacity [H, W], 0 to 1, and name of each segment. The second "cat" is called "cat #2".
        rows: Cells of the table, under `SEGMENT_HEADERS`: name, score in percent ("" if there is none), share of the
            area in percent, and box (x, y, width, height in pixels of the whole photograph) of each segment; or under
            `CLASS_HEADERS`: name and probability in percent.
        caption: Number of segments and size of the photograph, with a hint if nothing was found.
    """

    photo: Rgb
    masks: list[tuple[NDArray[np.float32], str]]
    rows: list[tuple[str, ...]]
    caption: str


class Workbench:
    """Results for the photographs of several visitors.

    A visitor is identified by any unique string. The last photograph of each visitor is remembered while all of them
    fit in memory; one that was forgotten passes through the network again when it is needed.

    Attributes:
        predictor: Predictor of all results.
        limits: Largest photographs that are accepted.
    """

    def __init__(
        self,
        predictor: Predictor,
        limits: Limits,
        files: Path,
        *,
        max_bytes: int = _MAX_BYTES,
        shown_side: int = _SHOWN_SIDE,
    ):
        """Set the parts.

        Args:
            predictor: Predictor of all results.
            limits: Largest photographs that are accepted.
            files: Folder for the files that visitors download.
            max_bytes: Memory for the photographs of all visitors together; the newest one is always kept.
            shown_side: Longer side of the picture on the page, in pixels.
        """
        self.predictor = predictor
        self.limits = limits
        self._files = files
        self._max_bytes = max_bytes
        self._shown_side = shown_side
        # By visitor, the most recently used last.
        self._kept: OrderedDict[str, tuple[Upload, Analysis]] = OrderedDict()
        self._lock = threading.Lock()

    def preview(self, upload: Upload) -> Rgb:
        """The photograph at the size shown; does not need the network.

        Raises:
            PhotoError: The photograph is not accepted.
        """
        return shrunk(self._read(upload), self._shown_side)

    def show(self, visitor: str, upload: Upload, choice: Choice, opacity: float) -> Overlay:
        """The result of a photograph for the page, with masks of this opacity (0 to 1).

        Raises:
            PhotoError: The photograph is not accepted.
        """
        analysis = self._analysis(visitor, upload)
        height, width = analysis.image.shape[:2]
        with _named(upload):
            shown = analysis.within(self._shown_side)
            result = self._result(shown, choice)
            if not isinstance(result, SegmentPrediction):
                found: list[tuple[str, ...]] = [
                    (entry["category_name"], f"{100 * entry['probability']:.1f}")
                    for entry in result.content()["classes"]
                ]
                return Overlay(result.draw(), [], found, f"{upload.name} ({width} × {height} pixels)")
            masks, rows = _segments(result, opacity, width / shown.image.shape[1])
        hint = "Hover over a name, tap it or tab to it to see its segment alone."
        if not rows:
            hint = "Nothing was found with this confidence: lower it to see more."
            if choice.classes:
                hint = "None of the chosen classes was found: choose others, or remove all to see every class."
        count = f"{len(rows)} segment{'' if len(rows) == 1 else 's'}"
        return Overlay(
            _with_boxes(shown.image, result),
            masks,
            rows,
            f"{count} in {upload.name} ({width} × {height} pixels). {hint}",
        )

    def picture(self, visitor: str, upload: Upload, choice: Choice) -> Path:
        """Write NAME_TASK.png, the picture that demo.py makes of the photograph.

        Raises:
            PhotoError: The photograph is not accepted.
        """
        analysis = self._analysis(visitor, upload)
        with _named(upload):
            return write_png(self._file(visitor, upload, choice, "png"), self._result(analysis, choice).draw())

    def data(self, visitor: str, upload: Upload, choice: Choice) -> Path:
        """Write NAME_TASK.json, the data that demo.py writes for the photograph.

        Raises:
            PhotoError: The photograph is not accepted.
        """
        analysis = self._analysis(visitor, upload)
        with _named(upload):
            file = self._file(visitor, upload, choice, "json")
            write_json(file, self._result(analysis, choice).to_json(upload.name), indent=1)
        return file

    def forget(self, visitor: str) -> None:
        """Forget a visitor who left, and delete the visitor's downloads."""
        with self._lock:
            self._kept.pop(visitor, None)
        shutil.rmtree(self._folder(visitor), ignore_errors=True)

    def _read(self, upload: Upload) -> Rgb:
        return read_photo(upload.path, upload.name, self.limits, self.predictor.value_range)

    def _analysis(self, visitor: str, upload: Upload) -> Analysis:
        with self._lock:
            kept, analysis = self._kept.get(visitor, (None, None))
            if analysis is not None and kept == upload:
                self._kept.move_to_end(visitor)
                return analysis
        pixels = self._read(upload)
        with _named(upload):
            analysis = self.predictor.analyze(pixels)
        with self._lock:
            self._kept[visitor] = upload, analysis
            self._kept.move_to_end(visitor)
            while len(self._kept) > 1 and sum(a.nbytes for _, a in self._kept.values()) > self._max_bytes:
                self._kept.popitem(last=False)
        return analysis

    def _result(self, analysis: Analysis, choice: Choice) -> Prediction:
        result = self.predictor.result(
            analysis,
            task=choice.task,
            confidence_threshold=None if TASKS[choice.task].no_threshold else choice.confidence,
            overlap_threshold=choice.overlap,
        )
        # A class may be chosen that this task does not have.
        known = set(choice.classes) & set(map(str, result.classes.names))
        return result.filter(classes=known) if choice.classes else result

    def _folder(self, visitor: str) -> Path:
        return self._files / hashlib.sha256(visitor.encode()).hexdigest()[:32]

    def _file(self, visitor: str, upload: Upload, choice: Choice, ending: str) -> Path:
        """Path of a download for this visitor; the previous one with this ending is deleted."""
        for old in self._folder(visitor).glob(f"*.{ending}"):
            old.unlink(missing_ok=True)
        return self._folder(visitor) / f"{Path(upload.name).stem}_{choice.task}.{ending}"


@contextmanager
def _named(upload: Upload) -> Generator[None, None, None]:
    """Turn what one photograph can cause, except lack of memory, into a PhotoError that names it; the log has more."""
    try:
        yield
    except ERRORS_OF_ONE_INPUT as error:
        if isinstance(error, PhotoError | MemoryError | torch.OutOfMemoryError):
            raise
        _LOG.exception("%s failed", upload.path)
        raise PhotoError(
            f"{upload.name} can't be predicted ({type(error).__name__}). Try another photograph."
        ) from error


def thumbnails(samples: Iterable[Path], side: int, value_range: ValueRange | None = None) -> dict[Path, Rgb]:
    """Samples that can be read, shrunk to at most `side` pixels; the others are named in the log.

    Of a sample that is longer than twice its width or height, the middle is shown: the page gives all the same width.
    """
    small = {file: _thumbnail(file, side, value_range) for file in samples}
    return {file: picture for file, picture in small.items() if picture is not None}


def _thumbnail(file: Path, side: int, value_range: ValueRange | None) -> Rgb | None:
    try:
        picture = read_image(file, value_range=value_range)
        longest = _THUMBNAIL_RATIO * min(picture.shape[:2])
        top, left = (max(0, (length - longest) // 2) for length in picture.shape[:2])
        return shrunk(np.ascontiguousarray(picture[top : top + longest, left : left + longest]), side)
    except ImageReadError as error:
        _LOG.warning("sample left out: %s", error)
        return None


def _with_boxes(photo: Rgb, result: SegmentPrediction) -> Rgb:
    """The photograph with the boxes that a detector predicted, in the colours of the masks."""
    if result.predicted_boxes is None:
        return photo
    colors = result.classes.segment_colors([entry for entry, _ in result.entries_and_masks()])
    return draw_boxes(photo, result.predicted_boxes, colors)


def _segments(result: SegmentPrediction, opacity: float, scale: float) -> tuple[list[Any], list[Any]]:
    """`Overlay.masks` and `Overlay.rows`; `scale` is the size of the photograph relative to the result."""
    covered = np.zeros(result.size, bool)
    seen: Counter[str] = Counter()
    masks, rows = [], []
    for (entry, mask), box in zip(result.entries_and_masks(), result.entry_boxes(), strict=True):
        # A detector may find a box without a mask.
        if not any(box[2:]):
            continue
        name = entry["category_name"]
        seen[name] += 1
        label = segment_label(name, seen[name] - 1)
        # The best instances come first, and stay visible where others overlap them.
        masks.append((opacity * mask * np.where(covered, np.float32(_COVERED), np.float32(1)), label))
        covered |= mask
        score = f"{100 * entry['score']:.1f}" if "score" in entry else ""
        sides = ", ".join(f"{scale * side:.0f}" for side in box)
        rows.append((label, score, f"{100 * mask.mean():.1f}", sides))
    return masks, rows


def segment_label(name: str, index: int) -> str:
    """Name of the segment with this index (from 0) among those whose class has this name."""
    return f"{name} #{index + 1}" if index else name


def read_photo(path: str | Path, name: str, limits: Limits, value_range: ValueRange | None = None) -> Rgb:
    """Read a photograph within the limits as RGB [H, W, 3]; its size is checked before it is decoded.

    Args:
        path: The file.
        name: Name that the visitor knows it by.
        limits: Largest photographs that are accepted.
        value_range: Values that become 0 and 255 in images with more than 8 bits; see `read_image`.

    Raises:
        PhotoError: The file is gone, too large, damaged or not an image.
    """
    path = Path(path)
    try:
        megabytes = path.stat().st_size / 2**20
    except OSError as error:
        raise PhotoError(f"{name} is no longer on the server. Upload it again.") from error
    if megabytes > limits.megabytes:
        raise PhotoError(
            f"{name} is too large: {_rounded(megabytes)} MB, at most {_rounded(limits.megabytes)} MB are accepted."
        )
    try:
        height, width = image_size(path)
        if height * width > limits.megapixels * 1e6:
            raise PhotoError(
                f"{name} is too large: {width} × {height} pixels are {_rounded(height * width / 1e6)} megapixels, "
                f"at most {_rounded(limits.megapixels)} are accepted. Make it smaller and try again."
            )
        return read_image(path, value_range=value_range)
    except ImageReadError as error:
        raise PhotoError(
            f"{name} can't be read as an image. Use a JPEG, PNG, WebP or TIFF file that opens in other programs."
        ) from error


def _rounded(value: float) -> str:
    return f"{round(value, 2):g}"


def find_samples(folder: str | Path | None = None) -> list[Path]:
    """Sample photographs for the page.

    Args:
        folder: Folder whose images are used; None uses the photographs of scikit-image, if that is installed.

    Raises:
        SamplesError: The folder does not exist, or contains no image.
    """
    if folder is None:
        package = find_spec("skimage")
        places = [] if package is None else package.submodule_search_locations or []
        return [file for place in places for name in _SAMPLES if (file := Path(place, "data", name)).is_file()]
    folder = user_path(folder)
    if not folder.is_dir():
        raise SamplesError(f"{folder}: expected a folder with sample images")
    samples = sorted(file for file in folder.iterdir() if file.is_file() and _is_image(file))
    if not samples:
        raise SamplesError(f"{folder}: no image in it")
    return samples[:_MAX_SAMPLES]


def _is_image(file: Path) -> bool:
    try:
        image_size(file)
    except ImageReadError:
        return False
    return True
