"""One list of images for all processes of a command: each predicts a share, and a later run continues."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm

from dinat_common.errors import UserError
from mask2former.evaluation import peak_memory
from mask2former.prediction.files import FileDone, FileFailed
from mask2former.prediction.predictor import Predictor
from mask2former.utils.input_files import first_found_again, output_stems
from mask2former.utils.journal import Journal
from mask2former.utils.parallel import uneven_work

_LOG = logging.getLogger(__name__)
_DIGITS = 12  # of the checksum in the name of a folder


class SharingError(UserError):
    """A list of images that the processes of a command, or its next run, would not have in common."""


@dataclass(frozen=True)
class Outcome:
    """Outcome of a command in all of its processes.

    Attributes:
        images: Number of images in the list.
        kept: Number of images that an interrupted run had finished.
        failed: Rank of the process, image and reason of each image without a result.
        peak_memory: Largest of the `peak_memories` of all processes.
    """

    images: int
    kept: int
    failed: list[tuple[int, FileFailed]]
    peak_memory: dict[str, int]


class ImageShare:
    """The images of a list that this process predicts.

    The list is divided by rank: of the images that no earlier run has finished, each process takes every n-th. A
    finished image is recorded in a hidden folder of the output folder, with the dates of its files, until all images
    are done. The same command continues from there if it was interrupted or if a process died. Machines may share the
    output folder or have one each.

    Attributes:
        images: Images of this process.
        stems: Paths of their results without endings.
        total: Number of images in the list.
        kept: Number of images in the list that an interrupted run finished.

    Example::

        share = ImageShare(images, output, predictor, {"json": True})
        for outcome in share.keep(predict_files(predictor, share.images, output, stems=share.stems)):
            ...
    """

    def __init__(
        self,
        images: Sequence[Path],
        output: Path,
        predictor: Predictor,
        settings: Mapping[str, Any],
        inputs: Sequence[str] = (),
    ):
        """Divide a list of images. All processes call this together.

        Args:
            images: Images, equal in all processes but for their folders.
            output: Folder of the results.
            predictor: Predictor of the results.
            settings: Everything else that the results depend on; serializable as JSON.
            inputs: Names from which the list was made. Commands with different inputs may write to one folder at a
                time. They may differ between machines, those of the first process count.

        Raises:
            SharingError: The processes found different images, or a later run would find results among its inputs.
        """
        stems = output_stems(images, output, predictor.task)
        if again := first_found_again(inputs, (stem.with_name(f"{stem.name}.png") for stem in stems)):
            raise SharingError(
                f"the result {again} would be an image of the next run of this command: expected an output folder "
                "whose files the inputs do not name"
            )
        _require_equal_lists([path.name for path in images])
        self.total = len(images)
        self._folder: Path | None = None
        self._journal: Journal | None = None
        finished: Collection[str] = ()
        if len(images) > 1:
            fingerprints = comm.all_gather({**predictor.fingerprint(), **settings})
            others = [rank for rank, fingerprint in enumerate(fingerprints) if fingerprint != fingerprints[0]]
            if others and comm.is_main_process():
                _LOG.warning("Weights or settings of process %s are not those of the first process", others)
            fingerprint = {**fingerprints[0], "input": comm.all_gather(list(inputs))[0]}
            digest = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:_DIGITS]
            self._folder = output / f".unfinished_{digest}"
            # Each machine reads its records, and no process writes before all have read them.
            found = set()
            if comm.get_local_rank() == 0:
                found = _finished(self._folder, fingerprint, dict(zip(stems, images, strict=True)))
            finished = set().union(*comm.all_gather(found))
            self._journal = Journal(self._folder / f"rank{comm.get_rank()}.jsonl", fingerprint)
        self.kept = len(finished)
        left = [index for index, stem in enumerate(stems) if stem.name not in finished]
        mine = left[comm.get_rank() :: comm.get_world_size()]
        self.images, self.stems = [images[index] for index in mine], [stems[index] for index in mine]
        self._failed: list[FileFailed] = []

    def keep(self, outcomes: Iterator[FileDone | FileFailed]) -> Generator[FileDone | FileFailed, None, None]:
        """Record the outcomes of this process as they come; at the end, wait for the other processes."""
        try:
            with uneven_work():
                for outcome in outcomes:
                    if isinstance(outcome, FileFailed):
                        self._failed.append(outcome)
                    elif self._journal is not None:
                        files = {path.name: _identity(path) for path in outcome.files}
                        record = {"image": os.path.abspath(outcome.image), "input": _identity(outcome.image)}
                        self._journal.add(outcome.picture.stem, {**record, "files": files})
                    yield outcome
        finally:
            if self._journal is not None:
                self._journal.close()

    def outcome(self) -> Outcome:
        """Outcome of all processes, which call this together after the last image. The records are removed.

        The records stay if images failed in one of several processes, so that a launcher that starts the command again
        tries only these images.
        """
        failed = [(rank, each) for rank, part in enumerate(comm.all_gather(self._failed)) for each in part]
        peaks = comm.all_gather(peak_memories())
        if self._folder is not None and comm.get_local_rank() == 0 and not (failed and comm.get_world_size() > 1):
            shutil.rmtree(self._folder, ignore_errors=True)
        # No process ends, and closes its connections, while others need them.
        comm.synchronize()
        peak = {device: max(each.get(device, 0) for each in peaks) for device in peaks[0]}
        return Outcome(self.total, self.kept, failed, peak)


def peak_memories() -> dict[str, int]:
    """Peak memory of this process in bytes, by device: "cpu" and, if there is a GPU, "cuda"."""
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    return {device: peak_memory(torch.device(device)) for device in devices}


def _require_equal_lists(names: Sequence[str]) -> None:
    """Check that the images of all processes have the same names in the same order."""
    digest = hashlib.sha256("\0".join(names).encode(errors="surrogateescape")).hexdigest()
    lists = comm.all_gather((len(names), digest))
    for rank, other in enumerate(lists):
        if other != lists[0]:
            raise SharingError(
                f"process {rank} finds {other[0]} images, process 0 finds {lists[0][0]}, and the names differ: "
                "all machines need the same images"
            )


def _finished(folder: Path, fingerprint: Mapping[str, Any], places: Mapping[Path, Path]) -> set[str]:
    """Names of the results that the records of a folder list and whose files are those that were read and written."""
    images = {stem.name: image for stem, image in places.items()}
    found = set()
    for path in sorted(folder.glob("*.jsonl")):
        with Journal(path, fingerprint) as journal:
            for name, record in journal.items():
                image = images.get(str(name))
                if image is None or record["image"] != os.path.abspath(image) or record["input"] != _identity(image):
                    continue
                if all(_identity(folder.parent / file) == identity for file, identity in record["files"].items()):
                    found.add(str(name))
    return found


def _identity(path: Path) -> list[int] | None:
    """Size and time of a file; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]
