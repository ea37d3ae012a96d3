"""Resizing by OpenMMLab's rule; the pixels themselves are in the fixture of UPerNet."""

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import transforms as T

from mask2former.config import ConfigError
from mask2former.data.dataset_mapper import resize_and_crop
from mask2former.data.resizing import ResizeInside, build_test_resize, size_inside
from train_net import get_config

from ..conftest import config_path


# Sizes of the published code, from the fixtures of UPerNet and of the detectors.
@pytest.mark.parametrize(
    ("size", "limits", "expected"),
    [
        ((75, 110), (64, 256), (64, 94)),
        ((75, 110), (80, 320), (80, 117)),
        ((96, 128), (64, 256), (64, 85)),
        ((480, 640), (800, 1333), (800, 1067)),
        ((100, 1000), (512, 2048), (205, 2048)),
        ((1, 5000), (512, 2048), (1, 2048)),
    ],
)
def test_sizes_are_those_of_the_published_code(size, limits, expected):
    assert size_inside(size, *limits) == expected


def test_images_are_resized_by_opencv_and_labels_to_the_nearest_pixel():
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (60, 90, 3), np.uint8)
    labels = generator.integers(0, 5, (60, 90)).astype(np.float32)
    augmented = T.AugInput(image, sem_seg=labels)
    transforms = T.AugmentationList([ResizeInside([40], 50, "choice")])(augmented)
    assert np.array_equal(augmented.image, cv2.resize(image, (50, 33)))
    assert np.array_equal(augmented.sem_seg, cv2.resize(labels, (50, 33), interpolation=cv2.INTER_NEAREST))
    assert np.allclose(transforms.apply_coords(np.array([[90.0, 60.0]])), [[50, 33]])
    assert transforms.apply_segmentation(labels.astype(bool).astype(np.uint8)).shape == (33, 50)
    back = ResizeInside([40], 50, "choice").get_transform(image).inverse()
    assert back.apply_image(augmented.image[:, :, :1]).shape == (60, 90, 1)


def test_a_range_scales_both_limits():
    np.random.seed(0)
    augmentations = resize_and_crop((16, 64), 96, "range", None, None, "none", ResizeInside)
    sizes = set()
    for _ in range(40):
        augmented = T.AugInput(np.zeros((20, 60, 3), np.uint8))
        augmentations(augmented)
        sizes.add(augmented.image.shape[:2])
    # The longer side decides: 96 / 64 of the drawn length.
    assert all(height == int(width / 3 + 0.5) for height, width in sizes)
    assert min(sizes)[1] < 40 and 80 < max(sizes)[1] <= 96


def test_the_config_names_the_resizing():
    opts = ["INPUT.RESIZE_WITH", "opencv", "INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "256"]
    resize = build_test_resize(get_config(config_path("ade20k-semantic"), opts))
    assert resize.get_transform(torch.zeros(75, 110, 3).numpy()).new_w == 94
    with pytest.raises(ConfigError, match=r"INPUT\.RESIZE_WITH is 'magic', expected one of pillow, opencv"):
        build_test_resize(get_config(config_path("ade20k-semantic"), ["INPUT.RESIZE_WITH", "magic"]))
