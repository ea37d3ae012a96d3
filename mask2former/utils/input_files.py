"""Image files as inputs of a command: which files its arguments name, and names for the results.

This file imports nothing of this project, so that it can be copied: tools/onnx_infer.py loads it by its path.
"""

import glob
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

# Bytes of the name of an input in the names of its results.
_LONGEST_NAME = 200
# Endings of the files that a folder stands for; any file that Pillow reads can be named by itself.
IMAGE_ENDINGS = frozenset(
    {".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".mpo", ".pgm", ".png", ".pnm", ".ppm"}
    | {".tif", ".tiff", ".webp"}
)


def find_images(inputs: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Find the images that files, folders and globs name.

    Args:
        inputs: Paths. A folder stands for the image files directly in it; text that is no file or folder is a glob, in
            which `**` recurses.

    Returns:
        The images, each once, and the inputs that name none, with the reason if the system gives one.
    """
    found: dict[tuple[str, str], Path] = {}
    empty = []
    for text in inputs:
        files = _named_by(Path(os.path.expanduser(text)))
        if isinstance(files, str) or not files:
            empty.append(f"{text} ({files})" if files else text)
        else:
            for file in files:
                # `**` follows links; one that leads to a folder above it gives each image many paths.
                found.setdefault((os.path.realpath(file.parent), file.name), file)
    return list(found.values()), empty


def _named_by(path: Path) -> list[Path] | str:
    """The images that a path names, or the reason why the system can't say."""
    try:
        if path.is_dir():
            return sorted(file for file in path.iterdir() if file.is_file() and file.suffix.lower() in IMAGE_ENDINGS)
        if path.exists():
            return [path]
        return sorted(Path(match) for match in glob.glob(str(path), recursive=True) if Path(match).is_file())
    except OSError as error:
        return error.strerror or str(error)


def output_stems(inputs: Sequence[Path], output: Path, task: str, parts: Sequence[str] = ("",)) -> list[Path]:
    """Choose paths for the results of files, such that all differ and none overwrites an input.

    Names that differ only in case count as equal, because they are one file on some systems.

    Args:
        inputs: Input files; several may have one name.
        output: Folder for the results.
        task: Task of the results, a part of their names.
        parts: Texts that follow the path in the names of the results, before the ending.

    Returns:
        Path of each file's results, without an ending.
    """
    taken = {_key(path.with_suffix("")) for path in inputs}
    stems = []
    for path in inputs:
        name = f"{_shortened(path.stem)}_{task}"
        stem, number = output / name, 1
        while taken & (keys := {_key(stem.with_name(f"{stem.name}{part}")) for part in parts}):
            number += 1
            stem = output / f"{name}_{number}"
        taken |= keys
        stems.append(stem)
    return stems


def _key(path: Path) -> str:
    # Not Path.resolve(), which fails for a link that leads to itself.
    return os.path.realpath(path).casefold()


def _shortened(name: str) -> str:
    """A name that leaves room for what is added to it: file systems allow 255 bytes. Long ones end with a checksum."""
    encoded = os.fsencode(name)
    if len(encoded) <= _LONGEST_NAME:
        return name
    kept = encoded[: _LONGEST_NAME - 9].decode("utf-8", "ignore")
    return f"{kept}~{hashlib.sha256(encoded).hexdigest()[:8]}"
