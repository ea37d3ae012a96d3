"""Losses, matching and training steps, at the edges where users of the published code fell."""

import math

import pytest
import torch
from detectron2.modeling import build_model

from mask2former.modeling.criterion import dice_loss, sigmoid_ce_loss
from mask2former.modeling.matcher import HungarianMatcher, NonFiniteCostError, dice_cost, sigmoid_ce_cost
from mask2former.solver import build_optimizer

from .conftest import example

LAYERS = ("", "_0", "_1")


def train(cfg, batch, steps, **autocast):
    model = build_model(cfg).train()
    optimizer = build_optimizer(cfg, model)
    totals = []
    for _ in range(steps):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bool(autocast)):
            losses = model(batch)
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(float(total.detach()))
    return model, losses, totals


def test_two_images_are_overfitted(train_cfg):
    batch = [example([0, 1, 2]), example([3, 0], seed=1, size=(48, 64))]
    _, losses, totals = train(train_cfg, batch, 120)
    assert set(losses) == {f"loss_{kind}{layer}" for kind in ("ce", "mask", "dice") for layer in LAYERS}
    assert sum(totals[-5:]) / 5 < 0.2 * totals[0]


def test_bfloat16_autocast_trains_and_keeps_losses_in_float32(train_cfg):
    batch = [example([0, 1, 2])]
    model, losses, totals = train(train_cfg, batch, 40, autocast=True)
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    assert totals[-1] < 0.6 * totals[0]
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.gpu
def test_bfloat16_autocast_trains_on_a_gpu(train_cfg):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    train_cfg.MODEL.DEVICE = "cuda"
    model = build_model(train_cfg).train()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        losses = model([example([0, 1, 2])])
    sum(losses.values()).backward()
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())


def test_pixel_decoder_computes_in_float32_under_autocast(train_cfg):
    model = build_model(train_cfg).eval()
    features = model.backbone(torch.randn(1, 3, 64, 64))
    exact = model.sem_seg_head.pixel_decoder(features)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.sem_seg_head.pixel_decoder(features)[0], exact)


@pytest.mark.parametrize(
    "classes",
    [[[]], [[], []], [[], [1, 2]], [[0] * 9], [[0, 1, 2, 3] * 2, [1]]],
    ids=["one without targets", "all without targets", "some without", "more than queries", "more than queries in one"],
)
def test_any_number_of_targets_trains(train_cfg, classes):
    batch = [example(c, seed=i) for i, c in enumerate(classes)]
    model, losses, totals = train(train_cfg, batch, 2)
    assert all(math.isfinite(total) for total in totals)
    if not any(classes):
        assert losses["loss_mask"].item() == losses["loss_dice"].item() == 0
    # Distributed training waits for a gradient of each parameter.
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_targets_may_be_smaller_than_the_padded_batch(train_cfg):
    _, losses, _ = train(train_cfg, [example([0], size=(40, 64)), example([1], size=(64, 50))], 1)
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize(("pair", "single"), [(sigmoid_ce_cost, sigmoid_ce_loss), (dice_cost, dice_loss)])
def test_costs_are_the_losses_of_all_pairs(pair, single):
    logits, labels = 3 * torch.randn(4, 50), (torch.rand(3, 50) > 0.5).float()
    expected = torch.stack([single(logits, label.expand(4, -1)) for label in labels], dim=1)
    torch.testing.assert_close(pair(logits, labels), expected)


def test_matching_finds_the_permutation():
    masks = torch.zeros(5, 16, 16, dtype=torch.bool)
    for target in range(5):
        masks[target, 3 * target : 3 * target + 3] = True
    order = [3, 0, 4, 1, 2]
    logits = torch.zeros(1, 1, 5, 7)
    predicted = (masks[order].float() * 20 - 10)[None, None]
    (matches,) = HungarianMatcher(2.0, 5.0, 5.0, 512)(logits, predicted, [torch.arange(5)], [masks])
    assert [order[q] for q in matches[0].queries] == matches[0].targets.tolist()


@pytest.mark.parametrize(
    ("broken", "term"), [("logits", "class"), ("masks", "mask")], ids=["class logits", "mask logits"]
)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_cost_names_its_term(broken, term, value):
    tensors = {"logits": torch.zeros(2, 1, 3, 5), "masks": torch.zeros(2, 1, 3, 8, 8)}
    tensors[broken][1, 0, 2] = value
    masks = torch.rand(2, 8, 8) > 0.5
    with pytest.raises(NonFiniteCostError, match=f"the {term} cost of matching is NaN or infinite"):
        HungarianMatcher(2.0, 5.0, 5.0, 64)(**tensors, classes=[torch.tensor([0, 1])], target_masks=[masks])


def test_deep_supervision_is_a_switch(train_cfg):
    train_cfg.MODEL.MASK_FORMER.DEEP_SUPERVISION = False
    _, losses, _ = train(train_cfg, [example([0])], 1)
    assert set(losses) == {"loss_ce", "loss_mask", "loss_dice"}


def test_pre_norm_trains(train_cfg):
    train_cfg.MODEL.MASK_FORMER.PRE_NORM = True
    _, _, totals = train(train_cfg, [example([0, 1])], 20)
    assert totals[-1] < totals[0]


@pytest.mark.parametrize(("key", "value"), [("TRANSFORMER_IN_FEATURE", "res5"), ("ENC_LAYERS", 6)])
def test_settings_of_maskformer_are_refused(train_cfg, key, value):
    train_cfg.MODEL.MASK_FORMER[key] = value
    with pytest.raises(ValueError, match=rf"MODEL\.MASK_FORMER\.{key} is"):
        build_model(train_cfg)
