"""Image files in, pictures and data of what was found in them out."""

import glob
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mask2former.data.image_io import ImageReadError, read_image
from mask2former.prediction.predict_each import Refine, predict_each
from mask2former.prediction.predictor import Predictor
from mask2former.prediction.results import Prediction, Rgb
from mask2former.utils.files import write_json
from mask2former.utils.label_images import write_png

# Files of these kinds are what a folder stands for; any file that Pillow reads can be named itself.
IMAGE_ENDINGS = frozenset(
    {".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp", ".avif"}
)


@dataclass(frozen=True)
class FileDone:
    """An image of which the results are written: its height and width, the picture, and the seconds it took."""

    image: Path
    size: tuple[int, int]
    picture: Path
    seconds: float


@dataclass(frozen=True)
class FileFailed:
    """An image without results, and why."""

    image: Path
    error: str


def find_images(inputs: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Images that files, folders and globs name, each once, and those of the texts that name none.

    A folder stands for the image files directly in it. What is no file and no folder is a glob (`**` recurses).
    """
    found: dict[Path, None] = {}
    empty = []
    for text in inputs:
        path = Path(text).expanduser()
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.is_file() and file.suffix.lower() in IMAGE_ENDINGS)
        elif path.exists():
            files = [path]
        else:
            files = sorted(Path(match) for match in glob.glob(str(path), recursive=True) if Path(match).is_file())
        if not files:
            empty.append(text)
        found.update(dict.fromkeys(files))
    return list(found), empty


def output_stems(inputs: Sequence[Path], output: Path, task: str) -> list[Path]:
    """Where each file's results go, without ending; no two the same, and none over a file of the input."""
    taken = {path.resolve().with_suffix("") for path in inputs}
    stems = []
    for path in inputs:
        name = f"{path.stem}_{task}"
        stem, number = output / name, 1
        while stem.resolve() in taken:
            number += 1
            stem = output / f"{name}_{number}"
        taken.add(stem.resolve())
        stems.append(stem)
    return stems


def predict_files(
    predictor: Predictor,
    images: Sequence[Path],
    output: Path,
    *,
    with_json: bool = False,
    batch_size: int = 1,
    refine: Refine | None = None,
) -> Iterator[FileDone | FileFailed]:
    """Predict images, write NAME_TASK.png and perhaps NAME_TASK.json of each, and say what became of it, in order.

    Args:
        predictor: gives the results of its task.
        images: the files; one that can't be read or fails is left out.
        output: the folder for what is written.
        with_json: also write `Prediction.to_json`.
        batch_size: images that are read, and of one size go through the model, at once.
        refine: applied to each result before it is drawn or written, e.g. to leave segments out.
    """
    stems = output_stems(images, output, predictor.task)
    for start in range(0, len(images), batch_size):
        batch = slice(start, start + batch_size)
        begin = time.perf_counter()
        pixels = [_read(image) for image in images[batch]]
        readable = [image for image in pixels if not isinstance(image, str)]
        results = iter(predict_each(predictor, readable))
        seconds = (time.perf_counter() - begin) / max(1, len(readable))
        for image, stem, read in zip(images[batch], stems[batch], pixels, strict=True):
            result = read if isinstance(read, str) else next(results)
            yield _write(image, stem, result, with_json, refine, seconds)


def _read(image: Path) -> Rgb | str:
    try:
        return read_image(image)
    except (ImageReadError, OSError) as error:
        return str(error)


def _write(
    image: Path, stem: Path, result: Prediction | str, with_json: bool, refine: Refine | None, seconds: float
) -> FileDone | FileFailed:
    if isinstance(result, str):
        return FileFailed(image, result if str(image) in result else f"{image}: {result}")
    if refine is not None:
        result = refine(result)
    picture = stem.with_name(f"{stem.name}.png")
    try:
        write_png(picture, result.draw())
        if with_json:
            write_json(stem.with_name(f"{stem.name}.json"), result.to_json(str(image)), indent=1)
    except OSError as error:
        return FileFailed(image, f"{image}: {error}")
    return FileDone(image, result.size, picture, seconds)
