"""What the command lines of the preparation share."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mask2former.data.datasets import datasets_root
from mask2former.data.published.jobs import Summary
from mask2former.utils.parallel import default_workers

_SPLITS = ("train", "val")


def add_arguments(parser: argparse.ArgumentParser, tasks: Sequence[str] = ()) -> None:
    """Add --root, --split, --workers, and --task where there are several."""
    parser.add_argument(
        "--root",
        type=Path,
        default=datasets_root(),
        metavar="FOLDER",
        help="the folder that has the data set's folder; default: DETECTRON2_DATASETS, or datasets",
    )
    parser.add_argument("--split", nargs="+", choices=_SPLITS, default=_SPLITS, help="default: both")
    if tasks:
        parser.add_argument("--task", nargs="+", choices=tasks, default=tasks, help="default: all")
    parser.add_argument(
        "--workers",
        type=int,
        default=default_workers(),
        metavar="N",
        help=f"number of processes; default: {default_workers()}",
    )


def report(summaries: Sequence[Summary]) -> str:
    """One line per kind of labels and split."""
    return "\n".join(f"{s.name}: {s.made} made, {s.kept} kept" for s in summaries)
