import numpy as np
import pytest
import torch

from mask2former import ConfigError
from mask2former.prediction.predictor import Predictor
from tests.conftest import config_path
from tests.tiny import TINY

IMAGE = np.random.RandomState(0).randint(0, 256, (60, 90, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def predictor():
    torch.manual_seed(0)
    return Predictor.from_config(config_path("coco-panoptic"), opts=TINY)


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_two_stages_give_what_one_gives(predictor, task):
    threshold = None if task == "semantic" else 0.01
    whole = predictor(IMAGE, task=task, confidence_threshold=threshold)
    staged = predictor.result(predictor.analyze(IMAGE), task=task, confidence_threshold=threshold)
    assert staged.segments() == whole.segments() != []
    np.testing.assert_array_equal(staged.draw(), whole.draw())


def test_results_of_an_analysis_do_not_run_the_network(predictor, monkeypatch):
    analysis = predictor.analyze(IMAGE)
    monkeypatch.setattr(predictor.model.backbone, "forward", None)
    counts = [
        len(predictor.result(analysis, task="instance", confidence_threshold=t).segments()) for t in (0.0, 0.012, 1.0)
    ]
    assert counts[0] > counts[1] > counts[2] == 0
    assert predictor.result(analysis, task="semantic").task == "semantic"


def test_the_overlap_threshold_is_that_of_the_call_alone(predictor):
    analysis = predictor.analyze(IMAGE)
    default = predictor.result(analysis, confidence_threshold=0.0).segments()
    assert predictor.default_overlap == 0.0
    strict = predictor.result(analysis, confidence_threshold=0.0, overlap_threshold=0.9).segments()
    assert len(strict) < len(default)
    assert predictor.result(analysis, confidence_threshold=0.0).segments() == default
    assert predictor.default_overlap == 0.0


def test_results_within_a_side_are_those_of_a_smaller_image(predictor):
    analysis = predictor.analyze(IMAGE)
    smaller = predictor.result(analysis.within(45), task="semantic")
    assert smaller.size == (30, 45) and smaller.image.shape == (30, 45, 3)
    whole = predictor.result(analysis, task="semantic").labels
    assert (whole[1::2, 1::2] == smaller.labels).mean() > 0.9
    assert analysis.within(90) is analysis
    assert smaller.image.nbytes < analysis.nbytes


def test_wrong_tasks_and_thresholds_are_refused(predictor):
    analysis = predictor.analyze(IMAGE)
    with pytest.raises(ConfigError, match=r"1\.5"):
        predictor.result(analysis, confidence_threshold=1.5)
    with pytest.raises(ConfigError, match="no confidence threshold"):
        predictor.result(analysis, task="semantic", confidence_threshold=0.5)
