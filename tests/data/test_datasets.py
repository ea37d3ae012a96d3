import copy
import json
import pickle

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import _get_builtin_metadata
from PIL import Image
from pycocotools import mask as mask_util

from mask2former.data.datasets import (
    Category,
    CocoLayout,
    MissingDatasetError,
    dataset_metadata,
    datasets_root,
    register_coco_layout,
    register_dataset,
)

SETTING_NAMES = {
    "coco_2017_train": "coco",
    "coco_2017_val": "coco",
    "coco_2017_train_panoptic": "coco_panoptic_seg",
    "coco_2017_val_panoptic_with_sem_seg": "coco_panoptic_seg",
    "shapes_train_panoptic": "coco_panoptic_seg",
    "shapes_val_panoptic": "coco_panoptic_seg",
    "shapes_train_instance": "coco",
    "shapes_val_instance": "coco",
    "shapes_train_semantic": "sem_seg",
    "shapes_val_semantic": "sem_seg",
}
CATEGORIES = (
    Category(3, "cat", (1, 2, 3), True),
    Category(9, "grass", (4, 5, 6), False),
    Category(12, "dog", (7, 8, 9), True),
)


@pytest.fixture
def register():
    """Registers data sets and forgets them after the test."""
    names = []

    def register_one(name, *args, **kwargs):
        names.append(name)
        register_coco_layout(name, *args, source="Made by the test.", **kwargs)
        return dataset_metadata(name)

    yield register_one
    for name in set(names):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def tree(tmp_path):
    """One image of 4 x 6: a cat at the left, a dog at the right, grass between them."""
    ids = np.array([[1, 1, 2, 2, 3, 3]] * 4)
    for folder in ("images", "panoptic", "semseg"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (6, 4)).save(tmp_path / "images/a.jpg")
    Image.fromarray(np.stack([ids, 0 * ids, 0 * ids], axis=2).astype(np.uint8)).save(tmp_path / "panoptic/a.png")
    Image.fromarray((ids - 1).astype(np.uint8)).save(tmp_path / "semseg/a.png")
    segments = [{"id": i, "category_id": c, "iscrowd": 0, "area": 8} for i, c in ((1, 3), (2, 9), (3, 12))]
    panoptic = {"annotations": [{"image_id": 5, "file_name": "a.png", "segments_info": segments}]}
    (tmp_path / "panoptic.json").write_text(json.dumps(panoptic))
    rle = mask_util.encode(np.asfortranarray(ids == 3, dtype=np.uint8))
    common = {"image_id": 5, "iscrowd": 0, "bbox": [0, 0, 2, 4]}
    instances = {
        "images": [{"id": 5, "file_name": "a.jpg", "height": 4, "width": 6}],
        "annotations": [
            {**common, "id": 1, "category_id": 3, "segmentation": [[0, 0, 2, 0, 2, 4, 0, 4]]},
            {**common, "id": 2, "category_id": 12, "segmentation": {**rle, "counts": rle["counts"].decode()}},
        ],
        # Detectron2 would number the categories of the file: 0 and 1 only by chance.
        "categories": [{"id": 12, "name": "dog"}, {"id": 3, "name": "cat"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(instances))
    return tmp_path


def layout_of(tree):
    return CocoLayout(
        tree / "images", tree / "instances.json", tree / "panoptic.json", tree / "panoptic", tree / "semseg"
    )


def test_names_of_the_settings_need_no_files(monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nothing"))
    for name, evaluator_type in SETTING_NAMES.items():
        metadata = dataset_metadata(name)
        assert metadata.name == name
        assert metadata.evaluator_type == evaluator_type
        assert metadata.ignore_label == 255
        with pytest.raises(MissingDatasetError):
            DatasetCatalog.get(name)


def test_coco_metadata_is_detectron2s():
    expected = _get_builtin_metadata("coco_panoptic_standard")
    metadata = dataset_metadata("coco_2017_val_panoptic_with_sem_seg").as_dict()
    assert {key: metadata[key] for key in expected} == expected
    assert metadata["label_divisor"] == 1000
    expected = _get_builtin_metadata("coco")
    metadata = dataset_metadata("coco_2017_train").as_dict()
    assert {key: metadata[key] for key in expected} == expected


def test_paths_follow_the_variable(monkeypatch):
    metadata = dataset_metadata("coco_2017_val_panoptic_with_sem_seg")
    for root in ("/first", "/second"):
        monkeypatch.setenv("DETECTRON2_DATASETS", root)
        assert str(datasets_root()) == root
        assert metadata.json_file == f"{root}/coco/annotations/instances_val2017.json"
        assert metadata.image_root == f"{root}/coco/val2017"
        assert metadata.panoptic_json == f"{root}/coco/annotations/panoptic_val2017.json"
        assert metadata.panoptic_root == f"{root}/coco/panoptic_val2017"
        assert metadata.get("sem_seg_root") == f"{root}/coco/panoptic_semseg_val2017"
        assert metadata.as_dict()["json_file"] == metadata.json_file
    monkeypatch.delenv("DETECTRON2_DATASETS")
    assert metadata.image_root == "datasets/coco/val2017"
    monkeypatch.setenv("DETECTRON2_DATASETS", "~/data")
    assert "~" not in metadata.image_root


def test_metadata_behaves_as_detectron2s():
    metadata = dataset_metadata("shapes_val_panoptic")
    assert MetadataCatalog.get("shapes_val_panoptic") is metadata
    with pytest.raises(AttributeError, match="shapes_val_panoptic"):
        _ = metadata.nothing
    assert metadata.get("nothing", 3) == 3
    for same in (copy.deepcopy(metadata), pickle.loads(pickle.dumps(metadata))):  # noqa: S301
        assert same.as_dict() == metadata.as_dict()


def test_missing_data_set_says_what_and_where(monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    (tmp_path / "coco/annotations").mkdir(parents=True)
    (tmp_path / "coco/annotations/instances_val2017.json").write_text("{}")
    (tmp_path / "coco/val2017").mkdir()
    with pytest.raises(MissingDatasetError) as caught:
        DatasetCatalog.get("coco_2017_val")
    message = str(caught.value)
    assert "coco_2017_val" in message
    assert "DETECTRON2_DATASETS" in message
    assert str(tmp_path / "coco/val2017") in message, "an empty folder is as good as none"
    assert "instances_val2017.json" not in message
    assert "cocodataset.org" in message
    monkeypatch.delenv("DETECTRON2_DATASETS")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingDatasetError, match=rf"{tmp_path}/datasets/shapes/val.*not set.*prepare_shapes\.py"):
        DatasetCatalog.get("shapes_val_instance")


def test_unknown_name():
    with pytest.raises(ValueError, match=r"'coco_2018'.*coco_2017_val"):
        dataset_metadata("coco_2018")


def test_panoptic_dicts(tree, register):
    metadata = register("test_panoptic", "panoptic", CATEGORIES, layout_of(tree))
    (record,) = DatasetCatalog.get("test_panoptic")
    assert record["file_name"] == str(tree / "images/a.jpg")
    assert record["image_id"] == 5
    assert record["pan_seg_file_name"] == str(tree / "panoptic/a.png")
    assert record["sem_seg_file_name"] == str(tree / "semseg/a.png")
    assert [(s["id"], s["category_id"], s["isthing"]) for s in record["segments_info"]] == [
        (1, 0, True),
        (2, 1, False),
        (3, 2, True),
    ]
    assert metadata.thing_classes == metadata.stuff_classes == ["cat", "grass", "dog"]
    assert metadata.thing_colors == metadata.stuff_colors == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert metadata.thing_dataset_id_to_contiguous_id == {3: 0, 12: 2}
    assert metadata.stuff_dataset_id_to_contiguous_id == {9: 1}


def test_instance_dicts(tree, register):
    metadata = register("test_instance", "instance", CATEGORIES, layout_of(tree))
    assert metadata.thing_classes == ["cat", "dog"]
    assert metadata.thing_dataset_id_to_contiguous_id == {3: 0, 12: 1}
    (record,) = DatasetCatalog.get("test_instance")
    assert (record["height"], record["width"], record["image_id"]) == (4, 6, 5)
    assert [a["category_id"] for a in record["annotations"]] == [0, 1]
    assert metadata.as_dict() == dataset_metadata("test_instance").as_dict(), "loading leaves the metadata alone"


def test_semantic_dicts(tree, register):
    metadata = register("test_semantic", "semantic", CATEGORIES, layout_of(tree))
    assert metadata.stuff_classes == ["cat", "grass", "dog"]
    assert metadata.stuff_dataset_id_to_contiguous_id == {3: 0, 9: 1, 12: 2}
    expected = {"file_name": str(tree / "images/a.jpg"), "sem_seg_file_name": str(tree / "semseg/a.png")}
    assert DatasetCatalog.get("test_semantic") == [expected]


def test_registering_again_replaces(tree, register):
    register("test_again", "panoptic", CATEGORIES, layout_of(tree), evaluator_type="other")
    assert register("test_again", "instance", CATEGORIES, layout_of(tree)).evaluator_type == "coco"
    assert "annotations" in DatasetCatalog.get("test_again")[0]


def test_layout_without_what_the_task_needs(tree):
    with pytest.raises(ValueError, match=r"'broken'.*panoptic_json"):
        register_coco_layout("broken", "panoptic", CATEGORIES, CocoLayout(tree / "images"), source="")
    assert "broken" not in DatasetCatalog


@pytest.mark.parametrize("task, file", [("panoptic", "panoptic.json"), ("instance", "instances.json")])
def test_damaged_annotations_name_the_file(tree, register, task, file):
    register("test_damaged", task, CATEGORIES[:1], layout_of(tree))
    with pytest.raises(ValueError, match=rf"{file}.*category id.*"):
        DatasetCatalog.get("test_damaged")
    (tree / file).write_text('{"images": [')
    with pytest.raises(ValueError, match=rf"{file}: not valid JSON"):
        DatasetCatalog.get("test_damaged")
    (tree / file).write_text('{"images": []}')
    with pytest.raises(ValueError, match=rf"{file}"):
        DatasetCatalog.get("test_damaged")


def test_panoptic_json_of_other_images(tree, register):
    register("test_other", "panoptic", CATEGORIES, layout_of(tree))
    (tree / "images/a.jpg").rename(tree / "images/b.jpg")
    with pytest.raises(ValueError, match=r"panoptic\.json.*a\.jpg"):
        DatasetCatalog.get("test_other")


def test_register_a_data_set_of_another_layout(tmp_path):
    register_dataset(
        "test_own", lambda metadata: [{"file_name": metadata.list_file}], paths={"list_file": tmp_path}, source="x"
    )
    (tmp_path / "file").touch()
    assert DatasetCatalog.get("test_own") == [{"file_name": str(tmp_path)}]
    DatasetCatalog.remove("test_own")
    MetadataCatalog.remove("test_own")
