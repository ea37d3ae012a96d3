"""Speed of the training input of the published settings at full size, and where its time goes.

    python -m examples.miniature_datasets --root /tmp/data --images 8 --size 480 640    (or use real data sets)
    python benchmarks/data_loading.py --root /tmp/data [--settings coco-panoptic coco-instance] [--workers 2]

For each setting, prints the images per second of the mapper alone in one process, the images per second and worker of
the training loader, and the milliseconds of each step, measured by Python's profiler in a second pass.
"""

import argparse
import cProfile
import itertools
import os
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from tabulate import tabulate

from dinat_backbone import add_dinat_config
from dinat_common.files import write_json
from mask2former.config import setup_cfg
from mask2former.data import build_train_loader, build_train_mapper
from mask2former.model_zoo import SETTINGS

ROOT = Path(__file__).resolve().parents[1]
DEFAULT_SETTINGS = ("coco-panoptic", "coco-instance", "ade20k-panoptic", "cityscapes-semantic")
# The functions of each step, with the end of the path of their file.
STEPS: Mapping[str, Sequence[tuple[str, str]]] = {
    "read image": (("data/image_io.py", "read_image"), ("data/detection_utils.py", "check_image_size")),
    "read labels": (("data/image_io.py", "read_label_map"), ("data/image_io.py", "read_panoptic_png")),
    "augment": (("transforms/augmentation.py", "__call__"),),
    "targets": (("data/dataset_mapper.py", "_make_targets"),),
    "pad, pack": (("data/dataset_mapper.py", "_image_tensor"), ("data/dataset_mapper.py", "_pack")),
}


def setting_cfg(setting: str, workers: int) -> CfgNode:
    """The published config, with a batch that fits a small machine."""
    overrides = ["DATALOADER.NUM_WORKERS", str(workers), "SOLVER.IMS_PER_BATCH", "2"]
    return setup_cfg(ROOT / SETTINGS[setting].config_file, overrides, [add_dinat_config])


def images_per_second(mapper: Callable[[Any], Any], records: Sequence[Any], images: int) -> float:
    """Images per second of a mapper in this process, after one image to warm up."""
    mapper(records[0])
    start = time.perf_counter()
    for record in itertools.islice(itertools.cycle(records), images):
        mapper(record)
    return images / (time.perf_counter() - start)


def milliseconds(mapper: Callable[[Any], Any], records: Sequence[Any], images: int) -> dict[str, float]:
    """Mean milliseconds per image of each step, and of the rest."""
    profile = cProfile.Profile()
    start = time.perf_counter()
    profile.enable()
    for record in itertools.islice(itertools.cycle(records), images):
        mapper(record)
    profile.disable()
    total = time.perf_counter() - start
    steps = {name: sum(_seconds(profile, *function) for function in functions) for name, functions in STEPS.items()}
    if "pan_seg_file_name" in records[0] and "annotations" not in records[0]:
        # Making these targets includes reading their labels.
        steps["targets"] = max(0.0, steps["targets"] - steps["read labels"])
    steps["rest"] = total - sum(steps.values())
    return {name: 1000 * seconds / images for name, seconds in steps.items()}


def _seconds(profile: cProfile.Profile, file: str, function: str) -> float:
    """Seconds in a function and what it called. Of several functions of that name in the file, one calls the others."""
    found = [0.0]
    for entry in profile.getstats():
        code = entry.code
        if not isinstance(code, str) and code.co_name == function and code.co_filename.endswith(file):
            found.append(entry.totaltime)
    return max(found)


def loader_images_per_second(cfg: CfgNode, images: int) -> float:
    """Images per second of the training loader, after one batch per worker to warm up."""
    batches = iter(build_train_loader(cfg))
    for _ in range(1 + 2 * cfg.DATALOADER.NUM_WORKERS):
        next(batches)
    start = time.perf_counter()
    count = 0
    while count < images:
        count += len(next(batches))
    return count / (time.perf_counter() - start)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder for DETECTRON2_DATASETS to name")
    parser.add_argument("--settings", nargs="+", choices=tuple(SETTINGS), default=DEFAULT_SETTINGS)
    parser.add_argument("--images", type=int, default=40, help="images for each measurement; default: 40")
    parser.add_argument("--workers", type=int, default=2, help="processes of the training loader; default: 2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON file for the numbers")
    options = parser.parse_args(arguments)
    os.environ["DETECTRON2_DATASETS"] = str(options.root)
    # The same as in a worker of the loader.
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    results = {name: measure(name, options.images, options.workers, options.seed) for name in options.settings}
    print(tabulate([{"setting": name, **numbers} for name, numbers in results.items()], headers="keys", floatfmt=".1f"))
    print("steps in ms per image; pure: the mapper alone, in one process; loader: images per second and worker")
    if options.output:
        write_json(options.output, results, indent=2)
    return 0


def measure(setting: str, images: int, workers: int, seed: int) -> dict[str, float]:
    """All numbers of one setting."""
    cfg = setting_cfg(setting, workers)
    records = DatasetCatalog.get(cfg.DATASETS.TRAIN[0])
    mapper = build_train_mapper(cfg)
    np.random.seed(seed)
    random.seed(seed)
    pure = images_per_second(mapper, records, images)
    loader = loader_images_per_second(cfg, images) / max(1, workers)
    return {"pure": pure, "loader": loader, **milliseconds(mapper, records, images)}


if __name__ == "__main__":
    sys.exit(main())
