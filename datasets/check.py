"""Say for each of the eight settings whether its data are there, to train on and to evaluate on.

    python datasets/check.py [--dataset coco ade20k cityscapes] [--full]

Ends with 0 if all settings asked for can train and evaluate, with 1 otherwise. A number of images other than the
published one is noted, but nothing is wrong with a smaller set that is sound.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mask2former.data.datasets import datasets_root
from mask2former.data.published import check_settings, render
from mask2former.model_zoo import SETTINGS
from mask2former.utils.errors import report_interrupt
from mask2former.utils.parallel import default_workers


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    datasets = sorted({setting.dataset for setting in SETTINGS.values()})
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", nargs="+", choices=datasets, default=datasets, help="default: all")
    parser.add_argument("--split", nargs="+", choices=("train", "val"), default=("train", "val"), help="default: both")
    parser.add_argument(
        "--full", action="store_true", help="open every file: images that can't be read, labels that don't fit"
    )
    parser.add_argument(
        "--root", type=Path, default=datasets_root(), metavar="FOLDER", help="default: DETECTRON2_DATASETS, or datasets"
    )
    parser.add_argument(
        "--workers", type=int, default=default_workers(), metavar="N", help=f"default: {default_workers()} processes"
    )
    options = parser.parse_args(arguments)
    os.environ["DETECTRON2_DATASETS"] = str(options.root)
    asked = [name for name, setting in SETTINGS.items() if setting.dataset in options.dataset]
    with report_interrupt("nothing was checked to its end"):
        reports = check_settings(asked, full=options.full, workers=options.workers, splits=options.split)
    print(render(reports))
    sound = all(not report.blocking(split) for report in reports for split in options.split)
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
