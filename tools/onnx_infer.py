#!/usr/bin/env python
"""Segment images with a model that tools/export.py wrote, without PyTorch and Detectron2.

    python tools/onnx_infer.py model.onnx PHOTO ... --output OUT [--task panoptic] [--confidence-threshold 0.5]

Needs onnxruntime, NumPy and Pillow, and two files of this project: mask2former/export/exported_model.py and
mask2former/export/numpy_postprocessing.py, in their place or copied beside this one. Writes to OUT: NAME_TASK.png, an
overlay; NAME_TASK_ids.png, the segment (or class) of each pixel; NAME_TASK.json, the segments with class, score, area
and box. Exit status: 0 all images done; 1 some failed; 2 wrong command line.
"""

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

TASKS = ("panoptic", "instance", "semantic")
# Opacity of segments in the overlay.
FILL = 0.55


def load(name: str) -> ModuleType:
    """Import a file of mask2former/export by its path, because its package imports PyTorch."""
    here = Path(__file__).resolve().parent
    for folder in (here, here.parent / "mask2former" / "export"):
        path = folder / f"{name}.py"
        if path.is_file():
            spec = importlib.util.spec_from_file_location(name, path)
            if spec is not None and spec.loader is not None:
                module = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(module)
                return module
    sys.exit(f"error: {name}.py is missing; copy it from mask2former/export to {here}")


post = load("numpy_postprocessing")
exported_model = load("exported_model")


def predict(model: Any, image: NDArray[np.uint8], task: str, threshold: float | None) -> tuple[Any, list[dict]]:
    """Segment an RGB image [H, W, 3]; return a map [H, W] of segment ids (0: no segment) and the segments.

    Where instances overlap, the map shows the best. A semantic id is the class plus 1.
    """
    about = model.description
    limits = (about["min_size"], about["max_size"], about["divisibility"])
    sizes = post.image_sizes(image.shape[:2], *limits, model.fixed_size)
    pixels = np.asarray(Image.fromarray(image).resize(sizes.image[::-1], Image.Resampling.BILINEAR))
    (logits,), (maps,) = model(post.network_input(pixels, sizes.padded, about["image_format"], about["pixel_mean"]))
    masks = post.NumpyMasks(maps, sizes)
    things = {i for i, entry in enumerate(about["classes"]) if entry["isthing"]}
    if task == "panoptic":
        lowest = about["object_mask_threshold"] if threshold is None else threshold
        return post.panoptic(logits, masks, things, lowest, about["overlap_threshold"])
    if task == "semantic":
        classes = post.semantic(logits, masks, about["resize_masks_first"])
        found = [{"id": int(c) + 1, "isthing": int(c) in things, "category_id": int(c)} for c in np.unique(classes)]
        return classes + 1, found
    found_masks, categories, scores = post.instances(logits, masks, about["detections_per_image"], things)
    count = int(np.count_nonzero(scores >= (0.5 if threshold is None else threshold)))
    ids = np.zeros(sizes.result, dtype=np.int32)
    for number in range(count, 0, -1):
        ids[found_masks[number - 1]] = number
    found = [
        {"id": i + 1, "isthing": True, "category_id": int(categories[i]), "score": float(scores[i])}
        for i in range(count)
    ]
    return ids, found


def describe_segments(ids: Any, segments: Sequence[dict], classes: Sequence[Mapping[str, Any]]) -> list[dict]:
    """Add class names, areas in pixels and boxes [x, y, width, height] in the map to segments."""
    described = []
    for segment in segments:
        rows, columns = np.nonzero(ids == segment["id"])
        box = [0, 0, 0, 0]
        if len(rows):
            x, y = int(columns.min()), int(rows.min())
            box = [x, y, int(columns.max()) + 1 - x, int(rows.max()) + 1 - y]
        name = classes[segment["category_id"]]["name"]
        described.append({**segment, "category_name": name, "area": len(rows), "bbox": box})
    return described


def overlay(image: NDArray[np.uint8], ids: Any, segments: Sequence[dict], classes: Sequence[Mapping[str, Any]]) -> Any:
    """Draw segments on an image in the colours of their classes; things of one class get different shades."""
    picture = image.astype(np.float32)
    counts: dict[int, int] = {}
    for segment in segments:
        category = segment["category_id"]
        number = counts.get(category, 0)
        counts[category] = number + 1
        color = np.array(classes[category]["color"]) * (1 - 0.45 * (number * 0.618 % 1))
        inside = ids == segment["id"]
        picture[inside] = (1 - FILL) * picture[inside] + FILL * color
    edge = np.zeros(ids.shape, dtype=bool)
    edge[1:] |= ids[1:] != ids[:-1]
    edge[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    picture[edge] = 255
    return picture.astype(np.uint8)


def process(model: Any, path: Path, options: argparse.Namespace) -> str:
    """Segment an image file, write the results, and return a line about them."""
    with Image.open(path) as file:
        image = np.array(ImageOps.exif_transpose(file).convert("RGB"))
    start = time.perf_counter()
    ids, segments = predict(model, image, options.task, options.confidence_threshold)
    seconds = time.perf_counter() - start
    classes = model.description["classes"]
    described = describe_segments(ids, segments, classes)
    stem = options.output / f"{path.stem}_{options.task}"
    Image.fromarray(overlay(image, ids, segments, classes)).save(f"{stem}.png")
    Image.fromarray(ids.astype(np.uint16)).save(f"{stem}_ids.png")
    result = {"file_name": str(path), "height": ids.shape[0], "width": ids.shape[1], "segments_info": described}
    Path(f"{stem}.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    names = ", ".join(dict.fromkeys(segment["category_name"] for segment in described)) or "nothing"
    return f"{path}: {len(described)} segments ({names}), {seconds:.2f} s -> {stem}.png"


def try_to_process(model: Any, path: Path, options: argparse.Namespace) -> bool:
    """Process a file and print a line about it; return False if it can't be read or its results can't be written."""
    try:
        print(process(model, path, options), flush=True)
    except OSError as error:
        print(f"skipped {path}: {error}", file=sys.stderr, flush=True)
        return False
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog=__doc__.split("\n\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL.onnx", help="written by tools/export.py")
    parser.add_argument("images", nargs="+", type=Path, metavar="PHOTO")
    parser.add_argument("--output", required=True, type=Path, metavar="OUT", help="folder for the results")
    parser.add_argument("--task", choices=TASKS, help="default: the first one that the model supports")
    parser.add_argument("--confidence-threshold", type=float, metavar="T", help="lowest score of a segment, 0 to 1")
    parser.add_argument(
        "--threads", type=int, default=0, metavar="N", help="number of threads; default: chosen by onnxruntime"
    )
    options = parser.parse_intermixed_args(arguments)
    try:
        model = exported_model.OnnxModel(options.model, options.threads)
    except exported_model.ModelFileError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    tasks = model.description["tasks"]
    options.task = options.task or tasks[0]
    if options.task not in tasks:
        parser.error(f"--task {options.task}: the model has {', '.join(tasks)}")
    options.output.mkdir(parents=True, exist_ok=True)
    done = [try_to_process(model, path, options) for path in options.images]
    return 0 if all(done) else 1


if __name__ == "__main__":
    sys.exit(main())
