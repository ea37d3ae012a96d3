"""Records of images on disk, which survive the process that wrote them.

A record is a line of JSON after its checksum, so that a line which was cut off or damaged is not taken for one. Each
process appends to a file of its own.
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from detectron2.utils import comm

from mask2former.evaluation.errors import EvaluationError
from mask2former.evaluation.gathering import gather_in_rounds
from mask2former.evaluation.metric import Key
from mask2former.utils.files import atomic_write, write_json
from mask2former.utils.journal import open_at_line_start, parse_checked, parse_record, record_line

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
        # Where the records are that this process answers for: file and position.
        self._places: dict[Key, tuple[Path, int]] = {}
        self._file: IO[bytes] | None = None

    def start(self, fingerprint: Mapping[str, Any], *, resume: bool, outputs: Sequence[str] = ()) -> list[str]:
        """Find the records that are valid, or forget all.

        Args:
            fingerprint: what they depend on; JSON can hold it. Records with another one are forgotten, on all
                machines.
            resume: keep valid ones.
            outputs: files and folders beside `records/` that go when records go.

        Returns:
            Which entries of the fingerprint differ from those of the records that were there.
        """
        self.close()
        # Nobody clears a folder that another process still uses.
        comm.synchronize()
        # What the main process says goes for all; as JSON has it, where tuples are lists.
        now = comm.all_gather(json.loads(json.dumps(fingerprint)))[0]
        first_of_machine = comm.get_local_rank() == 0
        before = self._read_fingerprints() if first_of_machine else []
        differing = sorted(set().union(*comm.all_gather({key for old in before for key in _differences(old, now)})))
        self._places = {}
        if first_of_machine and resume and before and not differing:
            self._places = self._scan()
        elif first_of_machine:
            self._clear(outputs)
        # Several machines may see one folder: the first of them answers for its records. And none writes before all
        # have read or cleared it.
        found = comm.all_gather(list(self._places))
        for key in set().union(*found[: comm.get_rank()]):
            self._places.pop(key, None)
        self.finished = frozenset().union(*found)
        self._folder.mkdir(parents=True, exist_ok=True)
        if first_of_machine:
            write_json(self._folder / f"fingerprint{comm.get_rank()}.json", now)
        self._file = open_at_line_start(self._folder / f"rank{comm.get_rank()}.jsonl")
        return differing

    def append(self, key: Key, files: Iterable[Path], content: Mapping[str, Any]) -> None:
        """Keep the record of an image.

        Args:
            key: the image.
            files: complete files of the folder that belong to it.
            content: what JSON can hold.

        Raises:
            EvaluationError: there is one of this image.
        """
        if self._file is None:
            raise RuntimeError("records are appended between start and gather")
        if key in self._places or key in self.finished:
            raise EvaluationError(f"two images are called {key!r}: image_id, or folder and file name, must differ")
        sizes = {path.relative_to(self.folder).as_posix(): path.stat().st_size for path in files}
        self._places[key] = (Path(self._file.name), self._file.tell())
        self._file.write(record_line({"image": key, "files": sizes, **content}))
        self._file.flush()

    def gather(self) -> None:
        """Bring all records and their files to the main process's machine.

        Raises:
            EvaluationError: two processes have a record of one image, or two images a file of one name.
        """
        self.close()
        self._gather_lines()
        self._gather_files()

    def _gather_lines(self) -> None:
        received = gather_in_rounds((line for _, line in self._lines(self._places)), len)
        if not comm.is_main_process():
            for _ in received:
                pass
            return
        path = self._folder / _GATHERED
        with open_at_line_start(path) as file:
            for line in received:
                key = parse_checked(line)["image"]
                if key in self._places:
                    raise EvaluationError(f"two processes predicted image {key!r}")
                self._places[key] = (path, file.tell())
                file.write(line)

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
        contents = ((name, (self.folder / name).read_bytes()) for name in own)
        for name, content in gather_in_rounds(contents, lambda file: len(file[1])):
            with atomic_write(self.folder / name, "wb") as file:
                file.write(content)

    def read(self) -> Iterator[tuple[Key, dict[str, Any]]]:
        """The records that this process answers for (on the main one after `gather`: all), in the order of keys."""
        keys = sorted(self._places, key=lambda key: (isinstance(key, str), key))
        for key, line in self._lines(keys):
            yield key, parse_checked(line)

    def close(self) -> None:
        """Let go of the file that is written to."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _lines(self, keys: Iterable[Key]) -> Iterator[tuple[Key, bytes]]:
        opened: dict[Path, IO[bytes]] = {}
        try:
            for key in keys:
                path, position = self._places[key]
                file = opened.get(path) or opened.setdefault(path, open(path, "rb"))  # noqa: SIM115 - closed below
                file.seek(position)
                yield key, file.readline()
        finally:
            for file in opened.values():
                file.close()

    def _listed_files(self) -> Iterator[tuple[str, int]]:
        for _, record in self.read():
            yield from record["files"].items()

    def _has(self, name: str, size: int) -> bool:
        path = self.folder / name
        return path.is_file() and path.stat().st_size == size

    def _read_fingerprints(self) -> list[dict[str, Any]]:
        """One of each machine that wrote to the folder."""
        return [_read_or_empty(path) for path in self._folder.glob("fingerprint*.json")]

    def _clear(self, outputs: Sequence[str]) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        for name in outputs:
            path = self.folder / name
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def _scan(self) -> dict[Key, tuple[Path, int]]:
        """All complete records of the folder whose files are there."""
        places: dict[Key, tuple[Path, int]] = {}
        for path in sorted(self._folder.glob("*.jsonl")):
            with open(path, "rb") as file:
                position = 0
                for line in file:
                    record = parse_record(line)
                    if record is not None and all(self._has(*listed) for listed in record["files"].items()):
                        places.setdefault(record["image"], (path, position))
                    position += len(line)
        return places


def _read_or_empty(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> set[str]:
    return {key for key in {*before, *now} if before.get(key) != now.get(key)}
