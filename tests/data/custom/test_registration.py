"""DATASETS.CUSTOM: data sets described only by a config."""

import json

import pytest
import yaml
from detectron2.data import DatasetCatalog

from mask2former.config import ConfigError, setup_cfg
from mask2former.data.datasets import (
    AnnotationError,
    MissingDatasetError,
    dataset_metadata,
    register_custom_datasets,
)
from mask2former.data.datasets.custom import read_entries

from .conftest import COCO_IDS, NAMES, write

pytestmark = pytest.mark.usefixtures("registered")
THINGS = [{"id": 5, "name": "ball"}, {"id": 9, "name": "box"}]
ALL = [{"id": i, "name": n, "isthing": n in ("ball", "box")} for i, n in zip(COCO_IDS, NAMES, strict=True)]


def entries():
    return [
        {"name": "inst", "format": "coco_instance", "images": "data/images", "annotations": "data/instances.json",
         "classes": THINGS},
        {"name": "pan", "format": "coco_panoptic", "images": "data/images", "annotations": "data/panoptic.json",
         "panoptic": "data/panoptic", "instances": "data/instances.json", "semantic": "data/labels", "classes": ALL},
        {"name": "sem", "format": "semantic", "images": "data/images", "labels": "data/labels",
         "classes": list(NAMES), "ignore_label": 254},
    ]  # fmt: skip


def test_formats_load_with_images_of_both_endings(draw):
    root = draw(3)
    register_custom_datasets(entries(), root.parent)
    instance, panoptic, semantic = (DatasetCatalog.get(name) for name in ("inst", "pan", "sem"))
    files = [str(root / "images" / name) for name in ("000.jpg", "001.png", "002.jpg")]
    assert [[d["file_name"] for d in dicts] for dicts in (instance, panoptic, semantic)] == [files] * 3
    assert {a["category_id"] for d in instance for a in d["annotations"]} == {0, 1}
    assert {s["category_id"] for s in panoptic[0]["segments_info"] if s["isthing"]} == {2, 3}
    assert panoptic[1]["sem_seg_file_name"] == semantic[1]["sem_seg_file_name"] == str(root / "labels/001.png")
    assert (panoptic[0]["height"], panoptic[0]["width"]) == (40, 60)
    assert dataset_metadata("inst").evaluator_type == "coco"
    assert dataset_metadata("pan").evaluator_type == "coco_panoptic_seg"
    assert dataset_metadata("pan").json_file == str(root / "instances.json")
    assert (dataset_metadata("sem").evaluator_type, dataset_metadata("sem").ignore_label) == ("sem_seg", 254)
    assert dataset_metadata("sem").stuff_classes == list(NAMES)


def test_a_list_of_files_selects_images_of_a_semantic_set(draw):
    root = draw(3)
    (root / "train.txt").write_text("002.jpg\n000\n")
    register_custom_datasets([{**entries()[2], "files": "data/train.txt"}], root.parent)
    assert [d["image_id"] for d in DatasetCatalog.get("sem")] == ["002", "000"]


def test_a_dumped_config_names_the_same_files_from_anywhere_and_needs_none_of_them(tmp_path):
    source, copy = tmp_path / "here/config.yaml", tmp_path / "far/away/config.yaml"
    for path in (source, copy):
        path.parent.mkdir(parents=True)
    source.write_text(yaml.safe_dump({"DATASETS": {"CUSTOM": entries(), "TRAIN": ["pan"]}}))
    cfg = setup_cfg(source)
    cfg.DATASETS.CUSTOM = register_custom_datasets(cfg.DATASETS.CUSTOM, source.parent)
    before = {name: dataset_metadata(name).as_dict() for name in ("inst", "pan", "sem")}
    copy.write_text(cfg.dump())
    again = setup_cfg(copy)
    assert register_custom_datasets(again.DATASETS.CUSTOM, copy.parent) == cfg.DATASETS.CUSTOM
    assert {name: dataset_metadata(name).as_dict() for name in before} == before
    assert before["pan"]["panoptic_root"] == str(tmp_path / "here/data/panoptic")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": ""}, r"DATASETS\.CUSTOM\[0\]: name is ''"),
        ({"name": "coco_2017_train"}, "'coco_2017_train' is the name of another data set"),
        ({"format": "coco"}, r"\[0\] \(inst\): format is 'coco', expected one of coco_instance, coco_panoptic, sem"),
        ({"format": "semantic_instance"}, "tools/dataset.py"),
        ({"annotation": "a.json"}, r"unknown key 'annotation' \(did you mean annotations\?\)"),
        ({"images": ""}, "format coco_instance needs images"),
        ({"images": 3}, "images is 3, expected a path"),
        ({"classes": []}, "needs classes"),
        ({"classes": "ball"}, "classes: expected a list"),
        ({"classes": ["a", "a"]}, "two classes have the name 'a'"),
        ({"classes": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "two classes have the id 1"),
        ({"classes": [{"name": "a", "colour": [1, 2, 3]}]}, r"classes\[0\]: unknown key 'colour' \(did you mean color"),
        ({"classes": [{"name": "a", "color": [1, 2, 300]}]}, r"expected \[red, green, blue\]"),
        ({"classes": [{"name": "a", "id": "one"}]}, r"id is 'one' \(str\), expected a whole number"),
        ({"classes": [{"name": "a", "isthing": False}]}, "'a' is not a thing"),
        ({"classes": [{"name": "a", "isthing": "maybe"}]}, r"isthing is 'maybe' \(str\), expected true or false"),
        ({"ignore_label": "255"}, "ignore_label is '255', expected a whole number"),
    ],
)  # fmt: skip
def test_wrong_entries_say_which_key_and_what_was_expected(change, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        register_custom_datasets([{**entries()[0], **change}], tmp_path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("x.json", "expected a list of data sets"),
        (["x.json"], r"\[0\]: expected keys name, format"),
        ([entries()[0], entries()[0]], "two data sets are called 'inst'"),
        ([{**entries()[2], "classes": [{"name": "a", "id": 1}]}], "must be 0 to 0 in this order"),
        ([{**entries()[2], "ignore_label": 1}], "ignore_label 1 is the id of 'sky'"),
    ],
)
def test_wrong_lists(value, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        read_entries(value, tmp_path)


def test_missing_files_are_named_without_talk_of_other_folders(tmp_path):
    register_custom_datasets(entries(), tmp_path)
    with pytest.raises(MissingDatasetError, match=r"data/images.*instances\.json") as error:
        DatasetCatalog.get("inst")
    assert "DETECTRON2_DATASETS" not in str(error.value) and "DATASETS.CUSTOM" in str(error.value)


def test_annotations_that_do_not_fit_the_classes(draw):
    root = draw(2)
    swapped = [{"id": 9, "name": "ball"}, {"id": 5, "name": "box"}]
    register_custom_datasets([{**entries()[0], "classes": swapped}], root.parent)
    with pytest.raises(AnnotationError, match=r"instances\.json: category 9 is 'box'.* it is 'ball'"):
        DatasetCatalog.get("inst")
    register_custom_datasets([{**entries()[0], "classes": ["ball", "box"]}], root.parent)
    with pytest.raises(AnnotationError, match="a category id that the data set does not have"):
        DatasetCatalog.get("inst")


@pytest.mark.parametrize("content", ["[]", "{", "{}", '{"images": [{}], "annotations": [], "categories": []}'])
@pytest.mark.parametrize("index", [0, 1])
def test_damaged_json_is_named(content, index, draw):
    root = draw(1)
    for name in ("instances.json", "panoptic.json"):
        (root / name).write_text(content)
    register_custom_datasets(entries(), root.parent)
    with pytest.raises(AnnotationError, match=("instances.json", "panoptic.json")[index]):
        DatasetCatalog.get(entries()[index]["name"])


def test_panoptic_annotation_of_no_image(draw):
    root = draw(2)
    content = json.loads((root / "panoptic.json").read_text())
    content["images"].pop()
    write(root / "panoptic.json", content)
    register_custom_datasets(entries(), root.parent)
    with pytest.raises(AnnotationError, match="an annotation refers to image 1"):
        DatasetCatalog.get("pan")
