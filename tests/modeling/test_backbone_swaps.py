"""Detectors and UPerNet over every backbone: those of this package and Detectron2's."""

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from mask2former import setup_cfg
from mask2former.config import ConfigError

from ..conftest import ROOT

LEVELS = {"EMBED_DIM": 32, "DEPTHS": [1, 1, 1, 1], "NUM_HEADS": [1, 2, 4, 8], "KERNEL_SIZE": 3, "DILATIONS": []}
ONE_LEVEL = {"EMBED_DIM": 32, "DEPTHS": [1], "NUM_HEADS": [1]}
# Settings of `MODEL.DINAT` by the name of a backbone; none for Detectron2's.
BACKBONES = {
    "D2DiNAT": LEVELS,
    "D2DiNATs": LEVELS,
    "build_dinat_fpn_backbone": LEVELS,
    "D2IsotropicDiNAT": ONE_LEVEL,
    "D2ViTRpb": ONE_LEVEL,
    "build_resnet_backbone": {},
    "build_resnet_fpn_backbone": {},
}
# Image sizes of those that do not take every one.
SIZES = {"D2ViTRpb": (224, 224), "build_resnet_fpn_backbone": (64, 96)}
PYRAMIDS = ("build_dinat_fpn_backbone", "build_resnet_fpn_backbone")


def small_config(kind: str, backbone: str) -> CfgNode:
    """Config of a small model of a base config, with the maps that the backbone has."""
    cfg = setup_cfg(ROOT / f"configs/_base_/{kind}.yaml", ["MODEL.DEVICE", "cpu", "MODEL.BACKBONE.NAME", backbone])
    cfg.MODEL.DINAT.update(BACKBONES[backbone])
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = cfg.MODEL.AUXILIARY_HEAD.CONVS_DIM = 8
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = cfg.MODEL.ROI_HEADS.NUM_CLASSES = 5
    cfg.MODEL.ROI_BOX_HEAD.CONV_DIM = cfg.MODEL.ROI_BOX_HEAD.FC_DIM = cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 8
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 20
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.TEST.DETECTIONS_PER_IMAGE = 5
    if kind == "upernet" and backbone in PYRAMIDS:
        cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES, cfg.MODEL.AUXILIARY_HEAD.IN_FEATURES = ["p2", "p3", "p4", "p5"], ["p4"]
    if BACKBONES[backbone] is ONE_LEVEL:
        cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res4"]
        cfg.MODEL.RPN.IN_FEATURES, cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p4", "p5"], ["p4"]
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[128], [256]]
    return cfg


@torch.no_grad()
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("kind", ["maskrcnn", "cascade", "upernet"])
def test_models_over_any_backbone(kind, backbone):
    size = SIZES.get(backbone, (70, 90))
    model = build_model(small_config(kind, backbone)).eval()
    (result,) = model([{"image": torch.randint(0, 256, (3, *size)).float(), "height": 40, "width": 50}])
    if kind == "upernet":
        torch.testing.assert_close(result["sem_seg"].sum(0), torch.ones(40, 50))
    else:
        found = result["instances"]
        assert len(found) == 5 and found.pred_masks.shape == (5, 40, 50) and found.pred_boxes.tensor.isfinite().all()


@torch.no_grad()
def test_one_mask_for_all_classes_and_boxes_that_all_classes_share():
    cfg = small_config("cascade", "D2DiNAT")
    cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK = cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True
    (result,) = build_model(cfg).eval()([{"image": torch.randint(0, 256, (3, 64, 64)).float()}])
    assert len(result["instances"]) == 5


@pytest.mark.parametrize(
    ("backbone", "key", "value", "message"),
    [
        ("D2IsotropicDiNAT", "FPN.IN_FEATURES", ["res2", "res4"], r"FPN\.IN_FEATURES is .*, expected maps .*: res4$"),
        ("D2DiNAT", "FPN.IN_FEATURES", ["res3", "res4", "res5"], r"RPN\.IN_FEATURES is .*: p3, p4, p5, p6$"),
        ("D2DiNAT", "ROI_HEADS.IN_FEATURES", ["p2", "p7"], r"ROI_HEADS\.IN_FEATURES is \['p2', 'p7'\], expected maps"),
        ("D2DiNAT", "ROI_HEADS.IN_FEATURES", [], r"ROI_HEADS\.IN_FEATURES is \[\], expected maps"),
        ("D2DiNAT", "ANCHOR_GENERATOR.SIZES", [[8], [16]], r"SIZES is .*, expected a list for all 5 maps or one each"),
        ("D2DiNAT", "ROI_HEADS.NAME", "StandardROIHeads", r"is StandardROIHeads, expected MaskRCNNHeads or a kind"),
        ("D2DiNAT", "MASK_ON", False, "MASK_ON is False, but MaskRCNN always predicts masks"),
    ],
)
def test_parts_that_do_not_fit_are_named(backbone, key, value, message):
    cfg = small_config("maskrcnn", backbone)
    node = cfg.MODEL
    *path, leaf = key.split(".")
    for part in path:
        node = node[part]
    node[leaf] = value
    with pytest.raises(ConfigError, match=message):
        build_model(cfg)
