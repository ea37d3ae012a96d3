"""Fields of COCO's JSON that no metric needs, and values of unusual types: the numbers stay those of pycocotools."""

import json
import math
import shutil

import numpy as np
import pytest
from detectron2.data import MetadataCatalog

from mask2former.evaluation import EvaluationError, InstanceAP, PanopticQuality, StreamingEvaluator

from .official import coco_ap

ODD = (None, True, 7, -1.5, float("nan"), "", "text", [], [None], {}, {"a": [1]})
UNUSED = {
    "annotations": ("ignore_label", "score", "keypoints", "num_keypoints", "attributes", "caption", "bbox", "id"),
    "images": ("license", "date_captured", "coco_url", "file_size", "flickr_url"),
    "categories": ("supercategory", "keypoints", "skeleton", "color", "isthing"),
    None: ("info", "licenses", "type", "videos"),
}
FIELDS = [(place, field) for place, fields in UNUSED.items() for field in fields]


def evaluate(dataset, folder=None, metric=InstanceAP):
    evaluator = StreamingEvaluator([metric(dataset.name)], folder)
    evaluator.reset()
    evaluator.process(dataset.inputs, dataset.outputs)
    return evaluator.evaluate()[metric.name]


def change(dataset, edit, file="instances.json"):
    content = json.loads((dataset.root / file).read_text())
    edit(content)
    (dataset.root / file).write_text(json.dumps(content))


def each(content, what, edit):
    for index, entry in enumerate(content[what]):
        edit(index, entry)


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-9, nan_ok=True), name


@pytest.mark.parametrize(("place", "field"), FIELDS, ids=[f"{place}-{field}" for place, field in FIELDS])
def test_fields_that_nothing_needs_may_have_any_value_or_be_missing(place, field, dataset, tmp_path):
    expected = evaluate(dataset, tmp_path)
    same(expected, coco_ap(dataset.root / "instances.json", tmp_path / "coco_instances_results.json"))

    def odd(content):
        for index, entry in enumerate([content] if place is None else content[place]):
            entry[field] = ODD[index % len(ODD)]

    def without(content):
        for entry in [content] if place is None else content[place]:
            entry.pop(field, None)

    for edit in (odd, without):
        change(dataset, edit)
        same(evaluate(dataset), expected)


def text(value):
    return f" {value} "


TYPES = {
    "numbers as text": lambda index, a: a.update({k: text(a[k]) for k in ("image_id", "category_id", "iscrowd")}),
    "numbers as floats": lambda index, a: a.update({k: float(a[k]) for k in ("id", "image_id", "category_id")}),
    "areas as text": lambda index, a: a.update(area=str(a["area"])),
    "no areas": lambda index, a: a.pop("area"),
    "areas of no use": lambda index, a: a.update(area=(None, float("nan"), -3, "large", [])[index % 5]),
    "crowds as flags": lambda index, a: a.update(iscrowd=(bool(a["iscrowd"]), str(bool(a["iscrowd"])))[index % 2]),
    "ids from 0": lambda index, a: a.update(id=index),
    "equal ids": lambda index, a: a.update(id=1),
    "sizes of run lengths as text": lambda index, a: a["segmentation"].update(size=["48", 64.0]),
    "bytes as text": lambda index, a: a["segmentation"].update(counts=repr(a["segmentation"]["counts"].encode())),
}


@pytest.mark.parametrize("kind", TYPES)
def test_values_of_other_types_are_what_they_mean(kind, dataset, tmp_path):
    expected = evaluate(dataset, tmp_path)
    change(dataset, lambda content: each(content, "annotations", TYPES[kind]))
    same(evaluate(dataset), expected)


@pytest.mark.parametrize("ids", [lambda n: f"scene {n}/a b", lambda n: str(n), lambda n: -n, lambda n: n + 2**40])
def test_image_ids_may_be_text_or_any_number(ids, dataset):
    expected, quality = evaluate(dataset), evaluate(dataset, metric=PanopticQuality)
    for file in ("instances.json", "panoptic.json"):
        change(dataset, lambda c: each(c, "images", lambda i, image: image.update(id=ids(image["id"]))), file)
        change(dataset, lambda c: each(c, "annotations", lambda i, a: a.update(image_id=ids(a["image_id"]))), file)
    for image in dataset.inputs:
        image["image_id"] = ids(image["image_id"])
    same(evaluate(dataset), expected)
    same(evaluate(dataset, metric=PanopticQuality), quality)


@pytest.mark.parametrize("value", [1, True, 1.0, "1", "true"])
def test_what_is_to_be_ignored_counts_like_a_crowd_of_pycocotools(value, dataset, tmp_path):
    plain = evaluate(dataset, tmp_path)
    change(dataset, lambda c: each(c, "annotations", lambda i, a: a.update(ignore=value if i % 3 == 0 else 0)))
    found = evaluate(dataset)
    # pycocotools itself overwrites `ignore` with `iscrowd`.
    change(dataset, lambda c: each(c, "annotations", lambda i, a: a.update(iscrowd=int(i % 3 == 0 or a["iscrowd"]))))
    same(found, coco_ap(dataset.root / "instances.json", tmp_path / "coco_instances_results.json"))
    assert found["AP"] != pytest.approx(plain["AP"])


def test_ground_truth_of_crowds_alone_measures_nothing(dataset, tmp_path):
    change(dataset, lambda c: each(c, "annotations", lambda i, a: a.update(iscrowd=1)))
    assert math.isnan(evaluate(dataset)["AP"])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda a: a.update(category_id="cat"), r"annotations\[0\]: category_id is 'cat' \(str\)"),
        (lambda a: a.update(category_id=None), r"annotations\[0\]: category_id is None \(NoneType\)"),
        (lambda a: a.pop("image_id"), r"annotations\[0\]: image_id is missing"),
        (lambda a: a.update(iscrowd=5), r"annotations\[0\]: iscrowd is 5 \(int\), expected 0 or 1"),
        (lambda a: a.update(category_id=20), r"annotation 1 of image 50: category 20 is no thing"),
        (lambda a: a.update(segmentation=None), r"annotation 1 of image 50: no mask"),
    ],
)
def test_values_without_a_meaning_are_named(edit, message, dataset):
    change(dataset, lambda content: edit(content["annotations"][0]))
    with pytest.raises(EvaluationError, match=rf"instances\.json: .*{message}"):
        evaluate(dataset)


def test_panoptic_quality_needs_only_ids_and_categories(dataset):
    expected = evaluate(dataset, metric=PanopticQuality)

    def edit(content):
        content.update(info=7, licenses=None)
        each(content, "categories", lambda i, c: c.update(name=(c["name"], f" {c['name']} ")[i % 2], isthing=None))
        for annotation in content["annotations"]:
            for index, segment in enumerate(annotation["segments_info"]):
                segment.update(id=str(segment["id"]), category_id=float(segment["category_id"]), bbox=ODD[index])
                segment.update(iscrowd=bool(segment["iscrowd"]), area=(segment["area"], None, "x")[index % 3])

    change(dataset, edit, "panoptic.json")
    same(evaluate(dataset, metric=PanopticQuality), expected)


def test_panoptic_pngs_are_found_by_any_path(dataset, tmp_path):
    expected, folder = evaluate(dataset, metric=PanopticQuality), dataset.root / "panoptic"
    (folder / "sub").mkdir()
    shutil.move(folder / "image4.png", folder / "sub")
    names = [
        str(folder / "image0.png"),
        "./image1.png",
        "panoptic\\image2.png",
        "/elsewhere/x/image3.png",
        "sub/image4.jpg",
    ]
    change(dataset, lambda c: each(c, "annotations", lambda i, a: a.update(file_name=names[i])), "panoptic.json")
    same(evaluate(dataset, metric=PanopticQuality), expected)


def test_a_byte_order_mark_is_skipped(dataset):
    expected = evaluate(dataset), evaluate(dataset, metric=PanopticQuality)
    for file in ("instances.json", "panoptic.json"):
        path = dataset.root / file
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    for found, wanted in zip((evaluate(dataset), evaluate(dataset, metric=PanopticQuality)), expected, strict=True):
        same(found, wanted)


def test_images_of_one_name_keep_both_results(dataset, tmp_path):
    for image, name in zip(dataset.inputs, ("a/x", "b/x", "x.jpg", "x.png", None), strict=True):
        image["file_name"], image["result_name"] = "anywhere/x.jpg", name
    evaluate(dataset, tmp_path, metric=PanopticQuality)
    files = {p.relative_to(tmp_path).as_posix() for p in (tmp_path / "panoptic_predictions").rglob("*.png")}
    assert files == {f"panoptic_predictions/{name}.png" for name in ("a/x", "b/x", "x.jpg", "x.png", "x")}


def test_the_metadata_say_what_is_a_thing_and_other_classes_are_named(dataset):
    expected = evaluate(dataset, metric=PanopticQuality)
    for output in dataset.outputs:
        for segment in output["panoptic_seg"][1]:
            segment["isthing"] = True
    same(evaluate(dataset, metric=PanopticQuality), expected)
    things = MetadataCatalog.get(dataset.name).thing_dataset_id_to_contiguous_id
    dataset.outputs[0]["instances"].pred_classes[:] = max(things.values()) + 1
    with pytest.raises(EvaluationError, match=r"image0\.jpg: the model predicted class 2, which is no thing here"):
        evaluate(dataset)
    assert np.isfinite(expected["PQ"])
