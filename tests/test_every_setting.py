"""Each of the eight published settings trains and evaluates, with a small model, on a miniature tree of its data."""

import json

import pytest
import torch

from mask2former.model_zoo import SETTINGS

from .conftest import config_path, load_script
from .tiny import TINY

# Crops as small as the images; no result is filtered away.
SMALL = (
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS 128 MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD 0.0 "
    "SOLVER.IMS_PER_BATCH 2 SOLVER.MAX_ITER 3 SOLVER.STEPS () DATALOADER.NUM_WORKERS 0 SEED 1 "
).split()
CROPS = {
    "coco": "INPUT.IMAGE_SIZE 96",
    "ade20k": "INPUT.CROP.SIZE (64,64) INPUT.SIZE_DIVISIBILITY 64 INPUT.MIN_SIZE_TRAIN (48,64,96)",
    "cityscapes": "INPUT.CROP.SIZE (48,96) INPUT.MIN_SIZE_TRAIN (48,64,96)",
}
# Where the metrics of a task are found, and the files with its predictions.
REPORTED = {
    ("coco", "PQ"): ("panoptic_seg", "PQ"),
    ("coco", "AP"): ("segm", "AP"),
    ("coco", "mIoU"): ("sem_seg", "mIoU"),
    ("cityscapes", "mIoU"): ("sem_seg", "IoU"),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_setting_trains_and_evaluates(setting, trees, tmp_path, monkeypatch, loggers_restored):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(trees))
    published = SETTINGS[setting]
    opts = [*TINY, *SMALL, *CROPS[published.dataset].split(), "OUTPUT_DIR", str(tmp_path)]
    load_script("train_net.py").run(["--config-file", str(config_path(setting)), *opts])

    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [line["total_loss"] for line in lines if "total_loss" in line]
    trained = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert trained["iteration"] == 2
    assert all(value.isfinite().all() for value in trained["model"].values() if value.is_floating_point())
    (results,) = json.loads((tmp_path / "inference" / "metrics.json").read_text()).values()
    for metric in published.published:
        task, name = REPORTED.get((published.dataset, metric)) or REPORTED["coco", metric]
        assert 0 <= results[task][name] <= 100
    assert len(results) == len(published.published), "what a setting does not predict is not evaluated"
