"""Detectors against a second implementation, on images and weights unlike those of the fixture."""

import copy

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.modeling import build_model

from mask2former.checkpoint import from_openmmlab
from mask2former.data.resizing import build_test_resize

from .conftest import shrunk_config, values_of
from .reference import Detector

# Model, image size, limits of the two sides, factor of the deltas' weights, lowest score, number of detections.
CASES = {
    "a strip": ("mask_rcnn", (33, 517), (320, 224), 1, 0.05, 100),
    "a tall strip": ("cascade_mask_rcnn", (517, 33), (320, 224), 1, 0.05, 100),
    "smaller than a cell": ("mask_rcnn_dinat_s", (20, 31), (31, 20), 1, 0.05, 100),
    "boxes beyond the borders": ("mask_rcnn", (75, 106), (320, 224), 6, 0.05, 100),
    "large deltas in all stages": ("cascade_mask_rcnn", (75, 106), (213, 160), 3, 0.02, 100),
    "a larger image": ("mask_rcnn_dinat_s", (240, 300), (160, 120), 3, 0.05, 100),
    "nothing found": ("cascade_mask_rcnn", (50, 60), (110, 90), 1, 0.99, 100),
    "many candidates": ("mask_rcnn", (100, 90), (160, 120), 3, 0.0005, 300),
}


@pytest.mark.parametrize("case", CASES)
def test_detections(case, recipes, deterministic, tmp_path):
    name, size, scale, factor, threshold, limit = CASES[case]
    recipe = copy.deepcopy(recipes[name])
    recipe["img_scale"], recipe["test_cfg"]["rcnn"]["max_per_img"] = scale, limit
    cfg = shrunk_config(name, recipe, tmp_path)
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = threshold
    state = values_of(recipe, deterministic)
    state |= {key: factor * value for key, value in state.items() if key.endswith("fc_reg.weight")}
    model = build_model(cfg).eval()
    model.load_state_dict(from_openmmlab(state))
    pixels = np.ascontiguousarray(deterministic.image(f"reference.{case}", *size).transpose(1, 2, 0))
    expected = Detector(state, model.backbone.bottom_up, scale, limit, threshold)(pixels)
    resized = T.AugInput(pixels)
    build_test_resize(cfg)(resized)
    image = torch.from_numpy(np.ascontiguousarray(resized.image.transpose(2, 0, 1)))
    with torch.no_grad():
        found = model([{"image": image, "height": size[0], "width": size[1]}])[0]["instances"]
    assert len(found) == len(expected.boxes)
    assert (len(found) == 0) == (case == "nothing found")
    assert found.pred_classes.equal(expected.labels)
    torch.testing.assert_close(found.pred_boxes.tensor, expected.boxes, rtol=0, atol=0.005)
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=2e-5)
    differing, areas = (found.pred_masks != expected.masks).sum((1, 2)), expected.masks.sum((1, 2))
    assert (differing <= (0.001 * areas).clamp(min=1)).all() and differing.sum() <= 5
    sides = expected.boxes[:, 2:] - expected.boxes[:, :2]
    if "beyond" in case:
        flat = (sides == 0).any(1)
        assert flat.any() and areas[flat].sum() > 0
        assert not differing[flat].any()
