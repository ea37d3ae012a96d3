#!/usr/bin/env python
"""Make your own labelled pictures ready for training: check them, look at them, split them, and write a config.

    python tools/dataset.py inspect --images photos --annotations instances.json
    python tools/dataset.py preview --images photos --labels masks --classes classes.txt --output preview
    python tools/dataset.py split   --images photos --labels masks --classes classes.txt --output data
    python tools/dataset.py config  --images photos --annotations instances.json --gpu-memory 24 --output run

What the files are follows from the options given:

    --annotations F                          COCO's instances JSON
    --annotations F --panoptic DIR           COCO's panoptic JSON and its PNGs
    --labels DIR --classes F                 PNGs with the id of a class per pixel, and a list of the classes
    --labels DIR --instances DIR --classes F the same, and PNGs with the number of an instance per pixel (0: none)

--val-images, --val-annotations, ... name the files of a split for evaluation.
Exit status: 0 the data can be used; 1 they can't; 2 the command line is wrong.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mask2former.data.custom.inspection import inspect_sources, render
from mask2former.data.custom.source import Source, SourceError
from mask2former.data.datasets import AnnotationError
from mask2former.data.datasets.coco_layout import IGNORE_LABEL
from mask2former.data.parallel import default_workers
from mask2former.engine.cli import report_interrupt

_FILES = {
    "images": "folder of the images",
    "annotations": "COCO's instances or panoptic JSON",
    "panoptic": "folder of panoptic PNGs",
    "labels": "folder of semantic label PNGs",
    "instances": "folder of PNGs with instance numbers",
    "files": "text file that lists the images to take",
}


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with status 2 if it is wrong."""
    description, _, epilog = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("inspect", "check all files, and say what is wrong and what to do"),):
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        _add_files(command)
    return parser.parse_args(arguments)


def _add_files(parser: argparse.ArgumentParser) -> None:
    files = parser.add_argument_group("files")
    for split in ("", "val-"):
        for name, text in _FILES.items():
            files.add_argument(
                f"--{split}{name}",
                type=Path,
                metavar="DIR" if text.startswith("folder") else "F",
                required=not split and name == "images",
                help=text + (", for evaluation" if split else ""),
            )
    files.add_argument("--classes", type=Path, metavar="F", help="list of classes: lines of text, YAML or JSON")
    files.add_argument(
        "--ignore-label",
        type=int,
        default=IGNORE_LABEL,
        metavar="N",
        help=f"value of void in label PNGs; default: {IGNORE_LABEL}",
    )
    files.add_argument(
        "--workers", type=int, default=default_workers(), metavar="N", help=f"default: {default_workers()} processes"
    )


def read_sources(options: argparse.Namespace) -> list[Source]:
    """The splits that the command line names.

    Raises:
        SourceError: files that don't exist or don't belong together.
    """
    train = Source(
        **{name: getattr(options, name) for name in _FILES}, classes=options.classes, ignore_label=options.ignore_label
    )
    val = {name: path for name in _FILES if (path := getattr(options, f"val_{name}"))}
    # Splits may have folders in common.
    return [train, replace(train, **{"files": None, **val}, split="val")] if val else [train]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    options = parse_arguments(arguments)
    try:
        sources = read_sources(options)
    except SourceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    with report_interrupt("nothing was written"):
        try:
            inspection = inspect_sources(sources, options.workers)
        except (AnnotationError, SourceError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    print(render(inspection))
    return 0 if inspection.usable else 1


if __name__ == "__main__":
    sys.exit(main())
