"""Segment photographs with a trained model: pictures with class names and scores and, with --json, the results.

    python demo/demo.py --config-file F --input PHOTO FOLDER 'GLOB' --output OUT MODEL.WEIGHTS CHECKPOINT

OUT gets NAME_TASK.png for each image and, with --json, NAME_TASK.json: file name, size, task and `segments_info` with
names, scores, areas, boxes and masks (COCO's compressed RLE). No data set is needed.
Exit status: 0 all images done; 1 some failed, or there were none; 2 the command line or the config can't be used.
"""

import argparse
import glob
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.utils.logger import setup_logger

from mask2former.config import ConfigError, setup_cfg
from mask2former.data.image_io import ImageReadError, read_image
from mask2former.engine import CheckpointError, DeviceError, available_device
from mask2former.files import write_json
from mask2former.predictor import Predictor
from mask2former.visualization import write_png

# Files of these kinds are what a folder stands for; any file that Pillow reads can be named itself.
IMAGE_ENDINGS = frozenset(
    {".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp", ".avif"}
)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with status 2 if it is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Exit status: 0 all images done; 1 some failed, or there were none; 2 wrong command line or config.",
    )
    parser.add_argument("--config-file", required=True, metavar="F", help="a file of configs/")
    parser.add_argument("--input", required=True, nargs="+", metavar="IMG", help="images, folders of images, or globs")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for what is written")
    parser.add_argument(
        "--task",
        choices=["panoptic", "instance", "semantic"],
        help="what to show; default: the richest one that the config has on",
    )
    parser.add_argument(
        "--confidence-threshold",
        type=float,
        metavar="T",
        help="lowest score shown, 0 to 1; default: 0.5 for instances, the config's OBJECT_MASK_THRESHOLD for panoptic",
    )
    parser.add_argument("--json", action="store_true", help="also write the results as JSON")
    parser.add_argument(
        "opts", nargs="*", metavar="KEY VALUE", help="config keys to set, e.g. MODEL.WEIGHTS model.pth MODEL.DEVICE cpu"
    )
    parsed = parser.parse_intermixed_args(arguments)
    if parsed.output.exists() and not parsed.output.is_dir():
        parser.error(f"--output {parsed.output} is a file, expected a folder")
    return parsed


def find_images(inputs: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Images that ``--input`` names, each once, and the inputs that name none.

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


def output_stems(images: Sequence[Path], output: Path, task: str) -> list[Path]:
    """Where each image's results go, without ending; no two the same, and none over an image of the input."""
    taken = {image.resolve().with_suffix("") for image in images}
    stems = []
    for image in images:
        name = f"{image.stem}_{task}"
        stem, number = output / name, 1
        while stem.resolve() in taken:
            number += 1
            stem = output / f"{name}_{number}"
        taken.add(stem.resolve())
        stems.append(stem)
    return stems


def process(predictor: Predictor, image_file: Path, stem: Path, with_json: bool) -> str:
    """Predict one image, write its results, and return a line about them.

    Raises:
        ImageReadError: the file is no image that can be read.
    """
    image = read_image(image_file)
    start = time.perf_counter()
    prediction = predictor(image)
    seconds = time.perf_counter() - start
    picture_file = stem.with_name(f"{stem.name}.png")
    write_png(picture_file, prediction.draw())
    if with_json:
        write_json(stem.with_name(f"{stem.name}.json"), prediction.to_json(str(image_file)), indent=1)
    return f"{image_file} ({image.shape[1]}x{image.shape[0]}) -> {picture_file}, {seconds:.2f} s"


def process_all(predictor: Predictor, images: Sequence[Path], output: Path, with_json: bool) -> int:
    """Predict all images with a line of progress each; return how many failed."""
    failed = 0
    start = time.perf_counter()
    for number, (image, stem) in enumerate(zip(images, output_stems(images, output, predictor.task), strict=True), 1):
        try:
            line = process(predictor, image, stem, with_json)
        except (ImageReadError, OSError) as error:
            failed += 1
            print(f"[{number}/{len(images)}] skipped: {error}", file=sys.stderr, flush=True)
            continue
        remaining = (time.perf_counter() - start) / number * (len(images) - number)
        eta = f", ETA {remaining:.0f} s" if number < len(images) else ""
        print(f"[{number}/{len(images)}] {line}{eta}", flush=True)
    seconds = time.perf_counter() - start
    done = len(images) - failed
    print(f"{done} of {len(images)} images done, {seconds / len(images):.2f} s per image, {peak_memory()}")
    return failed


def peak_memory() -> str:
    """The largest memory this process had, in words."""
    # Kilobytes, but bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    text = f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.2f} GiB"
    if torch.cuda.is_available():
        text += f", on the GPU {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB"
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo and return the exit status."""
    options = parse_arguments(arguments)
    setup_logger(name="mask2former")
    setup_logger(name="dinat_backbone")
    images, empty = find_images(options.input)
    for text in empty:
        print(f"no image found: {text}", file=sys.stderr)
    try:
        cfg = setup_cfg(options.config_file, options.opts)
        cfg.MODEL.DEVICE = available_device(cfg.MODEL.DEVICE, explicit="MODEL.DEVICE" in options.opts)
        if not images:
            return 1
        if not cfg.MODEL.WEIGHTS:
            print("MODEL.WEIGHTS is empty: the weights are random, so the pictures mean nothing", file=sys.stderr)
        predictor = Predictor.from_cfg(cfg, options.task, options.confidence_threshold)
    except (ConfigError, CheckpointError, DeviceError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        failed = process_all(predictor, images, options.output, options.json)
    except KeyboardInterrupt:
        print("interrupted; the images reported above are done", file=sys.stderr)
        return 130
    return 1 if failed or empty else 0


if __name__ == "__main__":
    sys.exit(main())
