"""Image files as inputs of a command: which files folders and arguments name, and names for the results.

This file imports nothing of this project, so that it can be copied: tools/onnx_infer.py loads it by its path.
"""

import fnmatch
import glob
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
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
    real = lru_cache(os.path.realpath)
    for text in inputs:
        files = _named_by(Path(os.path.expanduser(text)))
        if isinstance(files, str) or not files:
            empty.append(f"{text} ({files})" if files else text)
        else:
            for file in files:
                # `**` follows links; one that leads to a folder above it gives each image many paths.
                found.setdefault((real(file.parent), file.name), file)
    return list(found.values()), empty


def _named_by(path: Path) -> list[Path] | str:
    """The images that a path names, or the reason why the system can't say."""
    try:
        if path.is_dir():
            return _images_in(path)
        if path.exists():
            return [path]
        return sorted(match for match in _glob(path) if match.is_file())
    except OSError as error:
        return error.strerror or str(error)


def first_found_again(inputs: Sequence[str], files: Iterable[Path]) -> Path | None:
    """Find the first of several image files that `find_images` would also find once it exists.

    A later run with the same inputs would take such a result of the first run for an image.

    Args:
        inputs: Paths as for `find_images`. Those of files that exist stand for these files only.
        files: Image files; they need not exist.
    """
    named = [Path(os.path.expanduser(text)) for text in inputs]
    folders = {os.path.realpath(path) for path in named if path.is_dir()}
    globs = [Path(os.path.abspath(path)).parts for path in named if not path.exists()]
    real = lru_cache(os.path.realpath)
    for file in files:
        parts = Path(os.path.abspath(file)).parts if globs else ()
        if real(file.parent) in folders or any(_matches(parts, pattern) for pattern in globs):
            return file
    return None


def _images_in(folder: Path) -> list[Path]:
    """The image files directly in a folder, sorted. The system is not asked about each file, unless it is a link."""
    with os.scandir(folder) as entries:
        named = (entry for entry in entries if os.path.splitext(entry.name)[1].lower() in IMAGE_ENDINGS)
        files = (each.name for each in named if (os.path.isfile(each) if each.is_symlink() else each.is_file()))
        return [folder / name for name in sorted(files)]


def _glob(pattern: Path) -> Iterator[Path]:
    """Paths that match a pattern; `**` enters each folder once, so links that lead into themselves end."""
    if "**" not in pattern.parts:
        yield from map(Path, glob.glob(str(pattern)))
        return
    place = pattern.parts.index("**")
    head, tail = Path(*pattern.parts[:place]), pattern.parts[place:]
    for folder in map(Path, glob.glob(str(head))):
        yield from (file for file in files_below(folder) if _matches(file.relative_to(folder).parts, tail))


def _matches(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    """Whether the parts of a path match those of a pattern; as in a shell, wildcards match no hidden names."""
    if not patterns:
        return not parts
    first, *rest = patterns
    if first == "**":
        hidden = next((i for i, part in enumerate(parts) if part.startswith(".")), len(parts))
        return any(_matches(parts[i:], rest) for i in range(hidden + 1))
    if not parts or (parts[0].startswith(".") and not first.startswith(".")):
        return False
    return fnmatch.fnmatchcase(parts[0], first) and _matches(parts[1:], rest)


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
    # Of folders, of which there are few. Not Path.resolve(), which fails for a link that leads to itself.
    real = lru_cache(os.path.realpath)

    def key(path: Path) -> tuple[str, str]:
        return real(path.parent).casefold(), path.name.casefold()

    taken = {key(path.with_suffix("")) for path in inputs}
    numbers: dict[str, int] = {}  # the last one by name, since as many inputs as there are may have one name
    stems = []
    for path in inputs:
        name = f"{_shortened(path.stem)}_{task}"
        number = numbers.get(name, 1)
        stem = output / (name if number == 1 else f"{name}_{number}")
        while taken & (keys := {key(stem.with_name(f"{stem.name}{part}")) for part in parts}):
            number += 1
            stem = output / f"{name}_{number}"
        numbers[name] = number
        taken |= keys
        stems.append(stem)
    return stems


def _shortened(name: str) -> str:
    """A name that leaves room for what is added to it: file systems allow 255 bytes. Long ones end with a checksum."""
    encoded = os.fsencode(name)
    if len(encoded) <= _LONGEST_NAME:
        return name
    kept = encoded[: _LONGEST_NAME - 9].decode("utf-8", "ignore")
    return f"{kept}~{hashlib.sha256(encoded).hexdigest()[:8]}"
