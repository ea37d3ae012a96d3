"""Read COCO's instances and panoptic JSON: one reader for inspection, training and evaluation.

Only entries that a target or a metric needs are read. Their values become what they mean (see
`mask2former.data.values`), or an `AnnotationError` names the file, the entry, the value and its type. Everything else,
such as licences, dates, supercategories, scores and key points, may have any value.
"""

import json
import logging
import os
import re
import unicodedata
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dinat_common.errors import UserError
from dinat_common.files import TextFileError, read_text
from mask2former.data import values
from mask2former.data.values import described
from mask2former.utils.journal import Key

_LOG = logging.getLogger(__name__)

Entry = dict[str, Any]
# Ids of panoptic PNGs have 24 bits.
_LARGEST_ID = (1 << 24) - 1
# Takes a description of a value that is left out.
Note = Callable[[str], None]


class AnnotationError(UserError):
    """Annotations that are damaged or do not fit their images or classes; the message names the file."""


@contextmanager
def errors_name(json_file: str) -> Generator[None, None, None]:
    """Turn errors raised while reading an annotation file into `AnnotationError`s that name the file."""
    try:
        yield
    except TextFileError as error:
        raise AnnotationError(str(error)) from error
    except json.JSONDecodeError as error:
        raise AnnotationError(f"{json_file}: not valid JSON ({error})") from error
    except KeyError as error:
        what = "a category id that the data set does not have" if isinstance(error.args[0], int) else "no key"
        raise AnnotationError(f"{json_file}: has {what}: {error}") from error
    except (AssertionError, TypeError) as error:
        raise AnnotationError(
            f"{json_file}: does not fit the other files of the data set or is not in COCO's format: {error}"
        ) from error


def read_json(path: str | Path) -> dict[str, Any]:
    """Content of an annotation file, a JSON object.

    Raises:
        AnnotationError: The file is not a JSON object.
    """
    with errors_name(str(path)):
        content = json.loads(read_text(path))
    if not isinstance(content, dict):
        raise AnnotationError(f"{path}: expected COCO's format, an object with images, annotations and categories")
    return content


def entries(content: Mapping[str, Any], key: str, path: str | Path) -> list[Any]:
    """A list of a COCO file.

    Raises:
        AnnotationError: The file has no such list.
    """
    found = content.get(key)
    if not isinstance(found, list):
        what = f"{key} is {described(found)}" if key in content else f"has no key {key!r}"
        raise AnnotationError(f"{path}: not COCO's format: {what}, expected a list")
    return found


def read_images(content: Mapping[str, Any], path: str | Path) -> list[Entry]:
    """Read `images`.

    Returns:
        Dicts with `id`, `file_name`, and `height` and `width` unless the file has no sizes.

    Raises:
        AnnotationError: An entry has no id or file name, or a size that is none.
    """
    read = []
    for index, entry in enumerate(entries(content, "images", path)):
        where = f"{path}: images[{index}]"
        identity = _needed(values.key, _mapping(entry, where), "id", where, "a whole number or text")
        file_name = entry.get("file_name")
        if not isinstance(file_name, str) or not file_name.strip():
            raise AnnotationError(f"{where}: file_name is {described(file_name)}, expected a path")
        image = {"id": identity, "file_name": file_name}
        if entry.get("height") is not None and entry.get("width") is not None:
            for side in ("height", "width"):
                image[side] = _needed(values.whole_number, entry, side, where, "a whole number above 0", least=1)
        read.append(image)
    return read


class ImageIndex:
    """Finds the image that an annotation names, also if one of the two ids is text and the other a number."""

    def __init__(self, images: Iterable[Entry]):
        """Take the images of `read_images`."""
        self._images = {str(image["id"]): image for image in images}

    def find(self, entry: Mapping[str, Any], where: str) -> Entry | None:
        """The image of an annotation; None if the file has no such image.

        Raises:
            AnnotationError: The annotation has no image id.
        """
        named = _needed(values.key, entry, "image_id", where, "the id of an image")
        return self._images.get(str(named)) or self._images.get(str(values.whole_number(named)))


def read_annotation(entry: Any, index: int, path: str | Path, images: ImageIndex, note: Note | None = None) -> Entry:
    """Read an entry of `annotations` of an instances JSON.

    Args:
        entry: The entry.
        index: Position of the entry.
        path: The file.
        images: Images of the file.
        note: Function that takes descriptions of areas, boxes and flags that can't be used.

    Returns:
        A dict with `id` (the position in brackets if there is none), `image_id` (None if the file has no such image),
        `category_id`, `iscrowd`, `segmentation`, and `area` and `bbox` if they are valid.

    Raises:
        AnnotationError: The entry has no valid category, image or crowd flag.
    """
    where = f"{path}: annotations[{index}]"
    read = _read_segment(_mapping(entry, where), where, note)
    identity = values.key(entry.get("id"))
    read["id"] = f"[{index}]" if identity is None else identity
    image = images.find(entry, where)
    read["image_id"] = None if image is None else image["id"]
    read["segmentation"] = values.segmentation(entry.get("segmentation"))
    box = entry.get("bbox")
    numbers = [values.number(side) for side in box] if isinstance(box, list) else []
    if len(numbers) == 4 and None not in numbers:
        read["bbox"] = numbers
    elif box is not None and note:
        note(f"annotations[{index}]: bbox is {described(box)}")
    return read


def read_panoptic_annotation(
    entry: Any, index: int, path: str | Path, images: ImageIndex, note: Note | None = None
) -> Entry:
    """Read an entry of `annotations` of a panoptic JSON; see `read_annotation` for the arguments.

    Returns:
        A dict with `image_id`, `image` (see `read_images`; None if the file does not list it), `file_name` of the PNG
        (that of the image if there is none), and `segments_info`: dicts with `id`, `category_id`, `iscrowd`, and `area`
        if it is valid.

    Raises:
        AnnotationError: The entry lacks something, or a segment has no valid id, category or crowd flag.
    """
    where = f"{path}: annotations[{index}]"
    image = images.find(_mapping(entry, where), where)
    file_name = entry.get("file_name", image["file_name"] if image else None)
    if not isinstance(file_name, str) or not file_name.strip():
        raise AnnotationError(f"{where}: file_name is {described(file_name)}, expected the name of a PNG")
    listed = entry.get("segments_info")
    if not isinstance(listed, list):
        raise AnnotationError(f"{where}: segments_info is {described(listed)}, expected a list of segments")
    segments = []
    for number, segment in enumerate(listed):
        place = f"{where}: segments_info[{number}]"
        identity = _needed(values.whole_number, _mapping(segment, place), "id", place, "1 to 16777215", 1, _LARGEST_ID)
        segments.append({"id": identity, **_read_segment(segment, place, note)})
    identity = values.key(entry["image_id"]) if image is None else image["id"]
    return {"image_id": identity, "image": image, "file_name": file_name, "segments_info": segments}


def _read_segment(entry: Mapping[str, Any], where: str, note: Note | None) -> Entry:
    """Category, crowd flag and area. Segments that are to be ignored are crowds."""
    category = _needed(values.whole_number, entry, "category_id", where, "a whole number", least=0)
    crowd = entry.get("iscrowd") not in (None, "") and _needed(values.flag, entry, "iscrowd", where, "0 or 1")
    given = entry.get("ignore")
    ignored = values.flag(given)
    read = {"category_id": category, "iscrowd": int(bool(crowd or ignored))}
    area = values.number(entry.get("area"))
    if area is not None and area >= 0:
        read["area"] = area
    elif note and entry.get("area") is not None:
        note(f"{where}: area is {described(entry['area'])}")
    if note and given and ignored is None:
        note(f"{where}: ignore is {described(given)}")
    return read


def _mapping(entry: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(entry, Mapping):
        raise AnnotationError(f"{where}: found {described(entry)}, expected an object in braces")
    return entry


def _needed(
    read: Callable[[Any], Any],
    entry: Mapping[str, Any],
    key: str,
    where: str,
    expected: str,
    least: float | None = None,
    most: float | None = None,
) -> Any:
    found = read(entry.get(key))
    if found is None or (least is not None and found < least) or (most is not None and found > most):
        value = f"is {described(entry[key])}" if key in entry else "is missing"
        raise AnnotationError(f"{where}: {key} {value}, expected {expected}")
    return found


def read_instances(content: Mapping[str, Any], path: str | Path) -> tuple[list[Entry], dict[Key, list[Entry]]]:
    """Read the images and annotations of an instances JSON.

    Args:
        content: Content of the file.
        path: The file.

    Returns:
        The images of `read_images`, and the annotations of `read_annotation` by image.

    Raises:
        AnnotationError: The file is not in COCO's format.
    """
    images = read_images(content, path)
    index_of_images = ImageIndex(images)
    of_image: dict[Key, list[Entry]] = {image["id"]: [] for image in images}
    lost = 0
    for index, entry in enumerate(entries(content, "annotations", path)):
        annotation = read_annotation(entry, index, path, index_of_images)
        if annotation["image_id"] is None:
            lost += 1
        else:
            of_image[annotation["image_id"]].append(annotation)
    if lost:
        _LOG.warning("%s: %d annotations belong to no image of the file and are left out", path, lost)
    return images, of_image


def read_panoptic(content: Mapping[str, Any], path: str | Path) -> list[Entry]:
    """Read the annotations of a panoptic JSON; see `read_instances` and `read_panoptic_annotation`.

    Raises:
        AnnotationError: The file is not in COCO's format.
    """
    images = ImageIndex(read_images(content, path) if "images" in content else ())
    return [
        read_panoptic_annotation(entry, index, path, images)
        for index, entry in enumerate(entries(content, "annotations", path))
    ]


class FileFinder:
    r"""Finds the files that annotations name: in a folder, or by absolute paths, here or on another machine.

    Names with `\` are read as Windows writes them. If a file is not where its name says, the leading folders of the
    name are left out one by one until it is found.

    Attributes:
        folder: The folder.
    """

    def __init__(self, folder: str | Path, *, png: bool = False):
        """Set the folder; it is listed when the first file is looked for.

        Args:
            folder: The folder.
            png: Whether the files are PNGs. Names with another ending, such as that of the image, then mean the PNG.
        """
        self.folder = Path(folder)
        self._png = png
        self._listed: dict[str, dict[str, str]] = {}
        self._names: dict[str, tuple[str, bool]] = {}

    def __call__(self, name: str) -> Path:
        """The file of this name; the path as it is named if there is none.

        Raises:
            AnnotationError: Two different names lead to one file.
        """
        for path, shortened in self._candidates(name):
            folder, file = os.path.split(path)
            if (real := self._files(folder).get(unicodedata.normalize("NFC", file))) is not None:
                path = os.path.join(folder, real)
                other, other_shortened = self._names.setdefault(path, (name, shortened))
                if other != name and (shortened or other_shortened):
                    raise AnnotationError(
                        f"file names {other!r} and {name!r} both lead to {path}: put the files into the folders that "
                        "the annotations name"
                    )
                return Path(path)
        return self.folder / name

    def _candidates(self, name: str) -> Iterator[tuple[str, bool]]:
        """Paths to try, and whether folders of the name are left out."""
        stem, ending = os.path.splitext(name)
        names = [name] if not self._png or ending.lower() == ".png" else [f"{stem}.png", f"{name}.png", name]
        for each in names:
            yield str(self.folder / each), False
        for each in names:
            parts = [part for part in re.split(r"[\\/]+", each) if part not in ("", ".")]
            for start in range(len(parts)):
                yield str(self.folder.joinpath(*parts[start:])), start > 0

    def _files(self, folder: str) -> dict[str, str]:
        """Names in a folder, by their composed Unicode form."""
        if folder not in self._listed:
            try:
                names: Sequence[str] = os.listdir(folder or ".")
            except OSError:
                names = ()
            self._listed[folder] = {unicodedata.normalize("NFC", name): name for name in names}
        return self._listed[folder]
