import itertools

import pytest
import torch
from detectron2.data import DatasetCatalog

from mask2former.config import ConfigError
from mask2former.data import build_test_loader, build_train_loader, build_train_mapper
from mask2former.data.datasets import MissingDatasetError

TASKS = {
    "mask_former_semantic": "semantic",
    "mask_former_panoptic": "panoptic",
    "mask_former_instance": "instance",
    "coco_instance_lsj": "instance",
    "coco_panoptic_lsj": "panoptic",
}


def choose(cfg, name):
    cfg.INPUT.DATASET_MAPPER_NAME = name
    cfg.DATASETS.TRAIN = (f"shapes_train_{TASKS[name]}",)
    if name.endswith("lsj"):
        cfg.INPUT.SIZE_DIVISIBILITY = -1
    return cfg


@pytest.mark.parametrize("name", TASKS)
def test_train_loader(shapes, cfg, name):
    batches = list(itertools.islice(build_train_loader(choose(cfg, name)), 6))
    side = 48 if name.endswith("lsj") else 64
    for batch in batches:
        assert len(batch) == 2
        for mapped in batch:
            assert mapped["image"].shape[1:] == (side, side) or max(mapped["image"].shape) > 64
            assert mapped["instances"].gt_masks.shape[1:] == mapped["image"].shape[1:]


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("drop", [False, True])
def test_emptied_segments_by_mapper(shapes, cfg, name, drop):
    # A crop of a few pixels of a larger image leaves most segments without a pixel.
    cfg.INPUT.IMAGE_SIZE = 8
    cfg.INPUT.MIN_SCALE = cfg.INPUT.MAX_SCALE = 8.0
    cfg.INPUT.CROP.SIZE = [8, 8]
    cfg.INPUT.DROP_EMPTY_TARGETS = drop
    mapper = build_train_mapper(choose(cfg, name))
    empty = sum(
        (~mapper(record)["instances"].gt_masks.any(dim=(1, 2))).sum().item()
        for record in DatasetCatalog.get(cfg.DATASETS.TRAIN[0])
    )
    keeps = not drop and name in ("mask_former_panoptic", "mask_former_instance", "coco_panoptic_lsj")
    assert (empty > 0) == keeps


def test_unknown_mapper(cfg):
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_video"
    with pytest.raises(ConfigError) as caught:
        build_train_mapper(cfg)
    assert "mask_former_video" in str(caught.value)
    for name in TASKS:
        assert name in str(caught.value)


def test_unusable_input(cfg):
    choose(cfg, "mask_former_instance")
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 0.75
    with pytest.raises(ConfigError, match="SINGLE_CATEGORY_MAX_AREA"):
        build_train_mapper(cfg)
    cfg.INPUT.RANDOM_FLIP = "both"
    with pytest.raises(ConfigError, match=r"RANDOM_FLIP is 'both'.*horizontal"):
        build_train_mapper(cfg)


def test_unknown_and_missing_data_sets(cfg, monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(MissingDatasetError, match="shapes_train_panoptic"):
        build_train_loader(choose(cfg, "coco_panoptic_lsj"))
    with pytest.raises(MissingDatasetError, match="shapes_val_panoptic"):
        build_test_loader(cfg, "shapes_val_panoptic")
    with pytest.raises(ValueError, match="'shapes_test'"):
        build_test_loader(cfg, "shapes_test")
    cfg.DATASETS.TRAIN = ("shapes_test",)
    with pytest.raises(ValueError, match="'shapes_test'"):
        build_train_loader(cfg)


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_test_loader_goes_through_once(shapes, cfg, task):
    batches = list(build_test_loader(cfg, f"shapes_val_{task}"))
    expected = [record["file_name"] for record in DatasetCatalog.get(f"shapes_val_{task}")]
    assert [[mapped["file_name"] for mapped in batch] for batch in batches] == [[name] for name in expected]
    for (mapped,) in batches:
        assert mapped["image"].shape == (3, 80, 80)
        assert mapped["image"].dtype == torch.uint8
        assert (mapped["height"], mapped["width"]) == (64, 64)
