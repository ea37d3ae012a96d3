"""Train a small DiNAT Mask2Former for panoptic segmentation of drawn shapes, from scratch (`make demo`).

Draws the data, trains and evaluates with train_net.py, writes metrics, a table and pictures to output/shapes/, then
runs the full-size DiNAT-L setting of COCO on a photograph. The long steps are commands that a user could type; each is
printed before it runs. Further arguments are config keys for the training, e.g. SOLVER.MAX_ITER 100.
Exit status: 0; 1 if a step failed or a metric is below its target; 130 after Ctrl-C.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import skimage.data
from detectron2.data import DatasetCatalog
from numpy.typing import NDArray
from tabulate import tabulate

from dinat_common.errors import UserError, report_errors, run_script
from dinat_common.files import atomic_write, check_folder, make_folder, user_path, write_json
from mask2former.config import setup_cfg
from mask2former.data.classes import ClassTable
from mask2former.data.datasets import dataset_metadata
from mask2former.data.image_io import read_image, read_panoptic_ids
from mask2former.engine import available_device
from mask2former.prediction.drawing import contact_sheet, draw_panoptic, side_by_side
from mask2former.prediction.predictor import Predictor
from mask2former.utils.label_images import write_png
from mask2former.utils.logs import set_up_logs

ROOT = Path(__file__).resolve().parent.parent
TRAINING_CONFIG = "configs/shapes/panoptic-segmentation/dinat/maskformer2_dinat_pico_shapes.yaml"
FULL_SIZE_CONFIG = "configs/coco/panoptic-segmentation/dinat/maskformer2_dinat_large_IN21k_384_bs16_100ep.yaml"

# Metric -> (task in the results of the evaluation, target in percent or None).
METRICS: Mapping[str, tuple[str, float | None]] = {
    "PQ": ("panoptic_seg", 60.0),
    "PQ_th": ("panoptic_seg", 50.0),
    "PQ_st": ("panoptic_seg", None),
    "AP": ("segm", 40.0),
    "mIoU": ("sem_seg", 75.0),
}
# Scales the class weights so that some segments are confident enough to be drawn.
CLASS_EMBED_SCALE = 6


class DemoError(UserError):
    """A step of the demo failed; the message says which."""


def say(message: str) -> None:
    """Print a headline."""
    print(f"\n=== {message}", flush=True)


def run(*command: object) -> None:
    """Print a Python command and run it in the repository, with its output on this console.

    Raises:
        DemoError: The command failed.
    """
    words = [str(word) for word in command]
    print("$ python " + " ".join(words), flush=True)
    status = subprocess.run([sys.executable, *words], cwd=ROOT, check=False).returncode
    if status != 0:
        raise DemoError(f"{words[0]} failed with exit status {status}; its message is above")


def train(folder: Path, opts: Sequence[str]) -> None:
    """Train and evaluate from scratch; the files replace those of an earlier run in `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    run("train_net.py", "--config-file", TRAINING_CONFIG, "OUTPUT_DIR", folder, *opts)


def read_metrics(results_file: Path) -> dict[str, float]:
    """Read the demo's metrics, in percent, from the file that train_net.py's last evaluation wrote; NaN for null.

    Raises:
        DemoError: The file or one of the metrics is missing.
    """
    try:
        (results,) = json.loads(results_file.read_text()).values()
        values = {name: results[task][name] for name, (task, _) in METRICS.items()}
    except (OSError, ValueError, KeyError) as error:
        raise DemoError(f"the training wrote no {results_file} with {', '.join(METRICS)}: {error!r}") from error
    return {name: math.nan if value is None else round(value, 3) for name, value in values.items()}


def results_table(metrics: Mapping[str, float]) -> str:
    """Format metrics and their targets as a Markdown table."""
    rows = [
        (name, f"{metrics[name]:.1f}", "" if target is None else f">= {target:.0f}", _verdict(metrics[name], target))
        for name, (_, target) in METRICS.items()
    ]
    headers = ("metric (%)", "value", "target", "")
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def missed_targets(metrics: Mapping[str, float]) -> list[str]:
    """Describe each metric that misses its target."""
    return [
        f"{name} is {metrics[name]:.1f}, expected at least {target:.0f}"
        for name, (_, target) in METRICS.items()
        if _verdict(metrics[name], target) == "missed"
    ]


def _verdict(value: float, target: float | None) -> str:
    if target is None:
        return ""
    # NaN counts as missed: every comparison with it is false.
    return "reached" if value >= target else "missed"


def draw_pictures(weights: Path, folder: Path, count: int, opts: Sequence[str]) -> list[Path]:
    """Draw image, ground truth and prediction of the first validation images; a contact sheet comes first.

    Args:
        weights: Checkpoint of the training.
        folder: Folder for the pictures.
        count: Number of images.
        opts: Config keys and values of the training.

    Returns:
        Paths of the contact sheet and the pictures.
    """
    cfg = setup_cfg(ROOT / TRAINING_CONFIG, [*opts, "MODEL.WEIGHTS", str(weights)])
    cfg.MODEL.DEVICE = available_device(cfg.MODEL.DEVICE, explicit="MODEL.DEVICE" in opts)
    predictor = Predictor.from_cfg(cfg, "panoptic")
    dataset = cfg.DATASETS.TEST[0]
    classes = ClassTable.from_metadata(dataset_metadata(dataset), "panoptic")
    files, rows = [], []
    for record in DatasetCatalog.get(dataset)[:count]:
        row = comparison(record, predictor, classes)
        files.append(folder / f"{Path(record['file_name']).stem}.png")
        write_png(files[-1], row)
        rows.append(row)
    sheet = folder / "overview.png"
    write_png(sheet, contact_sheet(rows, columns=2, width=2560))
    return [sheet, *files]


def comparison(record: Mapping[str, Any], predictor: Predictor, classes: ClassTable) -> NDArray[Any]:
    """Draw image, ground truth and prediction of one panoptic dataset dict side by side (RGB)."""
    image = read_image(record["file_name"])
    ids = read_panoptic_ids(record["pan_seg_file_name"])
    return side_by_side(
        {
            "image": image,
            "ground truth": draw_panoptic(image, ids, record["segments_info"], classes),
            "prediction": predictor(image).draw(image),
        }
    )


def run_full_size(folder: Path) -> None:
    """Run DiNAT-L for COCO panoptic on a photograph, with a temporary checkpoint of weights made from their names."""
    make_folder(folder)
    photo = folder / "astronaut.png"
    write_png(photo, skimage.data.astronaut())
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        weights = Path(temporary, "deterministic.safetensors")
        setting = ("--config-file", FULL_SIZE_CONFIG)
        scale = ("--class-embed-scale", CLASS_EMBED_SCALE)
        run("tools/deterministic_weights.py", *setting, "--output", weights, *scale)
        run("demo/demo.py", *setting, "--input", photo, "--output", folder, "MODEL.WEIGHTS", weights)


def write_results(folder: Path, metrics: Mapping[str, float], pictures: Iterable[Path]) -> None:
    """Write metrics.json and results.md."""
    numbers = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
    write_json(folder / "metrics.json", numbers, indent=2)
    shown = "\n\n".join(f"![{picture.stem}]({picture.name})" for picture in pictures)
    text = f"# Shapes: panoptic segmentation, validation images\n\n{results_table(metrics)}\n\n{shown}\n"
    with atomic_write(folder / "results.md") as file:
        file.write(text)


def demo(options: argparse.Namespace) -> list[str]:
    """Run all steps and describe each metric that misses its target.

    Raises:
        DemoError: A step failed.
    """
    start = time.monotonic()
    folder: Path = options.output
    check_folder(folder)
    say("1/4  drawing the data set")
    run("datasets/prepare_shapes.py")
    say("2/4  training from scratch, then evaluating")
    train(folder / "train", options.opts)
    metrics = read_metrics(folder / "train" / "inference" / "metrics.json")
    say("3/4  drawing pictures of the results")
    pictures = draw_pictures(folder / "train" / "model_final.pth", folder, options.pictures, options.opts)
    write_results(folder, metrics, pictures)
    print(f"{len(pictures)} pictures in {folder}")
    if not options.skip_full_size:
        say("4/4  the full-size model (DiNAT-L, COCO panoptic, 220 million parameters) on a photograph")
        print(
            "Its weights are made from the names of its parameters, not trained: the picture has no meaning. This step "
            "only shows that the full-size model runs here, and how much time and memory it takes."
        )
        run_full_size(folder / "full_size")
    say(f"done in {(time.monotonic() - start) / 60:.1f} minutes")
    print(f"{results_table(metrics)}\n\nmetrics   {folder / 'metrics.json'}\ntable     {folder / 'results.md'}")
    print(f"pictures  {pictures[0]}, {pictures[1]} ...\ntraining  {folder / 'train'}", flush=True)
    return missed_targets(metrics)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=user_path, default=ROOT / "output" / "shapes", help="default: output/shapes")
    parser.add_argument("--pictures", type=int, default=8, metavar="N", help="validation images to draw; default: 8")
    parser.add_argument("--skip-full-size", action="store_true", help="skip the full-size model")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys for the training")
    options = parser.parse_intermixed_args(arguments)
    options.output = options.output.absolute()
    set_up_logs(["mask2former"])
    os.chdir(ROOT)  # the commands run here, and the folder of the data sets is relative to it
    try:
        with report_errors():
            missed = demo(options)
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 130
    if missed:
        print(f"demo: below target: {'; '.join(missed)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    run_script(main)
