"""Prediction of image files: results written beside each other, failures reported."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2

from dinat_common.errors import UserError
from dinat_common.files import WriteError, write_json
from mask2former.data.image_io import read_image
from mask2former.prediction.base import Prediction
from mask2former.prediction.drawing import Rgb
from mask2former.prediction.predictor import Predictor
from mask2former.utils.input_files import find_images, output_stems
from mask2former.utils.label_images import write_png

__all__ = ["FileDone", "FileFailed", "Refine", "find_images", "output_stems", "predict_each", "predict_files"]

# Function applied to each result before it is drawn or written, for example to drop segments.
Refine = Callable[[Prediction], Prediction]

# Errors that one input can cause while others succeed: of its file, lack of memory, and reactions of libraries to
# unusual pixels.
ERRORS_OF_ONE_INPUT = (
    OSError,
    RuntimeError,
    ValueError,
    MemoryError,
    AssertionError,
    ArithmeticError,
    LookupError,
    TypeError,
    cv2.error,
)


@dataclass(frozen=True)
class FileDone:
    """An image whose results are written: its height and width, the picture, the seconds it took, and all files."""

    image: Path
    size: tuple[int, int]
    picture: Path
    seconds: float
    files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class FileFailed:
    """An image without results, and the reason."""

    image: Path
    error: str


def predict_each(predictor: Predictor, images: Sequence[Rgb]) -> list[Prediction | str]:
    """Predict images together, or one by one if that fails.

    Args:
        predictor: Predictor of the results.
        images: RGB images [H, W, 3].

    Returns:
        For each image the result, or the reason why it has none.
    """
    if not images:
        return []
    try:
        return list(predictor(images, batch_size=len(images)))
    except ERRORS_OF_ONE_INPUT as error:
        if len(images) == 1:
            return [described(error)]
    return [result for image in images for result in predict_each(predictor, [image])]


def described(error: BaseException) -> str:
    """The message of an error of the user or of a file; with its type if it is of another kind."""
    return str(error) if isinstance(error, (OSError, UserError)) else f"{type(error).__name__}: {error}"


def predict_files(
    predictor: Predictor,
    images: Sequence[Path],
    output: Path,
    *,
    with_json: bool = False,
    batch_size: int = 1,
    refine: Refine | None = None,
    stems: Sequence[Path] | None = None,
) -> Iterator[FileDone | FileFailed]:
    """Predict image files and write NAME_TASK.png, and optionally NAME_TASK.json, of each.

    Args:
        predictor: Predictor; its default task is the task of the results.
        images: Image files; files that can't be read or predicted are skipped.
        output: Output folder.
        with_json: Also write `Prediction.to_json`.
        batch_size: Number of images to read, and of equal size to predict, at once.
        refine: Function applied to each result before it is drawn or written.
        stems: Paths of the results without endings; None: `output_stems` of the images.

    Yields:
        The outcome of each image, in order.

    Raises:
        WriteError: The disk is full, so that no further result can be written either.
    """
    stems = output_stems(images, output, predictor.task) if stems is None else stems
    for start in range(0, len(images), batch_size):
        batch = slice(start, start + batch_size)
        begin = time.perf_counter()
        pixels = [_read(predictor, image) for image in images[batch]]
        readable = [image for image in pixels if not isinstance(image, str)]
        results = iter(predict_each(predictor, readable))
        seconds = (time.perf_counter() - begin) / max(1, len(readable))
        for image, stem, read in zip(images[batch], stems[batch], pixels, strict=True):
            result = read if isinstance(read, str) else next(results)
            if isinstance(result, str):
                yield FileFailed(image, result if str(image) in result else f"{image}: {result}")
                continue
            picture, text = (stem.with_name(f"{stem.name}{ending}") for ending in (".png", ".json"))
            try:
                result = result if refine is None else refine(result)
                write_png(picture, result.draw())
                if with_json:
                    write_json(text, result.to_json(str(image)), indent=1)
            except ERRORS_OF_ONE_INPUT as error:
                if isinstance(error, WriteError) and error.disk_is_full:
                    raise
                yield FileFailed(image, f"{image}: {described(error)}")
            else:
                files = (picture, text) if with_json else (picture,)
                yield FileDone(image, result.size, picture, seconds, files)


def _read(predictor: Predictor, image: Path) -> Rgb | str:
    try:
        return read_image(image, value_range=predictor.value_range)
    except ERRORS_OF_ONE_INPUT as error:
        return described(error)
