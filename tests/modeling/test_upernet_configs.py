"""The thirteen published UPerNets: every setting, every weight, and the number of parameters."""

import gzip
import json

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from mask2former import setup_cfg
from mask2former.checkpoint import compare, compare_backbone, from_openmmlab, holds_backbone_only
from mask2former.model_zoo import MODELS

from ..conftest import ROOT

PUBLISHED = json.loads((ROOT / "tests/published/family.json").read_text())["segmentation"]
FAMILIES = {"NAT": ("nat", "D2DiNAT"), "DiNAT": ("dinat", "D2DiNAT"), "DiNATs": ("dinat_s", "D2DiNATs")}
# Of the backbone in a published model, by the keys of MODEL.DINAT.
BACKBONE = ("EMBED_DIM", "DEPTHS", "NUM_HEADS", "KERNEL_SIZE", "MLP_RATIO", "DROP_PATH_RATE", "LAYER_SCALE")


def config(name: str, *opts: str) -> CfgNode:
    folder, _ = FAMILIES[PUBLISHED[name]["backbone"]["family"]]
    return setup_cfg(ROOT / f"configs/ade20k/semantic-segmentation/{folder}/{name}.yaml", opts)


@pytest.mark.parametrize("name", PUBLISHED)
def test_backbone_and_head(name):
    cfg, published = config(name), PUBLISHED[name]
    backbone, head = published["backbone"], published["head"]
    assert FAMILIES[backbone["family"]][1] == cfg.MODEL.BACKBONE.NAME
    assert {key: cfg.MODEL.DINAT[key] for key in BACKBONE} == {key: backbone[key.lower()] for key in BACKBONE}
    dilations = cfg.MODEL.DINAT.DILATIONS or [[1] * depth for depth in cfg.MODEL.DINAT.DEPTHS]
    assert dilations == backbone["dilations"]
    assert cfg.MODEL.DINAT.QKV_BIAS and cfg.MODEL.DINAT.REL_POS_BIAS and not cfg.MODEL.DINAT.KERNEL_SIZES
    # Frozen stages are counted from -1 there.
    assert cfg.MODEL.BACKBONE.FREEZE_AT == backbone["frozen_stages"] + 1 == 0
    assert backbone["pretrained"].rsplit("/", 1)[-1] == cfg.MODEL.WEIGHTS
    node, auxiliary = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.AUXILIARY_HEAD
    assert ("PixelClassifier", "UPerNetHead", head["norm"]) == (cfg.MODEL.META_ARCHITECTURE, node.NAME, node.NORM)
    assert (head["channels"], head["pool_scales"]) == (node.CONVS_DIM, node.POOL_SIZES)
    assert head["num_classes"] == node.NUM_CLASSES
    assert (auxiliary.NAME, auxiliary.NORM, list(auxiliary.IN_FEATURES)) == ("FCNHead", head["norm"], ["res4"])
    assert (head["auxiliary"]["channels"], head["auxiliary"]["convs"]) == (auxiliary.CONVS_DIM, auxiliary.NUM_CONVS)


@pytest.mark.parametrize("name", PUBLISHED)
def test_training(name):
    cfg, recipe = config(name), PUBLISHED[name]["recipe"]
    solver = cfg.SOLVER
    assert (solver.OPTIMIZER, solver.BACKBONE_MULTIPLIER) == ("ADAMW", 1.0)
    assert (recipe["lr"], recipe["weight_decay"]) == (solver.BASE_LR, solver.WEIGHT_DECAY)
    assert (recipe["iterations"], 16) == (solver.MAX_ITER, solver.IMS_PER_BATCH)
    assert (solver.LR_SCHEDULER_NAME, solver.POLY_LR_POWER, solver.POLY_LR_CONSTANT_ENDING) == ("WarmupPolyLR", 1.0, 0)
    assert (solver.WARMUP_METHOD, solver.WARMUP_ITERS, solver.WARMUP_FACTOR) == ("linear", 1500, 1e-6)
    assert not solver.CLIP_GRADIENTS.ENABLED
    assert (recipe["mixed_precision"] is not None) == solver.AMP.ENABLED
    node, crop = cfg.INPUT, recipe["crop"]
    assert ((crop // 2, 2 * crop), "range") == (node.MIN_SIZE_TRAIN, node.MIN_SIZE_TRAIN_SAMPLING)
    assert (node.MAX_SIZE_TRAIN, node.RESIZE_WITH, node.RANDOM_FLIP) == (2 * 2048, "opencv", "horizontal")
    assert node.CROP.ENABLED and node.CROP.TYPE == "absolute" and list(node.CROP.SIZE) == [crop, crop]
    assert node.CROP.SINGLE_CATEGORY_MAX_AREA == 0.75 and node.COLOR_AUG_SSD
    # Wide and tall images share batches, since crops are square.
    assert not cfg.DATALOADER.ASPECT_RATIO_GROUPING
    assert crop == cfg.MODEL.PIXEL_CLASSIFIER.SIZE_DIVISIBILITY and node.SIZE_DIVISIBILITY == -1
    assert cfg.MODEL.SEM_SEG_HEAD.DROPOUT == cfg.MODEL.AUXILIARY_HEAD.DROPOUT == recipe["dropout"]
    assert (cfg.MODEL.SEM_SEG_HEAD.LOSS_WEIGHT, cfg.MODEL.AUXILIARY_HEAD.LOSS_WEIGHT) == (1.0, 0.4)


@pytest.mark.parametrize("name", PUBLISHED)
def test_evaluation(name):
    cfg, evaluation = config(name), PUBLISHED[name]["evaluation"]
    assert (cfg.INPUT.MAX_SIZE_TEST, cfg.INPUT.MIN_SIZE_TEST) == (2048, 512)
    assert (evaluation["mean"], evaluation["std"]) == (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
    assert evaluation["channel_order"] == cfg.INPUT.FORMAT and cfg.MODEL.PIXEL_CLASSIFIER.WINDOW_SIZE == []
    ratios = evaluation["multi_scale"]["ratios"]
    assert list(cfg.TEST.AUG.MIN_SIZES) == [int(512 * ratio) for ratio in ratios]
    assert int(2048 * ratios[-1]) == cfg.TEST.AUG.MAX_SIZE and evaluation["multi_scale"]["flip"] == cfg.TEST.AUG.FLIP
    assert cfg.DATASETS.TRAIN == ("ade20k_sem_seg_train",) and cfg.DATASETS.TEST == ("ade20k_sem_seg_val",)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_checkpoint_fits(name):
    published = PUBLISHED[name]
    cfg = config(name, "MODEL.DEVICE", "meta")
    with torch.device("meta"):
        model = build_model(cfg)
    assert sum(parameter.numel() for parameter in model.parameters()) == published["exact_params"]
    path = ROOT / "tests/published/state_dicts" / published["checkpoint"]["state_dict"]
    shapes = json.loads(gzip.decompress(path.read_bytes()))
    state = from_openmmlab({key: torch.empty(shape, device="meta") for key, shape in shapes.items()})
    taken, report = compare(state, model.state_dict())
    assert report.exact and not report.initial and not report.dropped
    assert len(taken) == len(shapes) == len(model.state_dict())


@pytest.mark.parametrize("name", ["nat_base_upernet", "upernet_dinat_small", "upernet_dinat_s_tiny"])
def test_trainings_start_from_the_imagenet_classifier(name):
    cfg = config(name, "MODEL.DEVICE", "meta")
    with torch.device("meta"):
        state = build_model(cfg).state_dict()
    path = ROOT / "tests/published/state_dicts" / f"state_dict_{cfg.MODEL.WEIGHTS.removesuffix('.pth')}.json.gz"
    shapes = json.loads(gzip.decompress(path.read_bytes()))
    file = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    assert holds_backbone_only(file, state)
    _, report = compare_backbone(file, state)
    assert report.exact and set(report.dropped) == {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    kept = {key for key in report.initial if key.startswith("backbone.")}
    assert kept == {f"backbone.norm{level}.{leaf}" for level in range(4) for leaf in ("weight", "bias")}


def test_all_are_in_the_table_of_models():
    assert {name for name, model in MODELS.items() if model.group == "upernet"} == set(PUBLISHED)
    assert all((ROOT / MODELS[name].config_file).is_file() for name in PUBLISHED)
