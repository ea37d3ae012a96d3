from collections import Counter

import numpy as np
import pytest
from PIL import Image

from mask2former.evaluation import EvaluationError
from mask2former.evaluation.label_files import common_runs, count_pairs, read_ids, read_panoptic_ids


@pytest.fixture
def ids():
    return np.random.default_rng(0).integers(0, 2, (5, 7))


@pytest.mark.parametrize("kind", [np.bool_, np.uint8, np.uint16])
def test_ids_are_read_as_they_are_stored(tmp_path, ids, kind):
    stored = (ids * (1 if kind is np.bool_ else np.iinfo(kind).max)).astype(kind)
    Image.fromarray(stored).save(tmp_path / "labels.png")
    read = read_ids(tmp_path / "labels.png", (5, 7))
    assert np.array_equal(read, stored)
    assert read.dtype.kind in "ui"


def test_a_palette_gives_its_indices(tmp_path, ids):
    image = Image.fromarray(ids.astype(np.uint8), mode="P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.save(tmp_path / "labels.png")
    assert np.array_equal(read_ids(tmp_path / "labels.png", (5, 7)), ids)


@pytest.mark.parametrize("channels", [3, 4])
def test_segment_ids_are_read_from_colors(tmp_path, channels):
    colors = np.random.default_rng(0).integers(0, 256, (5, 7, channels)).astype(np.uint8)
    Image.fromarray(colors).save(tmp_path / "ids.png")
    expected = colors[..., :3].astype(np.int64) @ [1, 256, 65536]
    assert np.array_equal(read_panoptic_ids(tmp_path / "ids.png", (5, 7)), expected)


def test_segment_ids_that_are_no_colors_or_damaged_are_named(tmp_path, ids):
    path = tmp_path / "ids.png"
    Image.fromarray(ids.astype(np.uint8)).save(path)
    with pytest.raises(EvaluationError, match=r"ids\.png: expected a picture of 8-bit colours, found mode L"):
        read_panoptic_ids(path, (5, 7))
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype(np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(EvaluationError, match=r"ids\.png: no label image: "):
        read_panoptic_ids(path, (50, 70))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (12, 17)])
def test_runs_have_the_pixels_of_each_pair(size):
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 3, size).astype(np.int16), rng.integers(0, 4, size).astype(np.uint8)
    expected = Counter(zip(first.ravel().tolist(), second.ravel().tolist(), strict=True))
    a, b, pixels = common_runs(first, second)
    found = Counter()
    for pair, count in zip(zip(a.tolist(), b.tolist(), strict=True), pixels.tolist(), strict=True):
        found[pair] += count
    assert found == expected
    rows = count_pairs(a, b, pixels, classes=3)
    assert {(p, label): count for p, label, count in rows} == {k: v for k, v in expected.items() if k[1] < 3}


def test_class_ids_of_more_than_eight_bits_are_counted():
    predicted, labels = np.array([[300, 300, 299]]), np.array([[300, 301, 300]], np.uint16)
    assert count_pairs(*common_runs(predicted, labels), classes=301) == [[299, 300, 1], [300, 300, 1]]
