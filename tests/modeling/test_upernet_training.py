"""UPerNet's losses and recipe, batches of several images, and windows."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model

from mask2former import setup_cfg
from mask2former.checkpoint import to_openmmlab
from mask2former.config import ConfigError
from mask2former.modeling.inference import InferenceSettings
from mask2former.modeling.meta_arch.pixel_classifier import _windows
from mask2former.solver import build_lr_scheduler, build_optimizer

from ..conftest import ROOT
from .conftest import example
from .test_training import train
from .test_upernet_configs import config

SHAPES = ROOT / "configs/shapes/semantic-segmentation/dinat/upernet_dinat_pico_shapes.yaml"


@pytest.fixture
def cfg():
    """A UPerNet that trains in moments."""
    cfg = setup_cfg(SHAPES, ["MODEL.DEVICE", "cpu", "MODEL.SEM_SEG_HEAD.CONVS_DIM", "16"])
    cfg.MODEL.DINAT.KERNEL_SIZES = [5, 5, 3, 3]
    cfg.MODEL.PIXEL_CLASSIFIER.SIZE_DIVISIBILITY = 32
    return cfg


def test_two_images_are_overfitted(cfg):
    cfg.MODEL.DINAT.KERNEL_SIZES = [3, 3, 3, 3]
    batch = [example([0, 1, 2], size=(32, 32)), example([3, 0], seed=1, size=(24, 32))]
    model, losses, totals = train(cfg, batch, 30)
    assert set(losses) == {"loss_sem_seg", "loss_auxiliary"}
    assert totals[-1] < 0.6 * totals[0]
    ids = model.eval()([batch[0]], settings=InferenceSettings(semantic_scores=False))[0]["sem_seg"]
    right = [(ids[mask] == c).float().mean() for c, mask in enumerate(batch[0]["instances"].gt_masks)]
    assert sum(right) / 3 > 0.7


def test_autocast_trains_and_keeps_losses_in_float32(cfg):
    batch = [example([0, 1, 2], size=(32, 32)), example([3, 0], seed=1, size=(32, 32))]
    model, losses, totals = train(cfg, batch, 4, autocast=True)
    assert all(loss.dtype == torch.float32 for loss in losses.values()) and totals[-1] < totals[0]
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_losses_are_means_over_all_pixels_of_the_padded_images(cfg):
    """Pixels without a class, padding among them, add nothing to the sum."""
    cfg.MODEL.SEM_SEG_HEAD.DROPOUT = cfg.MODEL.AUXILIARY_HEAD.DROPOUT = 0.0
    model = build_model(cfg).train()
    batch = [example([0, 1, 2], size=(40, 64)), example([3], seed=1, size=(33, 50))]
    losses = model(batch)
    images, labels = torch.zeros(2, 3, 64, 64), torch.full((2, 64, 64), 255)
    for index, inputs in enumerate(batch):
        height, width = inputs["image"].shape[1:]
        images[index, :, :height, :width] = (inputs["image"] - model.pixel_mean) / model.pixel_std
        for category, mask in zip(inputs["instances"].gt_classes, inputs["instances"].gt_masks, strict=True):
            labels[index, :height, :width][mask] = category
    for name, head, weight in (("sem_seg", model.sem_seg_head, 1.0), ("auxiliary", model.auxiliary_head, 0.4)):
        logits = F.interpolate(head(model.backbone(images)), (64, 64), mode="bilinear")
        pixels = F.cross_entropy(logits, labels, ignore_index=255, reduction="none")
        torch.testing.assert_close(losses[f"loss_{name}"], weight * pixels.mean(), rtol=1e-4, atol=1e-6)


def test_losses_of_parts_add_up(cfg):
    model = build_model(cfg).eval()
    batch = [example([0, 1, 2]), example([3, 0], seed=1), example([], seed=2)]
    counts = model.count_targets(batch)
    whole = model.losses(batch)
    parts = [model.losses(part, counts) for part in (batch[:2], batch[2:])]
    for name, value in whole.items():
        torch.testing.assert_close(sum(part[name] for part in parts), value)
    assert parts[1]["loss_sem_seg"] == 0


def test_one_image_is_too_few_for_the_batch_norms(cfg):
    model = build_model(cfg).train()
    with pytest.raises(ConfigError, match=r"SOLVER\.IMS_PER_BATCH gives one image per process"):
        model([example([0])])
    cfg.MODEL.AUXILIARY_HEAD.NAME = ""
    cfg.MODEL.SEM_SEG_HEAD.NORM = "GN"
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 64
    assert set(build_model(cfg).train()([example([0])])) == {"loss_sem_seg"}


@torch.no_grad()
def test_images_of_a_batch_do_not_change_each_other(cfg):
    model = build_model(cfg).eval()
    inputs = [{"image": example([0], seed=seed, size=size)["image"]} for seed, size in enumerate([(40, 64), (64, 33)])]
    inputs.append({"image": inputs[0]["image"].flip(2), "height": 20, "width": 30})
    together = model(inputs)
    assert [result["sem_seg"].shape for result in together] == [(7, 40, 64), (7, 64, 33), (7, 20, 30)]
    for result, alone in zip(together, inputs, strict=True):
        torch.testing.assert_close(result["sem_seg"], model([alone])[0]["sem_seg"])
        torch.testing.assert_close(result["sem_seg"].sum(0), torch.ones(result["sem_seg"].shape[1:]))
    # Images of one size share a batch.
    for a, b in zip(model.predict([inputs[0], inputs[2]]), (inputs[0], inputs[2]), strict=True):
        torch.testing.assert_close(a.logits, model.predict([b])[0].logits, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_bfloat16_inference_stays_near(cfg):
    inputs = [{"image": example([0, 1])["image"]}]
    model = build_model(cfg).eval()
    exact = model(inputs)[0]["sem_seg"]
    cfg.TEST.AMP = True
    other = build_model(cfg).eval()
    other.load_state_dict(model.state_dict())
    rounded = other(inputs)[0]["sem_seg"]
    assert rounded.dtype == torch.float32 and 0 < (rounded - exact).abs().max() < 0.02


@pytest.mark.parametrize(
    ("length", "size", "stride", "expected"),
    [
        (100, 64, 43, [(0, 64), (36, 100)]),
        (150, 64, 43, [(0, 64), (43, 107), (86, 150)]),
        (151, 64, 43, [(0, 64), (43, 107), (86, 150), (87, 151)]),
        (64, 64, 43, [(0, 64)]),
        (30, 64, 43, [(0, 30)]),
    ],
)
def test_windows_start_at_multiples_of_the_stride(length, size, stride, expected):
    assert [(window.start, window.stop) for window in _windows(length, size, stride)] == expected


@pytest.mark.parametrize(
    ("size", "stride", "message"),
    [
        ([64], [43, 43], r"WINDOW_SIZE is \[64\], expected two numbers of pixels"),
        ([64, 64], [], r"WINDOW_STRIDE is \[\], expected two"),
        ([64, 64], [43, 65], r"WINDOW_STRIDE \[43, 65\] is larger than WINDOW_SIZE \[64, 64\]"),
    ],
)
def test_windows_that_leave_pixels_out_are_refused(cfg, size, stride, message):
    cfg.MODEL.PIXEL_CLASSIFIER.WINDOW_SIZE, cfg.MODEL.PIXEL_CLASSIFIER.WINDOW_STRIDE = size, stride
    with pytest.raises(ConfigError, match=message):
        build_model(cfg)


@pytest.mark.parametrize(
    ("key", "names", "message"),
    [
        ("SEM_SEG_HEAD", ["p2", "res5"], r"IN_FEATURES is \['p2', 'res5'\], expected maps of the backbone: res2"),
        ("AUXILIARY_HEAD", ["res4", "res5"], "expected the name of one map"),
    ],
)
def test_maps_that_the_backbone_does_not_have(cfg, key, names, message):
    cfg.MODEL[key].IN_FEATURES = names
    with pytest.raises(ConfigError, match=message):
        build_model(cfg)


@pytest.mark.parametrize("name", ["nat_small_upernet", "upernet_dinat_s_tiny"])
def test_decay_goes_by_the_published_names(name):
    cfg = config(name, "MODEL.DEVICE", "meta")
    with torch.device("meta"):
        model = build_model(cfg)
    groups = build_optimizer(cfg, model).param_groups
    decays = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    assert {group["lr"] for group in groups} == {cfg.SOLVER.BASE_LR}
    published = to_openmmlab(dict(model.named_parameters()))
    got = {key: decays[id(parameter)] for key, parameter in published.items()}
    assert got == {key: 0.0 if "rpb" in key or "norm" in key else 0.01 for key in published}
    assert got["decode_head.bottleneck.bn.weight"] == 0.01


def test_learning_rate_is_the_published_one():
    cfg = config("upernet_dinat_tiny")
    cfg.SOLVER.MAX_ITER = 1800
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=cfg.SOLVER.BASE_LR)
    scheduler = build_lr_scheduler(cfg, optimizer)
    for iteration in range(cfg.SOLVER.MAX_ITER):
        rate = 6e-5 * (1 - iteration / 1800)
        if iteration < 1500:
            rate *= 1 - (1 - iteration / 1500) * (1 - 1e-6)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rate)
        optimizer.step()
        scheduler.step()
