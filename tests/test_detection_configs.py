"""The 21 published detectors: their configs against the facts of the published code."""

import gzip
import json

import pytest
import torch
from detectron2.modeling import build_model

from mask2former import setup_cfg
from mask2former.checkpoint import compare, from_openmmlab, to_openmmlab
from mask2former.engine.resuming import set_iteration
from mask2former.solver import build_lr_scheduler, parameter_groups

from .conftest import ROOT

PUBLISHED = ROOT / "tests" / "published"
FAMILY = json.loads((PUBLISHED / "family.json").read_text())["detection"]
FOLDER = ROOT / "configs" / "coco" / "detection"
# Iterations of an epoch of COCO's 117266 training images with annotations in batches of 16.
EPOCH = 7330


def config(stem):
    folder = {"NAT": "nat", "DiNAT": "dinat"}.get(FAMILY[stem]["backbone"]["family"], "dinat_s")
    return setup_cfg(FOLDER / folder / f"{stem}.yaml")


def test_every_published_detector_has_a_config():
    assert sorted(path.stem for path in FOLDER.rglob("*.yaml")) == sorted(FAMILY)
    assert len(FAMILY) == 21


@pytest.mark.parametrize("stem", FAMILY)
def test_backbone(stem):
    backbone, node = FAMILY[stem]["backbone"], config(stem).MODEL.DINAT
    undilated = [[1] * depth for depth in node.DEPTHS]
    assert (
        backbone["embed_dim"],
        backbone["depths"],
        backbone["num_heads"],
    ) == (node.EMBED_DIM, node.DEPTHS, node.NUM_HEADS)
    assert (node.DILATIONS or undilated) == backbone["dilations"]
    assert (backbone["kernel_size"], backbone["mlp_ratio"]) == (node.KERNEL_SIZE, node.MLP_RATIO)
    assert (backbone["drop_path_rate"], backbone["layer_scale"]) == (node.DROP_PATH_RATE, node.LAYER_SCALE)
    model = config(stem).MODEL
    assert ("D2DiNATs" if "_s_" in stem else "D2DiNAT") == model.BACKBONE.NAME
    assert backbone["frozen_stages"] + 1 == model.BACKBONE.FREEZE_AT
    assert backbone["pretrained"].rpartition("/")[2] == model.WEIGHTS


@pytest.mark.parametrize("stem", FAMILY)
def test_detector(stem):
    facts, model = FAMILY[stem]["detector"], config(stem).MODEL
    cascade = facts["type"].startswith("Cascade")
    assert model.META_ARCHITECTURE == "MaskRCNN"
    assert ("CascadeMaskRCNNHeads" if cascade else "MaskRCNNHeads") == model.ROI_HEADS.NAME
    weights = model.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS if cascade else [model.ROI_BOX_HEAD.BBOX_REG_WEIGHTS]
    stds = [[1 / value for value in of_stage] for of_stage in weights]
    expected = facts["target_stds"] if cascade else [facts["target_stds"]]
    assert len(stds) == facts["mask_heads"] == len(expected)
    assert all(a == pytest.approx(b, rel=1e-12) for a, b in zip(stds, expected, strict=True))
    assert facts["fpn"]["out_channels"] == model.FPN.OUT_CHANNELS and not model.FPN.NORM
    anchors, scales = model.ANCHOR_GENERATOR, facts["anchors"]
    assert [[stride * scales["scales"][0]] for stride in scales["strides"]] == anchors.SIZES
    assert ([scales["ratios"]], scales["center_offset"]) == (anchors.ASPECT_RATIOS, anchors.OFFSET)
    assert list(model.RPN.BBOX_REG_WEIGHTS) == facts["rpn"]["target_stds"]
    roi, box, mask = facts["roi_align"], model.ROI_BOX_HEAD, model.ROI_MASK_HEAD
    assert (roi["output_box"], roi["output_mask"]) == (box.POOLER_RESOLUTION, mask.POOLER_RESOLUTION)
    assert box.POOLER_SAMPLING_RATIO == mask.POOLER_SAMPLING_RATIO == roi["sampling_ratio"]
    assert ((4, 1, 1024) if cascade else (0, 2, 1024)) == (box.NUM_CONV, box.NUM_FC, box.FC_DIM)
    assert ("SyncBN" if cascade else "") == box.NORM
    assert box.CLS_AGNOSTIC_BBOX_REG is facts["class_agnostic_boxes"] is False
    assert (facts["mask_head"]["convs"], facts["mask_head"]["channels"]) == (mask.NUM_CONV, mask.CONV_DIM)
    assert facts["num_classes"] == model.ROI_HEADS.NUM_CLASSES


@pytest.mark.parametrize("stem", FAMILY)
def test_evaluation(stem):
    facts, cfg = FAMILY[stem]["evaluation"], config(stem)
    assert (facts["mean"], facts["std"]) == (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
    assert facts["channel_order"] == cfg.INPUT.FORMAT
    assert (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, cfg.INPUT.RESIZE_WITH) == (800, 1333, "opencv")
    rpn, heads = cfg.MODEL.RPN, cfg.MODEL.ROI_HEADS
    assert (facts["rpn"]["nms_pre_per_level"], facts["rpn"]["nms_iou"]) == (rpn.PRE_NMS_TOPK_TEST, rpn.NMS_THRESH)
    assert facts["rpn"]["max_per_image"] == rpn.POST_NMS_TOPK_TEST
    assert facts["rpn"]["min_box_size"] == cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE
    assert facts["rcnn"]["score_threshold"] == heads.SCORE_THRESH_TEST
    assert facts["rcnn"]["nms_iou"] == heads.NMS_THRESH_TEST
    assert facts["rcnn"]["max_per_image"] == cfg.TEST.DETECTIONS_PER_IMAGE
    assert list(cfg.DATASETS.TEST) == ["coco_2017_val"]


@pytest.mark.parametrize("stem", FAMILY)
def test_recipe(stem):
    facts, cfg = FAMILY[stem]["recipe"], config(stem)
    solver, cascade = cfg.SOLVER, "ascade" in stem
    assert (facts["lr"], facts["weight_decay"], 16) == (solver.BASE_LR, solver.WEIGHT_DECAY, solver.IMS_PER_BATCH)
    assert facts["epochs"] * EPOCH == solver.MAX_ITER
    assert list(solver.STEPS) == [step * EPOCH for step in facts["steps"]]
    assert (facts["gamma"], 500, 0.001) == (solver.GAMMA, solver.WARMUP_ITERS, solver.WARMUP_FACTOR)
    assert (solver.OPTIMIZER, solver.BACKBONE_MULTIPLIER) == ("ADAMW", 1.0)
    assert not solver.CLIP_GRADIENTS.ENABLED
    assert solver.AMP.ENABLED is (facts["mixed_precision"] is not None)
    assert list(cfg.INPUT.MIN_SIZE_TRAIN) == list(range(480, 801, 32)) and cfg.INPUT.MAX_SIZE_TRAIN == 1333
    assert (cfg.INPUT.CROP.TYPE, list(cfg.INPUT.CROP.SIZE)) == (facts["crop"]["type"], facts["crop"]["size"])
    assert list(cfg.INPUT.CROP.SHORT_EDGES) == [400, 500, 600]
    rpn, box = cfg.MODEL.RPN, cfg.MODEL.ROI_BOX_HEAD
    assert (2000, 2000 if cascade else 1000) == (rpn.PRE_NMS_TOPK_TRAIN, rpn.POST_NMS_TOPK_TRAIN)
    assert (0 if cascade else -1) == rpn.BOUNDARY_THRESH
    assert pytest.approx(1 / 9 if cascade else 0) == rpn.SMOOTH_L1_BETA
    assert (("giou", 10) if cascade else ("smooth_l1", 1)) == (box.BBOX_REG_LOSS_TYPE, box.BBOX_REG_LOSS_WEIGHT)
    assert box.SMOOTH_L1_BETA == 0
    assert (rpn.BATCH_SIZE_PER_IMAGE, rpn.POSITIVE_FRACTION, rpn.IOU_THRESHOLDS) == (256, 0.5, [0.3, 0.7])
    heads = cfg.MODEL.ROI_HEADS
    assert (heads.BATCH_SIZE_PER_IMAGE, heads.POSITIVE_FRACTION, heads.IOU_THRESHOLDS) == (512, 0.25, [0.5])
    assert heads.PROPOSAL_APPEND_GT and (rpn.LOSS_WEIGHT, rpn.BBOX_REG_LOSS_TYPE) == (1, "smooth_l1")
    assert cfg.DATALOADER.ASPECT_RATIO_GROUPING and cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    assert (cfg.INPUT.RANDOM_FLIP, cfg.MODEL.MASK_ON) == ("horizontal", True)
    assert list(cfg.MODEL.ROI_BOX_CASCADE_HEAD.IOUS) == [0.5, 0.6, 0.7]
    assert list(cfg.MODEL.ROI_BOX_CASCADE_HEAD.LOSS_WEIGHTS) == [1, 0.5, 0.25]


@pytest.mark.parametrize(
    ("iteration", "factor"),
    [
        (0, 0.001),
        (250, 0.001 + 0.999 * 0.5),
        (500, 1),
        (27 * EPOCH - 1, 1),
        (27 * EPOCH, 0.1),
        (33 * EPOCH - 1, 0.1),
        (33 * EPOCH, 0.01),
        (36 * EPOCH - 1, 0.01),
    ],
)
def test_learning_rate(iteration, factor):
    cfg = config("maskrcnn_dinat_tiny")
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=cfg.SOLVER.BASE_LR)
    (rate,) = set_iteration(build_lr_scheduler(cfg, optimizer), iteration)
    assert rate == pytest.approx(1e-4 * factor)


@pytest.mark.parametrize("stem", ["nat_small_maskrcnn", "cascadedmaskrcnn_dinat_s_tiny"])
def test_names_with_norm_or_rpb_are_not_decayed(stem):
    cfg = config(stem)
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    names = {parameter: name for name, parameter in model.named_parameters()}
    published = {
        name: theirs for theirs, name in zip(to_openmmlab(model.state_dict()), model.state_dict(), strict=True)
    }
    groups = parameter_groups(cfg, model)
    assert {group["lr"] for group in groups} == {cfg.SOLVER.BASE_LR}
    for group in groups:
        for parameter in group["params"]:
            name = published[names[parameter]]
            assert group["weight_decay"] == (0.0 if "rpb" in name or "norm" in name else 0.05), name


def test_the_layers_of_the_pyramid_have_the_rate_of_a_head():
    cfg = config("nat_mini_maskrcnn")
    cfg.MODEL.DEVICE, cfg.SOLVER.BACKBONE_MULTIPLIER = "meta", 0.1
    with torch.device("meta"):
        model = build_model(cfg)
    rates = {parameter: group["lr"] for group in parameter_groups(cfg, model) for parameter in group["params"]}
    slow = {name for name, parameter in model.named_parameters() if rates[parameter] == pytest.approx(1e-5)}
    assert slow == {name for name, _ in model.named_parameters() if name.startswith("backbone.bottom_up.")}
    assert {rates[parameter] for name, parameter in model.named_parameters() if name not in slow} == {1e-4}


@pytest.mark.parametrize("stem", FAMILY)
def test_the_published_checkpoint_fits(stem):
    cfg = config(stem)
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    assert sum(parameter.numel() for parameter in model.parameters()) == FAMILY[stem]["exact_params"]
    file = PUBLISHED / "state_dicts" / FAMILY[stem]["checkpoint"]["state_dict"]
    shapes = json.loads(gzip.decompress(file.read_bytes()))
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    taken, report = compare(from_openmmlab(state), model.state_dict())
    assert report.exact and not report.dropped and not report.initial
    assert taken.keys() == model.state_dict().keys()
