"""The training input of the eight settings is what Detectron2's own parts, put together plainly, give for a seed.

Sizes are scaled down with the trees; everything else is the published config.
"""

import random

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, detection_utils
from detectron2.data import transforms as T
from detectron2.projects.point_rend import ColorAugSSDTransform
from detectron2.structures import BoxMode
from detectron2.structures.masks import polygons_to_bitmask
from detectron2.utils.visualizer import Visualizer

from dinat_backbone import add_dinat_config
from mask2former.config import setup_cfg
from mask2former.data import build_train_mapper
from mask2former.data.datasets import dataset_metadata
from mask2former.model_zoo import SETTINGS

from ..conftest import config_path
from .conftest import check_cityscapes_dicts

SMALL = {
    "coco": ["INPUT.IMAGE_SIZE", 96],
    "ade20k": [
        *("INPUT.MIN_SIZE_TRAIN", [40, 64, 80, 128], "INPUT.MAX_SIZE_TRAIN", 150),
        *("INPUT.CROP.SIZE", [72, 72], "INPUT.SIZE_DIVISIBILITY", 72),
    ],
    "cityscapes": ["INPUT.MIN_SIZE_TRAIN", [32, 64, 128], "INPUT.MAX_SIZE_TRAIN", 256, "INPUT.CROP.SIZE", [48, 96]],
}


@pytest.fixture(autouse=True)
def _at_the_trees(trees, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(trees))


def setting_cfg(setting):
    options = SMALL[SETTINGS[setting].dataset]
    return setup_cfg(config_path(setting), [str(option) for option in options], [add_dinat_config])


def recipe(cfg):
    """Detectron2's augmentations in the published order."""
    if cfg.INPUT.DATASET_MAPPER_NAME.endswith("lsj"):
        side = cfg.INPUT.IMAGE_SIZE
        return [
            T.RandomFlip(horizontal=True),
            T.ResizeScale(cfg.INPUT.MIN_SCALE, cfg.INPUT.MAX_SCALE, side, side),
            T.FixedSizeCrop((side, side)),
        ]
    crop = cfg.INPUT.CROP
    return [
        T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, "choice"),
        T.RandomCrop_CategoryAreaConstraint(crop.TYPE, crop.SIZE, crop.SINGLE_CATEGORY_MAX_AREA, 255),
        ColorAugSSDTransform(img_format=cfg.INPUT.FORMAT),
        T.RandomFlip(),
    ]


def pad(array, divisor, value):
    if divisor < 1:
        return array
    bottom, right = (-side % divisor for side in array.shape[:2])
    return np.pad(array, [(0, bottom), (0, right), (0, 0)][: array.ndim], constant_values=value)


def expected_targets(cfg, record, sem_seg, transforms, size):
    name = cfg.INPUT.DATASET_MAPPER_NAME
    if "semantic" in name:
        classes = [c for c in np.unique(sem_seg) if c != 255]
        return classes, [sem_seg == c for c in classes]
    if "panoptic" in name:
        colors = transforms.apply_segmentation(detection_utils.read_image(record["pan_seg_file_name"], "RGB"))
        ids = colors.astype(np.int64) @ [1, 256, 65536]
        segments = [segment for segment in record["segments_info"] if not segment["iscrowd"]]
        return [s["category_id"] for s in segments], [ids == s["id"] for s in segments]
    things = [annotation for annotation in record["annotations"] if not annotation["iscrowd"]]
    classes, masks = [], []
    for thing in things:
        changed = detection_utils.transform_instance_annotations(
            {**thing, "bbox_mode": BoxMode(thing["bbox_mode"])}, transforms, size
        )["segmentation"]
        mask = polygons_to_bitmask(changed, *size) if isinstance(changed, list) else changed == 1
        if mask.any() or "lsj" not in name:
            classes.append(thing["category_id"])
            masks.append(mask)
    return classes, masks


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_seed_gives_what_detectron2_gives(setting):
    cfg = setting_cfg(setting)
    mapper = build_train_mapper(cfg)
    kinds = set()
    for seed, record in enumerate(2 * DatasetCatalog.get(cfg.DATASETS.TRAIN[0])):
        np.random.seed(seed)
        random.seed(seed)
        mapped = mapper(record)
        after = np.random.get_state()[1].tolist(), random.getstate()

        np.random.seed(seed)
        random.seed(seed)
        image = detection_utils.read_image(record["file_name"], cfg.INPUT.FORMAT)
        sem_seg = None
        if "semantic" in setting:
            sem_seg = detection_utils.read_image(record["sem_seg_file_name"]).astype("double")
        augmented = T.AugInput(image, sem_seg=sem_seg)
        transforms = T.AugmentationList(recipe(cfg))(augmented)
        assert (np.random.get_state()[1].tolist(), random.getstate()) == after, "other random draws"
        size = augmented.image.shape[:2]
        classes, masks = expected_targets(cfg, record, augmented.sem_seg, transforms, size)

        divisor = cfg.INPUT.SIZE_DIVISIBILITY
        assert mapped["image"].dtype == torch.uint8
        np.testing.assert_array_equal(mapped["image"].permute(1, 2, 0), pad(augmented.image, divisor, 128))
        targets = mapped["instances"]
        assert targets.gt_classes.tolist() == classes
        for found, mask in zip(targets.gt_masks, masks, strict=True):
            np.testing.assert_array_equal(found, pad(mask, divisor, 0))
        kinds |= {type(annotation["segmentation"]) for annotation in record.get("annotations", ())}
    if "instance" in setting:
        assert kinds == {"coco": {list, dict}, "ade20k": {dict}, "cityscapes": {list}}[SETTINGS[setting].dataset]


@pytest.mark.parametrize("setting", SETTINGS)
def test_void_and_crowds_are_no_targets(setting):
    cfg = setting_cfg(setting)
    if cfg.INPUT.DATASET_MAPPER_NAME.endswith("lsj"):
        changes = ["INPUT.RANDOM_FLIP", "none", "INPUT.MIN_SCALE", "1.0", "INPUT.MAX_SCALE", "1.0"]
    else:
        changes = ["INPUT.CROP.ENABLED", "False", "INPUT.COLOR_AUG_SSD", "False", "INPUT.RANDOM_FLIP", "none"]
    cfg.merge_from_list(changes)
    mapper = build_train_mapper(cfg)
    crowds = 0
    without = 0
    for record in DatasetCatalog.get(cfg.DATASETS.TRAIN[0]):
        targets = mapper(record)["instances"]
        without += len(targets) == 0
        annotated = record.get("segments_info", record.get("annotations", ()))
        crowds += sum(entry["iscrowd"] for entry in annotated)
        if annotated:
            assert len(targets) == sum(not entry["iscrowd"] for entry in annotated)
        if SETTINGS[setting].task != "instance" and len(targets):
            # There is void in every annotated image.
            assert not targets.gt_masks.any(dim=0).all()
            assert targets.gt_masks.sum(dim=0).max() == 1
    assert without == 1, "the image that nothing is annotated on"
    if SETTINGS[setting].dataset != "ade20k" and SETTINGS[setting].task != "semantic":
        assert crowds == 1


@pytest.mark.parametrize("task", ["instance_seg", "sem_seg", "panoptic"])
def test_cityscapes_dicts_are_detectron2s(task):
    pytest.importorskip("cityscapesscripts.helpers.csHelpers")
    check_cityscapes_dicts(f"cityscapes_fine_{task}_train")


@pytest.mark.parametrize("setting", SETTINGS)
def test_detectron2_draws_the_dicts(setting):
    cfg = setting_cfg(setting)
    for name in (cfg.DATASETS.TRAIN[0], cfg.DATASETS.TEST[0]):
        record = DatasetCatalog.get(name)[0]
        for segment in record.get("segments_info", ()):
            # Detectron2's own Cityscapes dicts, which ours equal, don't say; its visualizer asks.
            segment.setdefault("isthing", segment["category_id"] >= 11)
        image = detection_utils.read_image(record["file_name"], "RGB")
        drawn = Visualizer(image, dataset_metadata(name)).draw_dataset_dict(record).get_image()
        assert drawn.shape == image.shape
        assert (drawn != image).any(axis=2).mean() > 0.3
