#!/usr/bin/env python
"""Export a trained model to one file, for programs without this project: ONNX, or a program of torch.export.

    python tools/export.py --config-file F --format onnx --output model.onnx MODEL.WEIGHTS model.pth
    python tools/export.py --config-file F --format torch-export --output model.pt2 --free batch MODEL.WEIGHTS model.pth

The file holds the network from raw pixels to class and mask logits, and what a program has to know: classes, colours,
sizes, thresholds (ONNX: metadata_props; .pt2: description.json). It is verified on three images: outputs and results
are compared with the model's, and a table says what both cost. tools/onnx_infer.py runs an ONNX file on images.
Exit status: 0 exported and equal; 1 not; 2 the command line is wrong.
"""

import argparse
import itertools
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.modeling import build_model

from mask2former import ConfigError, setup_cfg
from mask2former.data.datasets import predicted_metadata
from mask2former.data.datasets.custom import register_custom_datasets
from mask2former.data.image_io import ImageReadError, read_image
from mask2former.engine import Checkpointer, CheckpointError, DownloadError, fetch, is_url, report_errors
from mask2former.export import ExportError, describe, export_network, save_onnx, save_torch_export
from mask2former.export.network import side_step
from mask2former.export.numpy_postprocessing import network_size
from mask2former.export.verification import drawn_images, verify

SAVERS = {"onnx": save_onnx, "torch-export": save_torch_export}
ENDINGS = {"onnx": ".onnx", "torch-export": ".pt2"}
CONFIG_KEY = re.compile(r"(MODEL|INPUT|DATASETS|DATALOADER|SOLVER|TEST)\.[A-Z0-9_.]+")
# A photograph that a size is derived from if none is given.
PHOTOGRAPH = (480, 640)
# What traces to a graph of common operators.
EXPORTABLE = (
    "MODEL.DINAT.ATTENTION_BACKEND",
    "exportable",
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_ATTENTION_BACKEND",
    "reference",
    "MODEL.COMPILE",
    "False",
)


def read_config(options: argparse.Namespace) -> CfgNode:
    """The config of the model as it is used without an export, on the CPU, with paths that are absolute.

    Raises:
        ConfigError: it can't be used.
        DownloadError: the weights can't be had.
    """
    cfg = setup_cfg(options.config_file, options.opts)
    cfg.DATASETS.CUSTOM = register_custom_datasets(cfg.DATASETS.CUSTOM, options.config_file.parent)
    cfg.MODEL.DEVICE = "cpu"
    if not cfg.MODEL.WEIGHTS:
        raise ConfigError("MODEL.WEIGHTS is empty: it names the checkpoint to export")
    weights = fetch(cfg.MODEL.WEIGHTS) if is_url(cfg.MODEL.WEIGHTS) else cfg.MODEL.WEIGHTS
    cfg.MODEL.WEIGHTS = str(Path(weights).absolute())
    return cfg


def export(options: argparse.Namespace) -> bool:
    """Do what the command line says; return whether the file does what the model does."""
    cfg = read_config(options)
    chosen = {f"{number} {path.name}": read_image(path) for number, path in enumerate(options.verify, 1)}
    exported_cfg = cfg.clone()
    exported_cfg.merge_from_list(list(EXPORTABLE))
    model = build_model(exported_cfg)
    Checkpointer(model).load(cfg.MODEL.WEIGHTS, checkpointables=[])
    step = side_step(model)
    size = options.size or network_size(PHOTOGRAPH, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, step)[1]
    description = describe(cfg, model, predicted_metadata(cfg), options.free)
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
    result = verify(options.output, model, cfg, description, images, None if options.free == "size" else size)
    print(result.table())
    left_out = sum(comparison.undecided for comparison in result.comparisons)
    if left_out:
        print(
            f"\n{left_out} pixels of panoptic maps differ where the model's two best probabilities are as good as equal"
        )
    print("\nverified: outputs are close and results equal" if result.passes else "\nNOT equal to the model, see above")
    return result.passes


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with status 2 if it is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog=__doc__.split("\n\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", required=True, type=Path, metavar="F", help="a file of configs/")
    parser.add_argument("--format", required=True, choices=SAVERS, help="what to write")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="ends in .onnx or .pt2")
    parser.add_argument(
        "--size",
        nargs=2,
        type=int,
        metavar=("H", "W"),
        help="of the input, multiples of 32; default: what the config makes of a photograph of 640 x 480",
    )
    parser.add_argument(
        "--free",
        choices=["none", "batch", "size"],
        default="none",
        help="what may differ from call to call: nothing (fastest), the number of images, or also their size",
    )
    checks = parser.add_mutually_exclusive_group()
    checks.add_argument("--verify", nargs="+", metavar="IMG", help="images; default: three that are drawn")
    checks.add_argument("--no-verify", action="store_true", help="do not compare with the model")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys to set, such as MODEL.WEIGHTS")
    options = parser.parse_intermixed_args(arguments)
    if options.output.suffix != ENDINGS[options.format]:
        parser.error(f"--output {options.output}: expected a name that ends in {ENDINGS[options.format]}")
    options.size = tuple(options.size) if options.size else None
    # Config keys that follow the images.
    images = list(itertools.takewhile(lambda text: not CONFIG_KEY.fullmatch(text), options.verify or ()))
    options.opts += (options.verify or [])[len(images) :]
    options.verify = [Path(image) for image in images]
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    options = parse_arguments(arguments)
    with report_errors((CheckpointError, ConfigError, DownloadError, ExportError, ImageReadError, OSError)):
        return 0 if export(options) else 1
    return 1


if __name__ == "__main__":
    sys.exit(main())
