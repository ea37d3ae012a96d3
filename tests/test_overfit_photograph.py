"""A model overfits a real photograph with 19 labelled instances, with the real data pipeline."""

from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog

import train_net
from mask2former.data import build_train_mapper

from .conftest import ROOT
from .data.voc import NUM_CLASSES, make_voc_coco_layout

CONFIG = ROOT / "configs" / "shapes" / "panoptic-segmentation" / "dinat" / "maskformer2_dinat_pico_shapes.yaml"
SHORT_EDGE = 320
STEPS = 320


@pytest.fixture
def cfg(tmp_path):
    """The small model of the demo; the photograph at one size, without augmentation."""
    name = make_voc_coco_layout(tmp_path / "data")["panoptic"]
    cfg = train_net.get_config(CONFIG)
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = NUM_CLASSES
    cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES = 40
    cfg.MODEL.MASK_FORMER.TRAIN_NUM_POINTS = 2048
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (name,)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_panoptic"
    cfg.INPUT.MIN_SIZE_TRAIN = (SHORT_EDGE,)
    cfg.INPUT.MAX_SIZE_TRAIN = cfg.INPUT.MAX_SIZE_TEST = 2 * SHORT_EDGE
    cfg.INPUT.MIN_SIZE_TEST = SHORT_EDGE
    cfg.INPUT.CROP.ENABLED = False
    cfg.INPUT.COLOR_AUG_SSD = False
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.INPUT.SIZE_DIVISIBILITY = -1
    cfg.SOLVER.MAX_ITER = STEPS
    cfg.SOLVER.STEPS = (STEPS * 3 // 4,)
    cfg.SOLVER.WARMUP_ITERS = 20
    return cfg


@pytest.mark.slow
def test_small_model_learns_a_photograph_by_heart(cfg):
    Path(cfg.OUTPUT_DIR).mkdir()
    (image,) = DatasetCatalog.get(cfg.DATASETS.TRAIN[0])
    example = build_train_mapper(cfg)(image)
    assert len(example["instances"]) == 20  # 19 things and the background
    model = train_net.Trainer.build_model(cfg).train()
    optimizer = train_net.Trainer.build_optimizer(cfg, model)
    scheduler = train_net.Trainer.build_lr_scheduler(cfg, optimizer)
    for _ in range(STEPS):
        loss = sum(model([example]).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    with torch.no_grad():
        results = train_net.Trainer.test(cfg, model)
    assert results["panoptic_seg"]["PQ"] >= 80, results["panoptic_seg"]
