"""Files that are either complete or absent: written beside their place, then renamed into it; and their checksums."""

import hashlib
import json
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def atomic_write(path: str | Path, mode: str = "w", *, durable: bool = False) -> Generator[IO[Any], None, None]:
    """Open a file for writing whose content appears under `path` only when the block ends without an error.

    The temporary file has one fixed name per target, so that what a killed process left is overwritten by the next
    attempt. Folders are made where they are missing.

    Args:
        path: the file to make or replace.
        mode: "w" or "wb".
        durable: also flush to the disk, for what must survive a power failure.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: str | Path, content: Any, *, indent: int | None = None) -> None:
    """Write `content` as strict JSON (no NaN or infinity).

    Raises:
        ValueError: `content` holds a number that JSON does not have.
    """
    text = json.dumps(content, indent=indent, allow_nan=False)
    with atomic_write(path) as file:
        file.write(text)


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file's content, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
