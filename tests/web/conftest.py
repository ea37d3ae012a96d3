import numpy as np
import pytest
import torch
from PIL import Image

from mask2former.prediction.predictor import Predictor
from tests.conftest import config_path
from tests.tiny import TINY


@pytest.fixture(scope="session")
def predictor():
    """A random panoptic model of COCO's classes that keeps every segment."""
    torch.manual_seed(0)
    opts = (*TINY, "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD", "0.0")
    return Predictor.from_config(config_path("coco-panoptic"), opts=opts)


@pytest.fixture
def photo(tmp_path):
    """Makes photographs."""

    def make(name="photo.png", height=48, width=80, seed=0):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        pixels = np.random.RandomState(seed).randint(0, 256, (height // 8, width // 8, 3)).astype(np.uint8)
        Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).save(path)
        return path

    return make
