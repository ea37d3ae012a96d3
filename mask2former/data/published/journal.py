"""The journal of a preparation, beside the data: JSON Lines, one per finished image.

A line has the image's `key`, what it was `made_from`, the `checksums` of the files made, and its `entry`, which is its
part of the annotation file. Lines are only added; the last one of an image counts.
"""

import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


def read_journal(path: Path) -> dict[str, dict[str, Any]]:
    """The last line of each image. A line that was cut off is left out."""
    if not path.exists():
        return {}
    with open(path, encoding="utf-8") as file:
        return {record["key"]: record for record in map(_parse, file) if record is not None}


def _parse(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


@contextmanager
def open_journal(path: Path) -> Generator[IO[str], None, None]:
    """Open a journal to add lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        if file.tell():
            # Ends a line that was cut off.
            file.write("\n")
        yield file
