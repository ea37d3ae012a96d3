"""The ADE20K and Cityscapes names, on trees of two images in their owners' layouts."""

import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from detectron2.data.datasets.builtin_meta import ADE20K_SEM_SEG_CATEGORIES, CITYSCAPES_CATEGORIES
from detectron2.structures.masks import polygons_to_bitmask
from PIL import Image

from mask2former.data.coco_format import instance_annotation, segment_info
from mask2former.data.datasets import MissingDatasetError, ade20k, dataset_metadata
from mask2former.utils.label_images import ids_to_colors

from .conftest import check_cityscapes_dicts

HEIGHT, WIDTH = 20, 30
IDS = [("aachen", "aachen_000000_000019"), ("ulm", "ulm_000001_000019")]


def save(pixels, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


@pytest.fixture
def ade(root):
    folder = root / "ADEChallengeData2016"
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[5:10, 5:10] = 12  # a person on a wall
    person = labels == 12
    for i, split in (("train", "training"), ("val", "validation")):
        save(np.zeros((HEIGHT, WIDTH, 3), np.uint8), folder / f"images/{split}/ADE_1.jpg")
        save(labels, folder / f"annotations_detectron2/{split}/ADE_1.png")
        save(ids_to_colors(np.where(person, 900, 700)), folder / f"ade20k_panoptic_{i}/ADE_1.png")
        image = {"id": 1, "file_name": "ADE_1.jpg", "height": HEIGHT, "width": WIDTH}
        segments = [segment_info(~person, 700, 0), segment_info(person, 900, 12)]
        panoptic = {"annotations": [{"image_id": 1, "file_name": "ADE_1.png", "segments_info": segments}]}
        (folder / f"ade20k_panoptic_{i}.json").write_text(json.dumps(panoptic))
        instances = {
            "images": [image],
            "annotations": [instance_annotation(person, 1, 1, 12)],
            "categories": [{"id": 12, "name": "person"}],
        }
        (folder / f"ade20k_instance_{i}.json").write_text(json.dumps(instances))


def test_ade20k_tables():
    assert [category.name for category in ade20k.CATEGORIES] == ADE20K_SEM_SEG_CATEGORIES
    assert len(ade20k.INSTANCE_CATEGORIES) == sum(category.isthing for category in ade20k.CATEGORIES) == 100
    metadata = dataset_metadata("ade20k_instance_val")
    assert metadata.thing_classes[:2] == ["bed", "windowpane"]
    assert list(metadata.thing_dataset_id_to_contiguous_id.items())[:2] == [(7, 0), (8, 1)]
    metadata = dataset_metadata("ade20k_panoptic_val")
    assert metadata.thing_classes == metadata.stuff_classes == ADE20K_SEM_SEG_CATEGORIES
    assert metadata.thing_dataset_id_to_contiguous_id[8] == 8
    assert set(metadata.stuff_dataset_id_to_contiguous_id) == set(range(150)) - set(
        metadata.thing_dataset_id_to_contiguous_id
    )
    assert dataset_metadata("ade20k_sem_seg_train").evaluator_type == "sem_seg"


@pytest.mark.parametrize("split", ["train", "val"])
def test_ade20k_dicts(ade, root, split):
    (record,) = DatasetCatalog.get(f"ade20k_panoptic_{split}")
    assert [segment["category_id"] for segment in record["segments_info"]] == [0, 12]
    assert [segment["isthing"] for segment in record["segments_info"]] == [False, True]
    (semantic,) = DatasetCatalog.get(f"ade20k_sem_seg_{split}")
    for key in ("file_name", "sem_seg_file_name"):
        assert record[key] == semantic[key]
    (instance,) = DatasetCatalog.get(f"ade20k_instance_{split}")
    # Person is the fourth thing.
    assert [annotation["category_id"] for annotation in instance["annotations"]] == [3]
    assert instance["file_name"] == record["file_name"]


def test_names_of_the_settings_need_no_files(root):
    names = [f"ade20k_{task}_{split}" for task in ("sem_seg", "panoptic", "instance") for split in ("train", "val")]
    names += [
        f"cityscapes_fine_{task}_{split}"
        for task in ("panoptic", "instance_seg", "sem_seg")
        for split in ("train", "val")
    ]
    for name in names:
        assert dataset_metadata(name).ignore_label == 255
        with pytest.raises(MissingDatasetError, match=rf"{name}.*{root}"):
            DatasetCatalog.get(name)


def rectangle(label, left, top, right, bottom, **more):
    """An outline through pixels' corners; right and bottom pixels belong to it, as the owners fill it."""
    return {"label": label, "polygon": [[left, top], [right, top], [right, bottom], [left, bottom]], **more}


@pytest.fixture
def cityscapes(root):
    objects = [
        rectangle("road", 0, 0, 29, 19),
        rectangle("car", 2, 2, 11, 9),
        rectangle("car", 8, 4, 15, 9),  # hides a part of the first
        rectangle("persongroup", 20, 2, 25, 9),
        rectangle("trailer", 13, 0, 16, 12),  # not evaluated, but hides a part of the second
        rectangle("bus", 14, 1, 15, 3),
        rectangle("sky", 12, 0, 17, 5),  # hides the bus
        rectangle("license plate", 3, 3, 4, 4),  # hides nothing
        rectangle("rider", 20, 12, 24, 17, deleted=1),
    ]
    folder = root / "cityscapes"
    for split in ("train", "val"):
        annotations = []
        for city, image_id in IDS:
            image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
            save(image, folder / f"leftImg8bit/{split}/{city}/{image_id}_leftImg8bit.png")
            stem = folder / f"gtFine/{split}/{city}/{image_id}_gtFine"
            stem.parent.mkdir(parents=True, exist_ok=True)
            content = {"imgHeight": HEIGHT, "imgWidth": WIDTH, "objects": objects}
            stem.with_name(f"{stem.name}_polygons.json").write_text(json.dumps(content))
            for kind in ("instanceIds", "labelIds", "labelTrainIds"):
                save(image[:, :, 0], stem.with_name(f"{stem.name}_{kind}.png"))
            name = f"{image_id}_gtFine_panoptic.png"
            save(image, folder / f"gtFine/cityscapes_panoptic_{split}/{name}")
            segments = [{"id": 1, "category_id": 26, "iscrowd": 0}, {"id": 2, "category_id": 7, "iscrowd": 0}]
            annotations.append({"image_id": image_id, "file_name": name, "segments_info": segments})
        panoptic = folder / f"gtFine/cityscapes_panoptic_{split}.json"
        panoptic.write_text(json.dumps({"annotations": annotations}))
    return folder


def masks_of(record):
    return [polygons_to_bitmask([np.array(p) for p in a["segmentation"]], HEIGHT, WIDTH) for a in record["annotations"]]


def test_cityscapes_instances(cityscapes):
    records = DatasetCatalog.get("cityscapes_fine_instance_seg_val")
    assert [record["image_id"] for record in records] == [f"{image_id}_leftImg8bit.png" for _, image_id in IDS]
    assert (records[0]["height"], records[0]["width"]) == (HEIGHT, WIDTH)
    # From front to back: the crowd of persons, the second car, the first.
    assert [(a["category_id"], a["iscrowd"]) for a in records[0]["annotations"]] == [(0, True), (2, False), (2, False)]
    expected = [np.zeros((HEIGHT, WIDTH), bool) for _ in range(3)]
    expected[0][2:10, 20:26] = True
    expected[1][4:10, 8:13] = True
    expected[1][4:6, 12:] = False
    expected[2][2:10, 2:12] = True
    expected[2] &= ~expected[1]
    expected[2][4:10, 8:] = False
    for mask, wanted in zip(masks_of(records[0]), expected, strict=True):
        # Widened outlines have round corners.
        assert (mask != wanted).sum() <= 3
    metadata = dataset_metadata("cityscapes_fine_instance_seg_val")
    assert metadata.thing_classes == ["person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]
    assert metadata.thing_dataset_id_to_contiguous_id[26] == 2
    assert metadata.evaluator_type == "cityscapes_instance"


def test_cityscapes_in_several_processes(cityscapes, monkeypatch):
    expected = DatasetCatalog.get("cityscapes_fine_instance_seg_train")
    monkeypatch.setattr("mask2former.data.datasets.cityscapes.MANY_FILES", 1)
    assert DatasetCatalog.get("cityscapes_fine_instance_seg_train") == expected


def test_cityscapes_semantic_and_panoptic(cityscapes):
    semantic = DatasetCatalog.get("cityscapes_fine_sem_seg_train")
    panoptic = DatasetCatalog.get("cityscapes_fine_panoptic_train")
    for first, second in zip(semantic, panoptic, strict=True):
        assert first["file_name"] == second["file_name"]
        assert first["sem_seg_file_name"] == second["sem_seg_file_name"]
        assert first["sem_seg_file_name"].endswith("_gtFine_labelTrainIds.png")
    assert [segment["category_id"] for segment in panoptic[0]["segments_info"]] == [13, 0]
    metadata = dataset_metadata("cityscapes_fine_panoptic_train")
    assert metadata.stuff_classes == [category["name"] for category in CITYSCAPES_CATEGORIES]
    assert metadata.thing_dataset_id_to_contiguous_id == {
        24: 11,
        25: 12,
        26: 13,
        27: 14,
        28: 15,
        31: 16,
        32: 17,
        33: 18,
    }
    assert metadata.gt_dir == str(cityscapes / "gtFine/train")


def test_cityscapes_errors(cityscapes):
    for path in (cityscapes / "gtFine/val").rglob("*_labelTrainIds.png"):
        path.unlink()
    for task in ("panoptic", "sem_seg"):
        with pytest.raises(MissingDatasetError, match=r"aachen_000000_000019_gtFine_labelTrainIds\.png.*README"):
            DatasetCatalog.get(f"cityscapes_fine_{task}_val")
    broken = next((cityscapes / "gtFine/val").rglob("*aachen*_polygons.json"))
    for content in ("{", "{}"):
        broken.write_text(content)
        with pytest.raises(ValueError, match=broken.name):
            DatasetCatalog.get("cityscapes_fine_instance_seg_val")
    broken.unlink()
    with pytest.raises(MissingDatasetError, match=broken.name):
        DatasetCatalog.get("cityscapes_fine_instance_seg_val")


@pytest.mark.parametrize("task", ["instance_seg", "sem_seg", "panoptic"])
def test_cityscapes_dicts_are_detectron2s(cityscapes, task):
    pytest.importorskip("cityscapesscripts.helpers.labels")
    check_cityscapes_dicts(f"cityscapes_fine_{task}_val")
