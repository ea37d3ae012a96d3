"""Data sets of whole images with one class each: a folder for each class, as ImageNet has.

Class ids number the folders in the order of their names. Only names are read, no image is opened: the list of the 1.28
million training images of ImageNet takes seconds and 35 MB.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data.catalog import Metadata
from torch.utils.data import Dataset

from dinat_common.files import read_text
from mask2former.data.datasets.coco_json import AnnotationError
from mask2former.data.datasets.registry import DatasetDict, datasets_root, register_dataset
from mask2former.tasks import TASKS
from mask2former.utils.input_files import IMAGE_ENDINGS
from mask2former.utils.parallel import default_workers

_ENDINGS = tuple(sorted(IMAGE_ENDINGS))


class ClassImages(Dataset[DatasetDict]):
    """The images of class folders, as Detectron2's dicts, which are made when they are asked for.

    A dict has `file_name`, `image_id` (folder and file name) and `label`, the class id. Names are kept as bytes in one
    piece of memory, which worker processes share.
    """

    def __init__(self, root: str | Path, folders: Sequence[str], names: Sequence[Sequence[str]]):
        """Pack the names.

        Args:
            root: Folder of the class folders.
            folders: Names of the class folders in the order of the class ids.
            names: File names in each of them.
        """
        encoded = [os.fsencode(name) for of_class in names for name in of_class]
        self._root = str(root)
        self._folders = tuple(folders)
        self._names = np.frombuffer(b"".join(encoded), np.uint8)
        self._ends = np.fromiter(accumulate(map(len, encoded)), np.int64, len(encoded))
        self._classes = np.repeat(np.arange(len(folders), dtype=np.int32), [len(of_class) for of_class in names])

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> DatasetDict:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        start = int(self._ends[index - 1]) if index else 0
        name = os.fsdecode(self._names[start : int(self._ends[index])].tobytes())
        label = int(self._classes[index])
        image_id = f"{self._folders[label]}/{name}"
        return {"file_name": f"{self._root}/{image_id}", "image_id": image_id, "label": label}

    def counts(self) -> list[int]:
        """Number of images of each class."""
        return np.bincount(self._classes, minlength=len(self._folders)).tolist()


def register_class_folders(
    name: str, root: str, classes: Sequence[str], *, source: str, like: str | None = None, **entries: Any
) -> None:
    """Register a data set of class folders.

    Args:
        name: Name of the data set in configs.
        root: Folder of the class folders, relative to `datasets_root()`.
        classes: Names of the classes in the order of the names of their folders.
        source: Description of where to get the data, for the message about missing files.
        like: Folder, relative to `datasets_root()`, whose class folders have to be the same if it exists.
        **entries: Other metadata entries.
    """
    register_dataset(
        name,
        partial(_load_published, like),
        paths={"image_root": root},
        source=source,
        evaluator_type=TASKS["classification"].evaluator_type,
        image_classes=list(classes),
        **entries,
    )


def _load_published(like: str | None, metadata: Metadata) -> ClassImages:
    root, count = Path(metadata.image_root), len(metadata.image_classes)
    folders = class_folders(root)
    other = None if like is None else datasets_root() / like
    if other is not None and other.is_dir() and (expected := class_folders(other)):
        _require_same(root, folders, expected, f"{other} has")
    if len(folders) != count:
        raise AnnotationError(
            f"{root}: {len(folders)} class folders, data set {metadata.name} has {count} classes; describe another "
            "choice of classes in DATASETS.CUSTOM (format class_folders)"
        )
    return read_class_folders(root, folders)


def class_folders(root: str | Path) -> tuple[str, ...]:
    """Names of the class folders in a folder, sorted; hidden ones (with a dot at the beginning) do not count.

    Raises:
        AnnotationError: There is a file beside the folders.
    """
    names = []
    with os.scandir(root) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if not entry.is_dir():
                raise AnnotationError(
                    f"{entry.path}: a file beside the class folders; expected one folder for each class, with its "
                    "images, and nothing else"
                )
            names.append(entry.name)
    return tuple(sorted(names))


def read_class_folders(root: str | Path, folders: Sequence[str], files: str | Path | None = None) -> ClassImages:
    """List the images in the folders of all classes.

    Args:
        root: Folder of the class folders.
        folders: Names of the class folders in the order of the class ids; no others may exist.
        files: Text file with the images to use, a line such as `cat/0001.jpg` for each; None for all.

    Raises:
        AnnotationError: Folders differ from `folders`, a class has no image, something else lies in a class folder, or
            `files` names an image that does not exist.
    """
    root = Path(root)
    _require_same(root, class_folders(root), folders, "the list of classes has")
    with ThreadPoolExecutor(default_workers()) as executor:
        names = list(executor.map(lambda folder: _images_in(root / folder), folders))
    if files is not None:
        names = _listed(root, Path(files), folders, names)
    for folder, of_class in zip(folders, names, strict=True):
        if not of_class and files is None:
            raise AnnotationError(f"{root / folder}: no image of this class")
    return ClassImages(root, folders, names)


def _require_same(root: Path, found: Sequence[str], expected: Sequence[str], reason: str) -> None:
    """Check that class folders have the expected names."""
    if lacking := sorted(set(expected) - set(found)):
        raise AnnotationError(f"{root}: no class folder {lacking[0]!r}, which {reason}{_more(lacking)}")
    if extra := sorted(set(found) - set(expected)):
        raise AnnotationError(f"{root}: class folder {extra[0]!r} is not one that {reason}{_more(extra)}")


def _more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _images_in(folder: Path) -> list[str]:
    names = []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            # Nothing is asked of the file system for each image.
            if name.lower().endswith(_ENDINGS):
                names.append(name)
            elif not name.startswith("."):
                kind = "a folder" if entry.is_dir() else "not an image"
                raise AnnotationError(
                    f"{entry.path}: {kind}; class folders contain images ({', '.join(_ENDINGS)}) and nothing else"
                )
    return sorted(name for name in names if not name.startswith("."))


def _listed(root: Path, files: Path, folders: Sequence[str], names: Sequence[Sequence[str]]) -> list[list[str]]:
    """The images of each class that a text file lists."""
    known = [frozenset(of_class) for of_class in names]
    index = {folder: i for i, folder in enumerate(folders)}
    chosen: list[dict[str, None]] = [{} for _ in folders]
    for line in _lines(files):
        folder, _, name = line.replace("\\", "/").rpartition("/")
        place = index.get(folder)
        if place is None or name not in known[place]:
            raise AnnotationError(f"{files}: no image {line} in {root}; expected lines such as {folders[0]}/0001.jpg")
        chosen[place][name] = None
    return [sorted(of_class) for of_class in chosen]


def _lines(path: Path) -> Iterator[str]:
    return (line for line in map(str.strip, read_text(path).splitlines()) if line and not line.startswith("#"))
