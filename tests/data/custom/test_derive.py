"""Splits, label files and previews made from a data set."""

import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from mask2former.data.custom.inspection import inspect_sources, render
from mask2former.data.custom.preview import choose, write_preview
from mask2former.data.custom.preview import draw as draw_labels
from mask2former.data.custom.split import SplitError, divide, split
from mask2former.data.custom.training_files import combine, contiguous_labels, derive, void_label
from mask2former.data.datasets import Category
from mask2former.data.datasets.custom import register_custom_dataset
from mask2former.data.image_io import read_label_map, read_panoptic_ids
from mask2former.data.targets import panoptic_targets

from .conftest import NAMES, scene
from .test_inspection import COMBINED, INSTANCE, PANOPTIC, SEMANTIC, edit, source

FORMATS = (INSTANCE, PANOPTIC, SEMANTIC, COMBINED)


def inspected(root, format, **changes):
    return inspect_sources([source(root, format, **changes)], workers=1)


def test_pairs_and_panoptic_files_become_the_same_panoptic_set(draw, tmp_path, registered):
    """The set loads, with the labels that were drawn."""
    root = draw(2)
    for format in (PANOPTIC, COMBINED):
        found = derive(inspected(root, format).train, f"made_{format}", tmp_path / format, workers=1)
        assert found.format == PANOPTIC
        register_custom_dataset(found)
        dicts = DatasetCatalog.get(f"made_{format}")
        instances = json.loads((tmp_path / format / "instances.json").read_text())
        assert [c["name"] for c in instances["categories"]] == ["ball", "box"]
        for number, record in enumerate(dicts):
            _, labels, numbers = scene(number)
            np.testing.assert_array_equal(read_label_map(record["sem_seg_file_name"]), labels)
            ids = read_panoptic_ids(record["pan_seg_file_name"])
            classes, masks = panoptic_targets(ids, record["segments_info"])
            made = {(int(c), mask.tobytes()) for c, mask in zip(classes, masks, strict=True)}
            drawn = {
                (label, ((labels == label) & (numbers == n)).tobytes())
                for label, n in zip(labels.ravel().tolist(), numbers.ravel().tolist(), strict=True)
            }
            assert made == drawn
            of_image = [a for a in instances["annotations"] if a["image_id"] == record["image_id"]]
            assert sum(a["area"] for a in of_image) == (numbers > 0).sum()


def test_what_was_made_is_kept_until_its_source_changes(draw, tmp_path):
    root = draw(2)
    content = inspected(root, COMBINED).train
    derive(content, "made", tmp_path / "out", workers=1)
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.png")}
    labels = np.array(Image.open(root / "labels/000.png"))
    labels[0, :] = 0
    Image.fromarray(labels).save(root / "labels/000.png")
    derive(content, "made", tmp_path / "out", workers=1)
    changed = {path.name for path, time in made.items() if path.stat().st_mtime_ns != time}
    assert changed == {"000.png"}


def test_ids_with_gaps_become_contiguous(draw, tmp_path, registered):
    root = draw(1)
    labels = read_label_map(root / "labels/000.png")
    table = np.array([7, 11, 200, 3], np.uint8)
    Image.fromarray(np.where(labels == 1, 0, table[labels])).save(root / "labels/000.png")
    classes = [{"id": i, "name": n} for i, n in zip((7, 11, 200, 3), NAMES, strict=True)]
    (root / "classes.json").write_text(json.dumps(classes))
    content = inspected(root, SEMANTIC, classes=root / "classes.json", ignore_label=0).train
    found = derive(content, "made", tmp_path / "out", workers=1)
    assert ([c.id for c in found.categories], found.ignore_label) == ([0, 1, 2, 3], 255)
    register_custom_dataset(found)
    (record,) = DatasetCatalog.get("made")
    np.testing.assert_array_equal(read_label_map(record["sem_seg_file_name"]), np.where(labels == 1, 255, labels))


@pytest.mark.parametrize("format", [SEMANTIC, COMBINED])
def test_colours_of_the_list_stand_for_classes_and_void(format, draw, tmp_path, registered):
    root = draw(1)
    labels = read_label_map(root / "labels/000.png")
    colors = np.array([[128, 64, 0], [1, 2, 3], [0, 0, 255], [9, 9, 9], [0, 0, 0]], np.uint8)
    labels[0] = 4
    Image.fromarray(colors[labels]).save(root / "labels/000.png")
    classes = [{"id": i, "name": n, "color": colors[i].tolist()} for i, n in enumerate(NAMES)]
    (root / "classes.json").write_text(json.dumps(classes))
    unknown = inspected(root, format, classes=root / "classes.json")
    assert not unknown.usable and "colour (0, 0, 0)" in render(unknown)
    (root / "classes.json").write_text(json.dumps([*classes, {"id": 255, "name": "void", "color": [0, 0, 0]}]))
    content = inspected(root, format, classes=root / "classes.json")
    assert content.usable and [c.name for c in content.categories] == list(NAMES)
    register_custom_dataset(derive(content.train, "made", tmp_path / "out", workers=1))
    (record,) = DatasetCatalog.get("made")
    np.testing.assert_array_equal(read_label_map(record["sem_seg_file_name"]), np.where(labels == 4, 255, labels))
    assert draw_labels(content.train.content, content.train.content.images[0]).shape[2] == 3


def test_sound_files_are_used_where_they_are(draw, tmp_path):
    root = draw(1)
    for format, key in ((INSTANCE, "annotations"), (SEMANTIC, "labels")):
        found = derive(inspected(root, format).train, "made", tmp_path / "out", workers=1)
        assert found.paths[key] == getattr(source(root, format), key)
    assert not (tmp_path / "out").exists()


def test_things_without_a_number_are_a_crowd_and_numbers_on_stuff_mean_nothing():
    categories = (Category(4, "road", (1, 1, 1), False), Category(9, "car", (9, 9, 9), True))
    labels = np.array([[4, 4, 9, 9, 9, 0]])
    ids, segments = combine(labels, np.array([[0, 5, 5, 0, 6, 5]]), categories)
    described = {(s["category_id"], s["iscrowd"]): (ids == s["id"])[0].astype(int).tolist() for s in segments[:2]}
    assert described == {(4, 0): [1, 1, 0, 0, 0, 0], (9, 1): [0, 0, 0, 1, 0, 0]}
    assert [(s["category_id"], s["iscrowd"]) for s in segments] == [(4, 0), (9, 1), (9, 0), (9, 0)]
    assert ids[0, -1] == 0 and len(set(ids[0].tolist())) == 5


def test_more_than_255_classes_take_16_bits():
    categories = tuple(Category(i + 1, str(i), (0, 0, 0), False) for i in range(300))
    made = contiguous_labels(np.array([[1, 300, 0]]), categories)
    assert made.dtype == np.uint16 and made.tolist() == [[0, 299, void_label(300)]]


@pytest.mark.parametrize("format", FORMATS)
def test_split_is_reproducible_complete_and_in_the_format_of_the_input(format, draw, tmp_path):
    whole = inspected(draw(10), format).train
    parts = split(whole, tmp_path / "a", share=0.3, seed=1)
    again = split(whole, tmp_path / "b", share=0.3, seed=1)
    other = split(whole, tmp_path / "c", share=0.3, seed=2)
    keys = {name: [image.key for image in of.content.images] for name, of in parts.items()}
    assert (len(keys["train"]), len(keys["val"])) == (7, 3)
    assert sorted(keys["train"] + keys["val"], key=str) == [image.key for image in whole.content.images]
    for written in (tmp_path / "a").iterdir():
        assert written.read_bytes() == (tmp_path / "b" / written.name).read_bytes()
    assert keys["val"] == [image.key for image in again["val"].content.images]
    assert keys["val"] != [image.key for image in other["val"].content.images]
    # The written files read like the parts.
    for of in parts.values():
        read = inspect_sources([of.content.source], workers=1).splits[of.content.source.split]
        assert [image.key for image in read.content.images] == [image.key for image in of.content.images]
        assert read.scans == of.scans


def test_split_spreads_rare_classes_and_keeps_copies_together(draw):
    root = draw(10)

    def change(content):
        # Two images have the rare class; image 9 occurs three times.
        rare = {"name": "rare", "id": 77}
        content["categories"].append(rare)
        first = {annotation["image_id"]: annotation for annotation in content["annotations"]}
        for image in (2, 7):
            first[image]["category_id"] = 77
        content["images"] += [{**content["images"][9], "id": 100 + i} for i in range(2)]

    edit(root / "instances.json", change)
    whole = inspected(root, INSTANCE).train
    for seed in range(5):
        parts = divide(whole, share=0.5, seed=seed)
        keys = {name: {whole.content.images[i].key for i in of} for name, of in parts.items()}
        assert len(keys["val"] & {2, 7}) == 1
        assert len(keys["val"] & {9, 100, 101}) in (0, 3)
        assert 5 <= len(keys["val"]) <= 7


def test_one_image_can_not_be_split_and_two_always_give_one_each(draw, tmp_path):
    with pytest.raises(SplitError, match="fewer than two"):
        divide(inspected(draw(1, "one"), SEMANTIC).train, 0.5, 0)
    assert {name: len(of) for name, of in divide(inspected(draw(2), SEMANTIC).train, 0.01, 0).items()} == {
        "train": 1,
        "val": 1,
    }


@pytest.mark.parametrize("format", FORMATS)
def test_labels_are_drawn_where_they_are(format, draw):
    root = draw(1)
    content = inspected(root, format).train.content
    picture = draw_labels(content, content.images[0])
    image, labels, _ = scene(0)
    factor = picture.shape[0] // image.shape[0]
    plain = np.asarray(Image.open(root / "images/000.jpg")).repeat(factor, 0).repeat(factor, 1).astype(int)
    changed = (np.abs(picture.astype(int) - plain).sum(axis=2) > 60)[::factor, ::factor]
    things = labels >= 2
    # In places, the image already has the colour of the class.
    assert changed[things].mean() > 0.75
    assert changed[~things].mean() < 0.3 if format == INSTANCE else changed[~things].mean() > 0.5


def test_preview_shows_every_class_and_leaves_damaged_images_out(draw, tmp_path):
    root = draw(8)
    edit(root / "instances.json", lambda c: c["categories"].append({"name": "rare", "id": 77}))
    edit(root / "instances.json", lambda c: c["annotations"][-1].update(category_id=77))
    (root / "images/000.jpg").write_bytes(b"damaged")
    inspection = inspected(root, INSTANCE)
    assert choose(inspection.train, 1, seed=0) == [7]
    assert set(choose(inspection.train, 20, seed=0)) == set(range(1, 8))
    written = write_preview(inspection, tmp_path / "out", count=4, seed=0)
    assert [path.name for path in written] == ["samples_train.png", "classes.png"]
    sheet = np.asarray(Image.open(written[0]))
    assert sheet.shape[1] == 1280 and sheet.std() > 20
    assert np.asarray(Image.open(written[1]).convert("L")).std() > 10
