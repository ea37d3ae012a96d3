import itertools
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, get_detection_dataset_dicts

from mask2former.config import ConfigError
from mask2former.data import build_test_loader, build_train_loader, build_train_mapper, build_validation_loader
from mask2former.data.build import repeat_factors
from mask2former.data.datasets import AnnotationError, MissingDatasetError

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


def test_unusable_input(shapes, cfg):
    choose(cfg, "mask_former_instance")
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 0.75
    with pytest.raises(ConfigError, match="SINGLE_CATEGORY_MAX_AREA"):
        build_train_mapper(cfg)
    # A panoptic mapper with such a crop reads semantic maps, and only then.
    choose(cfg, "mask_former_panoptic")
    record = DatasetCatalog.get(cfg.DATASETS.TRAIN[0])[0]
    del record["sem_seg_file_name"]
    with pytest.raises(AnnotationError, match="no 'sem_seg_file_name', which the crop needs"):
        build_train_mapper(cfg)(record)
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 1.0
    assert build_train_mapper(cfg)(record)["instances"].gt_masks.ndim == 3
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


@pytest.mark.parametrize("name", TASKS)
def test_validation_loader_gives_targets_at_the_size_of_a_test(shapes, cfg, name):
    choose(cfg, name)
    cfg.DATASETS.TEST = (f"shapes_val_{TASKS[name]}",)
    tested = [mapped for (mapped,) in build_test_loader(cfg, cfg.DATASETS.TEST[0])]
    batches = list(build_validation_loader(cfg))
    assert [mapped["file_name"] for (mapped,) in batches] == [mapped["file_name"] for mapped in tested]
    for (mapped,), expected in zip(batches, tested, strict=True):
        assert mapped["image"][:, :80, :80].equal(expected["image"])
        targets = mapped["instances"]
        assert targets.gt_masks.shape[1:] == mapped["image"].shape[1:]
        # Nothing was cut off: every segment has a pixel, and all together cover the image but for the void along edges.
        assert targets.gt_masks.any(dim=(1, 2)).all()
        assert TASKS[name] == "instance" or targets.gt_masks.any(dim=0)[:80, :80].float().mean() > 0.9


def test_validation_images_are_spread_over_the_data_sets(shapes, cfg):
    choose(cfg, "coco_panoptic_lsj")
    cfg.DATASETS.TEST = ("shapes_train_panoptic", "shapes_val_panoptic")
    cfg.TEST.VALIDATION_IMAGES = 4
    names = [record["file_name"] for name in cfg.DATASETS.TEST for record in DatasetCatalog.get(name)]
    chosen = [mapped["file_name"] for (mapped,) in build_validation_loader(cfg)]
    assert chosen == [names[index] for index in (0, 3, 6, 9)]
    cfg.TEST.VALIDATION_IMAGES = 0
    with pytest.raises(ConfigError, match=r"VALIDATION_IMAGES is 0"):
        build_validation_loader(cfg)


def test_validation_needs_annotations_of_the_kind_that_is_trained_on(shapes, cfg):
    choose(cfg, "coco_panoptic_lsj")
    cfg.DATASETS.TEST = ("shapes_val_semantic",)
    with pytest.raises(
        ConfigError, match=r"VALIDATION_LOSS needs the same kind of annotations in DATASETS\.TEST.*pan_seg_file_name"
    ):
        build_validation_loader(cfg)


def rare_classes(kind):
    """Names of the images of shapes_train, and how often LVIS's rule shows each where below 90% is rare."""
    records = DatasetCatalog.get("shapes_train_panoptic")
    classes = {Path(r["file_name"]).name: {segment["category_id"] for segment in r["segments_info"]} for r in records}
    if kind == "instance":
        # Of the four things; images without any are left out.
        classes = {name: {c for c in found if c < 4} for name, found in classes.items()}
        classes = {name: found for name, found in classes.items() if found}
    share = {c: sum(c in found for found in classes.values()) / len(classes) for c in range(7)}
    return {name: max(1.0, *(math.sqrt(0.9 / share[c]) for c in found)) for name, found in classes.items()}


@pytest.mark.parametrize("kind", ["semantic", "panoptic", "instance"])
def test_images_with_rare_classes_are_repeated(shapes, kind):
    expected = rare_classes(kind)
    assert max(expected.values()) > 1.2
    dicts = get_detection_dataset_dicts(f"shapes_train_{kind}")
    factors = repeat_factors(dicts, kind, threshold=0.9, ignore_label=255)
    assert {Path(r["file_name"]).name: f for r, f in zip(dicts, factors.tolist(), strict=True)} == pytest.approx(
        expected
    )


def test_the_train_loader_repeats_images(shapes, cfg):
    choose(cfg, "mask_former_panoptic")
    cfg.SEED = 0
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.9
    expected = rare_classes("panoptic")
    seen = Counter()
    for batch in itertools.islice(build_train_loader(cfg), 100):
        seen.update(Path(mapped["file_name"]).name for mapped in batch)
    assert seen.keys() == expected.keys()
    often = max(expected, key=lambda name: expected[name])
    seldom = [name for name, factor in expected.items() if factor < 0.9 * expected[often]]
    assert seldom and all(seen[name] < seen[often] for name in seldom)


def test_repeating_needs_a_threshold(shapes, cfg):
    choose(cfg, "coco_panoptic_lsj")
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    with pytest.raises(ConfigError, match=r"REPEAT_THRESHOLD is 0\.0"):
        build_train_loader(cfg)
