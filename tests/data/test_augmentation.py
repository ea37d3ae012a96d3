import random

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.projects.point_rend import ColorAugSSDTransform
from PIL import Image

from mask2former.data.dataset_mapper import large_scale_jitter, pad_to_multiple, resize_and_crop


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)


def resize(image, height, width):
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


@pytest.mark.parametrize("seed", range(6))
def test_large_scale_jitter_draws_flip_scale_offset(image, seed):
    np.random.seed(seed)
    augmented = T.AugInput(image)
    large_scale_jitter(32, 0.1, 2.0, "horizontal")(augmented)

    np.random.seed(seed)
    expected = image[:, ::-1] if np.random.uniform() < 0.5 else image
    scale = np.random.uniform(0.1, 2.0) * min(32 / 30, 32 / 40)
    height, width = np.round(np.array([30, 40]) * scale).astype(int)
    offset = np.random.uniform()
    top, left = (round(offset * max(side - 32, 0)) for side in (height, width))
    visible = resize(np.ascontiguousarray(expected), height, width)[top : top + 32, left : left + 32]
    padded = np.full((32, 32, 3), 128, np.uint8)
    padded[: visible.shape[0], : visible.shape[1]] = visible
    assert augmented.image.dtype == np.uint8
    np.testing.assert_array_equal(augmented.image, padded)


@pytest.mark.parametrize("seed", range(6))
def test_resize_and_crop_draws_size_window_colors_flip(image, seed):
    crop = T.RandomCrop_CategoryAreaConstraint("absolute", (16, 20), 1.0, 255)
    np.random.seed(seed)
    random.seed(seed)
    augmented = T.AugInput(image)
    resize_and_crop([24, 36, 60], 70, "choice", crop, "RGB", "horizontal")(augmented)

    np.random.seed(seed)
    random.seed(seed)
    size = np.random.choice([24, 36, 60])
    # The longest edge is at most 70 pixels.
    height, width = {24: (24, 32), 36: (36, 48), 60: (53, 70)}[size]
    top = np.random.randint(height - 16 + 1)
    left = np.random.randint(width - 20 + 1)
    expected = resize(image, height, width)[top : top + 16, left : left + 20]
    expected = ColorAugSSDTransform("RGB").apply_image(expected)
    expected = expected[:, ::-1] if np.random.uniform() < 0.5 else expected
    np.testing.assert_array_equal(augmented.image, expected)


def test_switches(image):
    untouched = T.AugInput(image)
    resize_and_crop([30], 100, "choice", None, None, "none")(untouched)
    np.testing.assert_array_equal(untouched.image, image)
    np.random.seed(1)
    flips = set()
    for _ in range(20):
        flipped = T.AugInput(image)
        resize_and_crop([30], 100, "choice", None, None, "vertical")(flipped)
        flips.add((flipped.image == image).all().item())
        assert (flipped.image == image).all() or (flipped.image == image[::-1]).all()
    assert flips == {True, False}


def test_crop_with_a_category_limit(image):
    labels = np.zeros((30, 40), np.float32)
    labels[:, 30:] = 1
    labels[:10] = 255
    crop = T.RandomCrop_CategoryAreaConstraint("absolute", (8, 8), 0.75, 255)
    np.random.seed(0)
    mixed = 0
    for _ in range(20):
        augmented = T.AugInput(image, sem_seg=labels)
        resize_and_crop([30], 100, "choice", crop, None, "none")(augmented)
        counts = [(augmented.sem_seg == value).sum() for value in (0, 1)]
        mixed += max(counts) < 0.75 * sum(counts)
    # A window chosen blindly is mixed in about one case of ten.
    assert mixed >= 8


def test_pad_to_multiple():
    pixels = np.arange(2 * 3 * 5, dtype=np.uint8).reshape(2, 3, 5)
    padded = pad_to_multiple(pixels, 4, 128)
    assert padded.shape == (2, 4, 8)
    np.testing.assert_array_equal(padded[:, :3, :5], pixels)
    assert (padded[:, 3:] == 128).all()
    assert (padded[:, :, 5:] == 128).all()
    assert pad_to_multiple(pixels, -1, 128) is pixels
    assert pad_to_multiple(np.zeros((0, 3, 5), bool), 4, 0).shape == (0, 4, 8)
    assert torch.from_numpy(padded).dtype == torch.uint8
