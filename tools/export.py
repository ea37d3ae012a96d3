#!/usr/bin/env python
"""Export a trained model to one file, for programs without this project: ONNX, or a program of torch.export.

    python tools/export.py --config-file F --format onnx --output model.onnx MODEL.WEIGHTS model.pth
    python tools/export.py --config-file F --format torch-export --output model.pt2 --free batch MODEL.WEIGHTS model.pth

The file holds the network, from raw pixels to class and mask logits (of UPerNet, to class logits of pixels; of an image
classifier, to class logits), and what a program needs to use it: classes, colours, sizes and thresholds (ONNX:
metadata_props; .pt2: description.json). It is verified on three images: outputs and results are compared with the
model's, and a table lists time and memory of both. Detectors can't be exported.
tools/onnx_infer.py runs an ONNX file on images.
Exit status: 0 exported and equal to the model; 1 not; 2 wrong command line.
"""

import argparse
import itertools
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from numpy.random import RandomState
from numpy.typing import NDArray
from tabulate import tabulate

from dinat_common.errors import report_errors, run_script
from dinat_common.files import check_file, user_path
from mask2former import ConfigError, setup_cfg
from mask2former.checkpoint import Checkpointer, FileClasses, fetch, is_url
from mask2former.data.datasets import predicted_metadata
from mask2former.data.datasets.custom import register_custom_datasets
from mask2former.data.datasets.shapes import draw_scene
from mask2former.data.image_io import configured_range, read_image
from mask2former.export import (
    ExportError,
    check_exportable,
    describe,
    export_form,
    export_network,
    save_onnx,
    save_torch_export,
)
from mask2former.export.verification import Comparison, verify

SAVERS = {"onnx": save_onnx, "torch-export": save_torch_export}
ENDINGS = {"onnx": ".onnx", "torch-export": ".pt2"}
CONFIG_KEY = re.compile(r"(MODEL|INPUT|DATASETS|DATALOADER|SOLVER|TEST)\.[A-Z0-9_.]+")
# Smallest and largest side of drawn images.
SIDES = (64, 640)
# Backends that trace to a graph of common operators.
EXPORTABLE = {
    "MODEL.DINAT.ATTENTION_BACKEND": "exportable",
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_ATTENTION_BACKEND": "reference",
    "MODEL.COMPILE": "False",
}


def read_config(options: argparse.Namespace) -> CfgNode:
    """Read the config of the model without the changes for the export, for the CPU, with absolute paths.

    Raises:
        ConfigError: The config is invalid.
        DownloadError: The weights can't be downloaded.
        ExportError: Such a model can't be exported.
    """
    cfg = setup_cfg(options.config_file, options.opts)
    check_exportable(cfg)
    cfg.DATASETS.CUSTOM = register_custom_datasets(cfg.DATASETS.CUSTOM, options.config_file.parent)
    cfg.MODEL.DEVICE = "cpu"
    if not cfg.MODEL.WEIGHTS:
        raise ConfigError("MODEL.WEIGHTS is empty: set it to the checkpoint to export")
    weights = fetch(cfg.MODEL.WEIGHTS) if is_url(cfg.MODEL.WEIGHTS) else cfg.MODEL.WEIGHTS
    cfg.MODEL.WEIGHTS = str(Path(weights).absolute())
    return cfg


def export(options: argparse.Namespace) -> bool:
    """Export as the command line says, and return whether the file is equal to the model."""
    check_file(options.output)
    cfg = read_config(options)
    values = configured_range(cfg)
    chosen = {
        f"{number} {path.name}": read_image(path, value_range=values) for number, path in enumerate(options.verify, 1)
    }
    exported_cfg = cfg.clone()
    exported_cfg.merge_from_list([part for pair in EXPORTABLE.items() for part in pair])
    model = build_model(exported_cfg)
    classes = FileClasses.of(Checkpointer(model).load(cfg.MODEL.WEIGHTS, checkpointables=[]))
    metadata = predicted_metadata(cfg) if classes is None else classes.describe(predicted_metadata(cfg), cfg)
    form = export_form(model)
    size = options.size or form.default_size(cfg, model)
    if form.one_size and size != form.default_size(cfg, model):
        raise ExportError(
            f"--size {size[0]} {size[1]}: the config's images are {' x '.join(map(str, form.default_size(cfg, model)))}"
        )
    description = describe(cfg, model, metadata, options.free)
    check_file(options.output, sum(value.nbytes for value in model.state_dict().values()))
    start = time.perf_counter()
    print(f"tracing the model at {size[0]} x {size[1]}, free: {options.free}; this takes minutes ...", flush=True)
    program = export_network(model, size, options.free)
    print(f"traced in {time.perf_counter() - start:.0f} s; writing {options.output} ...", flush=True)
    SAVERS[options.format](program, options.output, description)
    del program
    megabytes = options.output.stat().st_size / 1e6
    print(f"{options.output}: {megabytes:.0f} MB, {time.perf_counter() - start:.0f} s", flush=True)
    if options.no_verify:
        return True
    images = chosen or drawn_images(size)
    print(f"comparing with the model on {len(images)} images ...", flush=True)
    fixed_size = None if options.free == "size" else size
    comparisons, costs = verify(options.output, model, cfg, description, images, fixed_size)
    print(table(comparisons, costs))
    undecided = sum(comparison.undecided for comparison in comparisons)
    if undecided:
        print(f"\n{undecided} pixels differ where the two best probabilities are equal up to rounding")
    passed = all(comparison.passes for comparison in comparisons)
    print("\nverified: outputs are close and results equal" if passed else "\nNOT equal to the model, see above")
    return passed


def drawn_images(size: tuple[int, int]) -> dict[str, NDArray[np.uint8]]:
    """Three drawn scenes of different sizes, RGB [H, W, 3], about as large as `size` (height, width)."""
    side = min(SIDES[1], max(SIDES[0], *size))
    crops = {1: (1.0, 1.0), 2: (0.75, 1.0), 3: (1.0, 0.66)}
    return {
        f"drawn {seed}": draw_scene(RandomState(seed), side).image[: round(side * height), : round(side * width)].copy()
        for seed, (height, width) in crops.items()
    }


def table(comparisons: Sequence[Comparison], costs: Mapping[str, tuple[float, float, float]]) -> str:
    """Both results of `verify` as tables in Markdown."""
    rows = [comparison.cells() for comparison in comparisons]
    compared = tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)
    seconds = f"seconds per image, {torch.get_num_threads()} thread(s)"
    measured = tabulate(
        [[program, *values] for program, values in costs.items()],
        headers=["program", "file, MB", seconds, "peak memory, MB"],
        tablefmt="github",
        floatfmt=("", ".0f", ".2f", ".0f"),
    )
    return f"{compared}\n\n{measured}"


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exit with status 2 if it is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog=__doc__.split("\n\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", required=True, type=user_path, metavar="F", help="a file of configs/")
    parser.add_argument("--format", required=True, choices=SAVERS, help="what to write")
    parser.add_argument("--output", required=True, type=user_path, metavar="FILE", help="ends in .onnx or .pt2")
    parser.add_argument(
        "--size",
        nargs=2,
        type=int,
        metavar=("H", "W"),
        help="height and width of the input, multiples of 32; default: of a photograph of 640 x 480 in this config. "
        "Image classifiers have the size of the config",
    )
    parser.add_argument(
        "--free",
        choices=["none", "batch", "size"],
        default="none",
        help="what may differ between calls: nothing (fastest), the number of images, or also their size",
    )
    checks = parser.add_mutually_exclusive_group()
    checks.add_argument("--verify", nargs="+", metavar="IMG", help="images; default: three drawn ones")
    checks.add_argument("--no-verify", action="store_true", help="do not compare with the model")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys to set, such as MODEL.WEIGHTS")
    options = parser.parse_intermixed_args(arguments)
    if options.output.suffix != ENDINGS[options.format]:
        parser.error(f"--output {options.output}: expected a name that ends in {ENDINGS[options.format]}")
    options.size = tuple(options.size) if options.size else None
    # `--verify` also takes the config keys that follow its images.
    images = list(itertools.takewhile(lambda text: not CONFIG_KEY.fullmatch(text), options.verify or ()))
    options.opts += (options.verify or [])[len(images) :]
    options.verify = [user_path(image) for image in images]
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    options = parse_arguments(arguments)
    with report_errors():
        return 0 if export(options) else 1
    return 1


if __name__ == "__main__":
    run_script(main)
