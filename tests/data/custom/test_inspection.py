"""Every problem that `inspect` detects, created in otherwise valid data."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mask2former.data import problems
from mask2former.data.coco_format import mask_area
from mask2former.data.custom.inspection import inspect_sources, render
from mask2former.data.custom.scan import segmentation_problems
from mask2former.data.custom.source import Source, SourceError
from mask2former.data.datasets import AnnotationError

from .conftest import COCO_IDS, NAMES, write

INSTANCE, PANOPTIC, SEMANTIC, COMBINED = "coco_instance", "coco_panoptic", "semantic", "semantic_instance"


def source(root, format, split="train", **changes):
    parts = {
        INSTANCE: {"annotations": root / "instances.json"},
        PANOPTIC: {"annotations": root / "panoptic.json", "panoptic": root / "panoptic"},
        SEMANTIC: {"labels": root / "labels", "classes": root / "classes.txt"},
        COMBINED: {"labels": root / "labels", "instances": root / "instances", "classes": root / "classes.txt"},
    }
    return Source(images=root / "images", split=split, **{**parts[format], **changes})


def found(*sources, split="train"):
    """Count and examples by problem, without the note about few images."""
    inspection = inspect_sources(sources, workers=1)
    return {
        problem: (count, " ".join(examples))
        for problem, count, examples in inspection.findings[split]
        if problem is not problems.FEW_IMAGES
    }


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    write(path, content)


def paint(path, box, value):
    pixels = np.array(Image.open(path))
    pixels[box] = value
    Image.fromarray(pixels).save(path)


@pytest.mark.parametrize("format", [INSTANCE, PANOPTIC, SEMANTIC, COMBINED])
def test_sound_data_have_no_problem_and_things_are_derived(format, draw):
    root = draw(3)
    assert found(source(root, format)) == {}
    inspection = inspect_sources([source(root, format)], workers=1)
    assert inspection.usable and "\nusable" in render(inspection)
    things = [c.name for c in inspection.categories if c.isthing]
    assert things == (list(NAMES) if format == SEMANTIC else ["ball", "box"])
    assert f"{format}, 3 images of 60 x 40" in render(inspection)


def test_two_processes_find_the_same(draw, monkeypatch):
    root = draw(2)
    many = json.loads((root / "instances.json").read_text())
    many["images"] = [{**many["images"][i % 2], "id": i} for i in range(102)]
    write(root / "instances.json", many)
    one, two = (inspect_sources([source(root, INSTANCE)], workers=n) for n in (1, 2))
    assert render(one) == render(two)
    assert one.train.scans == two.train.scans


def instances(change):
    return INSTANCE, lambda root: edit(root / "instances.json", change)


def panoptic(change):
    return PANOPTIC, lambda root: edit(root / "panoptic.json", change)


def first(**changes):
    return instances(lambda content: content["annotations"][0].update(changes))


def segment(**changes):
    return panoptic(lambda content: content["annotations"][0]["segments_info"][0].update(changes))


def cut_off(path):
    path.write_bytes(path.read_bytes()[:200])


CASES = [
    (problems.MISSING_IMAGE, "images/none", (SEMANTIC, lambda root: (root / "files.txt").write_text("none\n000.jpg"))),
    (problems.MISSING_IMAGE, "001.png", (INSTANCE, lambda root: (root / "images/001.png").unlink())),
    (problems.UNREADABLE_IMAGE, "000.jpg", (PANOPTIC, lambda root: cut_off(root / "images/000.jpg"))),
    (problems.ANNOTATED_SIZE, "60 x 40, annotated 60 x 41", instances(lambda c: c["images"][0].update(height=41))),
    (problems.MISSING_LABEL, "001.png", (PANOPTIC, lambda root: (root / "panoptic/001.png").unlink())),
    (problems.WITHOUT_LABEL, "001.png", (SEMANTIC, lambda root: (root / "labels/001.png").unlink())),
    (problems.WITHOUT_LABEL, "001.png", (COMBINED, lambda root: (root / "instances/001.png").unlink())),
    (problems.WITHOUT_LABEL, "001.png", panoptic(lambda content: content["annotations"].pop())),
    (problems.WITHOUT_IMAGE, "labels/001.png", (SEMANTIC, lambda root: (root / "images/001.png").unlink())),
    (problems.OUTSIDE_CLASSES, "colour (1, 0, 0)",
     (SEMANTIC, lambda r: shutil.copy(r / "panoptic/000.png", r / "labels"))),
    (problems.UNREADABLE_LABEL, "one channel",
     (SEMANTIC, lambda root: Image.new("LA", (60, 40)).save(root / "labels/000.png"))),
    (problems.UNREADABLE_LABEL, "one channel",
     (COMBINED, lambda r: shutil.copy(r / "panoptic/000.png", r / "instances"))),
    (problems.UNREADABLE_LABEL, "RGB", (PANOPTIC, lambda r: shutil.copy(r / "labels/000.png", r / "panoptic"))),
    (problems.LABEL_SIZE, "30 x 20, image 60 x 40",
     (SEMANTIC, lambda root: Image.new("L", (30, 20)).save(root / "labels/000.png"))),
    (problems.LABEL_SIZE, "instances/000.png",
     (COMBINED, lambda root: Image.new("L", (30, 20)).save(root / "instances/000.png"))),
    (problems.OUTSIDE_CLASSES, "000.png: 77", (SEMANTIC, lambda root: paint(root / "labels/000.png", np.s_[:3], 77))),
    (problems.OUTSIDE_CLASSES, "category 77", first(category_id=77)),
    (problems.OUTSIDE_CLASSES, "category 77", segment(category_id=77)),
    (problems.NOTHING_LABELLED, "001.png",
     instances(lambda c: c.update(annotations=[a for a in c["annotations"] if a["image_id"] != 1]))),
    (problems.NOTHING_LABELLED, "000.jpg",
     (SEMANTIC, lambda root: paint(root / "labels/000.png", np.s_[:], 255))),
    (problems.IMAGE_ID_TWICE, "0 (2 times)", instances(lambda c: c["images"].append(c["images"][0]))),
    (problems.ANNOTATION_ID_TWICE, "(2 times)", instances(lambda c: c["annotations"].append(c["annotations"][0]))),
    (problems.ANNOTATED_TWICE, "0 (2 times)", panoptic(lambda c: c["annotations"].append(c["annotations"][0]))),
    (problems.SEGMENT_ID_TWICE, "000.png: 1", panoptic(
        lambda c: c["annotations"][0]["segments_info"].append(c["annotations"][0]["segments_info"][0]))),
    (problems.UNKNOWN_IMAGE, "instances.json: image 8", first(image_id=8)),
    (problems.NO_SEGMENTATION, "of 000.jpg", first(segmentation=[])),
    (problems.FEW_POINTS, "4 coordinates", first(segmentation=[[1, 1, 5, 5]])),
    (problems.FEW_POINTS, "7 coordinates", first(segmentation=[[1, 1, 5, 5, 9, 1, 3]])),
    (problems.POLYGON_OUTSIDE, "by 11 pixels", first(segmentation=[[1, 1, 71, 1, 5, 30]])),
    (problems.POLYGON_OUTSIDE, "by 4 pixels", first(segmentation=[[-4, 1, 20, 1, 5, 30]])),
    (problems.EMPTY_MASK, "of 000.jpg", first(segmentation=[[80, 1, 90, 1, 85, 30]])),
    (problems.EMPTY_MASK, "of 000.jpg", first(segmentation={"size": [40, 60], "counts": [2400]})),
    (problems.RLE_SIZE, "40 x 60, image 60 x 40", first(segmentation={"size": [60, 40], "counts": [0, 2400]})),
    (problems.BAD_MASK, "runs of 2401 pixels", first(segmentation={"size": [40, 60], "counts": [0, 2401]})),
    (problems.BAD_MASK, "of 000.jpg", first(segmentation="polygon")),
    (problems.BAD_MASK, "of 000.jpg", first(segmentation=[[1, 1, "5", 5, 9, 1]])),
    (problems.BAD_MASK, "don't fill the image", first(segmentation={"size": [40, 60], "counts": "PPYo1"})),
    (problems.BAD_MASK, "1000000 pixels outside", first(segmentation=[[1, 1, 1000060, 1, 5, 30]])),
    (problems.BAD_MASK, "of 000.jpg", first(segmentation={"counts": [2400]})),
    (problems.BAD_FIELD, "annotations[0]: category_id is [5] (list)", first(category_id=[5])),
    (problems.BAD_FIELD, "annotations[0]: category_id is True (bool)", first(category_id=True)),
    (problems.BAD_FIELD, "annotations[0]: iscrowd is 'many' (str), expected 0 or 1", first(iscrowd="many")),
    (problems.BAD_FIELD, "annotations[0]: image_id is None (NoneType)", first(image_id=None)),
    (problems.BAD_FIELD, "annotations[0]: found 'x' (str)", instances(
        lambda c: c["annotations"].insert(0, "x"))),
    (problems.BAD_FIELD, "annotations[0]: segments_info[0]: category_id is missing", panoptic(
        lambda c: c["annotations"][0]["segments_info"][0].pop("category_id"))),
    (problems.BAD_FIELD, "annotations[0]: segments_info[0]: id is 16777217 (int), expected 1 to 16777215",
     segment(id=2**24 + 1)),
    (problems.ODD_FIELD, "annotations[0]: bbox is [] (list)", first(bbox=[])),
    (problems.ODD_FIELD, "annotations[0]: area is 'large' (str)", first(area="large")),
    (problems.ODD_FIELD, "annotations[0]: ignore is 'perhaps' (str)", first(ignore="perhaps")),
    (problems.ODD_FIELD, "segments_info[0]: area is nan (float)", segment(area=float("nan"))),
    (problems.ONLY_CROWDS, "train", instances(lambda c: [a.update(iscrowd=1) for a in c["annotations"]])),
    (problems.ONLY_CROWDS, "train", instances(lambda c: [a.update(ignore=True) for a in c["annotations"]])),
    (problems.ONLY_CROWDS, "train", panoptic(
        lambda c: [s.update(iscrowd="1") for a in c["annotations"] for s in a["segments_info"]])),
    (problems.ONLY_CROWDS, "train", (COMBINED, lambda root: [
        (paint(root / f"instances/00{i}.png", np.s_[:], 0), paint(root / f"labels/00{i}.png", np.s_[:], 3),
         write(root / "classes.json", [{"name": n, "isthing": n == "box"} for n in NAMES])) for i in range(2)])),
    (problems.NO_LABEL_AT_ALL, "train", instances(lambda content: content.update(annotations=[]))),
    (problems.NOT_IN_JSON, "000.png: ids 1",
     panoptic(lambda c: c["annotations"][0]["segments_info"].pop(0))),
    (problems.NOT_IN_PNG, "000.png: ids 500", segment(id=500)),
    (problems.OTHER_AREA, "000.png: ids 1", segment(area=7)),
    (problems.NO_ISTHING, "grass", panoptic(lambda c: c["categories"][0].pop("isthing"))),
    (problems.UNNUMBERED, "000.png: box",
     (COMBINED, lambda root: paint(root / "labels/000.png", np.s_[:2, :2], 3))),
    (problems.SEVERAL_CLASSES, "000.png: 9", (COMBINED, lambda root: (
        paint(root / "labels/000.png", np.s_[:2, :2], 3), paint(root / "labels/000.png", np.s_[:2, 2:4], 2),
        paint(root / "instances/000.png", np.s_[:2, :4], 9)))),
    (problems.NEVER_USED, "tree", (SEMANTIC, lambda r: (r / "classes.txt").write_text("\n".join([*NAMES, "tree"])))),
    (problems.DUPLICATE, "000.jpg = copy.png", instances(lambda c: c["images"].append(
        {**c["images"][0], "id": 70, "file_name": "copy.png"}))),
]  # fmt: skip


@pytest.mark.parametrize(("problem", "where", "case"), CASES, ids=[f"{i}-{c[0].text}" for i, c in enumerate(CASES)])
def test_problem_is_found_with_its_place(problem, where, case, draw):
    root = draw(2)
    format, damage = case
    # A lossless copy: the same pixels under another name and in another file format.
    Image.open(root / "images/000.jpg").save(root / "copy.png")
    if format == INSTANCE:
        shutil.move(root / "copy.png", root / "images/copy.png")
    damage(root)
    files = {key: root / name for key, name in (("files", "files.txt"), ("classes", "classes.json"))}
    files = {key: path for key, path in files.items() if path.exists()}
    count, places = found(source(root, format, **files))[problem]
    assert count >= 1
    assert where in places
    inspection = inspect_sources([source(root, format, **files)], workers=1)
    assert inspection.usable == (not inspection.findings["train"].blocking)
    assert not (problem.blocks and inspection.usable)
    assert (f"(note) {problem.text[:28]}" in render(inspection)) == (not problem.blocks)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text("0Po1", max_size=4),
    lambda parts: st.lists(parts, max_size=7) | st.dictionaries(st.sampled_from(["size", "counts", "x"]), parts),
    max_leaves=9,
)


@settings(max_examples=150, deadline=None)
@given(JSON | st.fixed_dictionaries({"size": st.just([4, 6]), "counts": JSON}) | st.lists(st.lists(st.floats())))
def test_no_segmentation_crashes_the_inspection(segmentation):
    found = list(segmentation_problems(segmentation, (4, 6)))
    if not any(problem.blocks for problem, _ in found):
        assert 0 <= mask_area(segmentation, (4, 6)) <= 24


def test_rare_class_is_noted(draw):
    root = draw(1)
    content = json.loads((root / "instances.json").read_text())
    common = next(a for a in content["annotations"] if a["category_id"] == 9)
    rare = [a for a in content["annotations"] if a["category_id"] == 5][:1]
    content["annotations"] = rare + [{**common, "id": 1000 + i} for i in range(101)]
    write(root / "instances.json", content)
    assert found(source(root, INSTANCE))[problems.IMBALANCE] == (1, "ball: 1 of 101")


def test_leakage_is_found_by_pixels_under_another_name_and_file_format(draw):
    root, other = draw(3), draw(3, "val", first=2)
    shutil.move(other / "images/003.png", other / "images/renamed.png")
    Image.open(other / "images/002.jpg").save(other / "images/renamed.bmp")
    edit(other / "instances.json", lambda c: c["images"][0].update(file_name="renamed.bmp"))
    edit(other / "instances.json", lambda c: c["images"][1].update(file_name="renamed.png"))
    shutil.copy(other / "images/004.jpg", other / "images/000.jpg")
    edit(other / "instances.json", lambda c: c["images"][2].update(file_name="000.jpg"))
    both = source(root, INSTANCE), source(other, INSTANCE, "val")
    problems_of_val = found(*both, split="val")
    count, places = problems_of_val[problems.LEAKAGE]
    assert count == 1 and places.endswith("renamed.bmp = 002.jpg")
    assert problems_of_val[problems.LEAKED_NAME] == (1, str(other / "images/000.jpg"))
    assert not inspect_sources(both, workers=1).usable


def test_splits_of_different_classes_are_an_error(draw):
    root, other = draw(1), draw(1, "val", first=5)
    edit(other / "instances.json", lambda c: c["categories"].append({"id": 77, "name": "tree"}))
    with pytest.raises(AnnotationError, match="different classes: 77 tree"):
        inspect_sources([source(root, INSTANCE), source(other, INSTANCE, "val")], workers=1)


def test_void_of_zero_counts_classes_from_one(draw):
    root = draw(2)
    for path in (root / "labels").iterdir():
        pixels = np.array(Image.open(path)) + 1
        pixels[:2] = 0
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    assert problems.OUTSIDE_CLASSES in found(source(root, SEMANTIC))
    assert found(source(root, SEMANTIC, ignore_label=0)) == {}


@pytest.mark.parametrize(
    "text",
    [
        ("classes.json", json.dumps([{"id": i, "name": n} for i, n in enumerate(NAMES)])),
        ("classes.yaml", "\n".join(f"- {name}" for name in NAMES)),
        ("classes.json", json.dumps({"categories": [{"id": i, "name": n, "x": 1} for i, n in enumerate(NAMES)]})),
        ("classes.txt", "\n\n".join(f" {name} " for name in NAMES) + "\n"),
    ],
)
def test_lists_of_classes(text, draw, tmp_path):
    root = draw(1)
    (root / text[0]).write_text(text[1])
    content = inspect_sources([source(root, COMBINED, classes=root / text[0])], workers=1).train.content
    assert [(c.id, c.name, c.isthing) for c in content.categories] == [
        (i, name, i >= 2) for i, name in enumerate(NAMES)
    ]


@pytest.mark.parametrize("text", ["", "a\na", "[1, {]", '{"a": "b"}', '[{"id": 1}]'])
def test_bad_list_of_classes_is_named(text, draw):
    root = draw(1)
    (root / "classes.json").write_text(text)
    with pytest.raises(SourceError, match=r"classes\.json"):
        inspect_sources([source(root, SEMANTIC, classes=root / "classes.json")], workers=1)


def test_files_that_make_no_format(draw):
    root = draw(1)
    sound = source(root, INSTANCE)
    with pytest.raises(SourceError, match="train: only images do not form a format"):
        replace(sound, annotations=None)
    with pytest.raises(
        SourceError, match=r"annotations, labels do not form a format \(coco_instance: images, annotations;"
    ):
        replace(sound, labels=root / "labels")
    with pytest.raises(SourceError, match=r"no folder .*nowhere"):
        replace(sound, images=root / "nowhere")
    with pytest.raises(SourceError, match=r"no file .*panoptic$"):
        replace(sound, annotations=root / "panoptic")
    with pytest.raises(SourceError, match="label maps need --classes"):
        source(root, SEMANTIC, classes=None)


def test_what_is_no_list_of_annotations_is_an_error(draw):
    root = draw(1)
    for changes in ({"annotations": {}}, {"images": "x"}, {"images": ["x"]}, {"categories": {}}):
        shutil.copy(root / "instances.json", root / "kept.json")
        edit(root / "instances.json", lambda content, changes=changes: content.update(changes))
        with pytest.raises(AnnotationError, match=r"instances\.json"):
            inspect_sources([source(root, INSTANCE)], workers=1)
        shutil.move(root / "kept.json", root / "instances.json")
    edit(root / "panoptic.json", lambda content: content["annotations"][0].update(segments_info={}))
    with pytest.raises(AnnotationError, match=r"annotations\[0\]: segments_info is \{\} \(dict\), expected a list"):
        inspect_sources([source(root, PANOPTIC)], workers=1)


@pytest.mark.parametrize(
    "change",
    [
        {"height": "tall"},
        {"height": 0},
        {"width": 60.5},
        {"width": float("nan")},
        {"id": [1]},
        {"id": None},
        {"id": True},
        {"file_name": 7},
        {"file_name": " "},
    ],
)
def test_image_that_is_none_is_an_error_that_names_the_file(change, draw):
    root = draw(1)
    edit(root / "instances.json", lambda c: c["images"][0].update(change))
    ((key, value),) = change.items()
    with pytest.raises(AnnotationError, match=re.escape(f"instances.json: images[0]: {key} is {value!r} (")):
        inspect_sources([source(root, INSTANCE)], workers=1)


def test_a_list_of_classes_says_what_is_a_thing_where_a_panoptic_file_does_not(draw):
    root = draw(1)
    edit(root / "panoptic.json", lambda c: [category.pop("isthing") for category in c["categories"]])
    listed = [{"name": name, "isthing": name == "box", "color": [1, 2, 3]} for name in reversed(NAMES)]
    write(root / "classes.json", listed)
    inspection = inspect_sources([source(root, PANOPTIC, classes=root / "classes.json")], workers=1)
    assert inspection.usable
    assert [(c.id, c.isthing, c.color) for c in inspection.categories] == [
        (identity, name == "box", (1, 2, 3)) for identity, name in zip(COCO_IDS, NAMES, strict=True)
    ]
    write(root / "classes.json", listed[1:])
    with pytest.raises(AnnotationError, match=r"classes\.json: lacks box, which .*panoptic\.json has"):
        inspect_sources([source(root, PANOPTIC, classes=root / "classes.json")], workers=1)


def test_no_image_at_all(draw, tmp_path):
    root = draw(1)
    (root / "images/000.jpg").unlink()
    with pytest.raises(AnnotationError, match=r"images has no image .*but no file"):
        inspect_sources([source(root, SEMANTIC)], workers=1)


def test_ids_of_coco_files_come_from_the_file(draw):
    categories = inspect_sources([source(draw(1), PANOPTIC)], workers=1).categories
    assert [(c.id, c.name) for c in categories] == list(zip(COCO_IDS, NAMES, strict=True))
