"""Configs of the 25 published classifiers against published facts: architecture, recipe, evaluation and weights."""

import gzip
import json
import math

import pytest
import torch
from detectron2.modeling import build_model

from mask2former.checkpoint import compare
from mask2former.config import setup_cfg
from mask2former.tasks import tasks_of

from .conftest import ROOT

FAMILY = json.loads((ROOT / "tests/published/family.json").read_text())["classification"]
CONFIGS = {path.stem: path for path in (ROOT / "configs/imagenet/classification").rglob("*.yaml")}
BACKBONES = {
    "NAT": ("nat", "D2DiNAT"),
    "DiNAT": ("dinat", "D2DiNAT"),
    "DiNATs": ("dinat_s", "D2DiNATs"),
    "NAT-iso": ("isotropic", "D2IsotropicDiNAT"),
    "DiNAT-iso": ("isotropic", "D2IsotropicDiNAT"),
    "ViT-rpb": ("isotropic", "D2ViTRpb"),
}


def test_every_published_classifier_has_a_config_in_the_folder_of_its_family():
    folders = {name: BACKBONES[model["architecture"]["family"]][0] for name, model in FAMILY.items()}
    assert {name: path.parent.name for name, path in CONFIGS.items()} == folders


@pytest.mark.parametrize("name", FAMILY)
def test_architecture(name):
    cfg, published = setup_cfg(CONFIGS[name]), FAMILY[name]["architecture"]
    assert tasks_of(cfg) == ("classification",)
    node = cfg.MODEL.DINAT
    assert BACKBONES[published["family"]][1] == cfg.MODEL.BACKBONE.NAME
    assert published["num_classes"] == cfg.MODEL.CLASSIFIER.NUM_CLASSES
    depths = published.get("depths") or [published["depth"]]
    heads = published["num_heads"] if "depths" in published else [published["num_heads"]]
    assert (published["embed_dim"], depths, heads) == (node.EMBED_DIM, node.DEPTHS, node.NUM_HEADS)
    assert (published["mlp_ratio"], published["drop_path_rate"]) == (node.MLP_RATIO, node.DROP_PATH_RATE)
    assert (published["layer_scale"], published["qkv_bias"], None) == (node.LAYER_SCALE, node.QKV_BIAS, node.QK_SCALE)
    assert (node.REL_POS_BIAS, node.DROP_RATE, node.ATTN_DROP_RATE) == (True, 0.0, 0.0)
    if published["kernel_size"]:
        assert published["kernel_size"] == node.KERNEL_SIZE
        dilations = published["dilations"] or [[1] * depth for depth in depths]
        dilations = dilations if isinstance(dilations[0], list) else [dilations]
        assert (node.DILATIONS or [[1] * depth for depth in depths]) == dilations
    if "depth" in published:
        assert (published["patch_size"], published["image_size"]) == (node.PATCH_SIZE, node.IMAGE_SIZE)


@pytest.mark.parametrize("name", [name for name, model in FAMILY.items() if "lr" in model["recipe"]])
def test_recipe(name):
    cfg, published = setup_cfg(CONFIGS[name]), FAMILY[name]["recipe"]
    solver, node = cfg.SOLVER, cfg.INPUT.CLASSIFICATION
    assert ("ADAMW", published["lr"], 1.0) == (solver.OPTIMIZER, solver.BASE_LR, solver.BACKBONE_MULTIPLIER)
    # Not published for this one: that of the other fine-tuning at 224 pixels.
    decay = 1e-4 if name == "dinat_large_384_11x11" else published["weight_decay"]
    assert (decay, ("1-D", "*.bias")) == (solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_EXEMPT)
    assert (1024 if published["batch_per_gpu"] == 128 else 512) == solver.IMS_PER_BATCH
    assert (solver.LR_REFERENCE_BATCH, solver.LAYER_DECAY, solver.ACCUMULATE_STEPS) == (0, 1.0, 1)
    epochs = published["epochs"], published["cooldown_epochs"], published["warmup_epochs"]
    assert epochs == (solver.EPOCHS, solver.COOLDOWN_EPOCHS, solver.WARMUP_EPOCHS)
    if published["min_lr"] is None:
        assert (solver.LR_SCHEDULER_NAME, tuple(solver.STEPS)) == ("WarmupMultiStepLR", ())
    else:
        assert ("CosineCooldownLR", published["min_lr"]) == (solver.LR_SCHEDULER_NAME, solver.BASE_LR_END)
        assert math.isclose(solver.WARMUP_FACTOR * solver.BASE_LR, published["warmup_lr"])
    clip = solver.CLIP_GRADIENTS
    assert (clip.ENABLED, clip.CLIP_TYPE, clip.NORM_TYPE) == (True, "full_model", 2.0)
    assert (published["clip_grad_norm"], published["amp"] is not None) == (clip.CLIP_VALUE, solver.AMP.ENABLED)
    assert (published["ema"] is not None) == solver.EMA.ENABLED
    assert not published["ema"] or published["ema"]["decay"] == solver.EMA.DECAY
    augmentation = published["augmentation"]
    crop, erasing = augmentation["random_resized_crop"], augmentation["random_erasing"]
    assert (list(node.SCALE), [round(ratio, 4) for ratio in node.RATIO]) == (crop["scale"], crop["ratio"])
    assert (node.INTERPOLATION, cfg.INPUT.RANDOM_FLIP) == ("random", "horizontal")
    assert (augmentation["rand_augment"], erasing["prob"]) == (node.RAND_AUGMENT, node.ERASING)
    assert augmentation["mixup_prob"] == node.MIX_PROB
    if node.MIX_PROB:
        mixing = augmentation["mixup"], augmentation["cutmix"], augmentation["mixup_switch_prob"]
        assert mixing == (node.MIXUP, node.CUTMIX, node.MIX_SWITCH_PROB)
    assert (published["label_smoothing"], published["seed"]) == (cfg.MODEL.CLASSIFIER.LABEL_SMOOTHING, cfg.SEED)
    start = "in22k" if FAMILY[name]["pretraining"] else ""
    assert start in cfg.MODEL.WEIGHTS and bool(start) == bool(cfg.MODEL.WEIGHTS)


@pytest.mark.parametrize("name", FAMILY)
def test_evaluation(name):
    cfg = setup_cfg(CONFIGS[name])
    # ImageNet-22K was only a start of fine-tuning.
    published = FAMILY[name]["evaluation"] or FAMILY["dinat_large"]["evaluation"]
    assert FAMILY[name]["input_size"] == published["image_size"]
    node = cfg.INPUT.CLASSIFICATION
    assert (published["image_size"], published["crop_pct"]) == (node.SIZE, node.CROP_PCT)
    assert pytest.approx([255 * mean for mean in published["mean"]]) == cfg.MODEL.PIXEL_MEAN
    assert pytest.approx([255 * std for std in published["std"]]) == cfg.MODEL.PIXEL_STD
    assert (published["channel_order"], False, False) == (cfg.INPUT.FORMAT, cfg.TEST.AMP, cfg.TEST.AUG.ENABLED)


@pytest.mark.parametrize("name", FAMILY)
def test_the_published_file_has_exactly_the_weights_of_the_model(name):
    cfg = setup_cfg(CONFIGS[name], ["MODEL.DEVICE", "meta"])
    with torch.device("meta"):
        model = build_model(cfg)
    path = ROOT / "tests/published/state_dicts" / FAMILY[name]["checkpoint"]["state_dict"]
    with gzip.open(path) as file:
        shapes = json.load(file)
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    taken, report = compare(state, model.state_dict())
    assert report.exact and not (report.dropped or report.initial)
    assert taken.keys() == model.state_dict().keys() and len(taken) == len(shapes)
    if "exact_params" in FAMILY[name]:
        assert sum(weight.numel() for weight in model.parameters()) == FAMILY[name]["exact_params"]
