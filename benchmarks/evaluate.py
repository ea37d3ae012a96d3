#!/usr/bin/env python
"""Evaluation of COCO's three metrics: ours against the reference tools, on the same synthetic predictions.

    python benchmarks/evaluate.py [--images 200] [--instances 100] [--size 480 640] [--output STEM]

Ground truth and predictions are drawn; 133 classes, 15 things and 5 regions of stuff an image. "all" is the whole time
from predictions to numbers; "alone" is that without encoding predictions and writing them in the submission formats,
which every tool has to do. References: pycocotools (masks encoded one image at a time, as Detectron2 does), panopticapi
(PNGs as Detectron2 writes them, one process), and Detectron2's evaluator of class maps. Results are compared, too.
"""

import argparse
import contextlib
import io
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from _measure import describe, machine, save, table
from _scenes import IDS, NAME, Scene, encode, write_ground_truth
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

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass
class Times:
    """Seconds of one tool for one metric, all and of the metric alone, and what it found, in percent."""

    all: float
    metric: float
    result: float


def ours(metric: Metric, result: str, scenes: Sequence[Scene], folder: Path) -> Times:
    """One of our metrics, as the evaluator uses it."""
    output = TASKS[metric.task].output

    def records() -> list[tuple[int, Any]]:
        return [(s.inputs["image_id"], metric.record(s.inputs, s.outputs[output], folder)[0]) for s in scenes]

    found, writing = _timed(records)
    results, comparing = _timed(lambda: metric.evaluate(found, folder))
    return Times(writing + comparing, comparing, results[result])


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def reference_ap(root: Path, scenes: Sequence[Scene], folder: Path) -> Times:
    """AP by pycocotools."""
    start = time.perf_counter()
    detections = []
    for scene in scenes:
        found = scene.outputs["instances"]
        rles = [encode(mask) for mask in found.pred_masks.numpy()]
        for rle, score, category in zip(rles, found.scores.tolist(), found.pred_classes.tolist(), strict=True):
            rle["counts"] = rle["counts"].decode()
            image = scene.inputs["image_id"]
            detections.append({"image_id": image, "category_id": IDS[category], "score": score, "segmentation": rle})
    middle = time.perf_counter()
    (folder / "results.json").write_text(json.dumps(detections))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(root / "instances.json"))
        evaluation = COCOeval(truth, truth.loadRes(detections), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    end = time.perf_counter()
    return Times(end - start, end - middle, 100 * evaluation.stats[0])


def reference_pq(root: Path, scenes: Sequence[Scene], folder: Path) -> Times:
    """PQ by panopticapi."""
    start = time.perf_counter()
    predicted = []
    for scene in scenes:
        ids, segments = scene.outputs["panoptic_seg"]
        name = f"{scene.stem}.png"
        Image.fromarray(id2rgb(ids.numpy())).save(folder / name)
        infos = [{"id": segment["id"], "category_id": IDS[segment["category_id"]]} for segment in segments]
        predicted.append({"image_id": scene.inputs["image_id"], "file_name": name, "segments_info": infos})
    middle = time.perf_counter()
    truth = json.loads((root / "panoptic.json").read_text())
    categories = {category["id"]: category for category in truth["categories"]}
    pairs = list(zip(truth["annotations"], predicted, strict=True))
    with contextlib.redirect_stdout(io.StringIO()):
        stat = pq_compute_single_core(0, pairs, str(root / "panoptic"), str(folder), categories)
        found, _ = stat.pq_average(categories, isthing=None)
    end = time.perf_counter()
    return Times(end - start, end - middle, 100 * found["pq"])


def reference_miou(root: Path, scenes: Sequence[Scene], folder: Path) -> Times:
    """Class maps by Detectron2's evaluator, which takes scores."""

    def load(path: str, dtype: Any = int) -> NDArray[Any]:
        return np.array(Image.open(path), dtype=dtype)

    evaluator = SemSegEvaluator(NAME, distributed=False, output_dir=str(folder), sem_seg_loading_fn=load)

    def evaluate() -> float:
        evaluator.reset()
        for scene in scenes:
            evaluator.process([scene.inputs], [{"sem_seg": _Scores(scene.outputs["sem_seg"])}])
        return evaluator.evaluate()["sem_seg"]["mIoU"]

    found, whole = _timed(evaluate)
    with mock.patch.object(evaluator, "encode_json_sem_seg", return_value=[]):
        _, alone = _timed(evaluate)
    return Times(whole, alone, found)


class _Scores:
    """Stands for scores whose highest class is known: finding it is the model's work and does not count here."""

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


def compare(scenes: Sequence[Scene], root: Path) -> Iterator[dict[str, Any]]:
    """Rows of the table: metric, seconds of both tools and their ratio, and how far apart the results are."""
    totals = np.zeros(4)
    for name, metric, reference in COMPARED:
        folders = [root / f"{tool}_{name}" for tool in ("ours", "reference")]
        for folder in folders:
            folder.mkdir()
        mine = ours(metric(NAME), name, scenes, folders[0])
        theirs = reference(root, scenes, folders[1])
        seconds = np.array([mine.all, theirs.all, mine.metric, theirs.metric])
        totals += seconds
        yield {**_row(name, seconds), "%": mine.result, "difference": abs(mine.result - theirs.result)}
    yield _row("all three", totals)


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
    """Draw, measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--instances", type=int, default=100, help="predicted in each image")
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--output", type=Path, metavar="STEM", help="default: benchmarks/results/evaluate-cpu")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        scenes = [Scene(index, tuple(args.size), args.instances) for index in range(args.images)]
        write_ground_truth(root, scenes)
        rows = list(compare(scenes, root))
    height, width = args.size
    title = f"Evaluation of {args.images} images of {height} x {width}, {args.instances} instances each"
    facts = machine(torch.device("cpu"))
    bars = {row["metric"]: {name: row[name] for name in ("all: ours (s)", "reference (s)")} for row in rows}
    print(f"{title}\n{describe(facts)}\n{table(rows)}")
    save(args.output or RESULTS / "evaluate-cpu", title, facts, rows, {}, bars, "s")


if __name__ == "__main__":
    main()
