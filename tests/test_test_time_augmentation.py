"""Averaging over scales and flips."""

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from PIL import Image
from torch import nn

from mask2former.modeling.inference import InferenceSettings, Queries, run
from mask2former.test_time_augmentation import ModelWithTTA, SemanticSegmentorWithTTA, merge_views
from train_net import get_config

from .conftest import ROOT


class Brightness(nn.Module):
    """A "model" whose class maps are the image itself at the requested size; remembers what it saw."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def forward(self, batch):
        (inputs,) = batch
        self.sizes.append(tuple(inputs["image"].shape[1:]))
        size = inputs["height"], inputs["width"]
        return [{"sem_seg": nn.functional.interpolate(inputs["image"][None].float(), size, mode="bilinear")[0]}]


@pytest.fixture
def cfg():
    cfg = get_cfg()
    cfg.TEST.AUG.MIN_SIZES = (16, 24)
    cfg.TEST.AUG.MAX_SIZE = 40
    cfg.INPUT.FORMAT = "RGB"
    return cfg


@pytest.fixture
def picture():
    """Brightness rises from left to right, so that a flip that is not undone shows."""
    row = np.linspace(0, 255, 32)
    return np.broadcast_to(row[None, :, None], (16, 32, 3)).astype(np.uint8)


@pytest.mark.parametrize("flip", [True, False])
def test_every_scale_with_and_without_flip_is_averaged(cfg, picture, flip):
    cfg.TEST.AUG.FLIP = flip
    model = Brightness()
    image = torch.from_numpy(picture.transpose(2, 0, 1).copy())
    (result,) = SemanticSegmentorWithTTA(cfg, model)([{"image": image, "height": 16, "width": 32}])
    # The second scale would be 24 x 48, were it not for MAX_SIZE.
    sizes = [(16, 32), (20, 40)]
    assert model.sizes == ([s for s in sizes for _ in range(2)] if flip else sizes)
    assert result["sem_seg"].shape == (3, 16, 32)
    assert (result["sem_seg"] - image).abs().max() < 6


def test_image_is_read_where_it_is_missing(cfg, picture, tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(picture).save(path)
    (result,) = SemanticSegmentorWithTTA(cfg, Brightness())([{"file_name": str(path)}])
    assert result["sem_seg"].shape == (3, 16, 32)


SIZE = (40, 64)
CAT, DOG, NOTHING = 0, 1, 2


def box(left, right, top=8, bottom=32):
    """A mask that is sure of itself: logits [40, 64], positive between these columns and rows."""
    mask = torch.full(SIZE, -8.0)
    mask[top:bottom, left:right] = 8
    return mask


def view(*objects, size=SIZE, flipped=False):
    """A view of this size; objects are (probabilities of cat, dog and nothing, mask)."""
    masks = torch.stack([mask.flip(-1) if flipped else mask for _, mask in objects])
    masks = torch.nn.functional.interpolate(masks[None], size, mode="bilinear")[0]
    # The network pads to the right and at the bottom.
    padded = torch.nn.functional.pad(masks, (0, 16, 0, 8), value=8)
    logits = torch.tensor([classes for classes, _ in objects]).log()
    return Queries(logits, padded, (size[0] + 8, size[1] + 16), size), flipped


def test_views_of_one_scene_agree_with_each_alone():
    objects = [((0.9, 0.05, 0.05), box(4, 20)), ((0.1, 0.8, 0.1), box(30, 60)), ((0.01, 0.01, 0.98), box(0, 64))]
    # Queries have no order: other views tell of the same objects in another one.
    views = [view(*objects), view(*reversed(objects), flipped=True), view(*objects, size=(80, 128))]
    merged = merge_views(views)
    torch.testing.assert_close(merged.logits.softmax(-1), torch.tensor([classes for classes, _ in objects]))
    masks = torch.cat([strip for _, strip in merged.resized(SIZE).strips()], 1)
    for mask, (_, expected) in zip(masks, objects, strict=True):
        # Averaged on the grid of stride 4, so borders move by less than a cell.
        assert ((mask > 0) != (expected > 0)).float().mean() < 0.08


def test_views_that_lack_an_object_vote_against_it():
    nothing = ((0.01, 0.01, 0.98), box(0, 64, 0, 4))
    cat, dog = ((0.9, 0.05, 0.05), box(4, 20)), ((0.1, 0.8, 0.1), box(30, 60))
    merged = merge_views([view(cat, nothing), view(nothing, cat, flipped=True), view(dog, nothing), view(cat, dog)])
    assert merged.logits.shape == (3, 3)  # the cat, nothing, and the dog which later views found
    probabilities = merged.logits.softmax(-1)
    torch.testing.assert_close(probabilities[0], torch.tensor([3 * 0.9, 3 * 0.05, 3 * 0.05 + 1]) / 4)
    torch.testing.assert_close(probabilities[2], torch.tensor([2 * 0.1, 2 * 0.8, 2 * 0.1 + 2]) / 4)
    found = run(merged, SIZE, InferenceSettings(("instance",), detections_per_image=2))["instances"]
    assert found.pred_classes.tolist() == [CAT, DOG]
    left, top, right, bottom = found.pred_boxes.tensor[0].tolist()
    assert abs(left - 4) < 4 and abs(right - 20) < 4 and abs(top - 8) < 4 and abs(bottom - 32) < 4


def test_one_class_in_two_places_stays_two_objects():
    cats = [((0.9, 0.05, 0.05), box(0, 20)), ((0.8, 0.1, 0.1), box(40, 64))]
    merged = merge_views([view(*cats), view(*reversed(cats))])
    torch.testing.assert_close(merged.logits.softmax(-1), torch.tensor([classes for classes, _ in cats]))


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_model_of_each_task(task, deterministic):
    """One view of the test size is the prediction itself; more views give the same kinds of results."""
    config = ROOT / f"configs/shapes/{task}-segmentation/dinat/maskformer2_dinat_pico_shapes.yaml"
    cfg = get_config(config, ["MODEL.DEVICE", "cpu", "TEST.AUG.FLIP", "False", "TEST.AUG.MIN_SIZES", "(64,)"])
    cfg.MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD = cfg.MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD = 0.0
    model = build_model(cfg).eval()
    deterministic.load_weights(model)
    settings = model.inference_settings
    inputs = [{"image": torch.from_numpy(deterministic.image("tta", 64, 96)), "height": 70, "width": 100}]
    (alone,) = model(inputs)
    (once,) = ModelWithTTA(cfg, model)(inputs)
    assert set(once) == set(alone)
    if "sem_seg" in alone:
        torch.testing.assert_close(once["sem_seg"], alone["sem_seg"])
    if "instances" in alone:
        assert torch.equal(once["instances"].scores, alone["instances"].scores)
    cfg.merge_from_list(["TEST.AUG.FLIP", "True", "TEST.AUG.MIN_SIZES", "(48, 64)"])
    (several,) = ModelWithTTA(cfg, model)(inputs)
    assert set(several) == set(alone)
    assert all(several[key].shape[-2:] == (70, 100) for key in several if key == "sem_seg")
    if "panoptic_seg" in several:
        ids, segments = several["panoptic_seg"]
        assert ids.shape == (70, 100)
        assert set(ids.unique().tolist()) - {0} == {segment["id"] for segment in segments}
    assert model.inference_settings is settings
