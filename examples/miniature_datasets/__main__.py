"""The command line of the package."""

import argparse
from pathlib import Path

from dinat_common.errors import run_script
from dinat_common.files import check_folder

from . import DATASETS, draw_dataset


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.miniature_datasets", description="Draw miniature COCO, ADE20K and Cityscapes."
    )
    parser.add_argument("--root", type=Path, required=True, help="folder for DETECTRON2_DATASETS to name")
    parser.add_argument("--dataset", nargs="+", choices=DATASETS, default=DATASETS, help="default: all three")
    parser.add_argument("--images", type=int, default=4, help="images in each of the two splits; default: 4")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="of every image; default: small")
    parser.add_argument("--seed", type=int, default=0, help="seed of the pictures; default: 0")
    parser.add_argument("--unprepared", action="store_true", help="only the files that the owners publish")
    options = parser.parse_args()
    check_folder(options.root)
    for name in options.dataset:
        size = tuple(options.size) if options.size else None
        draw_dataset(
            options.root, name, images=options.images, size=size, seed=options.seed, prepared=not options.unprepared
        )


run_script(main)
