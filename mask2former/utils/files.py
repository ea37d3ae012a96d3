"""Files that are either complete or absent: written under a temporary name, then renamed. Text files and checksums."""

import hashlib
import json
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from mask2former.utils.errors import UserError


class TextFileError(UserError):
    """A file that is not text in UTF-8. The message names the file and the first byte that does not fit."""


@contextmanager
def atomic_write(path: str | Path, mode: str = "w", *, durable: bool = False) -> Generator[IO[Any], None, None]:
    """Open a file for writing whose content appears under `path` only when the block ends without an error.

    The temporary file has a fixed name per target, so the next attempt overwrites what a killed process left. Missing
    folders are created.

    Args:
        path: File to create or replace.
        mode: "w" or "wb".
        durable: Whether the file is flushed to the disk, to survive a power failure.
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


def read_text(path: str | Path) -> str:
    """Read a text file in UTF-8. A byte order mark, which Windows editors write, is left out.

    Raises:
        TextFileError: The file has another encoding.
        OSError: The file can't be read.
    """
    content = Path(path).read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TextFileError(
            f"{path}: not a text file in UTF-8 (byte {error.start} is {content[error.start]:#04x}); save it as UTF-8"
        ) from error


def files_below(folder: str | Path) -> list[Path]:
    """Files in a folder and its subfolders, sorted by path. Links to folders are followed, but no folder counts twice.

    A link to a folder that is also reached without links is left out, so links that lead into themselves end.
    """
    found: list[Path] = []
    seen: set[str] = set()
    links = [Path(folder)]
    while links:
        later = []
        for link in links:
            if os.path.realpath(link) in seen:
                continue
            for parent, folders, names in os.walk(link):
                real = os.path.realpath(parent)
                if real in seen:
                    folders.clear()
                    continue
                seen.add(real)
                found += [Path(parent, name) for name in names]
                # `os.walk` lists links to folders, but does not enter them.
                later += [path for name in sorted(folders) if (path := Path(parent, name)).is_symlink()]
        links = later
    return sorted(found)


def user_path(path: str | Path) -> Path:
    """Path that a user gave, with `~` for the home folder, which shells leave as it is after an equals sign."""
    return Path(os.path.expanduser(path))


def write_json(path: str | Path, content: Any, *, indent: int | None = None) -> None:
    """Write `content` as strict JSON (no NaN or infinity).

    Raises:
        ValueError: `content` contains NaN or infinity.
    """
    text = json.dumps(content, indent=indent, allow_nan=False)
    with atomic_write(path) as file:
        file.write(text)


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file's content, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
