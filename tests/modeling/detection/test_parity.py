"""Detectors against numbers measured on the published code (float32, CPU)."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

# Largest differences, relative to the largest value for maps.
MAPS = 1e-4
OUTPUTS = 2e-4
BOXES = 0.02
STRIDES = (16, 8, 4, 2, 1)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


def test_input(case):
    images = case.model.preprocess_image(case.inputs)
    assert list(images.tensor.shape[-2:]) == case.recipe["facts"]["input"]
    assert list(images.image_sizes[0]) == case.recipe["facts"]["img_shape"]
    assert relative(images.tensor[0, :, ::16, ::16], case.expected("input")) < 1e-6
    height, width = case.size
    factors = [images.image_sizes[0][1] / width, images.image_sizes[0][0] / height]
    assert factors == pytest.approx(case.recipe["facts"]["scale_factor"][:2], rel=1e-6)


def test_maps_of_backbone_and_pyramid(case):
    with torch.no_grad():
        maps = case.model.backbone.bottom_up(case.model.preprocess_image(case.inputs).tensor)
    for level, stride in enumerate(STRIDES, start=2):
        if level < 6:
            assert relative(maps[f"res{level}"][0, ::8, ::stride, ::stride], case.expected(f"res{level}")) < MAPS
        assert relative(case.features[f"p{level}"][0, ::4, ::stride, ::stride], case.expected(f"fpn{level}")) < MAPS


def test_region_proposals(case):
    network = case.model.proposal_generator
    with torch.no_grad():
        logits, deltas = network.rpn_head([case.features[f"p{level}"] for level in range(2, 7)])
        images = case.model.preprocess_image(case.inputs)
        (found,), _ = network(images, case.features)
    for level, stride in enumerate(STRIDES, start=2):
        own = logits[level - 2][0, :, ::stride, ::stride], deltas[level - 2][0, :, ::stride, ::stride]
        assert relative(own[0], case.expected(f"rpn_objectness{level}")) < OUTPUTS
        assert relative(own[1], case.expected(f"rpn_deltas{level}")) < OUTPUTS
    expected = case.expected("proposals")
    ours = torch.cat([found.proposal_boxes.tensor, found.objectness_logits.sigmoid()[:, None]], dim=1)
    assert ours.shape == expected.shape
    # As sets: scores of neighbours may differ by less than rounding errors.
    distances = torch.cdist(ours, expected, p=torch.inf)
    assert distances.amin(0).max() < BOXES and distances.amin(1).max() < BOXES
    assert (ours[:, 4].sort().values - expected[:, 4].sort().values).abs().max() < OUTPUTS


def given(case) -> list[Instances]:
    boxes = Boxes(case.expected("given_boxes"))
    return [Instances(tuple(case.recipe["facts"]["img_shape"]), proposal_boxes=boxes)]


def test_heads_on_given_boxes(case):
    heads = case.model.roi_heads
    proposals, maps = given(case), [case.features[f"p{level}"] for level in range(2, 6)]
    cascade = len(heads.box_head) > 1
    with torch.no_grad():
        pooled = heads.box_pooler(maps, [case.expected("given_boxes")])
        assert relative(pooled[::4, ::4], case.expected("given.roi_features")) < MAPS
        masks = heads.mask_logits(maps, [case.expected("given_boxes")[:6]])
        for stage, of_stage in enumerate(masks):
            place = f"given.stage{stage}." if cascade else "given."
            logits, deltas = heads.box_outputs(maps, proposals, stage)
            if cascade:
                boxes = proposals[0].proposal_boxes.tensor
                assert (boxes - case.expected(f"{place}boxes")).abs().max() < BOXES
            assert relative(logits, case.expected(f"{place}logits")) < OUTPUTS
            assert relative(deltas, case.expected(f"{place}deltas")) < OUTPUTS
            assert relative(of_stage[:, ::2, ::2, ::2], case.expected(f"{place}mask_logits")) < OUTPUTS
            proposals = heads.refine(logits, deltas, proposals, stage)


def test_levels_of_given_boxes(case):
    from mask2former.modeling.detection.roi_heads import box_levels

    levels = box_levels(case.expected("given_boxes"), 4)
    assert torch.bincount(levels, minlength=4).tolist() == case.recipe["facts"]["given_box_levels"]


def test_detections(case):
    with torch.no_grad():
        found = case.model(case.inputs)[0]["instances"]
    assert len(found) == case.recipe["facts"]["detections"]
    assert found.pred_classes.equal(case.expected("final.labels"))
    assert (found.pred_boxes.tensor - case.expected("final.boxes")).abs().max() < BOXES
    assert (found.scores - case.expected("final.scores")).abs().max() < OUTPUTS
    areas, expected = found.pred_masks.sum((1, 2)), case.expected("final.mask_area")
    # A pixel may lie on the threshold of a small mask.
    assert ((areas - expected).abs() <= (0.001 * expected).clamp(min=1)).all()
    assert abs(int(areas.sum() - expected.sum())) <= 0.001 * expected.sum()
    height, width = case.size
    packed = case.expected("final.masks_packed").numpy()
    masks = np.unpackbits(packed, axis=1)[:, : height * width].reshape(-1, height, width)
    differing = (torch.from_numpy(masks).bool() != found.pred_masks[: len(masks)]).sum((1, 2))
    assert (differing <= (0.001 * expected[: len(masks)]).clamp(min=1)).all()


def test_images_of_a_batch_do_not_change_each_other(case):
    """A smaller image would be padded to the size of a larger one, and attention would see the padding."""
    image = case.inputs[0]["image"]
    batch = [{"image": image[:, :64, :96]}, {"image": image[:, :90, :40], "height": 45, "width": 30}]
    with torch.no_grad():
        for inputs, together in zip(batch, case.model(batch), strict=True):
            found, alone = together["instances"], case.model([inputs])[0]["instances"]
            assert len(alone) and found.pred_boxes.tensor.equal(alone.pred_boxes.tensor)
            assert found.scores.equal(alone.scores) and found.pred_masks.equal(alone.pred_masks)
