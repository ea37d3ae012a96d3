"""Journals: files of finished work, from which an interrupted run continues."""

import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from dinat_common.files import AppendedFile, atomic_write

if TYPE_CHECKING:
    from typing_extensions import Self

Key = int | str


class Journal(Mapping[Key, Any]):
    """A mapping from keys to records in a file that survives the process that wrote it.

    The first line of the file is the fingerprint of the work; every other line is a key with its record, as JSON after
    a checksum. Lines that a killed process or a failing disk left incomplete are skipped. Records are read from the
    file when they are asked for, so that memory holds only the keys. The file is created by the first `add`.

    Attributes:
        path: The file.
        kept: Number of records that an earlier run left.
        differing: Names of the entries in which the fingerprint differs from the one in the file, sorted. If there are
            any, the records in the file are ignored, and the next `add` replaces the file.

    Example::

        with Journal(folder / "done.jsonl", {"model": digest}) as journal:
            for name in names:
                if name not in journal:
                    journal.add(name, work(name))
    """

    def __init__(self, path: Path, fingerprint: Mapping[str, Any]):
        """Read which records the file has.

        Args:
            path: The file; it need not exist.
            fingerprint: Everything that the records depend on; must be serializable as JSON.
        """
        self.path = path
        self.differing: list[str] = []
        self._header = {"fingerprint": json.loads(json.dumps(fingerprint))}
        self._places: dict[Key, int] = {}  # positions of the lines in the file
        self._file: IO[bytes] | None = None  # for reading
        self._end: AppendedFile | None = None
        if path.is_file() and path.stat().st_size:
            self._scan()
        self.kept = len(self)

    def add(self, key: Key, record: Any) -> None:
        """Append a record, which replaces an earlier one of this key.

        Args:
            key: Name or number of the finished work.
            record: Its result; must be serializable as JSON without NaN and infinity.

        Raises:
            WriteError: The file can't be written; earlier records are kept.
        """
        line = _encode([key, record])
        if self._end is None:
            self._end = self._open_end()
        self._places[key] = self._end.add(line)

    def close(self) -> None:
        """Close the file. The journal opens it again when it needs it."""
        for file in (self._file, self._end):
            if file is not None:
                file.close()
        self._file = self._end = None

    def __getitem__(self, key: Key) -> Any:
        position = self._places[key]
        if self._file is None:
            self._file = open(self.path, "rb")  # noqa: SIM115 - `close` closes it
        self._file.seek(position)
        return json.loads(self._file.readline()[9:])[1]

    def __iter__(self) -> Iterator[Key]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __enter__(self) -> "Self":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _scan(self) -> None:
        with open(self.path, "rb") as file:
            header = _decode(file.readline())
            before = header.get("fingerprint", {}) if isinstance(header, dict) else {}
            now = self._header["fingerprint"]
            self.differing = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
            if header != self._header:
                return
            position = file.tell()
            for line in file:
                if entry := _decode(line):
                    self._places[entry[0]] = position
                position += len(line)

    def _open_end(self) -> AppendedFile:
        """Open the file for further lines. A file without records begins anew."""
        if not self._places:
            with atomic_write(self.path, "wb") as file:
                file.write(_encode(self._header))
            return AppendedFile(self.path)
        with open(self.path, "rb") as file:
            file.seek(-1, 2)
            cut_off = file.read(1) != b"\n"
        end = AppendedFile(self.path)
        if cut_off:
            end.add(b"\n")
        return end


def _encode(content: Any) -> bytes:
    text = json.dumps(content, allow_nan=False).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _decode(line: bytes) -> Any:
    """Content of a line; None if the line is damaged or incomplete."""
    text = line[9:-1]
    return json.loads(text) if line == b"%08x %s\n" % (zlib.crc32(text), text) else None
