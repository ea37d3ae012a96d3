import json

import numpy as np
import pytest
from PIL import Image

from mask2former.web import Limits, PhotoError, Workbench
from mask2former.web.workbench import Choice, Upload

ALL = Choice("panoptic", confidence=0.0, overlap=0.0)
OTHERS = [("panoptic", 1.0), ("instance", 0.0), ("semantic", 0.0)]


@pytest.fixture
def bench(predictor, tmp_path):
    return Workbench(predictor, Limits(), tmp_path / "files")


@pytest.fixture
def network(predictor, monkeypatch):
    """The images that the network saw."""
    seen = []
    analyze = predictor.analyze
    monkeypatch.setattr(predictor, "analyze", lambda image: seen.append(image.shape) or analyze(image))
    return seen


@pytest.fixture
def upload(photo):
    return lambda name="photo.png", **options: Upload(str(photo(name, **options)), name)


def test_the_network_sees_a_photograph_once_whatever_is_chosen(bench, network, upload):
    mine = upload()
    choices = [ALL, *(Choice(task, confidence, 0.0) for task, confidence in OTHERS)]
    results = {str(bench.show("me", mine, choice, 0.5).rows) for choice in choices}
    bench.picture("me", mine, ALL), bench.data("me", mine, ALL)
    assert len(results) == 4 and network == [(48, 80, 3)]
    bench.show("me", upload("other.png", seed=1), ALL, 0.5)
    assert len(network) == 2


def test_files_are_what_the_demo_writes(bench, predictor, upload):
    mine = upload("my photo.v2.png")
    whole = predictor(mine.path, confidence_threshold=0.0)
    picture, data = bench.picture("me", mine, ALL), bench.data("me", mine, ALL)
    assert (picture.name, data.name) == ("my photo.v2_panoptic.png", "my photo.v2_panoptic.json")
    np.testing.assert_array_equal(np.array(Image.open(picture)), whole.draw())
    assert json.loads(data.read_text()) == whole.to_json("my photo.v2.png") and whole.segments()


def test_a_large_photograph_is_shown_smaller_and_saved_whole(predictor, upload, tmp_path):
    bench = Workbench(predictor, Limits(), tmp_path / "files", shown_side=40)
    mine = upload()
    shown = bench.show("me", mine, ALL, 0.5)
    assert shown.photo.shape == bench.preview(mine).shape == (24, 40, 3)
    assert {mask.shape for mask, _ in shown.masks} == {(24, 40)}
    assert "(80 × 48 pixels)" in shown.caption
    assert max(int(box.split(", ")[2]) for *_, box in shown.rows) > 40, "boxes are those of the photograph"
    assert json.loads(bench.data("me", mine, ALL).read_text())["width"] == 80


def test_only_chosen_classes_are_shown_and_saved(bench, upload):
    mine = upload()
    found = {s["category_name"] for s in json.loads(bench.data("me", mine, ALL).read_text())["segments_info"]}
    assert len(found) > 1
    name = min(found)
    only = Choice("panoptic", 0.0, 0.0, classes=(name,))
    segments = json.loads(bench.data("me", mine, only).read_text())["segments_info"]
    assert {segment["category_name"] for segment in segments} == {name}
    assert len(bench.show("me", mine, only, 0.5).masks) == len(segments)
    nothing = bench.show("me", mine, Choice("panoptic", 0.0, 0.0, classes=("",)), 0.5)
    assert "None of the chosen classes" in nothing.caption and not nothing.masks and not nothing.rows
    assert "lower it" in bench.show("me", mine, Choice("panoptic", 1.0, 0.0), 0.5).caption


def test_visitors_do_not_get_each_others_results(bench, network, upload):
    mine, yours = upload("a/same.png"), upload("b/same.png", seed=1)
    rows = {visitor: bench.show(visitor, photo, ALL, 0.5).rows for visitor, photo in [("me", mine), ("you", yours)]}
    assert rows["me"] != rows["you"] and bench.show("me", mine, ALL, 0.5).rows == rows["me"] and len(network) == 2
    my_file, your_file = bench.data("me", mine, ALL), bench.data("you", yours, ALL)
    assert my_file != your_file
    bench.forget("you")
    assert my_file.exists() and not your_file.exists()
    bench.show("me", mine, ALL, 0.5)
    assert len(network) == 2
    bench.show("you", yours, ALL, 0.5)
    assert len(network) == 3


def test_no_visitor_writes_outside_the_folder_of_files(bench, upload, tmp_path):
    file = bench.data("../../me", upload(), ALL)
    assert file.is_relative_to(tmp_path / "files") and ".." not in file.parts


def test_the_next_file_takes_the_place_of_the_last(bench, upload):
    mine = upload()
    first = bench.picture("me", mine, ALL)
    second = bench.picture("me", mine, Choice("instance", 0.5, 0.0))
    assert second.exists() and not first.exists()


def test_memory_is_bounded_and_who_was_away_longest_is_forgotten(predictor, network, upload, tmp_path):
    mine, yours = upload("mine.png"), upload("yours.png", seed=1)
    size = predictor.analyze(np.zeros((48, 80, 3), np.uint8)).nbytes
    network.clear()
    bench = Workbench(predictor, Limits(), tmp_path / "files", max_bytes=2 * size)
    for visitor, photo in [("me", mine), ("you", yours), ("me", mine), ("they", mine), ("me", mine)]:
        bench.show(visitor, photo, ALL, 0.5)
    assert len(network) == 3
    bench.show("you", yours, ALL, 0.5)
    assert len(network) == 4, "forgotten, and made again"
    tight = Workbench(predictor, Limits(), tmp_path / "files", max_bytes=1)
    network.clear()
    tight.show("me", mine, ALL, 0.5), tight.show("me", mine, Choice("semantic", 0.0, 0.0), 0.5)
    assert len(network) == 1, "the last photograph is always remembered"


def test_photographs_that_are_not_accepted_never_reach_the_network(bench, network, tmp_path):
    (tmp_path / "x.png").write_text("text")
    bad = Upload(str(tmp_path / "x.png"), "x.png")
    for call in (
        lambda: bench.preview(bad),
        lambda: bench.show("me", bad, ALL, 0.5),
        lambda: bench.data("me", bad, ALL),
    ):
        with pytest.raises(PhotoError, match=r"x\.png"):
            call()
    assert network == []


def test_a_photograph_that_the_network_fails_for_is_named_and_others_are_shown(bench, upload, monkeypatch):
    mine, yours = upload("mine.png"), upload("yours.png", seed=1)

    def fail(*_):
        raise IndexError("in /a/path")

    with monkeypatch.context() as patched:
        patched.setattr(bench.predictor.model, "predict", fail)
        with pytest.raises(
            PhotoError, match=r"^mine\.png can't be predicted \(IndexError\)\. Try another photograph\.$"
        ):
            bench.show("me", mine, ALL, 0.5)
    assert bench.show("me", yours, ALL, 0.5).rows
    with monkeypatch.context() as patched:
        patched.setattr("mask2former.prediction.results.Prediction.draw", fail)
        with pytest.raises(PhotoError, match=r"yours\.png"):
            bench.picture("me", yours, ALL)
