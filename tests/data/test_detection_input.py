"""The training input of detectors: boxes beside masks, and the published augmentation."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, BoxMode

from mask2former import setup_cfg
from mask2former.config import ConfigError
from mask2former.data import build_train_mapper
from mask2former.data.dataset_mapper import TrainingMapper, resize_or_crop_first
from mask2former.data.datasets import AnnotationError
from mask2former.data.resizing import ResizeInside
from mask2former.modeling.inference import mask_boxes

from ..conftest import ROOT

CONFIG = ROOT / "configs" / "coco" / "detection" / "dinat" / "maskrcnn_dinat_mini.yaml"


@pytest.fixture
def instances(shapes):
    return DatasetCatalog.get("shapes_train_instance")


def mapper(*augmentations):
    return TrainingMapper(T.AugmentationList(augmentations), "instance", num_classes=10, boxes=True)


def test_boxes_are_those_of_the_annotations(instances):
    record = instances[0]
    (one, *_), found = record["annotations"], mapper()(record)["instances"]
    expected = BoxMode.convert(one["bbox"], one["bbox_mode"], BoxMode.XYXY_ABS)
    assert found.gt_boxes.tensor[0].tolist() == expected
    assert isinstance(found.gt_masks, BitMasks) and len(found) == len(record["annotations"])
    # A mirrored image has mirrored boxes.
    flipped = mapper(T.RandomFlip(prob=1.0))(record)["instances"].gt_boxes.tensor[0]
    assert flipped.tolist() == [64 - expected[2], expected[1], 64 - expected[0], expected[3]]


def test_an_annotation_without_a_box_has_that_of_its_mask(instances):
    record = dict(instances[0])
    record["annotations"] = [{k: v for k, v in a.items() if k != "bbox"} for a in record["annotations"]]
    found = mapper()(record)["instances"]
    assert found.gt_boxes.tensor.equal(mask_boxes(found.gt_masks.tensor))


def test_boxes_and_masks_still_belong_together_where_empty_ones_are_dropped(instances):
    record = dict(instances[0])
    one = {**record["annotations"][0], "bbox_mode": BoxMode.XYXY_ABS}
    sides = [(2.0, 2.0, 9.0, 9.0), (40.0, 40.0, 50.0, 50.0), (20.0, 4.0, 28.0, 11.0), (3.0, 3.0, 3.0, 8.0)]
    squares = [[x0, y0, x1, y0, x1, y1, x0, y1] for x0, y0, x1, y1 in sides]
    record["annotations"] = [
        {**one, "bbox": [*box], "segmentation": [at]} for box, at in zip(sides, squares, strict=True)
    ]
    mapped = TrainingMapper(
        T.AugmentationList([T.CropTransform(0, 0, 32, 24)]),
        "instance",
        num_classes=10,
        boxes=True,
        drop_empty_targets=True,
    )(record)["instances"]
    assert mapped.gt_boxes.tensor.tolist() == [list(sides[0]), list(sides[2])]
    assert mapped.gt_boxes.tensor.equal(mask_boxes(mapped.gt_masks.tensor))


def test_a_box_alone_is_refused(instances):
    for nothing in ([], None, {}):
        record = dict(instances[0])
        record["annotations"] = [{**record["annotations"][0], "segmentation": nothing}]
        with pytest.raises(AnnotationError, match=r"found .*: models learn masks, not boxes alone"):
            mapper()(record)


def test_boxes_are_clipped_and_those_outside_are_left_out(instances):
    record = dict(instances[0])
    kept = record["annotations"][0]
    inside = {**kept, "bbox": [10.0, 10.0, 50.0, 50.0], "bbox_mode": BoxMode.XYWH_ABS}
    outside = {**kept, "bbox": [40.0, 40.0, 10.0, 10.0], "bbox_mode": BoxMode.XYWH_ABS}
    crowd = {**kept, "iscrowd": 1}
    record["annotations"] = [outside, crowd, inside]
    found = mapper(T.CropTransform(0, 0, 32, 24))(record)
    assert found["image"].shape == (3, 24, 32)
    assert found["instances"].gt_boxes.tensor.tolist() == [[10, 10, 32, 24]]
    assert found["instances"].gt_masks.tensor.shape == (1, 24, 32)


def test_half_of_the_images_are_cropped_first():
    crop = T.RandomCrop("absolute_range", (384, 600))
    augmentations = resize_or_crop_first([480, 800], 1333, ([400, 500, 600], crop), "none", ResizeInside)
    np.random.seed(0)
    image, cropped, shapes = np.zeros((400, 1000, 3), np.uint8), 0, set()
    for _ in range(60):
        augmented = T.AugInput(image)
        cropped += any(isinstance(step, T.CropTransform) for step in augmentations(augmented).transforms)
        shapes.add(augmented.image.shape[:2])
    assert 15 < cropped < 45
    whole = {(480, 1200), (533, 1333)}
    assert whole <= shapes
    assert all(max(shape) <= 1333 and (min(shape) in (480, 800) or max(shape) == 1333) for shape in shapes)


def test_the_published_input():
    cfg = setup_cfg(CONFIG)
    built = build_train_mapper(cfg)
    assert (built.boxes, built.task, built.num_classes) == (True, "instance", 80)
    assert built.size_divisibility < 1
    flip, first, last = built.augmentations.augs
    assert isinstance(flip, T.RandomFlip) and flip.prob == 0.5 and flip.horizontal
    resize, crop = first.aug.augs
    assert isinstance(resize, ResizeInside) and isinstance(last, ResizeInside) and first.prob == 0.5
    assert (tuple(resize.short_edge_length), resize.max_size) == ((400, 500, 600), 1333)
    assert (crop.crop_type, tuple(crop.crop_size)) == ("absolute_range", (384, 600))
    assert (tuple(last.short_edge_length), last.max_size) == (tuple(range(480, 801, 32)), 1333)


def test_a_model_that_predicts_no_boxes_is_no_detector(instances):
    plain = TrainingMapper(T.AugmentationList([]), "instance", num_classes=10)(instances[0])["instances"]
    assert not plain.has("gt_boxes") and isinstance(plain.gt_masks, torch.Tensor)


def test_too_few_classes_are_named_by_the_key_of_a_detector(instances):
    cfg = setup_cfg(CONFIG, ["MODEL.ROI_HEADS.NUM_CLASSES", "1"])
    record = dict(instances[0])
    record["annotations"] = [{**record["annotations"][0], "category_id": 3}]
    with pytest.raises(Exception, match=r"MODEL\.ROI_HEADS\.NUM_CLASSES is 1"):
        build_train_mapper(cfg)(record)
    with pytest.raises(ConfigError, match=r"INPUT\.RANDOM_FLIP is 'both'"):
        build_train_mapper(setup_cfg(CONFIG, ["INPUT.RANDOM_FLIP", "both"]))
