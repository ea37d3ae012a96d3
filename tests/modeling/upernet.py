"""The shrunken UPerNets of the parity fixture."""

import json
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, build_model

from mask2former import setup_cfg
from mask2former.checkpoint.openmmlab_names import from_openmmlab
from mask2former.config import load_extensions
from mask2former.modeling import PixelClassifier

from ..conftest import ROOT

PARITY = ROOT / "tests" / "parity"
FIXTURE = json.loads((PARITY / "upernet.json").read_text())
PUBLISHED = np.load(PARITY / "upernet.npz")
MODELS = FIXTURE["models"]
CONFIG = ROOT / "configs/ade20k/semantic-segmentation/dinat/upernet_dinat_mini.yaml"
# Of the published ADE20K configs (2048, 512).
SCALE = (256, 64)
# Architectures of the fixture, by their names in the published code.
BACKBONES = {"DiNAT": "D2DiNAT", "NAT": "D2DiNAT", "DiNAT_s": "D2DiNATs"}
load_extensions()
IMAGES = [
    (name, image)
    for name, model in MODELS.items()
    if BACKBONES[model["backbone"]["type"]] in BACKBONE_REGISTRY
    for image in model["images"]
]
# Arguments of the published backbones that are not among the keys of MODEL.DINAT.
_OTHER = ("type", "out_indices", "frozen_stages", "patch_norm")


def settings(name: str) -> CfgNode:
    """Config of a model of the fixture."""
    cfg = setup_cfg(CONFIG, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""])
    model = MODELS[name]
    backbone, head, auxiliary = (model[part] for part in ("backbone", "decode_head", "auxiliary_head"))
    cfg.MODEL.BACKBONE.NAME = BACKBONES[backbone["type"]]
    cfg.MODEL.DINAT.DILATIONS = []
    for key, value in backbone.items():
        if key not in _OTHER:
            assert key.upper() in cfg.MODEL.DINAT
            cfg.MODEL.DINAT[key.upper()] = value
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = head["num_classes"]
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = head["channels"]
    cfg.MODEL.SEM_SEG_HEAD.POOL_SIZES = head["pool_scales"]
    cfg.MODEL.AUXILIARY_HEAD.CONVS_DIM = auxiliary["channels"]
    cfg.INPUT.MAX_SIZE_TEST, cfg.INPUT.MIN_SIZE_TEST = SCALE
    ratios = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    cfg.TEST.AUG.MIN_SIZES = [int(SCALE[1] * ratio) for ratio in ratios]
    cfg.TEST.AUG.MAX_SIZE = int(SCALE[0] * ratios[-1])
    return cfg


def published_weights(name: str, deterministic: Any) -> dict[str, torch.Tensor]:
    """Weights of a model of the fixture under their published names, by the rule of the fixture."""
    state = {}
    for key, shape in MODELS[name]["state"].items():
        value = deterministic.weight(key, shape)
        leaf = key.rsplit(".", 1)[-1]
        if leaf == "num_batches_tracked":
            value = np.zeros(shape, np.int64)
        elif leaf in ("gamma1", "gamma2"):
            value = value * np.float32(5)
        elif key.endswith("conv_seg.weight"):
            value = value * np.float32(6)
        state[key] = torch.from_numpy(np.asarray(value))
    return state


def make_model(cfg: CfgNode, weights: dict[str, torch.Tensor]) -> PixelClassifier:
    """A model with published weights."""
    model = build_model(cfg).eval()
    model.load_state_dict(from_openmmlab(weights))
    return model
