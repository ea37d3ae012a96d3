"""What the page does, without the page: photographs of several visitors, each through the network once.

Thresholds, task and classes are chosen after the network, so changing them takes a moment only.
"""

import hashlib
import shutil
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mask2former.prediction.predictor import Analysis, Predictor, shrunk
from mask2former.prediction.results import Prediction
from mask2former.tasks import Task
from mask2former.utils.files import write_json
from mask2former.utils.label_images import write_png
from mask2former.web.overlay import photo_html, result_html
from mask2former.web.photos import Limits, read_photo

# Longer side of what is shown; results on the page have this size, files the photograph's own.
_SHOWN_SIDE = 1600
# What is remembered of all visitors together; the photograph of who was away the longest is forgotten first.
_MAX_BYTES = 1_000_000_000


@dataclass(frozen=True)
class Upload:
    """A photograph on the server, and what its owner calls it."""

    path: str
    name: str


@dataclass(frozen=True)
class Choice:
    """What a visitor wants to see.

    Attributes:
        task: which result.
        confidence: lowest score shown, 0..1; semantic results have none.
        overlap: smallest part of its mask that a panoptic segment keeps next to others, 0..1.
        classes: names of those shown; none: all.
    """

    task: Task
    confidence: float
    overlap: float
    classes: Sequence[str] = ()


@dataclass
class _Memory:
    """The last photograph of each visitor, as long as all together fit."""

    max_bytes: int
    kept: OrderedDict[str, tuple[Upload, Analysis]] = field(default_factory=OrderedDict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, visitor: str, upload: Upload) -> Analysis | None:
        with self.lock:
            kept_upload, analysis = self.kept.get(visitor, (None, None))
            if kept_upload != upload:
                return None
            self.kept.move_to_end(visitor)
            return analysis

    def keep(self, visitor: str, upload: Upload, analysis: Analysis) -> None:
        with self.lock:
            self.kept[visitor] = upload, analysis
            self.kept.move_to_end(visitor)
            while len(self.kept) > 1 and sum(analysis.nbytes for _, analysis in self.kept.values()) > self.max_bytes:
                self.kept.popitem(last=False)

    def forget(self, visitor: str) -> None:
        with self.lock:
            self.kept.pop(visitor, None)


class Workbench:
    """Photographs in, HTML and files out.

    A visitor is any string that no other visitor has. What had to be forgotten of a visitor's photograph is made again.

    Attributes:
        predictor: of all results.
        limits: largest photographs accepted.
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
            predictor: of all results.
            limits: largest photographs accepted.
            files: folder for the files that visitors download.
            max_bytes: most that is remembered of all visitors together; the last photograph is always remembered.
            shown_side: longer side of the picture on the page, in pixels.
        """
        self.predictor = predictor
        self.limits = limits
        self._files = files
        self._shown_side = shown_side
        self._memory = _Memory(max_bytes)

    def preview(self, upload: Upload) -> str:
        """The photograph alone as HTML; the network need not have seen it.

        Raises:
            PhotoError: the photograph is not accepted.
        """
        photo = shrunk(read_photo(upload.path, upload.name, self.limits), self._shown_side)
        return photo_html(photo, upload.name)

    def show(self, visitor: str, upload: Upload, choice: Choice) -> str:
        """The photograph with its result as HTML.

        Raises:
            PhotoError: the photograph is not accepted.
        """
        analysis = self._analysis(visitor, upload)
        result = self._result(analysis.within(self._shown_side), choice)
        if choice.classes:
            hint = "None of the chosen classes was found: choose others, or remove all to see every class."
        else:
            hint = "Nothing was found with this confidence: lower it to see more."
        return result_html(result, upload.name, analysis.image, hint)

    def picture(self, visitor: str, upload: Upload, choice: Choice) -> Path:
        """Write NAME_TASK.png, the picture that demo.py makes of the photograph.

        Raises:
            PhotoError: the photograph is not accepted.
        """
        result = self._result(self._analysis(visitor, upload), choice)
        file = self._file(visitor, upload, choice, "png")
        write_png(file, result.draw())
        return file

    def data(self, visitor: str, upload: Upload, choice: Choice) -> Path:
        """Write NAME_TASK.json, what demo.py writes of the photograph.

        Raises:
            PhotoError: the photograph is not accepted.
        """
        result = self._result(self._analysis(visitor, upload), choice)
        file = self._file(visitor, upload, choice, "json")
        write_json(file, result.to_json(upload.name), indent=1)
        return file

    def forget(self, visitor: str) -> None:
        """Forget a visitor who left, and delete the visitor's downloads."""
        self._memory.forget(visitor)
        shutil.rmtree(self._folder(visitor), ignore_errors=True)

    def _analysis(self, visitor: str, upload: Upload) -> Analysis:
        analysis = self._memory.get(visitor, upload)
        if analysis is None:
            analysis = self.predictor.analyze(read_photo(upload.path, upload.name, self.limits))
            self._memory.keep(visitor, upload, analysis)
        return analysis

    def _result(self, analysis: Analysis, choice: Choice) -> Prediction:
        result = self.predictor.result(
            analysis,
            task=choice.task,
            confidence_threshold=None if choice.task == "semantic" else choice.confidence,
            overlap_threshold=choice.overlap,
        )
        return result.filter(classes=choice.classes) if choice.classes else result

    def _folder(self, visitor: str) -> Path:
        return self._files / hashlib.sha256(visitor.encode()).hexdigest()[:32]

    def _file(self, visitor: str, upload: Upload, choice: Choice, ending: str) -> Path:
        """A file for this visitor to download, in place of the last one of its kind."""
        for old in self._folder(visitor).glob(f"*.{ending}"):
            old.unlink(missing_ok=True)
        return self._folder(visitor) / f"{Path(upload.name).stem}_{choice.task}.{ending}"
