import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_util

from mask2former.utils import label_images
from mask2former.utils.label_images import encode_masks


def official(masks):
    encoded = [mask_util.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in masks]
    return [one["counts"].decode("ascii") for one in encoded]


def with_one_pixel(height, width):
    for y, x in ((0, 0), (0, -1), (-1, 0), (-1, -1), (height // 2, width // 2)):
        mask = np.zeros((height, width), bool)
        mask[y, x] = True
        yield mask


def special(height, width):
    y, x = np.mgrid[:height, :width]
    borders = [y == 0, y == height - 1, x == 0, x == width - 1]
    lines = [y % 2 == 0, y % 2 == 1, x % 2 == 0, x % 2 == 1, (x + y) % 2 == 0, (x + y) % 2 == 1]
    whole = [np.zeros((height, width), bool), np.ones((height, width), bool)]
    # A column that ends at the bottom and one that begins at the top are one run.
    touching = [(x == width // 2) & (y >= height // 2) | (x == width // 2 + 1) & (y < height // 2)]
    inverse = [~mask for mask in with_one_pixel(height, width)]
    return np.stack([*whole, *borders, *lines, *touching, *with_one_pixel(height, width), *inverse])


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 2), (7, 13), (8, 16), (33, 64), (427, 640), (525, 1000)])
def test_masks_of_all_kinds_are_encoded_as_pycocotools_does(size):
    masks = special(*size)
    assert encode_masks(torch.from_numpy(masks)) == official(masks)


@settings(max_examples=150, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 5), st.integers(1, 40), st.integers(1, 40)),
    density=st.sampled_from([0.0, 0.01, 0.1, 0.5, 0.9, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_random_masks_are_encoded_as_pycocotools_does(shape, density, seed):
    masks = np.random.default_rng(seed).random(shape) < density
    assert encode_masks(torch.from_numpy(masks)) == official(masks)


def test_thousands_of_small_masks_are_encoded_as_pycocotools_does():
    rng = np.random.default_rng(0)
    for _ in range(300):
        height, width = rng.choice([1, 2, 3, 8, 31, 32, 33], 2)
        masks = rng.random((15, height, width)) < rng.choice([0, 0.02, 0.3, 0.7, 0.98, 1])
        assert encode_masks(torch.from_numpy(masks)) == official(masks)


def test_masks_keep_their_order_over_groups_and_copies_to_the_cpu(monkeypatch):
    monkeypatch.setattr(label_images, "_PIXELS_AT_ONCE", 11 * 48 * 64)
    masks = special(48, 64)
    assert len(masks) > 22 and encode_masks(torch.from_numpy(masks)) == official(masks)
    assert encode_masks(torch.zeros(0, 48, 64)) == []


@pytest.mark.parametrize("kind", [torch.bool, torch.uint8, torch.int64, torch.float32])
def test_what_is_not_zero_belongs_to_a_mask_whatever_its_kind_and_layout(kind):
    masks = np.random.default_rng(0).random((3, 20, 12)) < 0.3
    given = (2 * torch.from_numpy(masks)).to(kind)
    assert encode_masks(given) == official(masks)
    assert encode_masks(given.transpose(1, 2)) == official(masks.swapaxes(1, 2))
