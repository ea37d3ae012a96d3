import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as mask_util

from mask2former.data.coco_format import encode_runs, instance_annotation, segment_info, tight_box, trace_polygons
from mask2former.utils.label_images import colors_to_ids, ids_to_colors

MASKS = hnp.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9)))


def decode(segmentation, mask):
    """What pycocotools makes of a segmentation."""
    rle = mask_util.frPyObjects(segmentation, *mask.shape) if "counts" not in segmentation else segmentation
    if isinstance(rle, dict) and isinstance(rle["counts"], list):
        rle = mask_util.frPyObjects(rle, *mask.shape)
    return mask_util.decode(mask_util.merge(rle) if isinstance(rle, list) else rle).astype(bool)


def test_ids_survive_as_colors():
    ids = np.array([[0, 1, 255], [256, 65536, 2**24 - 1]])
    np.testing.assert_array_equal(colors_to_ids(ids_to_colors(ids)), ids)
    np.testing.assert_array_equal(ids_to_colors(np.array([[3 + 256 * 7 + 65536 * 9]])), [[[3, 7, 9]]])


@given(mask=MASKS)
@settings(deadline=None, max_examples=60)
def test_every_mask_comes_back(mask):
    np.testing.assert_array_equal(decode(encode_runs(mask), mask), mask)
    polygons = trace_polygons(mask)
    if polygons is not None:
        np.testing.assert_array_equal(decode(polygons, mask), mask)
    for iscrowd in (False, True):
        annotation = json.loads(json.dumps(instance_annotation(mask, 1, 2, 3, iscrowd)))
        np.testing.assert_array_equal(decode(annotation["segmentation"], mask), mask)
        assert annotation["area"] == mask.sum()


def test_kinds_of_segmentation():
    solid = np.zeros((8, 8), bool)
    solid[2:5, 3:7] = True
    assert sorted(np.reshape(trace_polygons(solid)[0], (-1, 2)).tolist()) == [[3, 2], [3, 5], [7, 2], [7, 5]]
    annotation = instance_annotation(solid, 4, 5, 6)
    assert isinstance(annotation["segmentation"], list)
    assert {key: annotation[key] for key in ("id", "image_id", "category_id", "bbox", "area", "iscrowd")} == {
        "id": 4,
        "image_id": 5,
        "category_id": 6,
        "bbox": [3, 2, 4, 3],
        "area": 12,
        "iscrowd": 0,
    }
    holed = solid.copy()
    holed[3, 4] = False
    assert isinstance(instance_annotation(holed, 1, 1, 1)["segmentation"]["counts"], str)
    assert isinstance(instance_annotation(solid, 1, 1, 1, iscrowd=True)["segmentation"]["counts"], list)


@pytest.mark.parametrize("mask", [np.zeros((3, 4), bool)])
def test_empty_mask(mask):
    assert tight_box(mask) == [0, 0, 0, 0]
    assert trace_polygons(mask) is None
    assert segment_info(mask, 7, 8, iscrowd=True) == {
        "id": 7,
        "category_id": 8,
        "area": 0,
        "bbox": [0, 0, 0, 0],
        "iscrowd": 1,
    }
