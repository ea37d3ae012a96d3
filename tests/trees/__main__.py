"""The command line of the package's docstring."""

import argparse
from pathlib import Path

from . import DATASETS, draw_tree

parser = argparse.ArgumentParser(prog="python -m tests.trees", description="Draw miniature trees of the data sets.")
parser.add_argument("--root", type=Path, required=True, help="folder for DETECTRON2_DATASETS to name")
parser.add_argument("--dataset", nargs="+", choices=DATASETS, default=DATASETS, help="default: all three")
parser.add_argument("--images", type=int, default=4, help="in each of the two splits; default: 4")
parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="of every image; default: small")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--unprepared", action="store_true", help="only what the owners publish")
options = parser.parse_args()
for name in options.dataset:
    size = tuple(options.size) if options.size else None
    draw_tree(options.root, name, images=options.images, size=size, seed=options.seed, prepared=not options.unprepared)
