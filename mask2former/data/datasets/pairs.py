"""Images and their label maps: pairs by name, lists of images, and advice where names do not match."""

import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, fields
from difflib import SequenceMatcher
from pathlib import Path

from dinat_common.files import read_text
from mask2former.data.datasets.registry import AnnotationError
from mask2former.utils.input_files import files_below

IMAGE_ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})
LABEL_ENDINGS = frozenset({".png", ".tif", ".tiff", ".bmp", ".gif"})
# Formats that change pixels, and so ids.
LOSSY_ENDINGS = frozenset({".jpg", ".jpeg", ".webp"})
_SEPARATORS = "_-. "
# Names that advice is derived from.
_SAMPLE = 300

Pairs = dict[str, tuple[Path | None, Path | None]]


@dataclass(frozen=True)
class Names:
    """Parts of the file names that an image and its label map do not share; the endings never count.

    Attributes:
        image_prefix: Beginning of the names of images.
        image_suffix: End of the names of images, before the ending.
        label_prefix: Beginning of the names of label maps.
        label_suffix: End of the names of label maps, before the ending.
    """

    image_prefix: str = ""
    image_suffix: str = ""
    label_prefix: str = ""
    label_suffix: str = ""

    def given(self) -> dict[str, str]:
        """The parts that are not empty, by attribute."""
        return {of.name: part for of in fields(self) if (part := getattr(self, of.name))}

    def options(self, kind: str = "label") -> str:
        """The parts as options of a command line; `kind` is what the images are paired with: "label" or "instance"."""
        options = {key.replace("label", kind).replace("_", "-"): part for key, part in self.given().items()}
        # A part may begin with a minus.
        return " ".join(
            f"--{key}={part}" if part.startswith("-") else f"--{key} {part}" for key, part in options.items()
        )


def find_pairs(
    images: str | Path,
    labels: str | Path,
    files: str | Path | None = None,
    names: Names = Names(),
    *,
    listed_labels=True,
) -> Pairs:
    """Pair images and label maps by their paths in the two folders, without endings and the parts of `names`.

    Args:
        images: Folder of the images, which is searched with its subfolders.
        labels: Folder of the label maps, searched in the same way. It may be the folder of the images.
        files: Text file that lists the images to use, and optionally their label maps; see `_read_list`. Default: all.
        names: Parts of the names that images and label maps do not share.
        listed_labels: Whether label maps in `files` count.

    Returns:
        Mapping from the shared parts, in their order, to (image, label map); None for a file that is missing.

    Raises:
        AnnotationError: The names of two files of a folder differ only in their endings, or the list names an image
            with two label maps.
    """
    photos, maps = _folders(Path(images), Path(labels), names)
    if files is not None:
        return _read_list(Path(files), photos, maps, listed_labels=listed_labels)
    shared = sorted(photos.files.keys() | maps.files.keys())
    return {key: (photos.files.get(key), maps.files.get(key)) for key in shared}


def lossy_label(labels: str | Path, key: str, names: Names = Names()) -> Path | None:
    """The label map of an image in a format that changes ids, such as JPEG; None if there is none."""
    stem = Path(labels, posixpath.dirname(key), names.label_prefix + posixpath.basename(key) + names.label_suffix)
    candidates = (stem.with_name(stem.name + ending) for ending in LOSSY_ENDINGS)
    return next((path for path in candidates if path.exists()), None)


class _Folder:
    """Files of a folder that can be found by what they share with others, or by a path in a list."""

    def __init__(self, folder: Path, files: Mapping[str, Path]):
        self.files = files
        self._bases = tuple(dict.fromkeys(Path(base).as_posix() for base in (folder.absolute(), folder.resolve())))
        relative = {path.relative_to(folder).as_posix(): path for path in files.values()}
        stems = {posixpath.splitext(name)[0]: path for name, path in relative.items()}
        self._paths = {**files, **stems, **relative}

    def find(self, text: str, near: Sequence[Path]) -> Path | None:
        """The file that a path in a list means; `near` are folders that it may start from."""
        return next((self._paths[name] for name in self._candidates(text, near) if name in self._paths), None)

    def _candidates(self, text: str, near: Sequence[Path]) -> Iterator[str]:
        for path in dict.fromkeys((text, text.replace("\\", "/"))):
            yield path
            normal = posixpath.normpath(path)
            inner = normal.lstrip("/")
            yield from (normal, inner)
            starts = [Path(normal).as_posix(), *(posixpath.normpath((folder / normal).as_posix()) for folder in near)]
            for base in self._bases:
                yield from (start[len(base) + 1 :] for start in starts if start.startswith(f"{base}/"))
                # A path that starts above the folder.
                parts = base.strip("/").split("/")
                tails = ("/".join(parts[i:]) for i in range(len(parts)))
                yield from (inner[len(tail) + 1 :] for tail in tails if inner.startswith(f"{tail}/"))
                # A path on another machine.
                _, found, rest = f"/{inner}".rpartition(f"/{parts[-1]}/")
                if found:
                    yield rest
            if Path(normal).is_absolute():
                real = os.path.realpath(normal)
                yield from (real[len(base) + 1 :] for base in self._bases if real.startswith(f"{base}/"))


def _folders(images: Path, labels: Path, names: Names) -> tuple[_Folder, _Folder]:
    shared = images.resolve() == labels.resolve()
    maps = _by_shared_part(labels, LABEL_ENDINGS, names.label_prefix, names.label_suffix)
    if shared and (names.label_prefix or names.label_suffix):
        photos = _by_shared_part(images, IMAGE_ENDINGS, names.image_prefix, names.image_suffix, set(maps.values()))
    else:
        # Photographs and label maps of one name in one folder are told apart by their formats.
        avoided = LABEL_ENDINGS if shared else frozenset[str]()
        photos = _by_shared_part(images, IMAGE_ENDINGS, names.image_prefix, names.image_suffix, avoided=avoided)
    if shared:
        taken = set(photos.values())
        maps = {key: path for key, path in maps.items() if path not in taken}
    return _Folder(images, photos), _Folder(labels, maps)


def _by_shared_part(
    folder: Path,
    endings: frozenset[str],
    prefix: str,
    suffix: str,
    without: Set[Path] = frozenset(),
    avoided: frozenset[str] = frozenset(),
) -> dict[str, Path]:
    """Files by their paths without prefix, suffix and ending; of two, that without an avoided ending."""
    files: dict[str, Path] = {}
    for path in files_below(folder):
        stem = path.stem
        fits = len(stem) >= len(prefix) + len(suffix) and stem.startswith(prefix) and stem.endswith(suffix)
        if path.suffix.lower() not in endings or path.name.startswith(".") or path in without or not fits:
            continue
        inner = stem[len(prefix) : len(stem) - len(suffix)]
        key = path.relative_to(folder).with_name(inner).as_posix() if inner else ""
        if not key:
            continue
        other = files.get(key)
        if other is not None and (path.suffix.lower() in avoided) == (other.suffix.lower() in avoided):
            raise AnnotationError(f"{path} and {other}: two files for {key}; their names differ only in their endings")
        if other is None or other.suffix.lower() in avoided:
            files[key] = path
    return files


def _read_list(path: Path, images: _Folder, labels: _Folder, *, listed_labels: bool) -> Pairs:
    """Pairs of a text file with an image per line, or an image and its label map.

    Paths may be absolute, or start from the folder of the files, any folder above it, the folder of the list or the
    working directory. They may be quoted, lack the ending, or have backslashes. Two paths are separated by a tab, a
    comma, a semicolon or spaces. Blank lines and lines that begin with # are left out.
    """
    near = (path.absolute().parent, Path.cwd())
    pairs: Pairs = {}
    keys = {image: key for key, image in images.files.items()}
    for line in map(str.strip, read_text(path).splitlines()):
        if not line:
            continue
        image, label_text = _listed(line, images, labels, near)
        if image is None and line.startswith("#"):
            continue
        key = keys[image] if image else line
        label = labels.files.get(key)
        if label_text and listed_labels:
            label = labels.find(label_text, near)
        if pairs.setdefault(key, (image, label))[1] != label:
            raise AnnotationError(f"{path}: {key} has two label maps, {pairs[key][1]} and {label}")
    return pairs


def _listed(line: str, images: _Folder, labels: _Folder, near: Sequence[Path]) -> tuple[Path | None, str]:
    """The image of a line, and the path of its label map if the line has one."""
    for text in (line, _unquoted(line)):
        if image := images.find(text, near):
            return image, ""
    # Names may contain separators, so all places are tried; those where both files exist come first.
    # More columns are left out.
    places = [place.span() for place in re.finditer(r"\s*[\t,;]\s*|\s+", line)]
    stops = [len(line), *(start for start, _ in places)]
    splits = [
        (_unquoted(line[:start]), _unquoted(line[end:stop])) for start, end in places for stop in stops if stop >= end
    ]
    found = [(image, text) for first, text in splits if (image := images.find(first, near))]
    return next(((i, t) for i, t in found if labels.find(t, near)), next(iter(found), (None, "")))


def _unquoted(text: str) -> str:
    text = text.strip()
    return text[1:-1].strip() if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def explain_no_pairs(
    images: str | Path, labels: str | Path, files: str | Path | None, names: Names, kind: str = "label"
) -> str:
    """Say why no image has a label map: one name of each kind side by side, and the options that join them."""
    photos, maps = _folders(Path(images), Path(labels), names)
    if not photos.files:
        return f"{images} has no image{_endings_of(Path(images), IMAGE_ENDINGS)}"
    image = next(iter(photos.files.values())).relative_to(images)
    if files is not None and not any(pair[0] for pair in find_pairs(images, labels, files, names).values()):
        lines = (line.strip() for line in read_text(files).splitlines())
        line = next((line for line in lines if line and not line.startswith("#")), None)
        return f"{files} lists no image of {images}: it has {line!r}, the folder has {str(image)!r}" if line else (
            f"{files} lists no image"
        )  # fmt: skip
    if not maps.files:
        return f"{labels} has no label map{_endings_of(Path(labels), LABEL_ENDINGS)}"
    joining = suggest_names([*photos.files], [*maps.files])
    label = next(iter(maps.files.values())).relative_to(labels)
    if joining:
        return (
            f"the names of images and label maps do not match, such as {image} and {label}; these join them: "
            f"{_combined(names, joining).options(kind)}"
        )
    return (
        f"the names of images and label maps do not match, such as {image} and {label}; folders and names must be "
        f"equal except for the ending, a prefix and a suffix (--{kind}-suffix, --{kind}-prefix, --image-suffix, "
        "--image-prefix)"
    )


def _endings_of(folder: Path, expected: frozenset[str]) -> str:
    found = Counter(path.suffix.lower() for path in files_below(folder) if not path.name.startswith("."))
    listed = ", ".join(f"{count} {ending or 'without ending'}" for ending, count in found.most_common(3))
    lossy = "; JPEG and WebP change ids, export PNGs" if LOSSY_ENDINGS & found.keys() - expected else ""
    return f" ({', '.join(sorted(expected))}), but {listed or 'no file'}{lossy}"


def _combined(names: Names, more: Names) -> Names:
    return Names(
        names.image_prefix + more.image_prefix,
        more.image_suffix + names.image_suffix,
        names.label_prefix + more.label_prefix,
        more.label_suffix + names.label_suffix,
    )


def suggest_names(images: Sequence[str], labels: Sequence[str]) -> Names | None:
    """The parts of names that make most pairs; None if they are less than half of the images or the label maps.

    Args:
        images: Paths of images without endings.
        labels: Paths of label maps without endings.
    """
    tried: Counter[Names] = Counter()
    for image in images[:3]:
        for label in labels[:_SAMPLE]:
            if posixpath.dirname(image) == posixpath.dirname(label):
                tried[_difference(posixpath.basename(image), posixpath.basename(label))] += 1
    sample = images[:_SAMPLE]
    known = set(labels)
    joined = {names: sum(_label_of(image, names) in known for image in sample) for names in tried}
    best = max(joined, key=lambda names: (joined[names], *_likelihood(names)), default=None)
    return best if best and best.given() and 2 * joined[best] > min(len(sample), len(labels)) else None


def _likelihood(names: Names) -> tuple[bool, int]:
    """The larger, the more likely these parts are those of label maps and not of coloured pictures of them."""
    text = (names.label_prefix + names.label_suffix).lower()
    return any(word in text for word in ("label", "mask", "id")), -len("".join(names.given().values()))


def _difference(image: str, label: str) -> Names:
    match = SequenceMatcher(None, image, label, autojunk=False).find_longest_match()
    start, end = match.a, match.a + match.size
    while end > start and image[end - 1] in _SEPARATORS:
        end -= 1
    while end > start and image[start] in _SEPARATORS:
        start += 1
    shared = slice(match.b + start - match.a, match.b + end - match.a)
    return Names(image[:start], image[end:], label[: shared.start], label[shared.stop :])


def _label_of(image: str, names: Names) -> str:
    folder, name = posixpath.split(image)
    fits = name.startswith(names.image_prefix) and name.endswith(names.image_suffix)
    inner = name[len(names.image_prefix) : len(name) - len(names.image_suffix)] if fits else ""
    return posixpath.join(folder, names.label_prefix + inner + names.label_suffix) if inner else ""
