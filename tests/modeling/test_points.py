"""Points of the mask losses: against Detectron2's own sampling, and away from void."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.projects.point_rend.point_features import get_uncertain_point_coords_with_randomness, point_sample

from mask2former.modeling.criterion import SetCriterion, uncertain_points, uncertainty
from mask2former.modeling.matcher import HungarianMatcher, draw_points, labelled_points

from .conftest import example

SIZE = (24, 40)


@pytest.fixture
def void():
    """A frame and a blob."""
    void = torch.zeros(SIZE, dtype=torch.bool)
    void[:3], void[:, 30:], void[8:14, 5:12] = True, True, True
    return void


@pytest.mark.parametrize("ratio", [0.0, 0.75, 1.0])
def test_without_void_the_points_are_detectron2s(ratio):
    logits = torch.randn(5, 1, *SIZE)
    torch.manual_seed(4)
    expected = get_uncertain_point_coords_with_randomness(logits, uncertainty, 60, 3.0, ratio)
    torch.manual_seed(4)
    points = uncertain_points(logits, 60, 3.0, ratio, lambda n: draw_points((5, n), None, logits.device))
    torch.testing.assert_close(points.sort(1).values, expected.sort(1).values, rtol=0, atol=0)


def test_drawn_points_cover_what_is_labelled_and_nothing_else(void):
    allowed = labelled_points(void)
    points = draw_points((2, 20_000), allowed, void.device)
    values = point_sample(void[None, None].float().expand(2, -1, -1, -1), points, align_corners=False)
    assert values.max() < 1e-6, "not even by interpolation (but for rounding of coordinates)"
    cells = (points * torch.tensor([SIZE[1], SIZE[0]])).long()
    hit = torch.zeros(SIZE, dtype=torch.bool)
    hit[cells[..., 1].flatten(), cells[..., 0].flatten()] = True
    assert torch.equal(hit, ~void)


def criterion(weights=(2.0, 5.0, 5.0)):
    matcher = HungarianMatcher(*weights, 300)
    return SetCriterion(
        3,
        matcher,
        class_weight=2.0,
        mask_weight=5.0,
        dice_weight=5.0,
        no_object_weight=0.1,
        num_points=300,
        oversample_ratio=3.0,
        importance_sample_ratio=0.75,
    )


def outputs(masks):
    return {"pred_logits": torch.zeros(1, len(masks), 4), "pred_masks": masks[None], "aux_outputs": []}


def test_what_is_predicted_on_void_changes_no_mask_loss(void):
    target = torch.zeros(1, *SIZE, dtype=torch.bool)
    target[:, 15:20, 5:25] = True
    masks = (10 * torch.randn(1, *SIZE)).requires_grad_()
    losses = criterion()(outputs(masks), [torch.tensor([1])], [target], [void])
    (losses["loss_mask"] + losses["loss_dice"]).backward()
    gradient = masks.grad[0].abs()
    # Coordinates are rounded, so neighbours of a point take part with a weight of some 1e-7.
    assert gradient[void].max() < 1e-6 * gradient[~void].max()
    # The published way does look there.
    masks.grad = None
    losses = criterion()(outputs(masks), [torch.tensor([1])], [target])
    (losses["loss_mask"] + losses["loss_dice"]).backward()
    assert masks.grad[0].abs()[void].max() > 0.1 * gradient.max()


def test_what_is_predicted_on_void_changes_no_matching(void):
    """The query that fits where things are known wins, though it floods the void."""
    target = torch.zeros(1, *SIZE, dtype=torch.bool)
    target[:, 15:20, 5:25] = True
    flooding = torch.where(target[0] | void, 8.0, -8.0)
    smaller = torch.full(SIZE, -8.0)
    smaller[15:20, 5:23] = 8
    masks = torch.stack([smaller, flooding])
    arguments = torch.zeros(1, 1, 2, 4), masks[None, None], [torch.tensor([1])], [target]
    matcher = HungarianMatcher(2.0, 5.0, 5.0, 2000)
    assert matcher(*arguments)[0][0].queries.tolist() == [0]
    assert matcher(*arguments, [labelled_points(void)])[0][0].queries.tolist() == [1]


def test_an_image_that_is_all_void_has_no_mask_loss():
    masks = torch.randn(2, *SIZE, requires_grad=True)
    everything = torch.ones(SIZE, dtype=torch.bool)
    losses = criterion()(outputs(masks), [torch.tensor([1])], [torch.zeros(1, *SIZE, dtype=torch.bool)], [everything])
    assert losses["loss_mask"] == losses["loss_dice"] == 0


def test_model_takes_void_from_its_inputs(train_cfg):
    train_cfg.MODEL.MASK_FORMER.IGNORE_VOID = True
    model = build_model(train_cfg).train()
    batch = [example([0, 1]), example([2], seed=1, size=(48, 64)), example([], size=(40, 40))]
    with pytest.raises(ValueError, match="IGNORE_VOID is on, but a training input has no 'void'"):
        model(batch)
    for inputs in batch:
        inputs["void"] = torch.zeros(inputs["image"].shape[1:], dtype=torch.bool)
        inputs["void"][:, -10:] = True
    seen = []
    model.criterion.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[3]))
    losses = model(batch)
    assert all(loss.isfinite() for loss in losses.values())
    # Rows added by batching are void as well.
    assert seen[0][1][48:].all() and not seen[0][1][:38, :54].any()
