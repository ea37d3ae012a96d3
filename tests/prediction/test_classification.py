"""Results of image classifiers: rows, plain data, pictures, and the predictor that makes them."""

import json
import pickle

import numpy as np
import pytest
import torch
from detectron2.data.catalog import Metadata
from detectron2.data.transforms import ResizeShortestEdge
from torch import nn

from mask2former import ConfigError, Predictor
from mask2former.data.classes import ClassTable
from mask2former.modeling.meta_arch.image_classifier import ImageClassifier
from mask2former.prediction import ClassificationPrediction
from mask2former.prediction.classification import RankedClass, draw_classes
from mask2former.video.tracking import Tracker

NAMES = ("cat", "dog", "fish", "bird", "horse", "cow", "sheep")
PROBABILITIES = np.array([0.05, 0.5, 0.05, 0.25, 0.1, 0.03, 0.02], np.float32)
IMAGE = np.full((48, 64, 3), 200, np.uint8)


@pytest.fixture
def found():
    return ClassificationPrediction(
        classes=ClassTable(NAMES), image=IMAGE, image_size=(48, 64), probabilities=PROBABILITIES
    )


def test_rows_are_the_most_probable_classes_and_equal_ones_keep_their_order(found):
    assert found.top(2) == [RankedClass(1, "dog", pytest.approx(0.5)), RankedClass(3, "bird", pytest.approx(0.25))]
    assert [row.category_id for row in found.top()] == [1, 3, 4, 0, 2]
    assert [row.category_id for row in found.top(100)] == [1, 3, 4, 0, 2, 5, 6]


def test_plain_data(found):
    assert json.loads(json.dumps(found.to_json("a/photo.jpg"))) == {
        "file_name": "a/photo.jpg", "height": 48, "width": 64, "task": "classification",
        "classes": [{"category_id": i, "category_name": NAMES[i], "probability": pytest.approx(p)}
                    for i, p in ((1, 0.5), (3, 0.25), (4, 0.1), (0, 0.05), (2, 0.05))],
    }  # fmt: skip


def test_classes_without_names_are_called_by_their_ids():
    probabilities = np.eye(300, dtype=np.float32)[207]
    result = ClassificationPrediction(classes=ClassTable(), image_size=(1, 1), probabilities=probabilities)
    assert result.top(1) == [RankedClass(207, "class 207", 1.0)]


def test_filter_lists_some_classes_and_leaves_the_probabilities(found):
    assert [row.name for row in found.filter(classes=["cow", 3]).top()] == ["bird", "cow"]
    assert [row.name for row in found.filter(min_score=0.2).top()] == ["dog", "bird"]
    assert [row.name for row in found.filter(min_score=0.2).filter(classes="bird").top()] == ["bird"]
    np.testing.assert_array_equal(found.filter(classes="cat").probabilities, PROBABILITIES)
    for wrong in ({"classes": "tiger"}, {"classes": 7}, {"min_score": 2}):
        with pytest.raises(ConfigError):
            found.filter(**wrong)


def test_a_record_restores_the_probabilities_to_the_bit(found):
    record = json.loads(json.dumps(found.record()))
    restored = ClassificationPrediction.from_record(record, (48, 64), ClassTable(NAMES), None)
    np.testing.assert_array_equal(restored.probabilities, PROBABILITIES)
    assert restored.top() == found.top() and restored.size == found.size


def test_tracking_leaves_it_as_it_is(found):
    assert Tracker().update(found) is found


def test_the_picture_has_a_bar_for_each_class(found):
    picture = found.draw()
    assert picture.shape == (480, 640, 3)
    colors = [ClassTable(NAMES).color(row.category_id) for row in found.top()]
    lengths = [int((picture == np.array(color)).all(2).any(0).sum()) for color in colors]
    # In the order of the probabilities, and in proportion to them.
    assert lengths[0] == pytest.approx(2 * lengths[1], abs=1) and lengths[1] > lengths[2] > lengths[3] == lengths[4] > 0
    assert (found.draw(enlarge=False).shape, found.image.min()) == (IMAGE.shape, 200)
    with pytest.raises(ValueError, match="without its image"):
        ClassificationPrediction(classes=ClassTable(), image_size=(1, 1), probabilities=PROBABILITIES).draw()


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (20, 600), (400, 30)])
def test_pictures_of_any_shape_are_drawn(size):
    rows = [RankedClass(i, "a long name of a class that does not fit" * 3, 0.2) for i in range(5)]
    for enlarge in (False, True):
        picture = draw_classes(np.zeros((*size, 3), np.uint8), rows, [(255, 0, 0)] * 5, enlarge=enlarge)
        assert enlarge or picture.shape == (*size, 3)


class Backbone(nn.Module):
    """One map: the mean colours of the four quarters of an image."""

    def output_shape(self):
        return {"res5": type("Shape", (), {"channels": 3})()}

    def forward(self, images):
        return {"res5": nn.functional.adaptive_avg_pool2d(images, 2)}


@pytest.fixture
def predictor():
    model = ImageClassifier(backbone=Backbone(), num_classes=3, pixel_mean=[0.0] * 3, pixel_std=[255.0] * 3)
    with torch.no_grad():
        model.head.weight.copy_(5 * torch.eye(3))
    metadata = Metadata(name="colours", image_classes=["red", "green", "blue"])
    return Predictor(model, metadata, resize=ResizeShortestEdge(32, 64))


def color(*values):
    return np.broadcast_to(np.array(values, np.uint8), (16, 24, 3)).copy()


def test_a_predictor_classifies_images(predictor):
    assert predictor.tasks == ("classification",) and predictor.task == "classification"
    images = [color(255, 0, 0), color(0, 0, 255), color(0, 250, 10)[:, :9]]
    results = predictor(images)
    assert [result.top(1)[0].name for result in results] == ["red", "blue", "green"]
    assert [result.size for result in results] == [(16, 24), (16, 24), (16, 9)]
    logits = torch.tensor([5.0, 0.0, 0.0])
    np.testing.assert_array_equal(results[0].probabilities, logits.softmax(0))
    np.testing.assert_array_equal(predictor(images[0]).probabilities, results[0].probabilities)
    analysis = predictor.analyze(images[0])
    assert analysis.nbytes == images[0].nbytes + 12
    assert predictor.result(analysis.within(8)).size == (5, 8)


def test_a_predictor_of_classes_can_be_pickled(predictor):
    copy = pickle.loads(pickle.dumps(predictor))  # noqa: S301 - our own
    np.testing.assert_array_equal(copy(color(9, 8, 7)).probabilities, predictor(color(9, 8, 7)).probabilities)


def test_what_makes_no_sense_is_refused(predictor):
    with pytest.raises(ConfigError, match="classification has no confidence threshold"):
        predictor(color(0, 0, 0), confidence_threshold=0.5)
    with pytest.raises(ConfigError, match="task panoptic: the classes of colours allow classification"):
        predictor(color(0, 0, 0), task="panoptic")


def test_a_task_that_the_classes_allow_but_not_the_model_is_refused(predictor):
    both = Metadata(name="both", image_classes=["red", "green", "blue"], stuff_classes=["sky"])
    other = Predictor(predictor.model, both, resize=ResizeShortestEdge(32, 64))
    assert other.tasks == ("classification",)
    with pytest.raises(ConfigError, match="task 'semantic': the model of this config performs classification only"):
        other(color(0, 0, 0), task="semantic")
