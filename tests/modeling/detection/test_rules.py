"""The rules of the published detectors, one by one."""

import math

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import (
    ROI_HEADS_REGISTRY,
    build_anchor_generator,
    build_backbone,
    build_proposal_generator,
)
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn
from torchvision.ops import generalized_box_iou

from dinat_backbone import add_dinat_config
from mask2former.config import ConfigError, add_maskformer2_config, setup_cfg
from mask2former.modeling.detection import FPN, build_fpn
from mask2former.modeling.detection.matching import LowQualityMatcher
from mask2former.modeling.detection.roi_heads import CascadeMaskRCNNHeads, RegionPooler, box_levels
from mask2former.modeling.detection.rpn import BoxTransform
from mask2former.modeling.detection.selection import suppress, top_detections, top_proposals
from mask2former.modeling.inference import InferenceSettings
from mask2former.modeling.meta_arch.mask_rcnn import Detections

from ...conftest import ROOT

# Heads of a few channels are built in a moment.
NARROW = [
    *("MODEL.DEVICE", "cpu", "MODEL.ROI_BOX_HEAD.CONV_DIM", "8"),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", "8", "MODEL.ROI_MASK_HEAD.CONV_DIM", "8"),
]
LIMIT = math.log(1000 / 16)


def test_deltas_are_limited_on_both_sides():
    boxes = torch.tensor([[10.0, 20.0, 110.0, 60.0]])
    for weights in ((1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)):
        deltas = torch.tensor([[0.0, 0.0, -9.0 * weights[2], 9.0 * weights[3], 0.0, 0.0, 0.0, 0.0]])
        moved = BoxTransform(weights).apply_deltas(deltas, boxes).view(2, 4)
        width, height = (moved[0, 2:] - moved[0, :2]).tolist()
        assert width == pytest.approx(100 * math.exp(-LIMIT)) and height == pytest.approx(40 * math.exp(LIMIT))
        assert moved[1].tolist() == pytest.approx(boxes[0].tolist())


def test_a_target_takes_its_best_boxes_from_the_lowest_overlap_on():
    #                        boxes: background, ignored, best of 0, better for 0 but best of 1, too low
    overlaps = torch.tensor([[0.10, 0.40, 0.50, 0.50, 0.00], [0.00, 0.20, 0.10, 0.45, 0.00], [0.0, 0.0, 0.0, 0.0, 0.2]])
    matches, labels = LowQualityMatcher([0.3, 0.7], [0, -1, 1], lowest=0.3)(overlaps)
    assert labels.tolist() == [0, -1, 1, 1, 0]
    assert matches[2:4].tolist() == [0, 1]
    matches, labels = LowQualityMatcher([0.3, 0.7], [0, -1, 1], lowest=0.3)(torch.zeros(0, 4))
    assert (matches.tolist(), labels.tolist()) == ([0] * 4, [0] * 4)


def proposals_of(heads, *opts):
    """Region proposal network of the published settings over maps of strides 4 to 64."""
    cfg = setup_cfg(ROOT / "configs" / "_base_" / f"{heads}.yaml", ["MODEL.DEVICE", "cpu", *opts])
    return build_proposal_generator(cfg, {f"p{level}": ShapeSpec(channels=4, stride=2**level) for level in range(2, 7)})


def labels_of(rpn, anchors, targets, size):
    """Labels of anchors for the boxes of one image, and the boxes that they belong to."""
    instances = Instances(size, gt_boxes=Boxes(torch.tensor(targets).view(-1, 4)))
    (labels,), (matched,) = rpn.label_and_sample_anchors([Boxes(torch.tensor(anchors))], [instances])
    return labels.tolist(), matched


def test_anchors_in_the_padding_of_a_batch_are_not_trained():
    """An image of 33 x 90 pixels has a padding of its own to 64 x 96."""
    centres = [(80, 20), (95, 63), (97, 20), (80, 65)]
    anchors = [[x - 16.0, y - 16.0, x + 16.0, y + 16.0] for x, y in centres]
    labels, matched = labels_of(proposals_of("maskrcnn"), anchors, [[64.0, 4.0, 90.0, 33.0]], (33, 90))
    assert labels == [1, 0, -1, -1]
    assert matched[0].tolist() == [64, 4, 90, 33]
    assert labels_of(proposals_of("maskrcnn"), anchors, [], (33, 90))[0] == [0, 0, -1, -1]


def test_of_a_cascade_only_anchors_inside_the_image_are_trained_and_a_target_takes_the_best_of_them():
    anchors = [[-4.0, 0.0, 40.0, 40.0], [0.0, 0.0, 24.0, 40.0], [50.0, 50.0, 90.0, 80.0], [50.0, 50.0, 89.0, 79.0]]
    target = [[0.0, 0.0, 40.0, 40.0]]
    for heads, expected in (("maskrcnn", [1, -1, 0, 0]), ("cascade", [-1, 1, -1, 0])):
        assert labels_of(proposals_of(heads), anchors, target, (80, 90))[0] == expected


def test_of_many_anchors_256_are_trained_and_half_of_them_at_most_are_positive():
    target, other = [0.0, 0.0, 64.0, 64.0], [300.0, 300.0, 364.0, 364.0]
    for positive in (400, 10):
        labels, _ = labels_of(proposals_of("maskrcnn"), [target] * positive + [other] * 500, [target], (400, 400))
        assert labels.count(1) == min(positive, 128) and labels.count(0) == 256 - min(positive, 128)


def sampled(heads, proposals, targets, classes, stage=0):
    """Boxes, classes and targets that a stage samples from proposals."""
    cfg = setup_cfg(ROOT / "configs" / "_base_" / f"{heads}.yaml", NARROW)
    shapes = {f"p{level}": ShapeSpec(channels=4, stride=2**level) for level in range(2, 6)}
    sampler = ROI_HEADS_REGISTRY.get(cfg.MODEL.ROI_HEADS.NAME).from_config(cfg, shapes)["samplers"][stage]
    fields = {"proposal_boxes": Boxes(torch.tensor(proposals)), "objectness_logits": torch.zeros(len(proposals))}
    instances = Instances((200, 200), gt_boxes=Boxes(torch.tensor(targets)), gt_classes=torch.tensor(classes))
    with EventStorage():
        (found,) = sampler.label_and_sample_proposals([Instances((200, 200), **fields)], [instances])
    boxes = [tuple(box) for box in found.proposal_boxes.tensor.tolist()]
    return dict(zip(boxes, found.gt_classes.tolist(), strict=True)), found


def test_targets_are_sampled_too_and_belong_to_themselves():
    """Also where two have one box, as a person and its uniform may have."""
    proposals, targets = [[100.0, 100.0, 150.0, 150.0]], [[0.0, 0.0, 40.0, 40.0], [0.0, 0.0, 40.0, 40.0]]
    for heads in ("maskrcnn", "cascade"):
        _, found = sampled(heads, proposals, targets, [3, 5])
        assert sorted(found.gt_classes.tolist()) == [3, 5, 80]


def test_in_mask_rcnn_a_target_takes_its_best_proposal_from_another():
    first, second = [0.0, 0.0, 100.0, 100.0], [0.0, 0.0, 100.0, 60.0]
    proposal = (0.0, 0.0, 100.0, 78.0)  # IoU 0.78 with the first, 0.77 with the second, whose only one it is
    better = (0.0, 0.0, 100.0, 99.0)
    for heads, expected in (("maskrcnn", 5), ("cascade", 3)):
        classes, _ = sampled(heads, [list(proposal), list(better)], [first, second], [3, 5])
        assert (classes[proposal], classes[better]) == (expected, 3)


@pytest.mark.parametrize(("stage", "positive"), [(0, [0.5, 0.6, 0.7]), (1, [0.6, 0.7]), (2, [0.7])])
def test_stages_of_a_cascade_ask_for_more_and_more_overlap(stage, positive):
    boxes = {overlap: (0.0, 0.0, 100.0, 100.0 * overlap) for overlap in (0.49, 0.5, 0.6, 0.7)}
    classes, _ = sampled("cascade", [list(box) for box in boxes.values()], [[0.0, 0.0, 100.0, 100.0]], [7], stage)
    assert [overlap for overlap, box in boxes.items() if classes[box] == 7] == positive


def test_of_many_regions_512_are_trained_and_a_quarter_of_them_at_most_is_positive():
    target, other = [0.0, 0.0, 64.0, 64.0], [100.0, 100.0, 164.0, 164.0]
    for heads in ("maskrcnn", "cascade"):
        for positive in (400, 10):
            _, found = sampled(heads, [target] * positive + [other] * 900, [target], [1])
            count = min(positive + 1, 128)
            assert found.gt_classes.tolist().count(1) == count and len(found) == 512


def test_losses_of_boxes_are_l1_of_deltas_or_giou_of_boxes_over_all_samples():
    """One region of four is positive, for class 1."""
    target, region = [10.0, 20.0, 50.0, 60.0], [14.0, 16.0, 54.0, 56.0]
    boxes = Boxes(torch.tensor([region] + [[80.0, 80.0, 99.0, 99.0]] * 3))
    fields = {"proposal_boxes": boxes, "gt_boxes": Boxes(torch.tensor([target] * 4))}
    samples = [Instances((100, 100), **fields, gt_classes=torch.tensor([1, 80, 80, 80]))]
    logits = torch.randn(4, 81)
    entropy = F.cross_entropy(logits, samples[0].gt_classes)
    deltas = torch.zeros(4, 320)
    deltas[0, 4:8] = torch.tensor([1.0, 0.5, 0.25, -0.25])
    for heads in ("maskrcnn", "cascade"):
        cfg = setup_cfg(ROOT / "configs" / "_base_" / f"{heads}.yaml", NARROW)
        shapes = {f"p{level}": ShapeSpec(channels=4, stride=2**level) for level in range(2, 6)}
        parts = ROI_HEADS_REGISTRY.get(cfg.MODEL.ROI_HEADS.NAME).from_config(cfg, shapes)
        with EventStorage():
            losses = parts["box_predictors"][0].losses((logits, deltas), samples)
        assert float(losses["loss_cls"]) == pytest.approx(float(entropy))
        # Standard deviations 0.1 and 0.2; the target is a tenth of the side to the left and below.
        wanted = torch.tensor([-1.0, 1.0, 0.0, 0.0])
        width, height = 40 * math.exp(0.05), 40 * math.exp(-0.05)
        x, y = 34 + 40 * 0.1, 36 + 40 * 0.05
        moved = torch.tensor([[x - width / 2, y - height / 2, x + width / 2, y + height / 2]])
        expected = {
            "maskrcnn": (deltas[0, 4:8] - wanted).abs().sum() / 4,
            "cascade": 10 * (1 - generalized_box_iou(moved, torch.tensor([target]))[0, 0]) / 4,
        }
        assert float(losses["loss_box_reg"]) == pytest.approx(float(expected[heads]), rel=1e-4)
        assert list(parts["loss_weights"]) == {"maskrcnn": [1], "cascade": [1, 0.5, 0.25]}[heads]


def test_anchors_have_no_offset_of_half_a_pixel():
    cfg = setup_cfg(ROOT / "configs" / "_base_" / "maskrcnn.yaml")
    strides = [4, 8, 16, 32, 64]
    generator = build_anchor_generator(cfg, [ShapeSpec(channels=1, stride=stride) for stride in strides])
    anchors = generator([torch.zeros(1, 1, 3, 2)] * 5)
    for stride, level in zip(strides, anchors, strict=True):
        boxes = level.tensor.view(3, 2, 3, 4)  # rows, columns, ratios
        for ratio, box in zip((0.5, 1.0, 2.0), boxes[2, 1], strict=True):
            width, height = 8 * stride / math.sqrt(ratio), 8 * stride * math.sqrt(ratio)
            x, y = 1 * stride, 2 * stride
            expected = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
            assert box.tolist() == pytest.approx(expected, rel=1e-6)


def test_proposals_are_suppressed_per_level_and_empty_ones_are_left_out():
    same, empty = [0.0, 0.0, 10.0, 10.0], [200.0, 0.0, 300.0, 10.0]
    boxes = [torch.tensor([same, same, empty]), torch.tensor([same])]
    logits = [torch.tensor([3.0, 2.0, 9.0]), torch.tensor([1.0])]
    limits = {"per_level": 1000, "count": 1000, "iou": 0.7, "min_size": 0.0}
    found = top_proposals(boxes, logits, (100, 100), **limits)
    assert found.objectness_logits.tolist() == [3.0, 1.0]
    assert found.proposal_boxes.tensor.tolist() == [same, same]
    found = top_proposals(boxes, logits, (100, 100), **limits | {"per_level": 1})
    assert found.objectness_logits.tolist() == [1.0]  # the best one of the first level is empty
    assert len(top_proposals(boxes, logits, (100, 100), **limits | {"count": 1})) == 1


@pytest.mark.parametrize(
    ("side", "level"), [(1, 0), (55.9, 0), (56, 0), (111.9, 0), (112, 1), (223.9, 1), (224, 2), (448, 3), (5000, 3)]
)
def test_levels_double_from_56_pixels_on(side, level):
    assert box_levels(torch.tensor([[7.0, 9.0, 7.0 + side, 9.0 + side]]), 4).tolist() == [level]
    # A rounding error below the border makes no difference.
    side = side - 3e-5
    assert box_levels(torch.tensor([[0.0, 0.0, side, side]]), 4).tolist() == [level]


def test_regions_of_several_images_keep_their_order():
    pooler = RegionPooler(7, [4, 8], 0)
    maps = [torch.arange(2.0).view(2, 1, 1, 1).expand(2, 1, 64, 64) + level * 10 for level in range(2)]
    small, large = [0.0, 0.0, 20.0, 20.0], [0.0, 0.0, 120.0, 120.0]
    pooled = pooler(maps, [torch.tensor([large, small]), torch.tensor([small])])
    assert pooled.amax((1, 2, 3)).tolist() == [10.0, 0.0, 1.0]
    assert pooler(maps, [torch.zeros(0, 4), torch.zeros(0, 4)]).shape == (0, 1, 7, 7)


class Fixed(nn.Module):
    """A head that returns the same whatever it gets."""

    def __init__(self, *values):
        super().__init__()
        self.values = values

    def forward(self, x):
        return self.values[0] if len(self.values) == 1 else self.values

    layers = forward


def cascade(logits, deltas, masks):
    """A cascade of fixed outputs, for boxes that a pooler would only have to pass on."""
    cfg = setup_cfg(ROOT / "configs" / "_base_" / "cascade.yaml", NARROW)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2
    shapes = {f"p{level}": ShapeSpec(channels=4, stride=2**level) for level in range(2, 6)}
    parts = CascadeMaskRCNNHeads.from_config(cfg, shapes)
    predictors = parts["box_predictors"]
    for predictor, *outputs in zip(predictors, logits, deltas, strict=True):
        predictor.forward = Fixed(*outputs).forward
    parts |= {"box_heads": [Fixed(torch.zeros(1, 4)) for _ in range(3)], "mask_heads": [Fixed(mask) for mask in masks]}
    return CascadeMaskRCNNHeads(**parts).eval()


def test_cascade():
    """Refined by the best class but the background; mean of logits; boxes of the last stage; mean of mask sigmoids."""
    logits = [torch.tensor([row]) for row in ([1.0, 2.0, 9.0], [4.0, 0.0, 0.0], [0.0, 4.0, 0.0])]
    right, none = [10.0, 0.0, 0.0, 0.0], [0.0] * 4  # weights of the first stage are 10: one width to the right
    deltas = [torch.tensor([row]) for row in (none + right, none + none, none + none)]
    masks = [torch.full((2, 2, 28, 28), value) for value in (0.0, 2.0, -1.0)]
    heads = cascade(logits, deltas, masks)
    features = {f"p{level}": torch.zeros(1, 4, 256 // 2**level, 256 // 2**level) for level in range(2, 6)}
    start = Boxes(torch.tensor([[20.0, 30.0, 60.0, 70.0]]))
    (found,) = heads.predict(features, [Instances((256, 256), proposal_boxes=start)])
    mean = (sum(logits) / 3).softmax(-1)[0]
    assert found.pred_classes.tolist() == [1, 0]
    assert found.scores.tolist() == pytest.approx(sorted(mean[:2].tolist(), reverse=True))
    for box in found.pred_boxes.tensor:
        assert box.tolist() == pytest.approx([60.0, 30.0, 100.0, 70.0])
    expected = torch.tensor([0.0, 2.0, -1.0]).sigmoid().mean()
    assert found.pred_masks.flatten().tolist() == pytest.approx([float(expected)] * found.pred_masks.numel())


def test_refined_boxes_are_clipped_to_the_image():
    heads = cascade([torch.zeros(1, 3)] * 3, [torch.tensor([[50.0, 0.0, 0.0, 0.0] * 2])] * 3, [torch.zeros(1)] * 3)
    proposals = [Instances((64, 90), proposal_boxes=Boxes(torch.tensor([[20.0, 30.0, 60.0, 70.0]])))]
    (refined,) = heads.refine(torch.zeros(1, 3), torch.tensor([[5.0, 0.0, 0.0, 0.0] * 2]), proposals, 0)
    assert refined.proposal_boxes.tensor.tolist() == [[40.0, 30.0, 80.0, 64.0]]
    (refined,) = heads.refine(torch.zeros(1, 3), torch.tensor([[50.0, 0.0, 0.0, 0.0] * 2]), proposals, 0)
    # Empty, but not left out at test time.
    assert refined.proposal_boxes.tensor.tolist() == [[90.0, 30.0, 90.0, 64.0]]


def test_refinement_in_a_training_takes_the_labels_and_leaves_out_targets():
    heads = cascade([torch.zeros(1, 3)] * 3, [torch.zeros(1, 8)] * 3, [torch.zeros(1)] * 3)
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 10.0], [5.0, 5.0, 20.0, 20.0]])
    targets = Boxes(torch.tensor([[1.0, 1.0, 10.0, 10.0], [1.0, 1.0, 10.0, 10.0], [5.0, 5.0, 20.0, 20.0]]))
    fields = {"gt_classes": torch.tensor([1, 2, 1]), "gt_boxes": targets}
    proposals = [Instances((64, 64), proposal_boxes=Boxes(boxes), **fields)]
    logits = torch.tensor([[5.0, 0.0, 0.0]] * 3)  # class 0 is the best; the first region has the label 1
    deltas = torch.tensor([[10.0, 0.0, 0.0, 0.0, 20.0, 0.0, 0.0, 0.0]] * 3)
    (refined,) = heads.refine(logits, deltas, proposals, 0)
    assert refined.proposal_boxes.tensor.tolist() == [[20.0, 0.0, 30.0, 10.0], [10.0, 0.0, 20.0, 10.0]]


def test_results_are_in_pixels_of_the_image_and_empty_boxes_stay():
    boxes = Boxes(torch.tensor([[8.0, 10.0, 24.0, 30.0], [40.0, 0.0, 40.0, 20.0]]))
    masks = torch.ones(2, 1, 28, 28)
    found = Instances((50, 40), pred_boxes=boxes, scores=torch.ones(2), pred_classes=torch.zeros(2), pred_masks=masks)
    result = Detections(found).results((100, 20), InferenceSettings())["instances"]
    assert result.pred_boxes.tensor.tolist() == [[4, 20, 12, 60], [20, 0, 20, 40]]
    assert found.pred_boxes.tensor[0].tolist() == [8, 10, 24, 30]  # left as it was
    inside = torch.zeros(100, 20, dtype=torch.bool)
    inside[20:60, 4:12] = True
    assert result.pred_masks[0].equal(inside)
    found.pred_masks = masks / 2
    # A probability of 0.5 is inside; at the border it is less.
    assert Detections(found).results((100, 20), InferenceSettings())["instances"].pred_masks[0, 40, 8]


@pytest.mark.parametrize("size", [(64, 96), (70, 90), (33, 61)])
def test_pyramid_for_any_size(size):
    cfg = get_cfg()
    add_maskformer2_config(cfg)
    add_dinat_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_dinat_fpn_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 8
    cfg.MODEL.DINAT.EMBED_DIM, cfg.MODEL.DINAT.DEPTHS, cfg.MODEL.DINAT.KERNEL_SIZE = 32, [1, 1, 1, 1], 3
    cfg.MODEL.DINAT.NUM_HEADS = [1, 2, 4, 8]
    pyramid = build_backbone(cfg).eval()
    assert isinstance(pyramid, FPN) and pyramid.size_divisibility == 32
    image = torch.randn(1, 3, *size)
    with torch.no_grad():
        found, maps = pyramid(image), pyramid.bottom_up(image)
        merged = pyramid.fpn_lateral5(maps["res5"])
        for level in (5, 4, 3, 2):
            assert found[f"p{level}"].equal(pyramid.get_submodule(f"fpn_output{level}")(merged))
            if level > 2:
                finer = pyramid.get_submodule(f"fpn_lateral{level - 1}")(maps[f"res{level - 1}"])
                merged = finer + F.interpolate(merged, finer.shape[-2:])
    assert found["p6"].equal(found["p5"][:, :, ::2, ::2])
    assert {name: shape.stride for name, shape in pyramid.output_shape().items()} == {
        f"p{level}": 2**level for level in range(2, 7)
    }
    cfg.MODEL.FPN.IN_FEATURES = ["res1"]
    with pytest.raises(
        ConfigError, match=r"MODEL\.FPN\.IN_FEATURES is \['res1'\], expected maps of the backbone: res2, .*res5"
    ):
        build_fpn(cfg, pyramid.bottom_up)
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res4"]
    with pytest.raises(ConfigError, match=r"\['res2', 'res4'\] with strides \[4, 16\], expected strides that double"):
        build_fpn(cfg, pyramid.bottom_up)


@pytest.mark.parametrize("size", [(1, 12), (12, 1), (1, 1)])
def test_masks_of_flat_boxes_are_their_middle_along_the_border(size):
    """As in the published code, though there is nothing inside such a box."""
    width, height = (0.0 if side == 1 else float(side) for side in size)
    boxes = Boxes(torch.tensor([[20 - width, 30 - height, 20.0, 30.0], [0.0, 0.0, width, height]]))
    masks = torch.zeros(2, 1, 28, 28)
    masks[:, :, 12:16, 12:16] = 0.9
    found = Instances((30, 20), pred_boxes=boxes, scores=torch.ones(2), pred_classes=torch.zeros(2), pred_masks=masks)
    result = Detections(found).results((30, 20), InferenceSettings())["instances"].pred_masks
    expected = torch.zeros(2, 30, 20, dtype=torch.bool)
    # 4 of the 28 cells of a side, in its middle, are 2 of its 12 pixels.
    rows, columns = (slice(5, 7) if side else slice(0, 1) for side in (height, width))
    expected[1, rows, columns] = True
    expected[0] = expected[1].flip(0, 1)
    assert result.equal(expected)
    assert found.pred_boxes is boxes and found.pred_masks is masks


@pytest.mark.parametrize("count", [1, 10000])
def test_suppression_rounds_boxes_as_the_published_code_does(count):
    """Boxes of class 79 in an image of 1333 pixels lie on a grid of 1 / 128 pixel when overlaps are computed."""
    pair = torch.tensor([[0.0, 0.0, 32.0, 32.0], [0.0, 0.0, 32.0, 16.003]])
    others = torch.tensor([[1313.0, 0.0, 1333.0, 20.0]]).repeat(count, 1)
    boxes, scores = torch.cat([others, pair]), torch.linspace(0.1, 0.9, count + 2)
    for group, kept in ((79, [count + 1, count, count - 1]), (0, [count + 1, count - 1])):
        # A tie is broken by the order of the boxes.
        groups = torch.cat([torch.full((count,), 5), torch.full((2,), group)])
        assert suppress(boxes, scores, groups, 0.5).tolist() == kept
    assert suppress(boxes[:0], scores[:0], groups[:0], 0.5).tolist() == []


def test_detections_are_suppressed_in_pixels_of_the_image():
    """An overlap of exactly the limit stays, and rounding to pixels of the image decides whether it is one."""
    boxes = torch.tensor([[0.0, 0.0, 32.0, 32.0] * 80, [0.0, 0.0, 32.0, 16.003] * 80, [0.0, 0.0, 1333.0, 9.0] * 80])
    scores = torch.zeros(3, 81)
    scores[:, 79] = torch.tensor([0.9, 0.8, 0.7])
    limits = {"threshold": 0.05, "iou": 0.5, "count": 100}
    # On a grid of 1 / 128 pixel of the input the overlap is 0.5; on one of the image, a tenth as large, more.
    assert len(top_detections(boxes, scores, (800, 1333), (800, 1333), **limits)) == 3
    found = top_detections(boxes, scores, (800, 1333), (80, 133), **limits)
    assert found.scores.tolist() == pytest.approx([0.9, 0.7])
    assert found.pred_boxes.tensor[1].tolist() == [0.0, 0.0, 1333.0, 9.0]
    # Detections exceed the threshold.
    scores[2, 79] = 0.5
    assert len(top_detections(boxes, scores, (800, 1333), (80, 133), **limits | {"threshold": 0.5})) == 1


def test_boxes_that_are_not_numbers():
    boxes = torch.tensor([[0.0, 0.0, 9.0, 9.0], [0.0, float("nan"), 9.0, 9.0], [20.0, 20.0, 29.0, 29.0]])
    found = top_detections(boxes, torch.tensor([[0.9, 0.1]] * 3), (40, 40), (40, 40), threshold=0, iou=0.5, count=9)
    assert found.pred_boxes.tensor.tolist() == [[0.0, 0.0, 9.0, 9.0], [20.0, 20.0, 29.0, 29.0]]
    limits = {"per_level": 9, "count": 9, "iou": 0.7, "min_size": 0.0}
    assert len(top_proposals([boxes], [torch.tensor([1.0, 2.0, 3.0])], (40, 40), **limits)) == 2
