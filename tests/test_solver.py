"""Parameter groups, learning-rate curve and clipping of the published recipes."""

import math
import re

import pytest
import torch
from detectron2.modeling import build_model

from mask2former.config import ConfigError, setup_cfg
from mask2former.engine.resuming import set_iteration
from mask2former.model_zoo import SETTINGS
from mask2former.solver import build_lr_scheduler, build_optimizer, iterations_of_epochs, scale_learning_rate

from .conftest import ROOT, config_path, golden


@pytest.fixture
def cfg():
    cfg = setup_cfg(config_path("coco-panoptic"))
    cfg.MODEL.DEVICE = "meta"
    return cfg


def settings_by_name(cfg) -> dict[str, tuple[float, float]]:
    with torch.device("meta"):
        model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    by_id = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    return {name: by_id[id(p)] for name, p in model.named_parameters()}


# Rules of behaviour.md, section 3: backbone at a tenth of 1e-4; no decay on norms and embeddings, 0.05 elsewhere,
# relative position biases and raw parameters included.
EXPECTED = {
    "backbone.levels.0.blocks.0.attn.qkv.weight": (1e-5, 0.05),
    "backbone.levels.0.blocks.0.attn.qkv.bias": (1e-5, 0.05),
    "backbone.levels.0.blocks.0.attn.rpb": (1e-5, 0.05),
    "backbone.levels.0.blocks.0.norm1.weight": (1e-5, 0.0),
    "backbone.patch_embed.proj.0.weight": (1e-5, 0.05),
    "backbone.norm3.bias": (1e-5, 0.0),
    "sem_seg_head.pixel_decoder.input_proj.0.0.weight": (1e-4, 0.05),
    "sem_seg_head.pixel_decoder.input_proj.0.1.weight": (1e-4, 0.0),
    "sem_seg_head.pixel_decoder.adapter_1.norm.weight": (1e-4, 0.0),
    "sem_seg_head.pixel_decoder.transformer.level_embed": (1e-4, 0.05),
    "sem_seg_head.predictor.query_embed.weight": (1e-4, 0.0),
    "sem_seg_head.predictor.level_embed.weight": (1e-4, 0.0),
    "sem_seg_head.predictor.class_embed.weight": (1e-4, 0.05),
}


def test_parameter_groups(cfg):
    got = settings_by_name(cfg)
    assert {name: got[name] for name in EXPECTED} == {
        name: (pytest.approx(rate), decay) for name, (rate, decay) in EXPECTED.items()
    }
    assert len(got) == 705  # of 706 entries of the checkpoint; the other is a buffer


def test_decay_of_position_biases_is_a_setting(cfg):
    cfg.SOLVER.WEIGHT_DECAY_RPB = 0.0
    got = settings_by_name(cfg)
    assert got["backbone.levels.0.blocks.0.attn.rpb"] == (pytest.approx(1e-5), 0.0)
    assert got["backbone.levels.0.blocks.0.attn.qkv.weight"] == (pytest.approx(1e-5), 0.05)


# The same rules by name: parameters without weight decay in a published model.
NORM = re.compile(r"norm\d?\.(weight|bias)$|norm\.\d\.|input_proj\.\d\.1\.|_norm\.|norms\.")
EMBEDDING = re.compile(r"predictor\.(query_feat|query_embed|level_embed)\.weight$")


@pytest.mark.parametrize("setting", SETTINGS)
def test_parameter_groups_of_every_setting(setting):
    cfg = setup_cfg(config_path(setting))
    cfg.MODEL.DEVICE = "meta"
    expected = {
        name: (
            pytest.approx(1e-5 if name.startswith("backbone.") else 1e-4),
            0.0 if NORM.search(name) or EMBEDDING.search(name) else 0.05,
        )
        for name in golden("state_dict", setting)
        if name != "criterion.empty_weight"  # a buffer
    }
    assert settings_by_name(cfg) == expected


# Learning rate relative to BASE_LR (1e-4 for all) at iterations 0, 1, 10, 90%, 96.3% and the last.
# COCO, MultiStep: warm-up from factor 1.0 changes nothing, then a tenth from iteration 655556 of 737500 (88.9%) and
# again from 710184 (96.296%): 100 epochs of 118000 images in batches of 16 with the steps of a 50-epoch run.
MULTI_STEP = {0: 1.0, 1: 1.0, 10: 1.0, 663_750: 0.1, 710_213: 0.01, 737_499: 0.01}
# A step happens neither sooner nor later.
MULTI_STEP |= {655_555: 1.0, 655_556: 0.1, 710_183: 0.1, 710_184: 0.01}


def poly(last: int) -> dict[int, float]:
    """ADE20K and Cityscapes, poly of power 0.9 without warm-up: (1 - i / MAX_ITER) ** 0.9."""
    iterations = (0, 1, 10, last * 9 // 10, last * 963 // 1000, last - 1)
    return {i: (1 - i / last) ** 0.9 for i in iterations}


CURVES = {"coco": MULTI_STEP, "ade20k": poly(160_000), "cityscapes": poly(90_000)}


@pytest.mark.parametrize("setting", SETTINGS)
def test_learning_rate_curve(setting):
    cfg = setup_cfg(config_path(setting))
    assert cfg.SOLVER.BASE_LR == 1e-4
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=cfg.SOLVER.BASE_LR)
    scheduler = build_lr_scheduler(cfg, optimizer)
    expected = CURVES[SETTINGS[setting].dataset]
    assert max(expected) == cfg.SOLVER.MAX_ITER - 1
    got = {}
    for iteration in expected:
        scheduler.last_epoch = iteration - 1
        optimizer.step()
        scheduler.step()
        got[iteration] = optimizer.param_groups[0]["lr"] / cfg.SOLVER.BASE_LR
    assert got == pytest.approx(expected, rel=1e-5)


def rates(**changes):
    cfg = setup_cfg(config_path("coco-panoptic"))
    cfg.SOLVER.update({"BASE_LR": 1.0, "GAMMA": 0.1, "WARMUP_ITERS": 0, **changes})
    optimizer = build_optimizer(cfg, torch.nn.Linear(1, 1))
    scheduler = build_lr_scheduler(cfg, optimizer)
    found = []
    for _ in range(cfg.SOLVER.MAX_ITER):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


POLY, COSINE, FIXED = "WarmupPolyLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"
LONG = {"WARMUP_ITERS": 8, "WARMUP_FACTOR": 0.5}
LONGER = "WARMUP_ITERS 8 is longer than the training (SOLVER.MAX_ITER 2)"


@pytest.mark.parametrize(
    ("last", "changes", "expected", "said"),
    [
        (3, {"STEPS": (2,)}, [1, 1, 0.1], []),
        (3, {"STEPS": (3,)}, [1, 1, 1], ["STEPS 3 have", "MAX_ITER 3"]),
        (3, {"STEPS": (1, 5, 9)}, [1, 0.1, 0.1], ["STEPS 5, 9 have", "MAX_ITER 3"]),
        (3, {"STEPS": (2, 1)}, [1, 0.1, 0.01], ["STEPS (2, 1) are not ascending"]),
        (3, {"STEPS": (2, 2)}, [1, 1, 0.1], ["STEPS (2, 2) are not ascending"]),
        (3, {"STEPS": (9, 1)}, [1, 0.1, 0.1], ["STEPS (9, 1) are not ascending", "STEPS 9 have"]),
        (2, {"STEPS": (), **LONG}, [0.5, 0.75], [LONGER]),
        (2, {"STEPS": (7,), **LONG}, [0.5, 0.75], [LONGER, "STEPS 7 have"]),
        (2, {"LR_SCHEDULER_NAME": POLY, "STEPS": (9,)}, [1, 0.5**0.9], []),
        (2, {"LR_SCHEDULER_NAME": POLY, **LONG}, [0.5, (0.5 + 0.5 / 8) * 0.5**0.9], [LONGER]),
        (2, {"LR_SCHEDULER_NAME": COSINE}, [1, 0.5], []),
        (4, {"LR_SCHEDULER_NAME": FIXED, "NUM_DECAYS": 1}, [1, 1, 0.1, 0.1], []),
        (3, {"LR_SCHEDULER_NAME": FIXED, "NUM_DECAYS": 2}, [1, 0.1, 0.01], []),
        (1, {"STEPS": ()}, [1], []),
        (0, {"STEPS": (5,), **LONG}, [], []),
        (0, {"LR_SCHEDULER_NAME": POLY}, [], []),
        (0, {"LR_SCHEDULER_NAME": FIXED}, [], []),
    ],
)
def test_what_of_a_schedule_has_no_effect_gets_one_warning(caplog, last, changes, expected, said):
    assert rates(MAX_ITER=last, **changes) == pytest.approx(expected)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == bool(said)
    assert all(text in messages[0] for text in said)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MAX_ITER": -1}, r"SOLVER\.MAX_ITER is -1, expected 0 or more"),
        ({"WARMUP_ITERS": -5}, r"SOLVER\.WARMUP_ITERS is -5"),
        ({"BASE_LR": -0.1}, r"SOLVER\.BASE_LR is -0\.1"),
        ({"WEIGHT_DECAY_NORM": -0.1}, r"SOLVER\.WEIGHT_DECAY_NORM is -0\.1"),
        ({"STEPS": (0, 3)}, r"SOLVER\.STEPS is \(0, 3\), expected numbers of iterations"),
        ({"LR_SCHEDULER_NAME": "Poly"}, r"SOLVER\.LR_SCHEDULER_NAME is 'Poly', expected one of .*WarmupPolyLR"),
        ({"WARMUP_METHOD": "cubic"}, r"SOLVER\.WARMUP_METHOD is 'cubic', expected one of linear, constant"),
        ({"LR_SCHEDULER_NAME": COSINE, "BASE_LR_END": 2.0}, r"SOLVER\.BASE_LR_END is 2\.0"),
        ({"LR_SCHEDULER_NAME": COSINE, "BASE_LR": 0.0}, r"SOLVER\.BASE_LR \(0\.0\), which must be positive"),
    ],
)
def test_schedules_that_make_no_sense(changes, message):
    with pytest.raises(ConfigError, match=message):
        rates(**changes)


def step(cfg, gradients):
    layers = torch.nn.ModuleList(torch.nn.Linear(1, 1, bias=False) for _ in gradients)
    optimizer = build_optimizer(cfg, layers)
    for layer, gradient in zip(layers, gradients, strict=True):
        layer.weight.grad = torch.full((1, 1), gradient)
    optimizer.step()
    return [float(layer.weight.grad) for layer in layers]


@pytest.mark.parametrize("setting", SETTINGS)
def test_gradients_are_clipped_over_the_full_model(setting):
    """All gradients together have a norm of at most 0.01; smaller ones stay."""
    cfg = setup_cfg(config_path(setting))
    assert step(cfg, [3.0, 4.0]) == pytest.approx([0.006, 0.008], rel=1e-4)
    assert step(cfg, [0.003, 0.004]) == pytest.approx([0.003, 0.004])


def test_other_clip_types_are_detectron2s(cfg):
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "norm"
    assert step(cfg, [3.0, 0.004]) == pytest.approx([0.01, 0.004], rel=1e-3)
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
    assert step(cfg, [3.0, 0.004]) == pytest.approx([3.0, 0.004])


def test_unknown_optimizer(cfg):
    cfg.SOLVER.OPTIMIZER = "LION"
    with pytest.raises(ValueError, match=r"SOLVER\.OPTIMIZER is 'LION', expected one of ADAMW, SGD"):
        step(cfg, [1.0])


def test_the_learning_rate_follows_the_images_of_a_step(cfg):
    """BASE_LR 1e-4 is for 16 images; three batches of two are six."""
    cfg.SOLVER.LR_REFERENCE_BATCH = 16
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.SOLVER.ACCUMULATE_STEPS = 3
    cfg.SOLVER.BASE_LR_END = 1e-6
    cfg.freeze()
    scaled = scale_learning_rate(cfg)
    rate, last_rate = scaled.SOLVER.BASE_LR, scaled.SOLVER.BASE_LR_END
    assert cfg.SOLVER.BASE_LR == 1e-4
    assert rate == pytest.approx(6 / 16 * 1e-4)
    assert last_rate == pytest.approx(6 / 16 * 1e-6)
    assert scaled.is_frozen()
    assert scale_learning_rate(scaled).SOLVER == scaled.SOLVER
    rates = {round(rate, 10) for rate, _ in settings_by_name(scaled).values()}
    assert rates == {round(6 / 16 * 1e-4, 10), round(6 / 16 * 1e-5, 10)}


@pytest.mark.parametrize("setting", SETTINGS)
def test_published_settings_take_the_learning_rate_as_it_is(setting):
    cfg = setup_cfg(config_path(setting))
    assert scale_learning_rate(cfg) is cfg


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ACCUMULATE_STEPS": 0}, r"ACCUMULATE_STEPS is 0, expected 1"),
        ({"LR_REFERENCE_BATCH": -16}, r"LR_REFERENCE_BATCH is -16"),
        ({"LR_REFERENCE_BATCH": 16, "REFERENCE_WORLD_SIZE": 8}, r"REFERENCE_WORLD_SIZE both scale"),
    ],
)
def test_settings_of_the_batch_that_make_no_sense(cfg, changes, message):
    cfg.SOLVER.update(changes)
    with pytest.raises(ConfigError, match=message):
        scale_learning_rate(cfg)


def test_frozen_parameters_are_not_optimised(cfg):
    cfg.MODEL.BACKBONE.FREEZE_AT = 3
    with torch.device("meta"):
        model = build_model(cfg)
    optimised = {id(p) for group in build_optimizer(cfg, model).param_groups for p in group["params"]}
    left = {name for name, p in model.named_parameters() if id(p) not in optimised}
    first = ("backbone.patch_embed.", "backbone.levels.0.", "backbone.levels.1.", "backbone.norm0.", "backbone.norm1.")
    assert left == {name for name, _ in model.named_parameters() if name.startswith(first)}


CLASSIFIER = "configs/imagenet/classification/dinat/dinat_mini.yaml"


def test_published_classifiers_exempt_vectors_and_biases_from_decay_but_not_position_biases():
    cfg = setup_cfg(ROOT / CLASSIFIER, ["MODEL.DEVICE", "meta"])
    got = settings_by_name(cfg)
    for name, (rate, decay) in got.items():
        assert rate == 1e-3
        assert decay == (0.05 if name.endswith((".weight", ".rpb")) and "norm" not in name else 0.0), name
    assert got["backbone.levels.0.blocks.0.attn.rpb"] == (1e-3, 0.05)


@pytest.mark.parametrize("backbone", ["D2DiNAT", "D2IsotropicDiNAT"])
def test_layer_decay_lowers_the_rate_block_by_block(backbone):
    depths = "[2,2,2,2]" if backbone == "D2DiNAT" else "[4]"
    heads = "[1,2,4,8]" if backbone == "D2DiNAT" else "[1]"
    opts = f"MODEL.DEVICE meta MODEL.BACKBONE.NAME {backbone} MODEL.DINAT.DEPTHS {depths} MODEL.DINAT.NUM_HEADS {heads}"
    opts += " MODEL.DINAT.EMBED_DIM 32 SOLVER.BASE_LR 1.0 SOLVER.BACKBONE_MULTIPLIER 1.0 SOLVER.LAYER_DECAY 0.5"
    cfg = setup_cfg(ROOT / "configs/_base_/classification.yaml", opts.split())
    rates = {name: rate for name, (rate, _) in settings_by_name(cfg).items()}
    assert rates["head.weight"] == 1.0
    if backbone == "D2DiNAT":
        assert rates["backbone.norm3.weight"] == 1.0
        assert rates["backbone.levels.3.blocks.1.attn.rpb"] == 0.5
        assert rates["backbone.levels.2.downsample.norm.weight"] == 0.5**3
        assert rates["backbone.levels.2.blocks.1.mlp.fc1.bias"] == 0.5**3
        assert rates["backbone.patch_embed.norm.bias"] == 0.5**9
    else:
        assert rates["backbone.layers.3.norm1.weight"] == 0.5
        assert rates["backbone.patch_embed.proj.weight"] == 0.5**5


def test_cosine_starts_under_the_warm_up_and_ends_in_the_cooldown():
    cfg = setup_cfg(ROOT / CLASSIFIER)
    cfg = iterations_of_epochs(cfg, 1_281_167)
    steps = 1251
    assert (310 * steps, 20 * steps) == (cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS)
    parameter = torch.nn.Parameter(torch.zeros(1))
    scheduler = build_lr_scheduler(cfg, torch.optim.SGD([parameter], lr=cfg.SOLVER.BASE_LR))

    def cosine(iteration):
        return 5e-6 + (1e-3 - 5e-6) * (1 + math.cos(math.pi * iteration / (300 * steps))) / 2

    expected = {
        0: 1e-6,
        steps: 1e-6 + (1e-3 - 1e-6) / 20,
        20 * steps - 1: 1e-3 - (1e-3 - 1e-6) / (20 * steps),
        20 * steps: cosine(20 * steps),
        150 * steps: cosine(150 * steps),
        300 * steps: 5e-6,
        310 * steps - 1: 5e-6,
    }
    for iteration, rate in expected.items():
        assert set_iteration(scheduler, iteration) == [pytest.approx(rate, rel=1e-9)], iteration
