"""What can prevent a file from being written: things in the way of a folder, and a disk that is full."""

import errno
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dinat_common import files

# A disk has its reason from the system, so that tests need no root.
FULL = "No space left on device"


def _file(folder: Path) -> None:
    folder.write_text("precious")


def _parent_is_file(folder: Path) -> None:
    folder.parent.parent.mkdir(parents=True, exist_ok=True)
    folder.parent.rmdir()
    folder.parent.write_text("precious")


def _dangling(folder: Path) -> None:
    folder.symlink_to("nowhere")


def _parent_dangling(folder: Path) -> None:
    folder.parent.rmdir()
    folder.parent.symlink_to("nowhere")


def _circle(folder: Path) -> None:
    folder.symlink_to(folder.name)


# Name -> what makes an output folder impossible, given its path; and the reason that the message gives.
OBSTACLES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a file": (_file, "is a file, expected a folder"),
    "a parent that is a file": (_parent_is_file, "is a file, expected a folder"),
    "a dangling link": (_dangling, "is a link to nowhere, which does not exist"),
    "a dangling parent": (_parent_dangling, "is a link to nowhere, which does not exist"),
    "a link to itself": (_circle, "is a link to"),
    "a name too long": (lambda folder: None, "File name too long"),
}


def blocked(obstacle: str, root: Path) -> tuple[Path, str]:
    """A folder below `root` that can't be created, and the reason."""
    make, reason = OBSTACLES[obstacle]
    folder = root / "outer" / ("x" * 300 if "long" in obstacle else "out")
    folder.parent.mkdir()
    make(folder)
    return folder, reason


@contextmanager
def full_disk(monkeypatch, free: int = 0) -> Iterator[None]:
    """Files that the project writes fail after `free` bytes in all, as on a full disk: without a file name."""
    left = free

    class Full(files._File):
        def write(self, content):
            nonlocal left
            size = memoryview(content).nbytes
            if content == files._PROBE:
                return super().write(content) if left else self._refuse()
            # As the system does: what fits is written first.
            part = memoryview(content).cast("B")[:left]
            if size and not part:
                return self._refuse()
            left -= len(part)
            return super().write(part)

        def _refuse(self):
            raise self._failed(OSError(errno.ENOSPC, FULL))

    with monkeypatch.context() as patch:
        patch.setattr(files, "_File", Full)
        yield


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """No file of this process, by whatever library, gets larger than `size` bytes; the reason is "File too large"."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def content(folder: Path) -> dict[str, bytes]:
    """Paths below a folder, including hidden ones, with what the files hold."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}
