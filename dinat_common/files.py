"""Files that are either complete or absent: written under a temporary name, then renamed. Text files and checksums."""

import errno
import hashlib
import io
import json
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from dinat_common.errors import UserError

# Bytes of the longest name on common file systems.
_LONGEST_NAME = 255
_PROBE = bytes(4096)
_ATTEMPTS = 20  # of a check, while other processes check the same folder
# Errors whose reason may be something on the way to the file.
_IN_THE_WAY = (errno.EEXIST, errno.ENOTDIR, errno.ENOENT, errno.ELOOP)


class TextFileError(UserError):
    """A file that is not text in UTF-8. The message names the file and the first byte that does not fit."""


class WriteError(OSError, UserError):
    """A file or folder that can't be written. The message names it and the reason.

    The arguments are those of `OSError`: error number, reason, path.
    """

    def __str__(self) -> str:
        """Return the message."""
        if self.filename is None:
            return super().__str__()
        return f"{self.filename}: can't be written: {self.strerror}"

    @property
    def disk_is_full(self) -> bool:
        """Whether other files can't be written either until there is space."""
        return self.errno in (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def writing(path: str | Path) -> Generator[None, None, None]:
    """Turn an `OSError` of the block, which writes `path`, into a `WriteError`.

    For writers of other packages: the system names no file when a disk is full.

    Raises:
        WriteError: The block raised an `OSError`.
    """
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        raise _write_error(Path(path), error) from error


@contextmanager
def writing_in(folder: str | Path) -> Generator[None, None, None]:
    """Turn an `OSError` of the block that names no file into a `WriteError` of `folder`.

    For work that reads many files and writes all of its own below one folder.

    Raises:
        WriteError: The block raised such an error.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, WriteError | ConnectionError) or error.filename is not None or error.errno is None:
            raise
        raise _write_error(Path(folder), error) from error


def _write_error(path: Path, error: OSError) -> WriteError:
    reason = _in_the_way(path) if error.errno in _IN_THE_WAY else ""
    return WriteError(error.errno or errno.EIO, reason or error.strerror or str(error), str(path))


def _in_the_way(path: Path) -> str:
    """What prevents a file or folder from being created, in words; empty if nothing does."""
    for place in (*reversed(path.parents), path):
        with suppress(OSError):
            if place.is_symlink() and not place.exists():
                return f"{place} is a link to {os.readlink(place)}, which does not exist"
            if place != path and place.exists() and not place.is_dir():
                return f"{place} is a file, expected a folder"
    return ""


def make_folder(folder: str | Path) -> None:
    """Create a folder and its parents unless they exist.

    Raises:
        WriteError: It can't be created, for example because a file has its name.
    """
    folder = Path(folder)
    with writing(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            if not folder.is_file():
                raise
            raise WriteError(errno.EEXIST, "it is a file, expected a folder", str(folder)) from error


def check_folder(folder: str | Path, size: int = 0) -> None:
    """Check before a long computation that its results can be written. Nothing is left behind.

    Several processes may check the same folder at a time; an empty folder may then stay.

    Args:
        folder: Folder of the results; it need not exist.
        size: Number of bytes that the results need at least.

    Raises:
        WriteError: No file can be written there, or the disk has less space.
    """
    _check(Path(folder, "probe"), size, Path(folder))


def check_file(path: str | Path, size: int = 0) -> None:
    """Check before a long computation that its result can be written. Nothing is left behind.

    Args:
        path: File of the result; it need not exist.
        size: Number of bytes that the file needs at least.

    Raises:
        WriteError: The file can't be written, or the disk has less space.
    """
    _check(Path(path), size, Path(path))


def _check(path: Path, size: int, named: Path, attempts: int = _ATTEMPTS) -> None:
    try:
        _check_once(path, size, named)
    except WriteError as error:
        if error.errno not in (errno.ENOENT, errno.EEXIST) or attempts == 1:
            raise
        # Another process that checks the same new folder may have removed it again.
        _check(path, size, named, attempts - 1)


def _check_once(path: Path, size: int, named: Path) -> None:
    made = [folder for folder in path.parents if not os.path.lexists(folder)]
    temporary = _temporary(path)
    try:
        make_folder(path.parent)
        _refuse_folder(path)
        try:
            with _File(temporary, named) as file, writing(named):
                file.write(_PROBE)
                free = shutil.disk_usage(path.parent).free
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        # Some network file systems report 0.
        if 0 < free < size:
            reason = f"{size / 1e6:.1f} MB are needed, {free / 1e6:.1f} MB are free"
            raise WriteError(errno.ENOSPC, reason, str(named))
    finally:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()


def _temporary(path: Path) -> Path:
    """The name of a file until it is complete: the same for every attempt."""
    name = f".{path.name}.tmp"
    if len(os.fsencode(path.name)) <= _LONGEST_NAME < len(os.fsencode(name)):
        name = f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()}.tmp"
    return path.with_name(name)


def _refuse_folder(path: Path) -> None:
    with writing(path):
        if path.is_dir():
            raise WriteError(errno.EISDIR, "it is a folder, expected a file", str(path))


class _File(io.FileIO):
    """A file for writing without a buffer, whose errors are `WriteError`s.

    Libraries that get an exception from `write` may raise another one, or none: `failure` keeps the first.
    """

    def __init__(self, place: Path, named: Path, mode: str = "wb"):
        """Open `place`; errors name the path `named`."""
        with writing(named):
            super().__init__(place, mode)
        self._named = named
        self.failure: WriteError | None = None

    def write(self, content: Any) -> int:
        """Write, and return the number of bytes."""
        try:
            return super().write(content)
        except OSError as error:
            raise self._failed(error) from error

    def sync(self) -> None:
        """Wait until the content is on the disk."""
        try:
            os.fsync(super().fileno())
        except OSError as error:
            raise self._failed(error) from error

    def fileno(self) -> int:
        """Refuse: libraries that write to the descriptor report errors without their reason."""
        raise io.UnsupportedOperation("use write")

    def _failed(self, error: OSError) -> WriteError:
        self.failure = self.failure or _write_error(self._named, error)
        return self.failure


@contextmanager
def atomic_write(path: str | Path, mode: str = "w", *, durable: bool = False) -> Generator[IO[Any], None, None]:
    """Open a file for writing whose content appears under `path` only when the block ends without an error.

    The temporary file has a fixed name per target, so the next attempt overwrites what a killed process left. Missing
    folders are created. An error of the block that follows from a failed write is replaced by the `WriteError`.

    Args:
        path: File to create or replace.
        mode: "w" or "wb".
        durable: Whether the file is flushed to the disk, to survive a power failure.

    Raises:
        WriteError: The file can't be written; one that existed before is unchanged.
    """
    path = Path(path)
    make_folder(path.parent)
    _refuse_folder(path)
    temporary = _temporary(path)
    raw = _File(temporary, path)
    try:
        file: IO[Any] = io.BufferedWriter(raw)
        with file if "b" in mode else io.TextIOWrapper(file, encoding="utf-8") as opened:
            yield opened
            opened.flush()
            if durable:
                raw.sync()
        if raw.failure is not None:
            raise raw.failure
        with writing(path):
            os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, Exception) and raw.failure is not None and error is not raw.failure:
            raise raw.failure from error
        raise


class AppendedFile:
    """A file that grows by whole pieces: each is added completely or not at all.

    Attributes:
        path: The file.
    """

    def __init__(self, path: str | Path):
        """Open the file, which is created if it does not exist.

        Raises:
            WriteError: It can't be opened.
        """
        self.path = Path(path)
        make_folder(self.path.parent)
        self._file = _File(self.path, self.path, "ab")

    def add(self, content: bytes) -> int:
        """Write at the end, and return the position where `content` begins.

        Raises:
            WriteError: It can't be written; the file has its former length.
        """
        end = self._file.seek(0, os.SEEK_END)
        rest = memoryview(content)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except WriteError:
            with suppress(OSError):
                self._file.truncate(end)
            raise
        return end

    def close(self) -> None:
        """Close the file."""
        self._file.close()


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
