"""Check whether the data sets of the published models are complete, for training and for evaluation.

    python datasets/check.py [--dataset coco ade20k cityscapes imagenet imagenet_22k] [--full]

There is a row for each of the eight settings of Mask2Former, and one for each data set of classifiers that --dataset
names. Detectors need the data of coco-instance, UPerNets those of ade20k-semantic.

The exit status is 0 if all selected settings can be trained and evaluated, otherwise 1. A number of images that differs
from the published one is only a note: a subset can be used.
"""

import argparse
import os
from collections.abc import Sequence

from dinat_common.errors import report_interrupt, run_script
from dinat_common.files import user_path
from mask2former.data.datasets import datasets_root
from mask2former.data.published import check_settings, render
from mask2former.model_zoo import SETTINGS
from mask2former.utils.parallel import default_workers


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    classified = ["imagenet", "imagenet_22k"]
    datasets = sorted({setting.dataset for setting in SETTINGS.values()})
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--dataset",
        nargs="+",
        choices=[*datasets, *classified],
        default=datasets,
        help=f"default: {' '.join(datasets)}",
    )
    parser.add_argument("--split", nargs="+", choices=("train", "val"), default=("train", "val"), help="default: both")
    parser.add_argument(
        "--full", action="store_true", help="open every file, to find unreadable images and wrong labels"
    )
    parser.add_argument(
        "--root",
        type=user_path,
        default=datasets_root(),
        metavar="FOLDER",
        help="default: DETECTRON2_DATASETS, or datasets",
    )
    parser.add_argument(
        "--workers", type=int, default=default_workers(), metavar="N", help=f"default: {default_workers()} processes"
    )
    options = parser.parse_args(arguments)
    os.environ["DETECTRON2_DATASETS"] = str(options.root)
    selected = [name for name, setting in SETTINGS.items() if setting.dataset in options.dataset]
    selected += [name for name in classified if name in options.dataset]
    with report_interrupt("the check is incomplete"):
        checks = check_settings(selected, full=options.full, workers=options.workers, splits=options.split)
    print(render(checks))
    return 1 if any(findings.blocking for check in checks for findings in check.findings.values()) else 0


if __name__ == "__main__":
    run_script(main)
