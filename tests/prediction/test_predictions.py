"""Results as plain data: filters, COCO's formats, colours."""

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

from mask2former import ConfigError
from mask2former.data.classes import ClassTable
from mask2former.prediction.results import InstancePrediction, PanopticPrediction, SemanticPrediction
from mask2former.utils.label_images import colors_to_ids

CLASSES = ClassTable(
    names=("cat", "sky"), colors=((250, 0, 0), (0, 0, 250)), dataset_ids={0: 17, 1: 187}, thing_ids=frozenset({0})
)
IMAGE = np.full((20, 30, 3), 128, np.uint8)


def panoptic():
    ids = np.zeros((20, 30), np.int32)
    ids[:10, :10], ids[10:, :10], ids[:, 20:] = 300, 2, 3
    info = [
        {"id": 300, "category_id": 0, "isthing": True, "score": 0.9},
        {"id": 2, "category_id": 0, "isthing": True, "score": 0.6},
        {"id": 3, "category_id": 1, "isthing": False, "score": 0.8},
    ]
    return PanopticPrediction(classes=CLASSES, image=IMAGE, ids=ids, segments_info=info)


def instances():
    masks = np.zeros((4, 20, 30), bool)
    masks[0, 2:12, 5:15] = masks[1, 2:13, 5:15] = masks[2, 2:12, 5:15] = True
    masks[3, 15:18, 20:29] = True
    return InstancePrediction(
        classes=CLASSES,
        image=IMAGE,
        masks=masks,
        category_ids=np.array([0, 0, 1, 0]),
        scores=np.array([0.9, 0.8, 0.7, 0.6], np.float32),
    )


def semantic():
    labels = np.zeros((20, 30), np.int32)
    labels[:, 10:] = 1
    return SemanticPrediction(classes=CLASSES, image=IMAGE, labels=labels)


RESULTS = pytest.mark.parametrize("make", [panoptic, instances, semantic])


@RESULTS
def test_a_picture_is_drawn_over_the_image_that_was_predicted_or_another(make):
    result = make()
    white = np.full_like(IMAGE, 255)
    assert result.draw().shape == (20 * 22, 30 * 22, 3)
    assert result.draw(enlarge=False).shape == IMAGE.shape
    assert result.draw(white).mean() > result.draw().mean() + 10
    forgotten = type(result)(**{**vars(result), "image": None})
    with pytest.raises(ValueError, match="was made without its image"):
        forgotten.draw()


@pytest.mark.parametrize(
    ("make", "options", "areas"),
    [
        (panoptic, {"min_score": 0.7}, [100, 200]),
        (panoptic, {"min_area": 150}, [200]),
        (panoptic, {"classes": ["cat"]}, [100, 100]),
        (panoptic, {"classes": {1}}, [200]),
        (instances, {"min_score": 0.75, "min_area": 105}, [110]),
        (instances, {"classes": ["sky"]}, [100]),
        (instances, {"classes": []}, []),
        (semantic, {"min_area": 300, "min_score": 1.0}, [400]),
        (semantic, {"classes": ["cat"]}, [200]),
    ],
)
def test_filters_leave_segments_out(make, options, areas):
    result = make().filter(**options)
    assert [segment["area"] for segment in result.segments()] == areas
    covered = (result.draw() != 128).any(axis=2).mean() * 20 * 30
    assert covered == pytest.approx(sum(areas), rel=0.05), "what is left out is not drawn"


def test_instances_that_cover_a_better_one_of_their_class_are_duplicates():
    result = instances().without_duplicates(0.5)
    assert result.scores.tolist() == pytest.approx([0.9, 0.7, 0.6])
    assert len(instances().without_duplicates(0.95).scores) == 4, "intersection over union is 10 / 11"


def test_boxes_are_tight():
    assert instances().boxes.tolist() == [[5, 2, 10, 10], [5, 2, 10, 11], [5, 2, 10, 10], [20, 15, 9, 3]]
    assert instances().filter(classes=[]).boxes.shape == (0, 4)


def coco_with_one_image():
    coco = COCO()
    coco.dataset = {
        "info": {},
        "images": [{"id": 7, "height": 20, "width": 30}],
        "categories": [{"id": 17, "name": "cat"}, {"id": 187, "name": "sky"}],
        "annotations": [],
    }
    coco.createIndex()
    return coco


@pytest.mark.parametrize("make", [instances, semantic])
def test_pycocotools_loads_detections(make):
    result = make()
    loaded = coco_with_one_image().loadRes(result.to_coco(image_id=7))
    assert [loaded.annToMask(entry).sum() for entry in loaded.loadAnns(loaded.getAnnIds())] == [
        segment["area"] for segment in result.segments()
    ]
    assert {entry["category_id"] for entry in loaded.dataset["annotations"]} == {17, 187}
    if make is instances:
        boxes = [entry["bbox"] for entry in loaded.dataset["annotations"]]
        assert boxes == [mask_util.toBbox(entry["segmentation"]).tolist() for entry in loaded.dataset["annotations"]]


def test_a_panoptic_annotation_describes_its_png():
    result = panoptic()
    annotation = result.to_coco("street")
    assert (annotation["image_id"], annotation["file_name"]) == ("street", "street.png")
    ids = colors_to_ids(result.panoptic_png())
    assert np.array_equal(ids, result.ids)
    areas = {entry["id"]: entry["area"] for entry in annotation["segments_info"]}
    assert areas == {number: (ids == number).sum() for number in (300, 2, 3)}
    assert [entry["category_id"] for entry in annotation["segments_info"]] == [17, 17, 187]
    assert {"bbox": [20, 0, 10, 20], "iscrowd": 0, "score": 0.8}.items() <= annotation["segments_info"][2].items()


def test_an_object_keeps_its_colour_by_its_track():
    result = instances().filter(classes=["cat"])
    tracked = type(result)(**{**vars(result), "track_ids": np.array([8, 2, 5])})
    again = type(result)(**{**vars(result), "track_ids": np.array([1, 2, 8])})
    assert [segment["track_id"] for segment in tracked.segments()] == [8, 2, 5]
    colors, others = (CLASSES.segment_colors(r.segments()) for r in (tracked, again))
    assert colors[0] == others[2] and colors[1] == others[1] and len({*colors, *others}) == 4
    assert tracked.filter(min_score=0.7).track_ids.tolist() == [8, 2]


@RESULTS
def test_one_class_may_be_given_without_a_list(make):
    result = make()
    areas = {name: [segment["area"] for segment in result.filter(classes=[name]).segments()] for name in ("cat", "sky")}
    assert areas["cat"] != areas["sky"]
    for classes in ("cat", 0, np.int64(0), np.str_("cat"), np.array([0]), {"cat", 0}, (c for c in ["cat"])):
        assert [segment["area"] for segment in result.filter(classes=classes).segments()] == areas["cat"]


@RESULTS
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": "ca"}, "class 'ca': the classes are cat, sky"),
        ({"classes": ["cat", "dog", "fox"]}, "class 'dog', 'fox': the classes are cat, sky"),
        ({"classes": 2}, "class 2: the classes are cat, sky"),
        ({"classes": [-1]}, "class -1: the classes are"),
        ({"classes": [0.5]}, "class 0.5: expected an id or a name"),
        ({"classes": [None]}, "class None: expected an id or a name"),
        ({"min_score": 1.5}, "min_score 1.5: expected a number from 0 to 1"),
        ({"min_score": float("nan")}, "min_score nan: expected a number from 0 to 1"),
        ({"min_area": -1}, "min_area -1: expected a number of pixels, at least 0"),
        ({"min_area": float("nan")}, "min_area nan: expected a number"),
        ({"min_area": "9"}, "min_area '9': expected a number"),
    ],
)
def test_odd_filters_are_one_line(make, options, message):
    with pytest.raises(ConfigError, match=message):
        make().filter(**options)
    with pytest.raises(ConfigError, match=r"max_iou 1\.5: expected a number from 0 to 1"):
        instances().without_duplicates(1.5)


@RESULTS
@pytest.mark.parametrize(
    ("image_id", "expected"),
    [
        (7, 7),
        (np.int64(7), 7),
        (np.uint8(7), 7),
        ("street", "street"),
        (np.str_("street"), "street"),
        (Path("a") / "b", "a/b"),
    ],
)
def test_image_ids_of_any_kind_become_json(make, image_id, expected):
    entries = make().to_coco(image_id)
    for entry in [entries] if isinstance(entries, dict) else entries:
        assert json.loads(json.dumps(entry))["image_id"] == expected


@RESULTS
@pytest.mark.parametrize("image_id", [None, 1.5, ["a"]])
def test_other_image_ids_are_one_line(make, image_id):
    with pytest.raises(ConfigError, match=r"image id .*: expected a whole number or text"):
        make().to_coco(image_id)


@RESULTS
def test_results_without_segments(make):
    result = make().filter(classes=[])
    assert result.segments() == []
    assert np.array_equal(result.draw(enlarge=False), IMAGE)
    entries = result.to_coco(1)
    assert entries == [] or entries["segments_info"] == []
    assert json.loads(json.dumps(result.to_json(Path("a.jpg")))) == {
        "file_name": "a.jpg", "height": 20, "width": 30, "task": result.task, "segments_info": []
    }  # fmt: skip
    assert result.filter(min_area=1, classes="cat").segments() == []
    if make is instances:
        assert result.without_duplicates().segments() == []


def test_numpy_ids_of_segments_and_data_sets_become_json():
    table = ClassTable(names=("cat", "sky"), dataset_ids={0: np.int64(17), 1: np.int32(187)})
    for result in (panoptic(), instances(), semantic()):
        other = type(result)(**{**vars(result), "classes": table})
        json.dumps([other.to_coco(0), other.segments(), other.to_json("a.jpg")])
