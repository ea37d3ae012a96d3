"""Overlays of results that are given, not predicted."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mask2former.data.classes import ClassTable
from mask2former.prediction.results import InstancePrediction, PanopticPrediction, SemanticPrediction
from mask2former.web import Limits, Workbench
from mask2former.web.workbench import Choice, Upload

PHOTO = np.full((100, 120, 3), 90, np.uint8)


@pytest.fixture
def show(tmp_path):
    """The overlay of a result."""
    path = tmp_path / "my photo.png"
    Image.fromarray(PHOTO).save(path)

    def show(result, opacity=0.5):
        analysis = SimpleNamespace(image=PHOTO, nbytes=0)
        analysis.within = lambda side: analysis
        predictor = SimpleNamespace(
            analyze=lambda image: analysis, result=lambda analysis, **choice: result, value_range=None
        )
        bench = Workbench(predictor, Limits(), tmp_path / "files")
        return bench.show("me", Upload(str(path), "my photo.png"), Choice(result.task, 0.0, 0.0), opacity)

    return show


def test_a_result_names_its_segments_in_picture_and_table(show):
    ids = np.zeros((100, 120), np.int32)
    ids[:, :60], ids[:50, 60:], ids[90:, 90:] = 1, 2, 4
    info = [
        {"id": 1, "category_id": 0, "isthing": True, "score": 0.912},
        {"id": 2, "category_id": 1, "isthing": False, "score": 0.8},
        {"id": 3, "category_id": 2, "isthing": False, "score": 0.7},  # without a pixel
        {"id": 4, "category_id": 0, "isthing": True, "score": 0.65},
    ]
    classes = ClassTable(("cat", "sky", "grass"))
    shown = show(PanopticPrediction(classes=classes, image=PHOTO, ids=ids, segments_info=info))
    assert [name for _, name in shown.masks] == [name for name, *_ in shown.rows] == ["cat", "sky", "cat #2"]
    for (mask, _), segment_id in zip(shown.masks, (1, 2, 4), strict=True):
        np.testing.assert_array_equal(mask, 0.5 * (ids == segment_id))
    assert shown.rows[0] == ("cat", "91.2", "50.0", "0, 0, 60, 100")
    assert shown.rows[2] == ("cat #2", "65.0", "2.5", "90, 90, 30, 10")
    assert shown.caption.startswith("3 segments in my photo.png (120 × 100 pixels). ")
    assert "lower it" not in shown.caption
    np.testing.assert_array_equal(shown.photo, PHOTO)


def test_without_segments_the_caption_says_what_to_do(show):
    empty = PanopticPrediction(classes=ClassTable(), image=PHOTO, ids=np.zeros((100, 120), np.int32), segments_info=[])
    shown = show(empty)
    assert "0 segments" in shown.caption and "lower it" in shown.caption and shown.masks == shown.rows == []


def test_the_best_instance_is_listed_first_and_stays_visible_under_others(show):
    masks = np.zeros((2, 100, 120), bool)
    masks[0, :, :60], masks[1] = True, True
    result = InstancePrediction(
        classes=ClassTable(["cat", "dog"]),
        image=PHOTO,
        masks=masks,
        category_ids=np.array([1, 0]),
        scores=np.array([0.9, 0.6], np.float32),
    )
    (best, best_name), (other, other_name) = show(result, opacity=0.6).masks
    assert (best_name, other_name) == ("dog", "cat")
    assert best[0, 0] == pytest.approx(0.6) and best[0, 119] == 0
    assert 0 < other[0, 0] < 0.5 * other[0, 119] and other[0, 119] == pytest.approx(0.6)


def test_semantic_results_have_no_scores(show):
    labels = np.zeros((100, 120), np.int32)
    shown = show(SemanticPrediction(classes=ClassTable(["sky"]), image=PHOTO, labels=labels))
    assert shown.rows == [("sky", "", "100.0", "0, 0, 120, 100")] and "1 segment in" in shown.caption
