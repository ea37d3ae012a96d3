"""Label images of every kind that ground truth has, counted pair by pair."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from mask2former.evaluation import EvaluationError
from mask2former.evaluation.coco import count_pixels


@pytest.fixture
def labels():
    return np.random.default_rng(0).integers(0, 2, (5, 7))


def count(folder, truth, predicted, *sizes, void=255):
    """Pixels of pairs of (class, predicted label), of one pair of images."""
    for name, image in (("truth", truth), ("predicted", predicted)):
        image = image if isinstance(image, Image.Image) else Image.fromarray(image)
        image.save(folder / f"{name}.png")
    counts = count_pixels([(folder / "truth.png", folder / "predicted.png")], *sizes, void=void)
    return {pair: counts[pair] for pair in zip(*(axis.tolist() for axis in np.nonzero(counts)), strict=True)}


def pairs(truth, predicted, void=255):
    both = zip(truth.ravel().tolist(), predicted.ravel().tolist(), strict=True)
    return dict(Counter(pair for pair in both if pair[0] != void))


@pytest.mark.parametrize(("kind", "largest"), [(np.bool_, 1), (np.uint8, 254), (np.uint16, 999)])
def test_labels_are_read_as_they_are_stored(tmp_path, labels, kind, largest):
    stored = (labels * largest).astype(kind)
    expected = pairs(stored.astype(int), np.roll(labels, 1))
    assert len(expected) == 4
    assert count(tmp_path, stored, np.roll(labels, 1).astype(np.uint8), largest + 1, 2, void=None) == expected


def test_a_palette_gives_its_indices(tmp_path, labels):
    image = Image.fromarray(labels.astype(np.uint8), mode="P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    assert count(tmp_path, image, labels.astype(np.uint8), 2, 2) == pairs(labels, labels)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (12, 17)])
def test_pairs_are_counted_but_for_void(tmp_path, size):
    rng = np.random.default_rng(0)
    truth, predicted = rng.choice([0, 1, 2, 255], size), rng.integers(0, 4, size)
    found = count(tmp_path, truth.astype(np.uint8), predicted.astype(np.uint8), 3, 4)
    assert found == pairs(truth, predicted)


def test_labels_of_more_than_eight_bits_are_counted(tmp_path):
    truth, predicted = np.array([[300, 301, 300]], np.uint16), np.array([[300, 300, 299]], np.uint16)
    assert count(tmp_path, truth, predicted, 302, 301) == {(300, 299): 1, (300, 300): 1, (301, 300): 1}


def test_several_images_are_added_and_fewer_classes_than_labels_are_told_apart(tmp_path):
    for name, value in (("truth", 3), ("predicted", 9)):
        Image.fromarray(np.full((4, 5), value, np.uint8)).save(tmp_path / f"{name}.png")
    files = [(tmp_path / "truth.png", tmp_path / "predicted.png")] * 3
    assert count_pixels(files, 4, 10, void=255)[3, 9] == 60
    with pytest.raises(EvaluationError, match=r"truth\.png: label 3; expected 0 to 2, or 255 for void"):
        count_pixels(files, 3, 10, void=255)
