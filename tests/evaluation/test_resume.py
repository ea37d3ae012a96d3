"""What survives of an interrupted evaluation."""

import json
import shutil

import numpy as np
import pytest

import mask2former.data.datasets  # noqa: F401 - registers the data sets
from mask2former.evaluation import build_evaluator

from .predictions import predict
from .test_build import config

NAME = "cityscapes_fine_panoptic_val"
FINGERPRINT = {"weights": "a", "config": ("b", 1)}


@pytest.fixture
def images(trees, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(trees))
    return list(zip(*predict(NAME, np.random.default_rng(0)), strict=True))


@pytest.fixture
def interrupted(images, tmp_path):
    """The folder of an evaluation that saw three of four images."""
    evaluator = start(tmp_path, resume=False)
    see(evaluator, images[:3])
    assert len(names(tmp_path)) == 3
    return tmp_path


def start(folder, *, resume=True, **changes):
    evaluator = build_evaluator(config("PANOPTIC", "INSTANCE", "SEMANTIC"), NAME, folder)
    evaluator.start({**FINGERPRINT, **changes}, resume=resume)
    return evaluator


def see(evaluator, images):
    for image, output in images:
        evaluator.process([image], [output])
    return evaluator


def left(evaluator, images):
    return [pair for pair in images if not evaluator.is_finished(pair[0])]


def names(folder):
    return sorted(path.name for path in (folder / "semantic_predictions").glob("*"))


def test_the_missing_images_complete_an_evaluation(interrupted, images, tmp_path_factory):
    evaluator = start(interrupted)
    missing = left(evaluator, images)
    assert missing == images[3:]
    resumed = see(evaluator, missing).evaluate()
    whole = see(start(tmp_path_factory.mktemp("whole"), resume=False), images).evaluate()
    assert json.dumps(resumed) == json.dumps(whole)
    # And when it is complete, nothing is left.
    again = start(interrupted)
    assert left(again, images) == []
    assert json.dumps(again.evaluate()) == json.dumps(whole)


@pytest.mark.parametrize("cut", [1, 40])
def test_a_record_that_was_cut_off_is_made_again(interrupted, images, cut, tmp_path_factory):
    records = interrupted / "records" / "rank0.jsonl"
    records.write_bytes(records.read_bytes()[:-cut])
    evaluator = start(interrupted)
    assert left(evaluator, images) == images[2:]
    resumed = see(evaluator, images[2:]).evaluate()
    whole = see(start(tmp_path_factory.mktemp("whole"), resume=False), images).evaluate()
    assert json.dumps(resumed) == json.dumps(whole)
    assert left(start(interrupted), images) == []


def test_a_damaged_record_is_made_again(interrupted, images):
    records = interrupted / "records" / "rank0.jsonl"
    lines = records.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b"0", b"1")  # after the header and one image
    records.write_bytes(b"".join(lines))
    assert left(start(interrupted), images) == [images[1], images[3]]


def test_a_record_whose_files_are_gone_or_cut_off_is_made_again(interrupted, images):
    gone, cut_off = names(interrupted)[:2]
    (interrupted / "semantic_predictions" / gone).unlink()
    (interrupted / "semantic_predictions" / cut_off).write_bytes(b"")
    assert len(left(start(interrupted), images)) == 3


def test_records_of_more_processes_than_there_are_now_count(interrupted, images):
    """As after an evaluation in several processes, and with a record in two files."""
    folder = interrupted / "records"
    header, *lines = (folder / "rank0.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "rank0.jsonl").write_bytes(header + lines[0])
    (folder / "rank5.jsonl").write_bytes(header + lines[1] + lines[2])
    (folder / "gathered.jsonl").write_bytes(header + lines[2] + lines[0])
    evaluator = start(interrupted)
    assert left(evaluator, images) == images[3:]
    assert see(evaluator, images[3:]).evaluate()["panoptic_seg"]["PQ"] > 10


@pytest.mark.parametrize("changes", [{"weights": "other"}, {"config": ("b", 2)}, {"data set": "other"}])
def test_predictions_of_another_checkpoint_config_or_data_set_are_forgotten(interrupted, images, changes, caplog):
    with caplog.at_level("WARNING"):
        evaluator = start(interrupted, **changes)
    assert f"another evaluation ({list(changes)})" in caplog.text
    assert left(evaluator, images) == images
    assert names(interrupted) == []


def test_without_resumption_everything_is_forgotten(interrupted, images):
    (interrupted / "notes.txt").write_text("mine")
    evaluator = start(interrupted, resume=False)
    assert left(evaluator, images) == images
    assert names(interrupted) == []
    assert (interrupted / "notes.txt").exists()


def test_what_was_not_measured_before_is_not_believed(interrupted, images):
    evaluator = build_evaluator(config("PANOPTIC", "SEMANTIC"), NAME, interrupted)
    evaluator.start(FINGERPRINT, resume=True)
    assert left(evaluator, images) == images


def test_resuming_nothing_clears_results_of_unknown_origin(interrupted, images):
    shutil.rmtree(interrupted / "records")
    assert left(start(interrupted), images) == images
    assert names(interrupted) == []
