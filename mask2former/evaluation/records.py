"""Records of images on disk, which survive the process that wrote them. Each process has a journal of its own."""

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.utils import comm

from mask2former.evaluation.errors import EvaluationError
from mask2former.evaluation.gathering import gather_in_rounds
from mask2former.evaluation.metric import Key
from mask2former.utils.files import atomic_write
from mask2former.utils.journal import Journal

_FOLDER = "records"
_GATHERED = "gathered.jsonl"


class RecordStore:
    """Records of a data set's images, in a folder of each machine; the folders may be one and the same.

    All processes have to call `start` and `gather`, each at the same time as the others.

    Attributes:
        folder: where the files are that records list.
        finished: keys of the images that some process had a record of when it started.
    """

    def __init__(self, folder: Path):
        """Set the folder that holds the files which records list, and `records/`. Nothing is read or written yet."""
        self.finished: frozenset[Key] = frozenset()
        self.folder = folder
        self._folder = folder / _FOLDER
        self._fingerprint: dict[str, Any] = {}
        # The journals of the records that this process answers for.
        self._journals: dict[Key, Journal] = {}
        self._own: Journal | None = None

    def start(self, fingerprint: Mapping[str, Any], *, resume: bool, outputs: Sequence[str] = ()) -> list[str]:
        """Find the records that are valid, or forget all.

        Args:
            fingerprint: Everything that records depend on; must be serializable as JSON. Records with another one are
                forgotten, on all machines.
            resume: Whether to keep valid records.
            outputs: Files and folders beside `records/` that are removed when records are forgotten.

        Returns:
            The entries of the fingerprint that differ from those of the records that were there.
        """
        self.close()
        # No process clears a folder that another one still uses.
        comm.synchronize()
        # The fingerprint of the main process counts.
        self._fingerprint = comm.all_gather(dict(fingerprint))[0]
        first_of_machine = comm.get_local_rank() == 0
        before = self._open_all() if first_of_machine else []
        differing = sorted(set().union(*comm.all_gather({name for journal in before for name in journal.differing})))
        self._journals = {}
        if first_of_machine and resume and before and not differing:
            self._journals = {key: journal for journal in before for key in journal if self._is_valid(journal[key])}
        elif first_of_machine:
            self._clear(outputs)
        # Several machines may see one folder: the first of them answers for its records. And none writes before all
        # have read or cleared it.
        found = comm.all_gather(list(self._journals))
        for key in set().union(*found[: comm.get_rank()]):
            self._journals.pop(key, None)
        self.finished = frozenset().union(*found)
        self._own = Journal(self._folder / f"rank{comm.get_rank()}.jsonl", self._fingerprint)
        return differing

    def append(self, key: Key, files: Iterable[Path], content: Mapping[str, Any]) -> None:
        """Keep the record of an image.

        Args:
            key: Key of the image.
            files: Complete files of the folder that belong to it.
            content: The record; must be serializable as JSON.

        Raises:
            EvaluationError: There is a record of this image already.
        """
        if self._own is None:
            raise RuntimeError("records are appended between start and gather")
        if key in self._journals or key in self.finished:
            raise EvaluationError(f"two images are called {key!r}: image_id, or folder and file name, must differ")
        sizes = {path.relative_to(self.folder).as_posix(): path.stat().st_size for path in files}
        self._own.add(key, {"files": sizes, **content})
        self._journals[key] = self._own

    def gather(self) -> None:
        """Bring all records and their files to the main process's machine.

        Raises:
            EvaluationError: Two processes have a record of one image, or two images a file of one name.
        """
        self.close()
        received = gather_in_rounds((key, journal[key]) for key, journal in self._journals.items())
        gathered = Journal(self._folder / _GATHERED, self._fingerprint)
        for key, record in received:  # none but on the main process
            if key in self._journals:
                raise EvaluationError(f"two processes predicted image {key!r}")
            gathered.add(key, record)
            self._journals[key] = gathered
        self._gather_files()

    def _gather_files(self) -> None:
        """Send what the main process does not see: nothing where all share a folder."""
        lacking: list[str] = []
        if comm.is_main_process():
            names = Counter(name for name, _ in self._listed_files())
            shared = [name for name, images in names.items() if images > 1]
            if shared:
                raise EvaluationError(f"results are named after images, and several images share {shared[0]}")
            lacking = [name for name, size in self._listed_files() if not self._has(name, size)]
        missing = set(comm.all_gather(lacking)[0])
        own = (name for name, _ in self._listed_files() if name in missing)
        for name, content in gather_in_rounds((name, (self.folder / name).read_bytes()) for name in own):
            with atomic_write(self.folder / name, "wb") as file:
                file.write(content)

    def read(self) -> Iterator[tuple[Key, dict[str, Any]]]:
        """The records that this process answers for (on the main one after `gather`: all), in the order of keys."""
        for key in sorted(self._journals, key=lambda key: (isinstance(key, str), key)):
            yield key, self._journals[key][key]

    def close(self) -> None:
        """Close all files; records can still be read."""
        for journal in {id(journal): journal for journal in (*self._journals.values(), self._own)}.values():
            if journal is not None:
                journal.close()
        self._own = None

    def _listed_files(self) -> Iterator[tuple[str, int]]:
        for _, record in self.read():
            yield from record["files"].items()

    def _has(self, name: str, size: int) -> bool:
        path = self.folder / name
        return path.is_file() and path.stat().st_size == size

    def _open_all(self) -> list[Journal]:
        """The journals of all processes that wrote to the folder."""
        return [Journal(path, self._fingerprint) for path in sorted(self._folder.glob("*.jsonl"))]

    def _is_valid(self, record: Mapping[str, Any]) -> bool:
        return all(self._has(name, size) for name, size in record["files"].items())

    def _clear(self, outputs: Sequence[str]) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        for name in outputs:
            path = self.folder / name
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
