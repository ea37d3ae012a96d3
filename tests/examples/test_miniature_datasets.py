import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from examples.miniature_datasets import DATASETS, draw_dataset


def contents(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("dataset", DATASETS)
def test_a_seed_gives_the_same_files(tmp_path, dataset):
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        draw_dataset(tmp_path / name, dataset, images=2, size=(40, 56), seed=seed, prepared=False)
    first = contents(tmp_path / "first")
    assert first == contents(tmp_path / "again")
    assert first.keys() == contents(tmp_path / "other").keys()
    assert first != contents(tmp_path / "other")
    for path in first:
        if path.suffix in (".png", ".jpg"):
            assert Image.open(tmp_path / "first" / path).size == (56, 40)


@pytest.mark.parametrize("split", ["train", "val"])
def test_coco_has_every_form_of_label(trees, split):
    coco = COCO(trees / f"coco/annotations/instances_{split}2017.json")
    assert len(coco.cats) == 80
    assert len({image["width"] for image in coco.imgs.values()}) > 1
    annotations = list(coco.anns.values())
    kinds = {(type(a["segmentation"]), a["iscrowd"]) for a in annotations}
    assert kinds == {(list, 0), (dict, 0), (dict, 1)}
    crowds = [a for a in annotations if a["iscrowd"]]
    assert all(isinstance(a["segmentation"]["counts"], list) for a in crowds)
    for annotation in annotations:
        mask = coco.annToMask(annotation)
        assert mask.sum() == annotation["area"] > 0
    assert {image for image in coco.imgs if not coco.imgToAnns[image]} == {sorted(coco.imgs)[2]}
    assert len({a["category_id"] for a in annotations}) >= 4
    panoptic = json.loads((trees / f"coco/annotations/panoptic_{split}2017.json").read_text())
    assert len(panoptic["categories"]) == 133
    for annotation in panoptic["annotations"]:
        colors = np.asarray(Image.open(trees / f"coco/panoptic_{split}2017" / annotation["file_name"])).astype(int)
        ids = colors @ [1, 256, 65536]
        assert set(np.unique(ids)) == {0, *(segment["id"] for segment in annotation["segments_info"])}


def test_cityscapes_labels_are_those_that_the_owners_draw(trees):
    annotation = pytest.importorskip("cityscapesscripts.helpers.annotation")
    from cityscapesscripts.preparation.json2instanceImg import createInstanceImage
    from cityscapesscripts.preparation.json2labelImg import createLabelImage

    files = sorted((trees / "cityscapes/gtFine").rglob("*_polygons.json"))
    assert len(files) == 8
    labels = set()
    for path in files:
        content = annotation.Annotation()
        content.fromJsonFile(str(path))
        labels |= {drawn.label for drawn in content.objects}
        stem = str(path).removesuffix("_polygons.json")
        for drawn, kind in (
            (createInstanceImage(content, "ids"), "instanceIds"),
            (createLabelImage(content, "ids"), "labelIds"),
            (createLabelImage(content, "color"), "color"),
        ):
            found = np.asarray(Image.open(f"{stem}_{kind}.png")).astype(int)
            np.testing.assert_array_equal(found, np.asarray(drawn))
    assert {"ego vehicle", "license plate", "trailer", "out of roi"} < labels
    assert any(label.endswith("group") for label in labels)


def test_ade20k_maps_disagree_a_little(trees):
    folder = trees / "ADEChallengeData2016"
    differing = 0
    for path in sorted((folder / "annotations").rglob("*.png")):
        labels = np.asarray(Image.open(path))
        instances = np.asarray(Image.open(folder / "annotations_instance" / path.parent.name / path.name))
        assert labels.max() <= 150
        assert instances.max() <= 100
        differing += ((labels == 0) & (instances[:, :, 1] > 0)).sum()
    assert differing > 0
