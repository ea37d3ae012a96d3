"""Predictions of a video's frames on disk, so that an interrupted run goes on where it ended."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mask2former.utils.journal import open_at_line_start, parse_checked, parse_record, record_line

if TYPE_CHECKING:
    from typing_extensions import Self


class FrameJournal:
    """A file with a checksummed line of JSON for each finished frame; a context that closes it.

    Attributes:
        kept: frames that it held when it was opened.
    """

    def __init__(self, path: Path, fingerprint: Mapping[str, Any]):
        """Open or begin a journal.

        Args:
            path: the file.
            fingerprint: what predictions depend on, JSON-ready; a journal with another one is begun anew.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._places = _scan(path, fingerprint)
        self.kept = len(self._places)
        if not self._places:
            path.write_bytes(record_line({"fingerprint": fingerprint}))
        self._file = open_at_line_start(path)

    def __enter__(self) -> "Self":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __contains__(self, frame: int) -> bool:
        return frame in self._places

    def get(self, frame: int) -> list[dict[str, Any]]:
        """The segments of a frame."""
        self._file.seek(self._places[frame])
        return parse_checked(self._file.readline())["segments"]

    def add(self, frame: int, segments: Sequence[Mapping[str, Any]]) -> None:
        """Keep a frame's segments, JSON-ready."""
        self._file.seek(0, 2)
        self._places[frame] = self._file.tell()
        self._file.write(record_line({"frame": frame, "segments": segments}))
        self._file.flush()


def _scan(path: Path, fingerprint: Mapping[str, Any]) -> dict[int, int]:
    """Where each frame's line begins, in a journal of this fingerprint."""
    if not path.is_file():
        return {}
    places: dict[int, int] = {}
    with open(path, "rb") as file:
        if parse_record(file.readline()) != {"fingerprint": fingerprint}:
            return {}
        position = file.tell()
        for line in file:
            record = parse_record(line)
            if record is not None:
                places[record["frame"]] = position
            position += len(line)
    return places
