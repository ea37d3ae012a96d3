"""Results as plain data: filters, COCO's formats, colours."""

import numpy as np
import pytest
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

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
