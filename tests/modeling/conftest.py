"""The model of the parity fixture, and small models to train."""

import json

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Instances

from mask2former import MaskFormer, setup_cfg

from ..conftest import ROOT, config_path

PARITY = ROOT / "tests" / "parity"
# COCO panoptic: contiguous ids 0..79 are things.
THINGS = "parity_things"


@pytest.fixture(scope="session")
def fixture() -> dict:
    """Settings of the parity fixture."""
    return json.loads((PARITY / "mask2former_tiny.json").read_text())


@pytest.fixture(scope="session")
def published() -> dict[str, np.ndarray]:
    """Numbers that the published code gave."""
    return dict(np.load(PARITY / "mask2former_tiny.npz"))


@pytest.fixture(scope="session")
def tiny_cfg(fixture) -> CfgNode:
    """Config of the parity fixture; clone it before changing it."""
    MetadataCatalog.get(THINGS).set(thing_dataset_id_to_contiguous_id={i: i for i in range(80)})
    opts = [str(part) for pair in fixture["overrides"].items() for part in pair]
    cfg = setup_cfg(config_path("coco-panoptic"), opts)
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "DATASETS.TRAIN", (THINGS,)])
    cfg.freeze()
    return cfg


@pytest.fixture(scope="session")
def make_model(fixture, tiny_cfg, deterministic):
    """Build the parity model with its weights; keyword arguments change `MODEL.MASK_FORMER.TEST`."""

    def make(*, bfloat16: bool = False, **test) -> MaskFormer:
        cfg = tiny_cfg.clone()
        cfg.defrost()
        cfg.TEST.AMP = bfloat16
        for key, value in test.items():
            cfg.MODEL.MASK_FORMER.TEST[key] = value
        model = build_model(cfg)
        deterministic.load_weights(model)
        with torch.no_grad():
            model.sem_seg_head.predictor.class_embed.weight.mul_(fixture["class_embed_weight_scale"])
        return model.eval()

    return make


@pytest.fixture
def train_cfg(tiny_cfg) -> CfgNode:
    """A model smaller still, for training steps."""
    cfg = tiny_cfg.clone()
    cfg.defrost()
    cfg.merge_from_file(str(ROOT / "configs" / "_base_" / "dinat_pico.yaml"))
    cfg.MODEL.DINAT.DEPTHS, cfg.MODEL.DINAT.DILATIONS = [1, 2, 1, 1], [[2], [1, 1], [1], [1]]
    cfg.MODEL.DINAT.KERNEL_SIZES = [5, 5, 3, 3]
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 4
    cfg.MODEL.MASK_FORMER.DEC_LAYERS = 3
    cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES = 6
    cfg.MODEL.MASK_FORMER.TRAIN_NUM_POINTS = 256
    cfg.SOLVER.BASE_LR = 1e-3
    cfg.SOLVER.BACKBONE_MULTIPLIER = 1.0
    return cfg


def example(classes: list[int], seed: int = 0, size: tuple[int, int] = (64, 64)) -> dict:
    """A training dict: one bright horizontal band per target, on noise."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    image = torch.randint(0, 60, (3, height, width), dtype=torch.uint8, generator=generator)
    masks = torch.zeros(len(classes), height, width, dtype=torch.bool)
    for index, category in enumerate(classes):
        rows = slice(index * height // len(classes), (index + 1) * height // len(classes))
        masks[index, rows, : width // 2 + 8 * seed] = True
        image[category % 3, rows, : width // 2 + 8 * seed] += 120 + 20 * category
    instances = Instances(size)
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    instances.gt_masks = masks
    return {"image": image, "instances": instances}
