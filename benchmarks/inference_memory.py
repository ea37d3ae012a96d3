#!/usr/bin/env python
"""Time and memory of turning predictions into panoptic, instance and semantic results of a large image.

    python benchmarks/inference_memory.py [--size 3000 4000] [--queries 200] [--classes 133] [--direct]

Prints for each kind of result the time, and the rise of the process's peak memory above that of the predictions.
`--direct` also evaluates the formulas as they are written, with all masks at the size of the result (3000 x 4000 pixels
and 200 queries take more than 30 GB), in a separate process.
"""

import argparse
import multiprocessing
import time
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor

from mask2former.evaluation import peak_memory
from mask2former.modeling.inference import InferenceSettings, make_results
from mask2former.modeling.mask_resizing import Resize, ResizedMasks
from mask2former.tasks import SEGMENTATION_SWITCHES

Size = tuple[int, int]
_CPU = torch.device("cpu")
_DETECTIONS = 100
_SHORT_EDGE, _LONG_EDGE = 800, 1333  # of the network's input
_PADDING, _STRIDE = 32, 4


def predictions(queries: int, classes: int, size: Size) -> tuple[Tensor, Tensor, list[Resize]]:
    """Confident class logits [Q, K + 1], smooth mask logits [Q, h, w], and the steps that resize them to the image."""
    scale = min(_SHORT_EDGE / min(size), _LONG_EDGE / max(size))
    image_size = (round(size[0] * scale), round(size[1] * scale))
    padded = (-(-image_size[0] // _PADDING) * _PADDING, -(-image_size[1] // _PADDING) * _PADDING)
    mask_size = (padded[0] // _STRIDE, padded[1] // _STRIDE)
    torch.manual_seed(0)
    logits = 3 * torch.randn(queries, classes + 1)
    masks = F.interpolate(6 * torch.randn(1, queries, 8, 8), mask_size, mode="bicubic")[0]
    return logits, masks, [Resize(mask_size, padded), Resize(image_size, size)]


def measure(name: str, size: Size, queries: int, classes: int, rows: Any) -> None:
    """Append a row for each kind of result: variant, result, seconds, GiB above the start."""
    logits, masks, steps = predictions(queries, classes, size)
    before = peak_memory(_CPU)
    source = ResizedMasks(masks, steps)
    if name == "direct":
        for (height, width), target in steps:
            masks = F.interpolate(masks[None, :, :height, :width], target, mode="bilinear", align_corners=False)[0]
        source = ResizedMasks(masks, values_at_once=masks.numel())
    settings = InferenceSettings((), 0.3, 0.3, _DETECTIONS, frozenset(range(classes * 3 // 5)), semantic_scores=False)
    kept = []  # all results are kept until the last one exists, as in the model
    for task in SEGMENTATION_SWITCHES:
        start = time.perf_counter()
        kept.append(make_results(logits, source, replace(settings, tasks=(task,))))
        rows.append((name, task, time.perf_counter() - start, (peak_memory(_CPU) - before) / 2**30))


def main() -> None:
    """Measure each variant in a fresh process, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=2, default=(3000, 4000), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--classes", type=int, default=133)
    parser.add_argument("--direct", action="store_true", help="also evaluate the formulas as written")
    args = parser.parse_args()
    processes = multiprocessing.get_context("spawn")
    with processes.Manager() as manager:
        rows = manager.list()
        for name in ("in pieces", "direct") if args.direct else ("in pieces",):
            task = (name, tuple(args.size), args.queries, args.classes, rows)
            process = processes.Process(target=measure, args=task)
            process.start()
            process.join()
            if process.exitcode:
                print(f"{name}: ended with status {process.exitcode} (not enough memory?)")
        print(f"{args.queries} queries, {args.classes} classes, {args.size[0]} x {args.size[1]} pixels,", end=" ")
        print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads")
        print(tabulate(rows, headers=("masks", "result", "s", "peak GiB so far"), floatfmt=".2f", tablefmt="github"))


if __name__ == "__main__":
    main()
