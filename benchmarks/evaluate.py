#!/usr/bin/env python
"""Evaluation of COCO's three metrics: ours against the reference tools, on the same synthetic predictions.

    python benchmarks/evaluate.py [--images 200] [--instances 100] [--size 480 640] [--repeats 3] [--cpu-time]
                                  [--output STEM]

Ground truth and predictions are drawn: 133 classes, 15 things and 5 regions of stuff per image. "all" is the time from
predictions to numbers; "alone" excludes encoding the predictions and writing them in the submission formats, which
every tool does. The tools take turns in one process, each time in a new folder; times are medians of the repetitions.
References: pycocotools (masks encoded one image at a time, as by Detectron2), panopticapi (PNGs as Detectron2 writes
them, one process), and Detectron2's evaluator of class maps. The results are compared as well.
"""

import argparse
import contextlib
import io
import json
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from _measure import clock, describe, machine, save, table, use_cpu_time
from _scenes import Scene, draw, encode, register
from detectron2.data import DatasetCatalog
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.evaluation import SemSegEvaluator
from numpy.typing import NDArray
from panopticapi.evaluation import pq_compute_single_core
from panopticapi.utils import id2rgb
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mask2former.evaluation import InstanceAP, PanopticQuality, SemanticIoU
from mask2former.evaluation.metric import Metric
from mask2former.tasks import TASKS
from mask2former.utils.label_images import compressobj

RESULTS = Path(__file__).resolve().parent / "results"
NAME = "drawn_by_benchmarks_evaluate"
IDS = [category["id"] for category in COCO_CATEGORIES]


@dataclass
class Times:
    """One tool and one metric.

    Attributes:
        all: Seconds from predictions to the number.
        metric: Seconds without encoding and writing the predictions.
        result: The number, in percent.
    """

    all: float
    metric: float
    result: float


def ours(metric: Metric, result: str, scenes: Sequence[Scene], folder: Path) -> Times:
    """One of our metrics, as the evaluator uses it."""
    output = TASKS[metric.task].output

    def records() -> list[tuple[int, Any]]:
        pairs = zip(DatasetCatalog.get(NAME), scenes, strict=True)
        return [(i["image_id"], metric.record(i, scene.outputs[output], folder)[0]) for i, scene in pairs]

    found, writing = _timed(records)
    results, comparing = _timed(lambda: metric.evaluate(found, folder))
    return Times(writing + comparing, comparing, results[result])


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    start = clock()
    result = call()
    return result, clock() - start


def reference_ap(root: Path, scenes: Sequence[Scene], folder: Path) -> Times:
    """AP by pycocotools."""
    start = clock()
    detections = []
    for inputs, scene in zip(DatasetCatalog.get(NAME), scenes, strict=True):
        found = scene.outputs["instances"]
        rles = [encode(mask) for mask in found.pred_masks.numpy()]
        for rle, score, category in zip(rles, found.scores.tolist(), found.pred_classes.tolist(), strict=True):
            rle["counts"] = rle["counts"].decode()
            image = inputs["image_id"]
            detections.append({"image_id": image, "category_id": IDS[category], "score": score, "segmentation": rle})
    middle = clock()
    (folder / "results.json").write_text(json.dumps(detections))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(root / "instances.json"))
        evaluation = COCOeval(truth, truth.loadRes(detections), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    end = clock()
    return Times(end - start, end - middle, 100 * evaluation.stats[0])


def reference_pq(root: Path, scenes: Sequence[Scene], folder: Path) -> Times:
    """PQ by panopticapi."""
    start = clock()
    predicted = []
    for inputs, scene in zip(DatasetCatalog.get(NAME), scenes, strict=True):
        ids, segments = scene.outputs["panoptic_seg"]
        name = Path(inputs["pan_seg_file_name"]).name
        Image.fromarray(id2rgb(ids.numpy())).save(folder / name)
        infos = [{"id": segment["id"], "category_id": IDS[segment["category_id"]]} for segment in segments]
        predicted.append({"image_id": inputs["image_id"], "file_name": name, "segments_info": infos})
    middle = clock()
    truth = json.loads((root / "panoptic.json").read_text())
    categories = {category["id"]: category for category in truth["categories"]}
    pairs = list(zip(truth["annotations"], predicted, strict=True))
    with contextlib.redirect_stdout(io.StringIO()):
        stat = pq_compute_single_core(0, pairs, str(root / "panoptic"), str(folder), categories)
        found, _ = stat.pq_average(categories, isthing=None)
    end = clock()
    return Times(end - start, end - middle, 100 * found["pq"])


def reference_miou(root: Path, scenes: Sequence[Scene], folder: Path) -> Times:
    """Class maps by Detectron2's evaluator, which takes scores."""

    def load(path: str, dtype: Any = int) -> NDArray[Any]:
        return np.array(Image.open(path), dtype=dtype)

    evaluator = SemSegEvaluator(NAME, distributed=False, output_dir=str(folder), sem_seg_loading_fn=load)

    def evaluate() -> float:
        evaluator.reset()
        for inputs, scene in zip(DatasetCatalog.get(NAME), scenes, strict=True):
            evaluator.process([inputs], [{"sem_seg": _Scores(scene.outputs["sem_seg"])}])
        return evaluator.evaluate()["sem_seg"]["mIoU"]

    found, whole = _timed(evaluate)
    with mock.patch.object(evaluator, "encode_json_sem_seg", return_value=[]):
        _, alone = _timed(evaluate)
    return Times(whole, alone, found)


class _Scores:
    """Scores whose best class is known: finding it is the work of the model and is not measured."""

    def __init__(self, classes: torch.Tensor):
        self._classes = classes

    def argmax(self, dim: int) -> torch.Tensor:
        return self._classes


Reference = Callable[[Path, Sequence[Scene], Path], Times]
COMPARED: tuple[tuple[str, type[Metric], Reference], ...] = (
    ("AP", InstanceAP, reference_ap),
    ("PQ", PanopticQuality, reference_pq),
    ("mIoU", SemanticIoU, reference_miou),
)


def compare(scenes: Sequence[Scene], root: Path, repeats: int) -> Iterator[dict[str, Any]]:
    """Rows of the table: metric, seconds of both tools, their ratio, and the largest difference of the results."""
    totals = np.zeros(4)
    for name, metric, reference in COMPARED:
        seconds, results = [], []
        for _ in range(repeats):
            with _new_folder(root) as folder:
                mine = ours(metric(NAME), name, scenes, folder)
            with _new_folder(root) as folder:
                theirs = reference(root, scenes, folder)
            seconds.append([mine.all, theirs.all, mine.metric, theirs.metric])
            results.append([mine.result, theirs.result])
        median, difference = np.median(seconds, axis=0), float(np.ptp(results, axis=1).max())
        totals += median
        yield {**_row(name, median), "%": results[0][0], "difference": difference}
    yield _row("all three", totals)


@contextlib.contextmanager
def _new_folder(root: Path) -> Generator[Path]:
    # Some file systems wait for the disk when a file replaces another one.
    with tempfile.TemporaryDirectory(dir=root) as folder:
        yield Path(folder)


def _row(name: str, seconds: NDArray[np.float64]) -> dict[str, Any]:
    mine, theirs, mine_alone, theirs_alone = seconds.tolist()
    return {
        "metric": name,
        "all: ours (s)": mine,
        "reference (s)": theirs,
        "ratio": theirs / mine,
        "alone: ours (s)": mine_alone,
        "reference alone (s)": theirs_alone,
        "ratio alone": theirs_alone / mine_alone,
    }


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--instances", type=int, default=100, help="predicted instances per image")
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--repeats", type=int, default=3, help="how often both tools take turns")
    parser.add_argument("--cpu-time", action="store_true", help="processor seconds of all threads, on a busy machine")
    parser.add_argument("--output", type=Path, metavar="STEM", help="default: benchmarks/results/evaluate-cpu")
    args = parser.parse_args()
    if args.cpu_time:
        use_cpu_time()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        scenes = [draw(index, tuple(args.size), args.instances, COCO_CATEGORIES) for index in range(args.images)]
        register(NAME, root, [scene.truth for scene in scenes], COCO_CATEGORIES)
        rows = list(compare(scenes, root, args.repeats))
    height, width = args.size
    title = f"Evaluation of {args.images} images of {height} x {width}, {args.instances} instances each"
    facts = machine(torch.device("cpu")) | {"PNG compressed by": compressobj.__module__}
    bars = {row["metric"]: {name: row[name] for name in ("all: ours (s)", "reference (s)")} for row in rows}
    print(f"{title}\n{describe(facts)}\n{table(rows)}")
    save(args.output or RESULTS / "evaluate-cpu", title, facts, rows, {}, bars, "s")


if __name__ == "__main__":
    main()
