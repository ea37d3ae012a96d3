"""Results of the preparation, compared with independent code and with numbers computed by hand."""

import json

import numpy as np
import pytest
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from PIL import Image
from pycocotools.coco import COCO

from mask2former.data.datasets import ade20k
from mask2former.data.published import PreparationError, prepare_ade20k, prepare_cityscapes, prepare_coco

SPLITS = {"train": "training", "val": "validation"}


def read(path):
    return np.asarray(Image.open(path))


def save(pixels, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


@pytest.mark.parametrize("split", SPLITS)
def test_coco_semantic_maps(trees, split):
    rgb2id = pytest.importorskip("panopticapi.utils").rgb2id
    order = [category["id"] for category in COCO_CATEGORIES]
    content = json.loads((trees / f"coco/annotations/panoptic_{split}2017.json").read_text())
    for annotation in content["annotations"]:
        ids = rgb2id(read(trees / f"coco/panoptic_{split}2017" / annotation["file_name"]))
        labels = read(trees / f"coco/panoptic_semseg_{split}2017" / annotation["file_name"])
        assert labels.dtype == np.uint8
        assert ((labels == 255) == (ids == 0)).all()
        for segment in annotation["segments_info"]:
            assert (labels[ids == segment["id"]] == order.index(segment["category_id"])).all()


def test_coco_pixels_without_a_segment_are_void(tmp_path):
    segments = [{"id": 256, "category_id": 200, "iscrowd": 0}, {"id": 2, "category_id": 1, "iscrowd": 1}]
    annotation = {"image_id": 7, "file_name": "7.png", "segments_info": segments}
    save([[[0, 1, 0], [2, 0, 0], [9, 9, 9]]], tmp_path / "coco/panoptic_val2017/7.png")
    (tmp_path / "coco/annotations").mkdir()
    (tmp_path / "coco/annotations/panoptic_val2017.json").write_text(json.dumps({"annotations": [annotation]}))
    prepare_coco(tmp_path, ["val"])
    # 200 (rug-merged) is the last category; crowds are pixels of their class.
    np.testing.assert_array_equal(read(tmp_path / "coco/panoptic_semseg_val2017/7.png"), [[132, 0, 255]])


@pytest.mark.parametrize("split, folder", SPLITS.items())
def test_ade20k_semantic_and_instances(trees, split, folder):
    root = trees / "ADEChallengeData2016"
    coco = COCO(root / f"ade20k_instance_{split}.json")
    assert [c["id"] for c in coco.cats.values()] == [c.id for c in ade20k.INSTANCE_CATEGORIES]
    assert list(coco.anns) == list(range(1, len(coco.anns) + 1))
    assert list(coco.imgs) == [f"ADE_{split}_{i:08d}" for i in range(1, 5)]
    for stem, image in coco.imgs.items():
        assert image["file_name"] == f"{stem}.jpg"
        labels = read(root / f"annotations/{folder}/{stem}.png")
        assert (image["height"], image["width"]) == labels.shape
        prepared = read(root / f"annotations_detectron2/{folder}/{stem}.png")
        assert prepared.dtype == np.uint8
        np.testing.assert_array_equal(prepared, np.where(labels == 0, 255, labels.astype(int) - 1))
        category, number, _ = np.moveaxis(read(root / f"annotations_instance/{folder}/{stem}.png"), 2, 0)
        annotations = coco.imgToAnns[stem]
        assert len(annotations) == number.max()
        for i, annotation in enumerate(annotations, start=1):
            mask = coco.annToMask(annotation)
            np.testing.assert_array_equal(mask, number == i)
            rows, columns = np.nonzero(mask)
            x, y = columns.min(), rows.min()
            assert annotation["bbox"] == [x, y, columns.max() - x + 1, rows.max() - y + 1]
            assert annotation["area"] == mask.sum()
            assert annotation["iscrowd"] == 0
            assert isinstance(annotation["segmentation"]["counts"], str)
            position = [c.id for c in ade20k.INSTANCE_CATEGORIES].index(annotation["category_id"])
            assert (category[mask == 1] == position + 1).all()


@pytest.fixture
def ade(tmp_path):
    """One image of ADE20K, 2 x 4 pixels."""

    def draw(labels, instances):
        for split, folder in SPLITS.items():
            root = tmp_path / "ADEChallengeData2016"
            save(np.zeros((2, 4, 3)), root / f"images/{folder}/ADE_{split}_00000001.jpg")
            save(labels, root / f"annotations/{folder}/ADE_{split}_00000001.png")
            save(instances, root / f"annotations_instance/{folder}/ADE_{split}_00000001.png")
        return tmp_path

    return draw


def test_ade20k_panoptic_by_hand(ade):
    bed, person, none = [1, 1, 0], [4, 2, 0], [0, 0, 0]
    # Wall, sky and bed; two persons that the semantic map lacks hide all of the sky and a part of the wall.
    root = ade([[1, 1, 3, 0], [1, 8, 8, 13]], [[none, person, person, none], [none, bed, [1, 3, 0], none]])
    prepare_ade20k(root, ["val"], tasks=["panoptic"])
    content = json.loads((root / "ADEChallengeData2016/ade20k_panoptic_val.json").read_text())
    assert content["images"] == [
        {"id": "ADE_val_00000001", "file_name": "ADE_val_00000001.jpg", "width": 4, "height": 2}
    ]
    assert len(content["categories"]) == 150
    assert content["categories"][7] == {"id": 7, "name": "bed", "isthing": 1, "color": [204, 5, 255]}
    assert content["categories"][0]["isthing"] == 0
    (annotation,) = content["annotations"]
    assert annotation["image_id"] == "ADE_val_00000001"
    assert annotation["file_name"] == "ADE_val_00000001.png"
    segments = annotation["segments_info"]
    # Areas of stuff are those of the semantic map, as published; PQ uses them.
    assert [(s["category_id"], s["area"], s["bbox"], s["iscrowd"]) for s in segments] == [
        (0, 3, [0, 0, 2, 2], 0),
        (2, 1, [2, 0, 1, 1], 0),
        (7, 1, [1, 1, 1, 1], 0),
        (12, 2, [1, 0, 2, 1], 0),
        (7, 1, [2, 1, 1, 1], 0),
    ]
    ids = read(root / "ADEChallengeData2016/ade20k_panoptic_val/ADE_val_00000001.png").astype(int) @ [1, 256, 65536]
    wall, sky, first, person, second = (segment["id"] for segment in segments)
    assert len({0, wall, sky, first, person, second}) == 6
    # A thing that only the semantic map has is void.
    np.testing.assert_array_equal(ids, [[wall, person, person, 0], [wall, first, second, 0]])


@pytest.mark.parametrize(
    "labels, instances, message",
    [
        ([[151] * 4] * 2, None, "annotations/validation/ADE_val_00000001.png: labels up to 151, expected at most 150"),
        (None, [[[101, 1, 0]] * 4] * 2, r"thing 1 has instance category \[101\], expected one of 1 to 100"),
        (None, [[[0, 1, 0]] * 4] * 2, r"thing 1 has instance category \[0\]"),
        (None, [[[3, 1, 0]] * 4, [[4, 1, 0]] * 4], r"thing 1 has instance category \[3, 4\]"),
        ([[1] * 4] * 3, None, r"labels of \(3, 4\) pixels for an image of \(2, 4\)"),
    ],
)
def test_ade20k_damage_is_named(ade, labels, instances, message):
    root = ade(labels or [[1] * 4] * 2, instances or [[[0, 0, 0]] * 4] * 2)
    with pytest.raises(PreparationError, match=message):
        prepare_ade20k(root, ["val"], tasks=["panoptic"])
    assert not (root / "ADEChallengeData2016/ade20k_panoptic_val.json").exists()


def test_cityscapes_files_are_those_of_cityscapesscripts(trees, tmp_path, monkeypatch):
    panoptic = pytest.importorskip("cityscapesscripts.preparation.createPanopticImgs")
    from cityscapesscripts.preparation import createTrainIdLabelImgs

    ours = trees / "cityscapes/gtFine"
    theirs = tmp_path / "gtFine"
    for path in ours.rglob("*"):
        if path.name.endswith(("_polygons.json", "_instanceIds.png")):
            (theirs / path.relative_to(ours)).parent.mkdir(parents=True, exist_ok=True)
            (theirs / path.relative_to(ours)).write_bytes(path.read_bytes())
    monkeypatch.setenv("CITYSCAPES_DATASET", str(tmp_path))
    createTrainIdLabelImgs.main()
    panoptic.convert2panoptic(setNames=["train", "val"])
    made = sorted(path.relative_to(theirs) for path in theirs.rglob("*") if path.is_file())
    assert len([path for path in made if path.name.endswith("_labelTrainIds.png")]) == 8
    assert len([path for path in made if path.name.endswith("_panoptic.png")]) == 8
    for path in made:
        if path.suffix == ".json":
            assert json.loads((ours / path).read_text()) == json.loads((theirs / path).read_text())
        else:
            expected, found = Image.open(theirs / path), Image.open(ours / path)
            assert found.mode == expected.mode
            np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


def test_cityscapes_damage_is_named(tmp_path):
    folder = tmp_path / "cityscapes/gtFine/val/ulm"
    folder.mkdir(parents=True)
    content = {"imgHeight": 2, "imgWidth": 4, "objects": [{"label": "ufo", "polygon": [[0, 0], [1, 1], [0, 1]]}]}
    (folder / "ulm_000000_000019_gtFine_polygons.json").write_text(json.dumps(content))
    (folder / "ulm_000001_000019_gtFine_polygons.json").write_text("{")
    with pytest.raises(PreparationError, match=r"2 of 2 images(.|\n)*000000.*ufo(.|\n)*000001.*not valid JSON"):
        prepare_cityscapes(tmp_path, ["val"], tasks=["semantic"])
    Image.fromarray(np.full((2, 4), 99, np.uint16)).save(folder / "ulm_000000_000019_gtFine_instanceIds.png")
    with pytest.raises(PreparationError, match=r"instanceIds\.png: unknown label id 99"):
        prepare_cityscapes(tmp_path, ["val"], tasks=["panoptic"])
