"""Configs that don't fit the data sets they describe."""

import pytest

from mask2former.config import ConfigError, setup_cfg
from mask2former.data import build_train_mapper, check_agreement
from mask2former.data.datasets import register_custom_datasets

from .custom.conftest import registered as registered

pytestmark = pytest.mark.usefixtures("registered")
CLASSES = [{"id": i, "name": name, "isthing": i > 1} for i, name in enumerate(["grass", "sky", "ball"])]
FILES = {"coco_panoptic": {"annotations": "p.json", "panoptic": "p"}, "coco_instance": {"annotations": "i.json"}}
FITTING = {
    "coco_panoptic": ("coco_panoptic_lsj", {"PANOPTIC_ON": True, "INSTANCE_ON": True, "SEMANTIC_ON": True}),
    "coco_instance": ("mask_former_instance", {"INSTANCE_ON": True, "SEMANTIC_ON": False}),
    "semantic": ("mask_former_semantic", {"SEMANTIC_ON": True}),
}


def config(tmp_path, format, **changes):
    """A config that fits data sets of one format, with changes to it."""
    classes = [{**c, "isthing": True} for c in CLASSES] if format == "coco_instance" else CLASSES
    entry = {"format": format, "images": "images", "classes": classes, **FILES.get(format, {"labels": "labels"})}
    (tmp_path / "empty.yaml").write_text("{}")
    cfg = setup_cfg(tmp_path / "empty.yaml")
    entries = [{"name": "ours_train", **entry}, {"name": "ours_val", **entry, **changes.get("val", {})}]
    cfg.DATASETS.CUSTOM = register_custom_datasets(entries, tmp_path)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("ours_train",), ("ours_val",)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = changes.get("classes", 3)
    mapper, switches = FITTING[format]
    cfg.INPUT.DATASET_MAPPER_NAME = changes.get("mapper", mapper)
    cfg.MODEL.MASK_FORMER.TEST.update(switches | changes.get("switches", {}))
    return cfg


@pytest.mark.parametrize("format", FITTING)
def test_what_fits_passes(format, tmp_path):
    check_agreement(config(tmp_path, format))


@pytest.mark.parametrize(
    ("format", "changes", "message"),
    [
        ("semantic", {"classes": 19}, r"NUM_CLASSES is 19, but data set ours_train has 3 classes"),
        ("coco_instance", {"mapper": "coco_panoptic_lsj"}, "ours_train are for coco_instance_lsj or mask_former_inst"),
        ("semantic", {"switches": {"PANOPTIC_ON": True}}, r"PANOPTIC_ON is on, but .* ours_train allow SEMANTIC_ON"),
        ("coco_instance", {"switches": {"SEMANTIC_ON": True}}, r"SEMANTIC_ON is on, but .* allow INSTANCE_ON"),
        (
            "semantic",
            {"val": {"classes": ["grass", "ball", "sky"]}},
            "ours_train and ours_val have different classes: 'sky' and 'ball'",
        ),
    ],
)
def test_what_does_not_fit_is_named(format, changes, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        check_agreement(config(tmp_path, format, **changes))


def test_panoptic_data_with_label_maps_can_train_semantic_segmentation(tmp_path):
    cfg = config(tmp_path, "coco_panoptic", mapper="mask_former_semantic")
    upernet = cfg.clone()
    upernet.MODEL.META_ARCHITECTURE = "PixelClassifier"
    with pytest.raises(ConfigError, match=r"ours_train are for coco_panoptic_lsj or mask_former_panoptic$"):
        check_agreement(cfg)
    with pytest.raises(ConfigError, match="PixelClassifier can't use data set ours_train"):
        check_agreement(upernet)
    with_maps = [{**entry, "semantic": "labels"} for entry in cfg.DATASETS.CUSTOM]
    cfg.DATASETS.CUSTOM = register_custom_datasets(with_maps, tmp_path)
    check_agreement(cfg)
    check_agreement(upernet)


@pytest.mark.parametrize(
    ("format", "model"),
    [
        ("coco_panoptic", "MaskRCNN"),
        ("semantic", "MaskRCNN"),
        ("coco_instance", "PixelClassifier"),
        ("semantic", "ImageClassifier"),
    ],
)
def test_annotations_that_a_model_can_not_learn_from(format, model, tmp_path):
    cfg = config(tmp_path, format)
    cfg.MODEL.META_ARCHITECTURE = model
    with pytest.raises(ConfigError, match=f"{model} can't use data set ours_train, whose annotations are for"):
        check_agreement(cfg)


@pytest.mark.parametrize(
    ("model", "mapper", "expected"),
    [
        ("MaskRCNN", "coco_instance_lsj", "mask_rcnn_instance"),
        ("MaskFormer", "mask_rcnn_instance", "coco_panoptic_lsj or .*mask_former_semantic"),
        ("PixelClassifier", "coco_panoptic_lsj", "mask_former_semantic"),
        ("ImageClassifier", "mask_former_semantic", "image_classification"),
    ],
)
def test_a_model_is_trained_with_its_own_input(model, mapper, expected, tmp_path):
    (tmp_path / "empty.yaml").write_text("{}")
    cfg = setup_cfg(tmp_path / "empty.yaml")
    cfg.MODEL.META_ARCHITECTURE, cfg.INPUT.DATASET_MAPPER_NAME = model, mapper
    with pytest.raises(ConfigError, match=f"DATASET_MAPPER_NAME is '{mapper}'; {model} is trained with {expected}$"):
        build_train_mapper(cfg)
    # What another package registers takes what it likes.
    cfg.MODEL.META_ARCHITECTURE, cfg.DATASETS.TRAIN = "GeneralizedRCNN", ("coco_2017_train",)
    build_train_mapper(cfg)


def test_published_data_sets_are_left_alone(tmp_path):
    (tmp_path / "empty.yaml").write_text("DATASETS: {TRAIN: [coco_2017_train], TEST: [ade20k_sem_seg_val]}")
    check_agreement(setup_cfg(tmp_path / "empty.yaml"))
