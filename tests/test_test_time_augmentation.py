"""Averaging over scales and flips."""

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from PIL import Image
from torch import nn

from mask2former.test_time_augmentation import SemanticSegmentorWithTTA


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
