"""COCO's JSON as other tools write it: what `inspect` calls usable gives the same targets as the plain form."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.data import transforms as T
from PIL import Image

from mask2former.data import build_train_loader, problems, values
from mask2former.data.custom.inspection import inspect_sources
from mask2former.data.custom.source import Source
from mask2former.data.custom.split import split
from mask2former.data.custom.training_files import derive
from mask2former.data.dataset_mapper import TrainingMapper
from mask2former.data.datasets import AnnotationError
from mask2former.data.datasets.coco_json import FileFinder
from mask2former.data.datasets.custom import read_classes, register_custom_dataset

from .conftest import COCO_IDS, NAMES, write

TASKS = {"instances.json": "instance", "panoptic.json": "panoptic"}


def inspected(root, file, images=None, panoptic=None):
    pngs = {"panoptic": Path(panoptic or root / "panoptic")} if file == "panoptic.json" else {}
    return inspect_sources([Source(Path(images or root / "images"), annotations=root / file, **pngs)], workers=1)


def targets(root, file, output, **folders):
    """Classes and masks by image file, as training reads them after `config`."""
    inspection = inspected(root, file, **folders)
    assert inspection.usable, [message for f in inspection.findings.values() for message in f.messages(blocks=True)]
    dataset = derive(inspection.train, f"forms_{output.name}", output, 1)
    register_custom_dataset(dataset)
    mapper = TrainingMapper(T.AugmentationList([]), TASKS[file], num_classes=4)
    made = {}
    for record in DatasetCatalog.get(dataset.name):
        found = mapper(record)["instances"]
        order = sorted(range(len(found)), key=lambda i: found.gt_masks[i].flatten().tolist())
        made[Path(record["file_name"]).name] = (found.gt_classes[order].tolist(), found.gt_masks[order])
        if "sem_seg_file_name" in record:
            assert Path(record["sem_seg_file_name"]).is_relative_to(output)
            assert os.path.exists(record["sem_seg_file_name"])
    return made


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    write(path, content)


def each(what, change):
    return lambda content: [change(entry) for entry in content[what]]


def segments(change):
    return lambda content: [change(s) for a in content["annotations"] for s in a["segments_info"]]


def polygon_points(annotation):
    if isinstance(annotation["segmentation"], list):
        part = annotation["segmentation"][0]
        annotation["segmentation"] = [part[i : i + 2] for i in range(0, len(part), 2)]


def flat_polygon(annotation):
    if isinstance(annotation["segmentation"], list) and len(annotation["segmentation"]) == 1:
        annotation["segmentation"] = annotation["segmentation"][0]


INSTANCES = {
    "polygons of points": each("annotations", polygon_points),
    "flat polygons": each("annotations", flat_polygon),
    "no ids": each("annotations", lambda a: a.pop("id")),
    "ids of any type": each("annotations", lambda a: a.update(id=[a["id"]])),
    "image ids as text": each("annotations", lambda a: a.update(image_id=str(a["image_id"]))),
    "category ids as text": lambda c: (
        each("annotations", lambda a: a.update(category_id=str(a["category_id"])))(c),
        each("categories", lambda k: k.update(id=float(k["id"])))(c),
    ),
    "flags and odd fields": each(
        "annotations", lambda a: a.update(iscrowd=False, ignore=None, area="3 px", bbox=None, keypoints=7, score={})
    ),
    "no sizes": each("images", lambda image: (image.pop("height"), image.pop("width"))),
    "sizes as text": each("images", lambda image: image.update(height=str(image["height"]), width=60.0)),
    "odd headers": lambda c: c.update(info=[1], licenses=None, videos=3),
}
PANOPTIC = {
    "ids as text": segments(lambda s: s.update(id=str(s["id"]), category_id=float(s["category_id"]))),
    "only ids": segments(lambda s: [s.pop(key) for key in ("area", "bbox", "iscrowd")]),
    "flags": each("categories", lambda c: c.update(isthing=str(bool(c["isthing"])))),
    "colours": each("categories", lambda c: c.update(color="#7b01ce")),
    "text ids with slashes": lambda c: (
        each("images", lambda image: image.update(id=f"scene {image['id']}/a b"))(c),
        each("annotations", lambda a: a.update(image_id=f"scene {a['image_id']}/a b"))(c),
    ),
    "the image's name": each("annotations", lambda a: a.update(file_name=a["file_name"].replace(".png", ".JPG"))),
    "no name of the PNG": each("annotations", lambda a: a.pop("file_name")),
}
FORMS = [("instances.json", name) for name in INSTANCES] + [("panoptic.json", name) for name in PANOPTIC]


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, (classes, masks) in expected.items():
        assert found[name][0] == classes, name
        assert torch.equal(found[name][1], masks), name


@pytest.mark.parametrize(("file", "form"), FORMS)
def test_other_forms_give_the_same_targets(file, form, draw, tmp_path, registered):
    root = draw(2)
    expected = targets(root, file, tmp_path / "plain")
    assert sum(len(classes) for classes, _ in expected.values()) > 3
    edit(root / file, {**INSTANCES, **PANOPTIC}[form])
    same(targets(root, file, tmp_path / "other"), expected)


def png(name):
    return str(Path(name).with_suffix(".png"))


NAMED = {
    "absolute": lambda folder, name: str(folder.absolute() / name),
    "dot": lambda folder, name: f"./{name}",
    "folder before": lambda folder, name: f"{folder.name}/{name}",
    "of Windows": lambda folder, name: rf"C:\data\{folder.name}\{name}",
    "of another machine": lambda folder, name: f"/home/other/{folder.name}/{name}",
    "up and down": lambda folder, name: f"../{folder.name}/{name}",
}


@pytest.mark.parametrize("file", TASKS)
@pytest.mark.parametrize("given", ["as it is", "relative", "link", "elsewhere"])
@pytest.mark.parametrize("named", NAMED)
def test_files_are_found_by_any_path(file, given, named, draw, tmp_path, registered, monkeypatch):
    if given == "elsewhere" and named != "absolute":
        given = "relative"
    root = draw(1)
    expected = targets(root, file, tmp_path / "plain")
    write_name = NAMED[named]
    edit(root / file, each("images", lambda i: i.update(file_name=write_name(root / "images", i["file_name"]))))
    if file == "panoptic.json":
        edit(
            root / file,
            each("annotations", lambda a: a.update(file_name=write_name(root / "panoptic", a["file_name"]))),
        )
    folders = {name: root / name for name in ("images", "panoptic")}
    if given == "relative":
        monkeypatch.chdir(root)
        folders = {name: Path(name) for name in folders}
    elif given == "link":
        (tmp_path / "links").mkdir()
        for name in folders:
            (tmp_path / "links" / name).symlink_to(root / name)
        folders = {name: tmp_path / "links" / name for name in folders}
    elif given == "elsewhere":
        for name in folders:
            (tmp_path / "elsewhere" / name).mkdir(parents=True)
            (tmp_path / "elsewhere" / name / "other.txt").touch()
        folders = {name: tmp_path / "elsewhere" / name for name in folders}
    same(targets(root, file, tmp_path / "other", **folders), expected)
    assert len(list((root / "panoptic").iterdir())) == 1, "sources stay as they are"


def test_names_that_would_share_a_file_are_an_error(tmp_path):
    (tmp_path / "x.png").touch()
    (tmp_path / "ü.png").touch()
    find = FileFinder(tmp_path)
    assert find("x.png") == find("./x.png") == tmp_path / "x.png"
    assert find("u\u0308.png").name == "ü.png"
    assert find("gone/y.png") == tmp_path / "gone/y.png"
    with pytest.raises(AnnotationError, match=r"'x\.png' and 'a/x\.png' both lead to .*x\.png"):
        find("a/x.png")


def test_images_of_one_name_in_two_folders_get_names_for_their_results(draw, tmp_path, registered):
    root = draw(3)
    for number, name in enumerate(("a/x.png", "b/x.png", "b/x.jpg")):
        path, image = root / "images" / name, next((root / "images").glob(f"00{number}*"))
        path.parent.mkdir(exist_ok=True)
        Image.open(image).save(path)
        edit(root / "panoptic.json", lambda c, number=number, name=name: c["images"][number].update(file_name=name))
    dataset = derive(inspected(root, "panoptic.json").train, "forms_names", tmp_path / "out", 1)
    register_custom_dataset(dataset)
    assert [r["result_name"] for r in DatasetCatalog.get("forms_names")] == ["a/x", "b/x.png", "b/x.jpg"]


def test_crowds_and_ignored_annotations_are_no_targets(draw, tmp_path, registered):
    root = draw(2)
    plain = targets(root, "instances.json", tmp_path / "plain")
    edit(root / "instances.json", lambda c: c["annotations"][0].update(ignore=1))
    edit(root / "instances.json", lambda c: c["annotations"][1].update(iscrowd="1"))
    counted = inspected(root, "instances.json").train
    assert counted.total("crowds").total() == 2
    found = targets(root, "instances.json", tmp_path / "other")
    assert sum(len(c) for c, _ in found.values()) == sum(len(c) for c, _ in plain.values()) - 2
    assert counted.total("segments").total() == sum(len(c) for c, _ in found.values())


def test_a_file_without_a_usable_annotation_says_why(draw):
    root = draw(1)
    edit(root / "panoptic.json", segments(lambda s: s.update(id=s["id"] + 2**24)))
    with pytest.raises(AnnotationError, match=r"no images with ann.*segments_info\[0\]: id is 16777\d+ \(int\)"):
        inspected(root, "panoptic.json")


@pytest.mark.parametrize("file", TASKS)
def test_parts_of_odd_files_are_usable(file, draw, tmp_path):
    root = draw(4)
    edit(root / file, each("annotations", lambda a: a.update(image_id=str(a["image_id"]), score=float("nan"))))
    for part in split(inspected(root, file).train, tmp_path / "parts", 0.5, 0).values():
        again = inspect_sources([part.content.source], workers=1)
        assert again.usable
        assert [len(each.scans) for each in again.splits.values()] == [2]


@pytest.mark.parametrize(
    ("value", "rgb"),
    [
        ("#7b01ce", (123, 1, 206)), ("#7B01CE ", (123, 1, 206)), ("#fff", (255, 255, 255)), ("red", (255, 0, 0)),
        ("rgb(1, 2, 3)", (1, 2, 3)), ("rgba(1,2,3,4)", (1, 2, 3)), ("1, 2, 3", (1, 2, 3)), ("[1, 2, 3]", (1, 2, 3)),
        ([1, 2, 3], (1, 2, 3)), ((1, 2, 3), (1, 2, 3)), ([1.0, "2", 3], (1, 2, 3)), ([1, 2, 3, 255], (1, 2, 3)),
        ({"r": 1, "g": 2, "b": 3}, (1, 2, 3)), ([1, 2], None), ([1, 2, 300], None), ([1, 2, 0.5], None), ("no", None),
        (7, None), ([None, 1, 2], None), ({}, None), ("", None), (True, None),
    ],
)  # fmt: skip
def test_colours(value, rgb):
    assert values.color(value) == rgb


@pytest.mark.parametrize(
    ("name", "read"),
    [(1, "1"), (0, "0"), (1.5, "1.5"), (" disc ", "disc"), ("no", "no"), (None, None), (True, None), ("", None),
     (" ", None), ([], None), ({"en": "x"}, None)],
)  # fmt: skip
def test_names_of_classes_are_text_or_are_named(name, read, draw):
    root = draw(1)
    edit(root / "instances.json", lambda c: c["categories"][0].update(name=name))
    if read is None:
        message = rf"instances\.json: categories\[0\]: the name is .* \({type(name).__name__}\), expected text"
        with pytest.raises(AnnotationError, match=message):
            inspected(root, "instances.json")
    else:
        assert inspected(root, "instances.json").categories[0].name == read


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "one"}, r"categories\[1\]: id is 'one' \(str\), expected a whole number"),
        ({"id": None}, r"categories\[1\]: .* has no id"),
        ({"id": 2.5}, r"categories\[1\]: id is 2\.5 \(float\)"),
        ({"id": 10**20}, r"categories\[1\]: id is 1000.* \(int\)"),
        ({"id": -1}, r"categories\[1\]: id is -1 \(int\)"),
        ({"id": COCO_IDS[2]}, "two classes have the id 5"),
        ({"name": NAMES[2]}, "two classes have the name 'ball'"),
        ({"color": "blueish"}, r"categories\[1\]: color is 'blueish' \(str\)"),
        ({"isthing": "maybe"}, r"categories\[1\]: isthing is 'maybe' \(str\)"),
    ],
)
def test_categories_without_a_meaning_are_named(change, message, draw):
    root = draw(1)
    edit(root / "instances.json", lambda c: c["categories"][1].update(change))
    with pytest.raises(AnnotationError, match=rf"instances\.json: .*{message}"):
        inspected(root, "instances.json")


def test_instances_without_a_thing_are_named(draw):
    root = draw(1)
    edit(root / "instances.json", each("categories", lambda c: c.update(isthing=0)))
    with pytest.raises(AnnotationError, match="no class is a thing"):
        inspected(root, "instances.json")


def test_entries_of_null_are_as_good_as_none():
    (read,) = read_classes([{"name": "a", "color": None, "isthing": None, "id": None}], "classes", first_id=4)
    assert (read.id, read.isthing) == (4, True)


def test_wrong_extras_are_notes(draw):
    root = draw(1)
    shutil.copy(root / "instances.json", root / "kept.json")
    edit(root / "instances.json", each("annotations", lambda a: a.update(area=-1, ignore="?")))
    inspection = inspected(root, "instances.json")
    assert inspection.usable
    assert problems.ODD_FIELD in inspection.findings["train"].counts


def test_training_on_crowds_alone_is_one_line(draw, cfg, tmp_path, registered):
    root = draw(2)
    register_custom_dataset(derive(inspected(root, "instances.json").train, "forms_crowds", tmp_path, 1))
    edit(root / "instances.json", each("annotations", lambda a: a.update(ignore=1)))
    cfg.DATASETS.TRAIN, cfg.INPUT.DATASET_MAPPER_NAME = ("forms_crowds",), "coco_instance_lsj"
    with pytest.raises(AnnotationError, match="forms_crowds: nothing to learn: no image has an annotation that is not"):
        build_train_loader(cfg)
