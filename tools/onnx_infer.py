#!/usr/bin/env python
"""Segment or classify images with a model that tools/export.py wrote, without PyTorch and Detectron2.

    python tools/onnx_infer.py model.onnx PHOTO ... --output OUT [--task panoptic] [--confidence-threshold 0.5]

Needs onnxruntime, NumPy and Pillow, and five files of this project, in their place or copied beside this one:
mask2former/export/exported_model.py, mask2former/export/numpy_postprocessing.py, mask2former/data/photograph_files.py,
mask2former/data/photographs.py and mask2former/utils/input_files.py. Colours with 16 bits per channel and some TIFF
files need OpenCV, too (pip install opencv-python-headless). PHOTO is an image, a folder of images or a glob. Writes to
OUT: NAME_TASK.png, an overlay; NAME_TASK_ids.png, the segment (or class) of each pixel; NAME_TASK.json, the segments
with class, score, area and box. Images of one name get numbers (NAME_TASK_2.png, ...). Of an image classifier, the five
most probable classes are printed and written to NAME_classification.json. Exit status: 0 all images done; 1 some
failed; 2 wrong command line.
"""

import argparse
import importlib.util
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

TASKS = ("panoptic", "instance", "semantic", "classification")
# Opacity of segments in the overlay.
FILL = 0.55
# As in Predictor: results of larger images are made at this many pixels, and enlarged.
MAX_PIXELS = 12_000_000
# Rows of the overlay that are drawn at a time.
ROWS = 512


def load(name: str, folder: str) -> ModuleType:
    """Import a file of this project by its path, because its package imports PyTorch."""
    here = Path(__file__).resolve().parent
    full_name = f"{folder}/{name}".replace("/", ".")
    for place in (here, here.parent / folder):
        path = place / f"{name}.py"
        spec = importlib.util.spec_from_file_location(full_name, path) if path.is_file() else None
        if spec is not None and spec.loader is not None:
            module = importlib.util.module_from_spec(spec)
            # Data classes look their module up, and files that are loaded later import it.
            sys.modules.setdefault(full_name, module)
            spec.loader.exec_module(module)
            return module
    sys.exit(f"error: {name}.py is missing; copy it from {folder} to {here}")


post = load("numpy_postprocessing", "mask2former/export")
exported_model = load("exported_model", "mask2former/export")
load("photograph_files", "mask2former/data")
photographs = load("photographs", "mask2former/data")
input_files = load("input_files", "mask2former/utils")


def predict(model: Any, image: NDArray[np.uint8], task: str, threshold: float | None) -> tuple[Any, list[dict]]:
    """Segment an RGB image [H, W, 3]; return a map [H, W] of segment ids (0: no segment) and the segments.

    Where instances overlap, the map shows the best. A semantic id is the class plus 1.
    """
    height, width = image.shape[:2]
    scale = min(1.0, math.sqrt(MAX_PIXELS / (height * width)))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    ids, segments = _predict_at(size, model, image, task, threshold)
    if size != (height, width):
        rows, columns = (
            ((np.arange(new) + 0.5) * old / new).astype(np.intp) for new, old in zip((height, width), size, strict=True)
        )
        ids = ids[rows][:, columns]
    return ids, segments


def _predict_at(
    size: tuple[int, int], model: Any, image: NDArray[np.uint8], task: str, threshold: float | None
) -> tuple[Any, list[dict]]:
    """Segment an image with results of `size` (height, width); see `predict`."""
    about = model.description
    network_input, sizes = post.prepare(image, about, model.fixed_size)
    outputs = tuple(output[0] for output in model(network_input))
    # Files of earlier versions do not name the kind of output.
    read = READERS[about.get("kind", "queries")]
    return read(outputs, sizes._replace(result=size), about, task, threshold)


def read_queries(
    outputs: Any, sizes: Any, about: Mapping[str, Any], task: str, threshold: float | None
) -> tuple[Any, list[dict]]:
    """Results of a Mask2Former from the logits of its classes and masks."""
    logits, masks = outputs[0], post.NumpyMasks(outputs[1], sizes)
    things = {i for i, entry in enumerate(about["classes"]) if entry["isthing"]}
    if task == "panoptic":
        lowest = about["object_mask_threshold"] if threshold is None else threshold
        return post.panoptic(logits, masks, things, lowest, about["overlap_threshold"])
    if task == "semantic":
        return class_segments(post.semantic(logits, masks, about["resize_masks_first"]), about)
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


def read_pixels(
    outputs: Any, sizes: Any, about: Mapping[str, Any], task: str, threshold: float | None
) -> tuple[Any, list[dict]]:
    """Results of a classifier of pixels, such as UPerNet, from its class logits."""
    return class_segments(post.pixel_classes(post.NumpyMasks(outputs[0], sizes)), about)


# By the `kind` of a description.
READERS = {"queries": read_queries, "pixels": read_pixels}


def class_segments(classes: Any, about: Mapping[str, Any]) -> tuple[Any, list[dict]]:
    """Segments of a map of classes [H, W]: one for each class in it."""
    found = [
        {"id": int(c) + 1, "isthing": about["classes"][c]["isthing"], "category_id": int(c)} for c in np.unique(classes)
    ]
    return classes + 1, found


def classify(model: Any, image: NDArray[np.uint8]) -> list[dict]:
    """The most probable classes of an RGB image [H, W, 3], the best first."""
    about = model.description
    ((logits,),) = model(post.prepare_crop(image, about))
    return [
        {"category_id": i, "category_name": about["classes"][i]["name"], "probability": round(probability, 6)}
        for i, probability in post.top_classes(logits)
    ]


def describe_segments(ids: Any, segments: Sequence[dict], classes: Sequence[Mapping[str, Any]]) -> list[dict]:
    """Add class names, areas in pixels and boxes [x, y, width, height] in the map to segments."""
    described = []
    for segment in segments:
        inside = ids == segment["id"]
        rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
        box = [0, 0, 0, 0]
        if len(rows):
            x, y = int(columns[0]), int(rows[0])
            box = [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]
        name = classes[segment["category_id"]]["name"]
        described.append({**segment, "category_name": name, "area": int(np.count_nonzero(inside)), "bbox": box})
    return described


def overlay(image: NDArray[np.uint8], ids: Any, segments: Sequence[dict], classes: Sequence[Mapping[str, Any]]) -> Any:
    """Draw segments on an image in the colours of their classes; things of one class get different shades."""
    colors = np.zeros((1 + max((segment["id"] for segment in segments), default=0), 3), np.float32)
    known = np.zeros(len(colors), bool)
    counts: dict[int, int] = {}
    for segment in segments:
        category = segment["category_id"]
        number = counts.get(category, 0)
        counts[category] = number + 1
        colors[segment["id"]] = np.array(classes[category]["color"]) * (1 - 0.45 * (number * 0.618 % 1))
        known[segment["id"]] = True
    picture = np.empty_like(image)
    for top in range(0, len(image), ROWS):
        rows = slice(top, top + ROWS)
        filled = known[ids[rows]][:, :, None]
        picture[rows] = np.where(filled, (1 - FILL) * image[rows] + FILL * colors[ids[rows]], image[rows])
    edge = np.zeros(ids.shape, dtype=bool)
    edge[1:] |= ids[1:] != ids[:-1]
    edge[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    picture[edge] = 255
    return picture


def save(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file that is either complete or absent: `write` gets another path in the folder."""
    unfinished = path.with_name(f".unfinished.{path.name}")
    try:
        write(unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_json(file: Path, path: Path, image: NDArray[np.uint8], found: Mapping[str, Any]) -> None:
    """Write what was found in the image of a path."""
    height, width = image.shape[:2]
    text = json.dumps({"file_name": str(path), "height": height, "width": width, **found}, indent=1)
    save(file, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))


def process(model: Any, path: Path, stem: Path, options: argparse.Namespace) -> str:
    """Predict an image file, write the results, whose paths begin with `stem`, and return a line about them."""
    image = photographs.read_rgb(path, options.value_range)
    start = time.perf_counter()
    if options.task == "classification":
        found, data = classify(model, image), stem.with_name(f"{stem.name}.json")
        seconds = time.perf_counter() - start
        write_json(data, path, image, {"task": options.task, "classes": found})
        names = ", ".join(f"{entry['category_name']} {100 * entry['probability']:.1f}%" for entry in found)
        return f"{path}: {names}, {seconds:.2f} s -> {data}"
    ids, segments = predict(model, image, options.task, options.confidence_threshold)
    seconds = time.perf_counter() - start
    classes = model.description["classes"]
    described = describe_segments(ids, segments, classes)
    picture, numbers, data = (stem.with_name(f"{stem.name}{ending}") for ending in (".png", "_ids.png", ".json"))
    save(picture, Image.fromarray(overlay(image, ids, segments, classes)).save)
    save(numbers, Image.fromarray(ids.astype(np.uint16)).save)
    write_json(data, path, image, {"segments_info": described})
    names = ", ".join(dict.fromkeys(segment["category_name"] for segment in described)) or "nothing"
    return f"{path}: {len(described)} segments ({names}), {seconds:.2f} s -> {picture}"


def try_to_process(model: Any, path: Path, stem: Path, options: argparse.Namespace) -> bool:
    """Process a file and print a line about it; return False if that failed, for whatever reason."""
    try:
        print(process(model, path, stem, options), flush=True)
    except Exception as error:  # noqa: BLE001 - the other files can still be processed
        reason = str(error) or type(error).__name__
        print(f"skipped {reason if str(path) in reason else f'{path}: {reason}'}", file=sys.stderr, flush=True)
        return False
    return True


def user_path(text: str) -> Path:
    """Path that a user gave, with `~` for the home folder."""
    return Path(os.path.expanduser(text))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog=__doc__.split("\n\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=os.path.expanduser, metavar="MODEL.onnx", help="written by tools/export.py")
    parser.add_argument("images", nargs="+", metavar="PHOTO")
    parser.add_argument("--output", required=True, type=user_path, metavar="OUT", help="folder for the results")
    parser.add_argument("--task", choices=TASKS, help="default: the first one that the model supports")
    parser.add_argument("--confidence-threshold", type=float, metavar="T", help="lowest score of a segment, 0 to 1")
    parser.add_argument(
        "--value-range",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="values that become black and white in images with more than 8 bits; default: INPUT.VALUE_RANGE of the "
        "training, or 0 65535 for 16 bits",
    )
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
    if options.task in ("classification", "semantic") and options.confidence_threshold is not None:
        parser.error(f"--confidence-threshold is for segments: {options.task} has none")
    try:
        given = options.value_range or model.description.get("value_range", ())
        options.value_range = photographs.checked_range(given, "--value-range")
        options.output.mkdir(parents=True, exist_ok=True)
    except (photographs.PhotographError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    images, empty = input_files.find_images(options.images)
    for text in empty:
        print(f"skipped {text}: no such file", file=sys.stderr)
    stems = input_files.output_stems(images, options.output, options.task, ("", "_ids"))
    written = (stem.with_name(f"{stem.name}{part}.png") for stem in stems for part in ("", "_ids"))
    if again := input_files.first_found_again(options.images, written):
        parser.error(f"the result {again} would be an image of the next run: choose another --output")
    done = [try_to_process(model, path, stem, options) for path, stem in zip(images, stems, strict=True)]
    return 0 if all(done) and not empty else 1


if __name__ == "__main__":
    sys.exit(main())
