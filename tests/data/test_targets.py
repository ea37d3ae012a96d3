import numpy as np
import pytest
from fvcore.transforms.transform import CropTransform, HFlipTransform, NoOpTransform, PadTransform, TransformList
from pycocotools import mask as mask_util

from mask2former.data.datasets import AnnotationError
from mask2former.data.targets import (
    instance_targets,
    instance_void,
    panoptic_targets,
    panoptic_void,
    semantic_targets,
)

NOTHING = TransformList([NoOpTransform()])
SQUARE = [[1.0, 1.0, 3.0, 1.0, 3.0, 4.0, 1.0, 4.0]]


@pytest.fixture
def square():
    mask = np.zeros((5, 6), bool)
    mask[1:4, 1:3] = True
    return mask


def rle_of(mask):
    return mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))


@pytest.mark.parametrize("dtype", [np.int32, np.uint32])
def test_panoptic_leaves_out_void_and_crowd(dtype):
    ids = np.array([[0, 7, 7], [9, 9, 300]], np.int32)
    segments = [
        {"id": 300, "category_id": 4, "iscrowd": 0},
        {"id": 9, "category_id": 2, "iscrowd": 1},
        {"id": 7, "category_id": 4},
        {"id": 1234, "category_id": 1, "iscrowd": 0},
        {"id": -1, "category_id": 2, "iscrowd": 0},
    ]
    classes, masks = panoptic_targets(ids.astype(dtype), segments)
    assert classes.tolist() == [4, 4, 1, 2]
    assert classes.dtype == np.int64
    assert masks.dtype == bool
    np.testing.assert_array_equal(masks[0], ids == 300)
    np.testing.assert_array_equal(masks[1], ids == 7)
    assert not masks[2:].any()


def test_semantic_leaves_out_void():
    labels = np.array([[3, 255], [0, 3]], np.float32)
    classes, masks = semantic_targets(labels, ignore_label=255)
    assert classes.tolist() == [0, 3]
    np.testing.assert_array_equal(masks, [[[0, 0], [1, 0]], [[1, 0], [0, 1]]])


@pytest.mark.parametrize("targets", [
    lambda: panoptic_targets(np.zeros((4, 5), np.int32), []),
    lambda: semantic_targets(np.full((4, 5), 255, np.uint8), 255),
    lambda: instance_targets([], NOTHING, (4, 5), (4, 5)),
    lambda: instance_targets([{"category_id": 1, "iscrowd": 1, "segmentation": SQUARE}], NOTHING, (4, 5), (4, 5)),
])  # fmt: skip
def test_no_targets(targets):
    classes, masks = targets()
    assert classes.shape == (0,)
    assert classes.dtype == np.int64
    assert masks.shape == (0, 4, 5)
    assert masks.dtype == bool


def test_polygons_and_run_lengths_agree(square):
    runs = {"size": [5, 6], "counts": [6, 3, 2, 3, 16]}
    transforms = TransformList(
        [HFlipTransform(6), CropTransform(2, 0, 4, 5, 6, 5), PadTransform(0, 0, 3, 1, 4, 5, 0, 255)]
    )
    expected = np.zeros((6, 7), bool)
    expected[1:4, 1:3] = True
    for segmentation in (SQUARE, rle_of(square), runs):
        annotation = {"category_id": 2, "segmentation": segmentation}
        classes, masks = instance_targets([annotation], NOTHING, (5, 6), (5, 6))
        assert classes.tolist() == [2]
        np.testing.assert_array_equal(masks[0], square)
        # Flipped to columns 3 and 4, cut to 1 and 2; padding belongs to nothing.
        _, masks = instance_targets([annotation], transforms, (5, 6), (6, 7))
        np.testing.assert_array_equal(masks[0], expected)
    assert SQUARE == [[1.0, 1.0, 3.0, 1.0, 3.0, 4.0, 1.0, 4.0]], "annotations stay as they are"


def test_several_polygons_and_whole_numbers(square):
    both = [[1, 1, 3, 1, 3, 4, 1, 4], [4, 0, 6, 0, 6, 2, 4, 2]]
    _, masks = instance_targets([{"category_id": 0, "segmentation": both}], NOTHING, (5, 6), (5, 6))
    square[:2, 4:] = True
    np.testing.assert_array_equal(masks[0], square)


def test_polygon_outside_of_the_crop():
    crop = TransformList([CropTransform(4, 0, 2, 5)])
    _, masks = instance_targets([{"category_id": 0, "segmentation": SQUARE}], crop, (5, 6), (5, 2))
    assert masks.shape == (1, 5, 2)
    assert not masks.any()


@pytest.mark.parametrize(
    "segmentation, message",
    [
        (None, "found NoneType"),
        ("text", "found str"),
        (rle_of(np.ones((4, 4))), r"\(4, 4\) on an image of size \(5, 6\)"),
    ],
)
def test_unusable_segmentation(segmentation, message):
    with pytest.raises(AnnotationError, match=message):
        instance_targets([{"category_id": 0, "segmentation": segmentation}], NOTHING, (5, 6), (5, 6))


def test_void_is_what_nothing_is_known_of(square):
    ids = np.array([[0, 7, 7], [9, 9, 300]], np.int32)
    segments = [{"id": 300, "category_id": 4, "iscrowd": 0}, {"id": 9, "category_id": 2, "iscrowd": 1}]
    np.testing.assert_array_equal(panoptic_void(ids, segments), [[1, 1, 1], [1, 1, 0]])
    assert panoptic_void(ids, []).all()
    shift = TransformList([CropTransform(1, 0, 5, 5, 6, 5), PadTransform(0, 0, 2, 1, 5, 5, 0, 255)])
    for segmentation in (SQUARE, rle_of(square)):
        annotations = [
            {"category_id": 1, "iscrowd": 1, "segmentation": segmentation},
            {"category_id": 1, "iscrowd": 0, "segmentation": [[4.0, 0.0, 6.0, 0.0, 6.0, 5.0, 4.0, 5.0]]},
        ]
        np.testing.assert_array_equal(instance_void(annotations, NOTHING, (5, 6), (5, 6)), square)
        expected = np.ones((6, 7), bool)
        expected[:5, :5] = square[:, 1:]
        np.testing.assert_array_equal(instance_void(annotations, shift, (5, 6), (6, 7)), expected)
