"""Lines of JSON after their checksums, so that one which was cut off or damaged is not taken for a record."""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any


def record_line(record: Mapping[str, Any]) -> bytes:
    """The line of a record, which JSON can hold (no NaN or infinity)."""
    text = json.dumps(record, allow_nan=False).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def parse_record(line: bytes) -> dict[str, Any] | None:
    """The record of a line; None if the line is not complete."""
    text = line[9:-1]
    return parse_checked(line) if line == b"%08x %s\n" % (zlib.crc32(text), text) else None


def parse_checked(line: bytes) -> dict[str, Any]:
    """The record of a line that is known to be complete."""
    return json.loads(line[9:])


def open_at_line_start(path: Path) -> IO[bytes]:
    """Open a file to append lines to; what a killed process left of a line stays a line of its own."""
    file = open(path, "ab+")  # noqa: SIM115 - closed by the caller
    if file.tell():
        file.seek(-1, 2)
        if file.read(1) != b"\n":
            file.write(b"\n")
    return file
