"""Predictors and results in other processes: pickled, copied and forked."""

import copy
import multiprocessing
import os
import pickle
import time

import numpy as np
import pytest
import torch

from mask2former.prediction import Predictor
from tests.conftest import config_path
from tests.tiny import TINY

IMAGE = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
SECONDS = 60


@pytest.fixture(scope="module")
def predictor():
    predict = Predictor.from_config(config_path("coco-panoptic"), opts=TINY)
    predict(IMAGE)
    return predict


def segments(predict, task="panoptic"):
    return predict(IMAGE, task=task, confidence_threshold=None if task == "semantic" else 0.0).segments()


def pickled(value):
    return pickle.loads(pickle.dumps(value))  # noqa: S301 - our own


@pytest.mark.parametrize("again", [copy.deepcopy, copy.copy, pickled])
@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_copies_predict_the_same(predictor, again, task):
    expected = segments(predictor, task)
    assert segments(again(predictor), task) == expected
    result = predictor(IMAGE, task=task, confidence_threshold=None if task == "semantic" else 0.0)
    assert again(result).segments() == expected and np.array_equal(again(result).image, IMAGE)
    analysis = again(predictor.analyze(IMAGE))
    assert predictor.result(analysis, task=task, confidence_threshold=None if task == "semantic" else 0.0).segments()
    with torch.no_grad():
        inputs = [{"image": torch.from_numpy(IMAGE.transpose(2, 0, 1).copy())}]
        ids = [model(inputs)[0]["panoptic_seg"][0] for model in (predictor.model, again(predictor.model))]
    assert torch.equal(*ids)


class Predictions(torch.utils.data.Dataset):
    def __init__(self, predict):
        self.predict = predict

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return len(segments(self.predict))


@pytest.fixture
def used_threads(predictor):
    """Have the pools of PyTorch, OpenCV and the attention kernel run in this process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    large = np.random.default_rng(0).integers(0, 256, (600, 900, 3), dtype=np.uint8)
    predictor(large).draw()
    torch.relu(torch.randn(1000, 1000) @ torch.randn(1000, 1000))
    yield
    torch.set_num_threads(threads)


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")


def work(predict):
    for task in ("panoptic", "instance", "semantic"):
        predict(IMAGE, task=task).draw()
    torch.relu(torch.randn(1000, 1000) @ torch.randn(1000, 1000))


@needs_fork
def test_a_forked_process_predicts(predictor, used_threads):
    context = multiprocessing.get_context("fork")
    process = context.Process(target=work, args=(predictor,))
    process.start()
    process.join(SECONDS)
    try:
        assert process.exitcode == 0, "None: it waits for threads that only its parent has"
    finally:
        process.kill()


@needs_fork
def test_a_child_of_os_fork_predicts(predictor, used_threads):
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work(predictor)
            status = 0
        finally:
            os._exit(status)
    end = time.monotonic() + SECONDS
    while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < end:
        time.sleep(0.02)
    if not ended[0]:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert ended == (child, 0)
    assert torch.get_num_threads() == 2, "only the child computes in one thread"


@needs_fork
def test_workers_of_a_data_loader_predict(predictor, used_threads):
    loader = torch.utils.data.DataLoader(
        Predictions(predictor), batch_size=None, num_workers=1, timeout=SECONDS, multiprocessing_context="fork"
    )
    assert list(loader) == [len(segments(predictor))] * 2
