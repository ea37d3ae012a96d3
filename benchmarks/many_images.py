"""Memory and time of the work on a folder of 100,000 images, apart from the network.

    python benchmarks/many_images.py [--images 100000] [--results benchmarks/results/many-images-cpu]

The folder has hard links to a few small photographs. A predictor that finds nothing stands for the network, whose time
and memory do not depend on the number of images, and nothing is drawn. Everything else is that of demo/demo.py and of
an evaluation. The table has the seconds until the list is ready and until the first result, the memory then and at the
end, and the seconds in which an interrupted run and an interrupted evaluation of so many images continue.
"""

import argparse
import gc
import os
import tempfile
import time
from collections.abc import Generator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
from _measure import machine, resident_memory, save, table

from dinat_common.errors import run_script
from dinat_common.files import user_path
from mask2former.data.classes import ClassTable
from mask2former.evaluation.records import RecordStore
from mask2former.prediction.drawing import Rgb
from mask2former.prediction.files import FileDone, FileFailed, find_images, predict_files
from mask2former.prediction.results import PanopticPrediction
from mask2former.prediction.sharing import ImageShare

SIDE = 32  # pixels
PHOTOGRAPHS = 10
_PER_FOLDER = 10_000  # links to one file: file systems have a limit
_WARM_UP = 1000  # images after which memory is at its usual size


class Plain(PanopticPrediction):
    """A result that is shown as the photograph itself: drawing takes the same memory for every image."""

    def draw(self, *arguments: Any, **options: Any) -> Rgb:
        """Return the photograph."""
        return cast(Rgb, self.image)


class Nothing:
    """Predictor that finds nothing."""

    task = "panoptic"
    value_range = None
    batch_size = 1

    def fingerprint(self) -> dict[str, Any]:
        """Return what the predictions depend on."""
        return {}

    def __call__(self, images: Sequence[Rgb], batch_size: int | None = None) -> list[Plain]:
        """Return results without segments."""
        return [
            Plain(classes=ClassTable(), image=image, ids=np.zeros(image.shape[:2], np.int32), segments_info=[])
            for image in images
        ]


def make_folder(folder: Path, images: int) -> None:
    """Fill a folder with links to a few photographs of noise."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for index in range(images):
        path = folder / f"{index:08}.jpg"
        if index < PHOTOGRAPHS or index % _PER_FOLDER < PHOTOGRAPHS:
            cv2.imwrite(str(path), generator.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
        else:
            os.link(folder / f"{index - PHOTOGRAPHS:08}.jpg", path)


def results_of(folder: Path, output: Path) -> tuple[ImageShare, Generator[FileDone | FileFailed, None, None]]:
    """The share of the images and their results, as in demo/demo.py."""
    images, _ = find_images([str(folder)])
    predictor: Any = Nothing()
    share = ImageShare(images, output, predictor, {})
    return share, share.keep(predict_files(predictor, share.images, output, stems=share.stems))


def predict(folder: Path, output: Path, images: int) -> dict[str, float]:
    """Figures of a run that is interrupted after all images but ten, and continued."""
    figures: dict[str, float] = {}
    before, start = resident_memory(), time.perf_counter()
    share, results = results_of(folder, output)
    figures["list is ready (s)"] = time.perf_counter() - start
    next(results)
    figures["first result (s)"] = time.perf_counter() - start
    figures["memory of the list (MB)"] = resident_memory() - before
    for _ in islice(results, _WARM_UP):
        pass
    gc.collect()
    warm, start, count = resident_memory(), time.perf_counter(), images - _WARM_UP - 1 - 10
    for _ in islice(results, count):
        pass
    figures["milliseconds per image"] = (time.perf_counter() - start) / count * 1e3
    gc.collect()
    figures["growth from image 1000 to the end (MB)"] = resident_memory() - warm
    results.close()
    del share, results
    start = time.perf_counter()
    share, results = results_of(folder, output)
    _require(share.kept, images - 10)
    next(results)
    figures["first result of a continued run (s)"] = time.perf_counter() - start
    _require(sum(1 for _ in results), 9)
    share.outcome()
    return figures


def evaluate(output: Path, images: int) -> dict[str, float]:
    """Figures of the records of an evaluation, which have about the size of those of panoptic results."""
    record = {"panoptic": [{"id": index, "category_id": 7, "area": 1000, "bbox": [1, 2, 3, 4]} for index in range(8)]}
    figures: dict[str, float] = {}
    store = RecordStore(output)
    store.start({}, resume=False)
    before, start = resident_memory(), time.perf_counter()
    for index in range(images):
        store.append(index, [], record)
    figures["evaluation: milliseconds per record"] = (time.perf_counter() - start) / images * 1e3
    figures["evaluation: memory of the records (MB)"] = resident_memory() - before
    store.close()
    start = time.perf_counter()
    store = RecordStore(output)
    store.start({}, resume=True)
    _require(len(store.finished), images)
    figures["evaluation: start of a continued one (s)"] = time.perf_counter() - start
    start = time.perf_counter()
    store.gather()
    _require(sum(1 for _ in store.read()), images)
    figures["evaluation: reading all records (s)"] = time.perf_counter() - start
    return figures


def _require(found: int, expected: int) -> None:
    if found != expected:
        raise RuntimeError(f"{found} images, expected {expected}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--folder", type=user_path, help="where the images and results are put for the time of the run")
    parser.add_argument("--results", type=user_path, metavar="NAME", help="save NAME.md and NAME.json")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        folder = Path(place)
        make_folder(folder / "images", options.images)
        figures = predict(folder / "images", folder / "results", options.images)
        figures |= evaluate(folder / "evaluation", options.images)
    rows = [{"": name, "value": value} for name, value in figures.items()]
    print(table(rows))
    if options.results:
        save(options.results, f"{options.images:,} images", machine(torch.device("cpu")), rows, {})


if __name__ == "__main__":
    run_script(main)
